"""The draws: uniform, nested, and a function of (seed, epoch, example) alone."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btsft_nb import Kind, draws, example_key
from btsft_nb.objective.blur import UNITS, unit_ids

P, TAG, THINK, ANSWER = Kind
kind_lists = st.lists(st.sampled_from(Kind), max_size=40)
COMPLETION = [TAG] + [THINK] * 50 + [TAG] + [ANSWER] * 5


def distance_from_uniform(values: np.ndarray) -> float:
    """The Kolmogorov-Smirnov statistic."""
    values, n = np.sort(values), len(values)
    steps = np.arange(n + 1) / n
    return max(np.abs(values - steps[1:]).max(), np.abs(values - steps[:-1]).max())


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_draws_are_uniform(seed):
    """Along one long thought, and over the first token of many examples (1.95 / sqrt n is the .1 % bound)."""
    along = draws(np.full(20_000, THINK), example_key("a"), seed, 0)
    across = np.concatenate(
        [draws([THINK], example_key(f"row {i}"), seed, 3) for i in range(4_000)]
    )
    for values in (along, across):
        assert distance_from_uniform(values) < 1.95 / np.sqrt(len(values))
        assert values.min() >= 0 and values.max() < 1


def test_draws_of_neighbours_are_independent():
    """No serial correlation along a thought, and none between epochs."""
    u = draws(np.full(20_000, THINK), 1, 0, 0)
    v = draws(np.full(20_000, THINK), 1, 0, 1)
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.03 and abs(np.corrcoef(u, v)[0, 1]) < 0.03


@given(
    kinds=kind_lists,
    key=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 100),
    keep=st.integers(0, 50),
)
def test_only_thought_tokens_are_drawn(kinds, key, epoch, keep):
    """All else is infinite, so that no threshold blurs it; so are the first `keep_first` thought tokens."""
    u = draws(np.array(kinds, dtype=int), key, 42, epoch, keep)
    thought = [i for i, kind in enumerate(kinds) if kind == THINK]
    assert u.shape == (len(kinds),)
    assert set(np.flatnonzero(np.isfinite(u))) == set(thought[keep:])


@given(low=st.floats(0, 1), high=st.floats(0, 1), key=st.integers(0, 2**63 - 1))
def test_thresholds_nest(low, high, key):
    """What is blurred at the lower threshold is blurred at the higher one."""
    low, high = sorted((low, high))
    u = draws(COMPLETION, key, 0, 0)
    assert not ((u < low) & ~(u < high)).any()


def test_the_ends_of_the_dial():
    """0 blurs nothing; 1 blurs all thought tokens and nothing else."""
    u = draws(COMPLETION, 7, 0, 0)
    assert not (u < 0).any()
    assert ((u < 1) == (np.array(COMPLETION) == THINK)).all()


@given(prompt=st.integers(0, 300), padding=st.integers(0, 300), keep=st.integers(0, 6))
def test_prompt_and_padding_do_not_move_the_draws(prompt, padding, keep):
    """The same thought behind any prompt, in a batch of any width."""
    alone = draws(COMPLETION, 7, 0, 0, keep)
    padded = draws([P] * prompt + COMPLETION + [P] * padding, 7, 0, 0, keep)
    assert np.array_equal(padded[prompt : prompt + len(COMPLETION)], alone)


def test_keep_first_moves_no_other_draw():
    """The dial takes tokens out; the others stay as they were."""
    free, kept = draws(COMPLETION, 7, 0, 0), draws(COMPLETION, 7, 0, 0, keep_first=5)
    assert np.array_equal(kept[6:], free[6:]) and np.isinf(kept[:6]).all()


def test_global_random_state_is_neither_read_nor_moved():
    """Not numpy's."""
    np.random.seed(0)
    first, state = draws(COMPLETION, 7, 0, 0), np.random.get_state()[1].copy()
    np.random.seed(1)
    assert np.array_equal(draws(COMPLETION, 7, 0, 0), first)
    np.random.seed(0)
    assert np.array_equal(np.random.get_state()[1], state)


def test_seed_epoch_and_example_each_change_the_draw():
    """And no two of many combinations share one."""
    u = {
        tuple(draws([THINK] * 4, example_key(name), seed, epoch))
        for name in ("a", "b", "tiny/teacher/0", "tiny/teacher/1", "")
        for seed in (0, 1, 42)
        for epoch in range(5)
    }
    assert len(u) == 5 * 3 * 5


def test_large_seeds_are_not_rounded():
    """From 2**31 on the key is beyond the whole numbers that floats tell apart."""
    kinds = np.full(50, Kind.THINK)
    made = [
        draws(kinds, 1, seed, epoch) for seed in (2**31 - 1, 2**31, 2**32 - 1) for epoch in range(3)
    ]
    assert len({tuple(u) for u in made}) == 9


def test_keys_are_distinct_and_fit_a_tensor():
    """63 bits, so that int64 holds them."""
    keys = {example_key(f"tiny/pretrain/{i}") for i in range(20_000)}
    assert len(keys) == 20_000 and min(keys) >= 0 and max(keys) < 2**63


def test_draws_are_equal_in_every_process():
    """A fresh interpreter with another hash seed."""
    code = (
        "from btsft_nb.objective.blur import draws, example_key; "
        "print(draws([0, 2, 2, 3], example_key('é/1'), 42, 3).tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert printed == {str(draws([0, 2, 2, 3], example_key("é/1"), 42, 3).tolist())}


# ---------------------------------------------------------------------------------------------- units

TEXTS = [
    "<think>",
    "He",
    " said",
    ' "',
    "Hi",
    ".",
    '"',
    " ",
    "\n",
    "Then",
    " 3",
    ".",
    "14",
    "!",
    " done",
    "</think>",
    "4",
]
KINDS_OF_TEXTS = np.array([1] + [2] * 14 + [1, 3])


@pytest.mark.parametrize(
    ("unit", "wanted"),
    [
        ("token", list(range(14))),
        ("word", [0, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5]),
        ("sentence", [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2]),
        ("thought", [0] * 14),
    ],
)
def test_units_by_hand(unit, wanted):
    """A decimal point ends no sentence, a full stop within quotes does; white space goes with what follows it."""
    assert unit_ids(KINDS_OF_TEXTS, TEXTS, unit).tolist() == [-1, *wanted, -1, -1]


@pytest.mark.parametrize(
    ("unit", "texts", "wanted"),
    [
        ("sentence", ["一。", "二", "。三"], [0, 1, 2]),
        ("sentence", ["Line one", "\nLine two", "\n\n", "three"], [0, 1, 2, 2]),
        ("word", ["two w", "ords here"], [0, 1]),
        ("word", ["", "a", ""], [0, 0, 0]),
    ],
)
def test_other_scripts_and_odd_tokens(unit, texts, wanted):
    """A token that straddles two units belongs to the later; numbers are given without gaps."""
    assert unit_ids(np.full(len(texts), 2), texts, unit).tolist() == wanted


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 2, 2, 3]), st.text(alphabet="ab .!\n。", max_size=4)),
        max_size=30,
    ),
    st.sampled_from(UNITS),
)
def test_units_tile_thoughts(tokens, unit):
    """Numbers count up without gaps, over thought tokens only, and no unit reaches over the end of a thought."""
    kinds, texts = np.array([kind for kind, _ in tokens], dtype=int), [text for _, text in tokens]
    units = unit_ids(kinds, texts, unit)
    inside = units[kinds == Kind.THINK]
    assert (units[kinds != Kind.THINK] == -1).all()
    assert set(np.diff(inside, prepend=-1)) <= {0, 1} and (not len(inside) or inside[0] == 0)
    for i in range(1, len(kinds)):
        if kinds[i] == Kind.THINK and kinds[i - 1] != Kind.THINK:
            assert units[i] not in units[:i]
    coarser = unit_ids(kinds, texts, "thought")
    assert all(len(set(coarser[units == number])) == 1 for number in set(inside))


def test_tokens_of_a_unit_share_a_draw_and_tokens_draw_as_ever():
    """The draw of unit "token" is the draw without units; others give each number one draw."""
    units = unit_ids(KINDS_OF_TEXTS, TEXTS, "word")
    u = draws(KINDS_OF_TEXTS, 5, 0, 0, units=units)
    assert (
        all(len(set(u[units == number])) == 1 for number in range(6))
        and len(set(u[units >= 0])) == 6
    )
    alone = draws(KINDS_OF_TEXTS, 5, 0, 0, units=unit_ids(KINDS_OF_TEXTS, TEXTS, "token"))
    np.testing.assert_array_equal(alone, draws(KINDS_OF_TEXTS, 5, 0, 0))


def test_the_first_tokens_of_each_thought_are_kept():
    kinds = np.array([2, 2, 2, 1, 3, 2, 2, 2])
    assert np.isinf(draws(kinds, 1, 0, 0, keep_first=2)).tolist() == [
        True,
        True,
        False,
        True,
        True,
        True,
        True,
        False,
    ]
