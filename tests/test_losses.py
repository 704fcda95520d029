"""The objective against plain float64 formulas and brute force: values, gradients, and what must not change them."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from btsft_nb import Kind
from btsft_nb.objective import objective as losses
from btsft_nb.objective.format_reward import (
    Completion,
    argmax_format_reward,
    expected_format_reward,
    find_completions,
    format_log_prob,
)
from btsft_nb.objective.full_logits import HeadOutput, reference_head
from btsft_nb.objective.objective import TokenValues, token_losses

P, TAG, THINK, ANSWER = (int(kind) for kind in Kind)
OPEN, CLOSE = TAGS = (1, 2)
VOCABULARY = 7
KINDS = [
    [P, P, TAG, THINK, THINK, THINK, TAG, ANSWER, ANSWER, ANSWER],
    [
        P,
        P,
        P,
        THINK,
        THINK,
        TAG,
        ANSWER,
        ANSWER,
        P,
        P,
    ],  # the prompt supplies the open tag at position 2
    [P, ANSWER, ANSWER, ANSWER, P, P, P, P, P, P],  # untagged, and padding
    [P, P, TAG, THINK, TAG, ANSWER, P, TAG, THINK, ANSWER],  # two turns
]


def as_batch(ids, kinds) -> dict:
    """A batch in which every token of a completion weighs 1."""
    return {
        "input_ids": ids,
        "kinds": kinds,
        "weights": (kinds > 0).float(),
        "sequence": each_row(ids),
    }


def each_row(ids) -> torch.Tensor:
    """A padded batch: each row is a sequence."""
    return torch.arange(len(ids))[:, None].expand(ids.shape)


def predicted(output: HeadOutput, shape: torch.Size) -> TokenValues:
    """What the head says of the tokens at positions 1 to T - 1, as (B, T)."""
    rows = (shape[0], shape[1] - 1)
    return TokenValues(
        F.pad(output.log_probs.view(rows), (1, 0)),
        F.pad(output.log_tags.view(3, *rows), (1, 0), value=math.log(1 / 3)),
        F.pad(output.argmax.view(rows), (1, 0), value=-1),
        None if output.kl is None else F.pad(output.kl.view(rows), (1, 0)),
    )


def token_values(
    logits: torch.Tensor,
    input_ids: torch.Tensor,
    tag_ids: tuple[int, int],
    ref_logits: torch.Tensor | None = None,
) -> TokenValues:
    """The plain formulas over full logits (B, T, V): logits at t - 1 predict token t."""
    refs = None if ref_logits is None else ref_logits[:, :-1].flatten(0, 1)
    labels = input_ids[:, 1:].flatten()
    output = reference_head(logits[:, :-1].flatten(0, 1), labels, tag_ids, ref_logits=refs)
    return predicted(output, input_ids.shape)


def token_log_probs(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """(B, T), 0 at position 0."""
    return token_values(logits, input_ids, TAGS).log_probs


def objective(logits, batch, *, tag_ids=TAGS, ref_logits=None, **options):
    """The objective over full logits."""
    values = token_values(logits, batch["input_ids"], tag_ids, ref_logits)
    return losses.objective(
        values, batch, find_completions(batch, tag_ids), tag_ids=tag_ids, **options
    )


def random_batch(seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Float64 logits (4, 10, 7), and a batch with weights of every sort and some blurred thought tokens."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.tensor(KINDS)
    ids = torch.randint(3, VOCABULARY, kinds.shape, generator=generator)
    for row, at, tag in [
        (0, 2, OPEN),
        (0, 6, CLOSE),
        (1, 2, OPEN),
        (1, 5, CLOSE),
        (3, 2, OPEN),
        (3, 4, CLOSE),
        (3, 7, OPEN),
    ]:
        ids[row, at] = tag
    weights = torch.tensor([1.0, 0.5, -1.0, 0.0, 2.25])[
        torch.randint(5, kinds.shape, generator=generator)
    ]
    weights[kinds == P] = 0
    blurred = (
        (kinds == THINK) & (weights != 0) & (torch.rand(kinds.shape, generator=generator) < 0.5)
    )
    logits = 2 * torch.randn(*kinds.shape, VOCABULARY, generator=generator, dtype=torch.float64)
    return logits, {
        "input_ids": ids,
        "kinds": kinds,
        "weights": weights,
        "blurred": blurred,
        "sequence": each_row(ids),
    }


def counts(batch: dict) -> dict[str, float]:
    return {
        "n_tokens": float((batch["weights"] != 0).sum()),
        "n_sequences": float(len(batch["weights"])),
    }


def spelled_out(
    logits, batch, n_tokens, n_sequences, beta=0.0, anchor=0.0, ref_logits=None
) -> torch.Tensor:
    """The formula of the objective, one term at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for row, kinds in enumerate(batch["kinds"].tolist()):
        reward = torch.ones((), dtype=torch.float64)
        opened, start = False, None
        for t in range(1, len(kinds)):
            p = logits[row, t - 1].softmax(-1)
            if batch["blurred"][row, t]:
                if anchor:
                    q = ref_logits[row, t - 1].softmax(-1)
                    total = total + anchor / n_tokens * sum(
                        a * (a.log() - b.log()) for a, b in zip(q, p, strict=True)
                    )
            else:
                weight = float(batch["weights"][row, t])
                total = total - weight / n_tokens * p[batch["input_ids"][row, t]].log()
            if kinds[t] != P:
                start = t if start is None else start
                if t + 1 == len(kinds) or kinds[t + 1] == P:
                    opened = batch["input_ids"][row, start - 1].item() == OPEN
                    reward = reward * format_probability(
                        logits[row, start - 1 : t].softmax(-1), opened
                    )
                    start = None
        total = total + beta / n_sequences * (1 - reward)
    return total


def format_probability(p: torch.Tensor, opened: bool) -> torch.Tensor:
    """(L, V) -> the probability of one open tag first (or given) and one close tag after it, summed over where."""
    other = 1 - p[:, OPEN] - p[:, CLOSE]
    total = torch.zeros((), dtype=torch.float64)
    for j in range(0 if opened else 1, len(p)):
        term = torch.ones((), dtype=torch.float64) if opened else p[0, OPEN]
        for t in range(0 if opened else 1, len(p)):
            term = term * (p[t, CLOSE] if t == j else other[t])
        total = total + term
    return total


# ---------------------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("beta", "anchor"), [(0, 0), (0.5, 0), (0, 1.5), (2.0, 0.7)])
def test_objective_and_gradient_are_those_of_the_formula(seed, beta, anchor):
    """Fractional, negative and zero weights, blur, anchor and format term, in value and gradient."""
    logits, batch = random_batch(seed)
    ref_logits = torch.randn(
        logits.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64
    )
    mine, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    options = dict(beta=beta, anchor=anchor, ref_logits=ref_logits, **counts(batch))
    loss, _ = objective(mine, batch, tag_ids=TAGS, **options)
    wanted = spelled_out(plain, batch, **options)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-4, atol=1e-6)
    assert plain.grad.abs().max() > 0.01


def test_parts_and_sums_are_what_they_are_called():
    """The parts add up to the loss; nll and tokens by kind are over the supervised tokens, blurred or not."""
    logits, batch = random_batch(1)
    ref_logits = torch.randn(
        logits.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64
    )
    loss, sums = objective(
        logits, batch, tag_ids=TAGS, beta=0.5, anchor=1.0, ref_logits=ref_logits, **counts(batch)
    )  # fmt: skip
    torch.testing.assert_close(loss, sums["loss_nll"] + sums["loss_anchor"] + sums["loss_format"])
    log_probs = token_log_probs(logits, batch["input_ids"])
    for kind, name in ((TAG, "tag"), (THINK, "think"), (ANSWER, "answer")):
        chosen = (batch["kinds"] == kind) & (batch["weights"] != 0)
        assert sums[f"tokens_{name}"] == chosen.sum()
        torch.testing.assert_close(sums[f"nll_{name}"], -log_probs[chosen].sum())
    assert (
        sums["blurred"] == batch["blurred"].sum()
        and sums["supervised"] == counts(batch)["n_tokens"]
    )
    assert sums["sequences"] == 4 and 0 < sums["expected_reward"] < 4
    assert not any(value.requires_grad for value in sums.values())


@pytest.mark.parametrize("seed", range(3))
def test_micro_batches_add_up(seed):
    """(4 x 1) = (2 x 2) = (1 x 4) with N and B of the whole window, in loss and gradient."""
    logits, batch = random_batch(seed)
    ref_logits = logits.flip(1)
    results = []
    for size in (4, 2, 1):
        z = logits.clone().requires_grad_()
        total = 0.0
        for at in range(0, 4, size):
            part = {name: value[at : at + size] for name, value in batch.items()}
            rows = slice(at, at + size)
            loss, _ = objective(
                z[rows], part, tag_ids=TAGS, beta=0.5, anchor=1.0, ref_logits=ref_logits[rows], **counts(batch)
            )  # fmt: skip
            loss.backward()
            total += loss.item()
        results.append((torch.tensor(total), z.grad))
    for total, gradient in results[1:]:
        torch.testing.assert_close(total, results[0][0], rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-5, atol=1e-9)


def test_a_blur_changes_no_other_tokens_gradient():
    """Bit for bit; the blurred tokens themselves get none."""
    logits, batch = random_batch(0)
    gradients = []
    for blurred in (batch["blurred"], torch.zeros_like(batch["blurred"])):
        z = logits.clone().requires_grad_()
        objective(z, batch | {"blurred": blurred}, tag_ids=TAGS, **counts(batch))[0].backward()
        gradients.append(z.grad)
    predicts_blurred = batch["blurred"].roll(-1, 1)  # logits at t - 1 predict the token at t
    assert batch["blurred"].any()
    assert torch.equal(gradients[0][~predicts_blurred], gradients[1][~predicts_blurred])
    assert not gradients[0][predicts_blurred].any() and gradients[1][predicts_blurred].any(-1).all()


def test_padding_and_prompt_get_no_gradient():
    """With all terms on, logits that predict neither are left alone."""
    logits, batch = random_batch(0)
    z = logits.clone().requires_grad_()
    objective(
        z, batch, tag_ids=TAGS, beta=1.0, anchor=1.0, ref_logits=logits.flip(1), **counts(batch)
    )[0].backward()
    predicts_prompt = (batch["kinds"] == P).roll(-1, 1)
    predicts_prompt[:, -1] = True  # the last logits predict nothing
    assert not z.grad[predicts_prompt].any() and z.grad[~predicts_prompt].any(-1).all()


@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_nothing_supervised_is_a_connected_zero(anchor):
    """Not NaN, and a gradient of zeros for the logits: DDP would wait for it."""
    logits, batch = random_batch(0)
    nothing = {
        "kinds": torch.zeros_like(batch["kinds"]),
        "weights": torch.zeros_like(batch["weights"]),
    }
    batch = batch | nothing | {"blurred": torch.zeros_like(batch["blurred"])}
    z = logits.clone().requires_grad_()
    loss, _ = objective(
        z,
        batch,
        tag_ids=TAGS,
        n_tokens=1,
        n_sequences=4,
        beta=1.0,
        anchor=anchor,
        ref_logits=logits,
    )
    loss.backward()
    assert loss.item() == 0 and z.grad is not None and not z.grad.any()


def test_logits_of_a_negative_weight_are_pushed_down():
    """A descent step on a token of weight -1 makes it less likely."""
    logits, batch = random_batch(0)
    batch["weights"] = -(batch["kinds"] == ANSWER).float()
    batch["blurred"] = torch.zeros_like(batch["blurred"])
    z = logits.clone().requires_grad_()
    objective(z, batch, tag_ids=TAGS, **counts(batch))[0].backward()
    before, after = (token_log_probs(x, batch["input_ids"]) for x in (logits, logits - z.grad))
    assert (after < before)[batch["weights"] != 0].all()


# ---------------------------------------------------------------------------------------------- its pieces


def test_token_log_probs_are_those_of_each_token_after_its_predecessors():
    """Position 0 has no prediction."""
    logits, batch = random_batch(3)
    wanted = logits.log_softmax(-1)[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    found = token_log_probs(logits, batch["input_ids"])
    torch.testing.assert_close(found[:, 1:].double(), wanted, rtol=1e-5, atol=1e-6)
    assert not found[:, 0].any()


def test_kl_is_zero_for_equals_and_positive_otherwise():
    """And directed: the reference is the first argument."""
    ref = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    new = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([0, 0])
    assert not reference_head(ref, labels, TAGS, ref_logits=ref).kl.any()
    kl = reference_head(new, labels, TAGS, ref_logits=ref).kl
    q, p = ref[0].softmax(-1), new[0].softmax(-1)
    torch.testing.assert_close(kl[0], (q * (q / p).log()).sum())
    assert kl[1] == 0
    only = reference_head(
        new, labels, TAGS, ref_logits=ref[:1], kl_rows=torch.tensor([True, False])
    )
    assert torch.equal(only.kl, kl[:1])


def test_a_token_that_is_ruled_out_adds_nothing_to_the_kl():
    """In both, as padded vocabularies have it, -inf less -inf is no NaN."""
    ref = torch.tensor([[2.0, 0.0, -torch.inf, 1.0]])
    new = torch.tensor([[0.0, 1.0, -torch.inf, 0.5]], requires_grad=True)
    output = reference_head(new, torch.tensor([0]), (1, 3), ref_logits=ref)
    left = [0, 1, 3]
    q, p = ref[0, left].softmax(-1), new[0, left].softmax(-1)
    torch.testing.assert_close(output.kl[0], (q * (q / p).log()).sum())
    output.kl.sum().backward()
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("reduced", [torch.float32, torch.bfloat16, torch.float16])
def test_tag_log_probs_sum_to_one(reduced):
    """In float64, from logits of any precision."""
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(0)).to(reduced)
    log_tags = reference_head(logits, torch.zeros(5, dtype=torch.int64), TAGS).log_tags
    assert log_tags.shape == (3, 5) and log_tags.dtype == torch.float64
    torch.testing.assert_close(log_tags.exp().sum(0), torch.ones(5, dtype=torch.float64))
    wanted = logits.double().log_softmax(-1)[:, list(TAGS)].T
    torch.testing.assert_close(log_tags[:2], wanted, rtol=1e-5, atol=1e-6)


def test_completions_are_found_with_what_the_prompt_opened():
    """Several in a row, up to the edge, after a prefilled tag; a closed thought in the prompt opens nothing."""
    _, batch = random_batch(0)
    found = find_completions(batch, TAGS)
    assert found == [
        Completion(0, 2, 10, 0, False),
        Completion(1, 3, 8, 1, True),
        Completion(2, 1, 4, 2, False),
        Completion(3, 2, 6, 3, False),
        Completion(3, 7, 10, 3, False),
    ]
    ids = torch.tensor([[OPEN, 3, CLOSE, 3, 3], [5, OPEN, 4, 3, 3]])
    kinds = torch.tensor([[P, P, P, P, ANSWER], [P, P, P, THINK, THINK]])
    assert find_completions(as_batch(ids, kinds), TAGS) == [
        Completion(0, 4, 5, 0, False),
        Completion(1, 3, 5, 1, True),
    ]


def test_a_completion_at_position_0_starts_at_1():
    """Nothing predicts the first token."""
    ids, kinds = torch.tensor([[OPEN, 3, CLOSE, 4]]), torch.tensor([[TAG, THINK, TAG, ANSWER]])
    assert [(c.start, c.end) for c in find_completions(as_batch(ids, kinds), TAGS)] == [(1, 4)]


def test_a_completion_starts_at_its_tag_where_one_token_stands_before_it():
    """The white space of some templates. Two tokens are text before the thought; a tag further on starts nothing."""
    ids = torch.tensor(
        [[5, 3, OPEN, 4, CLOSE, 3], [5, 3, 3, OPEN, 4, CLOSE], [5, 3, CLOSE, 4, OPEN, 3]]
    )
    kinds = torch.tensor(
        [
            [P, ANSWER, TAG, THINK, TAG, ANSWER],
            [P, ANSWER, ANSWER, TAG, THINK, TAG],
            [P, *[ANSWER] * 5],
        ]
    )
    assert [(c.start, c.end) for c in find_completions(as_batch(ids, kinds), TAGS)] == [
        (2, 6),
        (1, 6),
        (1, 6),
    ]


def test_a_turn_after_a_turn_that_was_never_closed_counts_as_opened_only_by_its_prompt():
    """An unclosed thought of an earlier turn is no prefilled tag."""
    ids = torch.tensor([[3, OPEN, 4, 5, 3, 6, 6]])
    kinds = torch.tensor([[P, TAG, THINK, ANSWER, P, ANSWER, ANSWER]])
    assert [c.opened for c in find_completions(as_batch(ids, kinds), TAGS)] == [False, False]


# ---------------------------------------------------------------------------------------------- the format reward


def fits(outcomes: tuple[int, ...], opened: bool) -> bool:
    """The strict grammar over 0 (open), 1 (close) and 2 (anything else)."""
    outcomes = (0, *outcomes) if opened else outcomes
    return outcomes.count(0) == 1 and outcomes[0] == 0 and outcomes.count(1) == 1


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("length", range(1, 8))
def test_reward_is_the_sum_over_all_sequences_that_fit(length, opened):
    """Brute force over the 3^L outcomes."""
    log_tags = torch.randn(
        3, 2, 8, generator=torch.Generator().manual_seed(length), dtype=torch.float64
    ).log_softmax(0)
    for c in range(2):
        found = format_log_prob(log_tags[:, c, :length], opened).exp()
        p = log_tags[:, c].exp().tolist()
        wanted = sum(
            math.prod(p[outcome][t] for t, outcome in enumerate(outcomes))
            for outcomes in product(range(3), repeat=length)
            if fits(outcomes, opened)
        )
        assert found.item() == pytest.approx(wanted, rel=1e-12, abs=1e-300)


def test_a_completion_too_short_to_fit_has_no_reward_and_no_bad_gradient():
    """One position cannot hold two tags."""
    z = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    log_r = format_log_prob(z.log_softmax(0), opened=False)
    log_r.exp().backward()
    assert log_r.item() == -math.inf and not z.grad.isnan().any()


def reward_of(logits: torch.Tensor, opened: bool = False) -> torch.Tensor:
    """R of one completion: logits (L, V) at its positions."""
    labels = torch.zeros(len(logits), dtype=torch.int64)
    log_tags = reference_head(logits, labels, TAGS).log_tags[:, None]
    return expected_format_reward(log_tags, [Completion(0, 0, len(logits), 0, opened)], 1)[0]


@given(
    st.lists(
        st.lists(st.sampled_from([-60.0, -20.0, 0.0, 20.0, 60.0]), min_size=4, max_size=4),
        min_size=1,
        max_size=6,
    )
)
def test_extreme_logits_give_a_finite_value_and_gradient(rows):
    """Probabilities down to e^-120, of anything at any position."""
    logits = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    reward = reward_of(logits)
    (1 - reward).backward()
    assert 0 <= reward.item() <= 1 + 1e-9 and logits.grad.isfinite().all()
    wanted = format_probability(logits.detach().softmax(-1), opened=False)
    assert reward.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-6)


def test_all_but_certain_tags_keep_their_gradient():
    """Each right choice has probability 1 - 1e-12: R misses 1 by L times that, and the gradient is as small."""
    sure = math.log(3e12)  # over three others
    logits = torch.zeros(4, 4, dtype=torch.float64)
    for t, token in enumerate([OPEN, 3, CLOSE, 3]):
        logits[t, token] = sure
    logits.requires_grad_()
    reward = reward_of(logits)
    reward.backward()
    assert 0 < 1 - reward.item() < 1e-11
    assert logits.grad.isfinite().all() and 0 < logits.grad[0, OPEN] < 1e-11


def test_the_gradient_is_not_lost_where_the_reward_is_tiny():
    """Neither tag is likely: the pull of log R, which is what has to grow, stays of order 1."""
    logits = torch.zeros(6, VOCABULARY, dtype=torch.float64)
    logits[:, 3] = 30.0
    logits.requires_grad_()
    reward = reward_of(logits)
    reward.backward()
    assert 0 < reward.item() < 1e-20
    assert logits.grad[0, OPEN] / reward.item() == pytest.approx(1, rel=1e-4)
    assert logits.grad[1:, CLOSE].sum() / reward.item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("position", "token", "sign"),
    [(0, OPEN, 1), (0, CLOSE, -1), (0, 3, -1), (2, OPEN, -1), (4, OPEN, -1)],
)
def test_the_reward_points_the_right_way(position, token, sign):
    """Raising the open tag at the first position raises R, raising it later lowers R."""
    logits = torch.randn(
        5, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    raised = logits.clone()
    raised[position, token] += 0.5
    assert sign * (reward_of(raised) - reward_of(logits)).item() > 1e-6
    logits.requires_grad_()
    reward_of(logits).backward()
    assert sign * logits.grad[position, token] > 0


def test_one_close_tag_is_wanted_and_no_second():
    """Where a close is certain already, another one lowers R; where none is, it raises it."""
    logits = torch.zeros(4, VOCABULARY, dtype=torch.float64)
    logits[0, OPEN] = 10.0
    for closed, sign in ((-10.0, 1), (10.0, -1)):
        logits[1, CLOSE] = closed
        logits[2:, CLOSE] = -10.0
        z = logits.clone().requires_grad_()
        reward_of(z).backward()
        assert sign * z.grad[3, CLOSE] > 0


def test_a_sequence_of_several_completions_fits_when_all_do():
    """R is the product over them, and 1 where there is none."""
    log_tags = torch.randn(
        3, 2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).log_softmax(0)
    parts = [Completion(0, 1, 4, 0, False), Completion(0, 5, 9, 0, True)]
    alone = [expected_format_reward(log_tags, [part], 2)[0] for part in parts]
    both = expected_format_reward(log_tags, parts, 2)
    torch.testing.assert_close(both, torch.stack([alone[0] * alone[1], torch.ones_like(alone[0])]))


def one_hot_logits(tokens: list[list[int]]) -> torch.Tensor:
    """(B, 1 + L, V) logits whose argmax are these tokens, at positions 1 to L."""
    choice = torch.nn.functional.one_hot(torch.tensor(tokens), 4).double()
    return torch.cat([choice, torch.zeros(len(tokens), 1, 4)], 1)


def most_probable(rows) -> torch.Tensor:
    """(B, T) the argmax of `one_hot_logits`, aligned to the tokens."""
    logits = one_hot_logits(rows)
    return token_values(logits, torch.zeros(logits.shape[:2], dtype=torch.int64), TAGS).argmax


@pytest.mark.parametrize(
    ("tokens", "opened", "fit"),
    [
        ([OPEN, 3, CLOSE, 3], False, 1),
        ([OPEN, CLOSE, 3, 3], False, 1),
        ([3, OPEN, CLOSE, 3], False, 0),
        ([OPEN, 3, 3, 3], False, 0),
        ([3, 3, CLOSE, 3], False, 0),
        ([OPEN, OPEN, CLOSE, 3], False, 0),
        ([OPEN, CLOSE, CLOSE, 3], False, 0),
        ([CLOSE, 3, OPEN, 3], False, 0),
        ([3, 3, 3, 3], False, 0),
        ([3, 3, CLOSE, 3], True, 1),
        ([CLOSE, 3, 3, 3], True, 1),
        ([OPEN, 3, CLOSE, 3], True, 0),
        ([3, CLOSE, CLOSE, 3], True, 0),
        ([3, 3, 3, 3], True, 0),
    ],
)
def test_argmax_reward(tokens, opened, fit):
    """The reference's 0/1 reward, cases by hand."""
    assert (
        argmax_format_reward(
            most_probable([tokens]), [Completion(0, 1, 5, 0, opened)], 1, TAGS
        ).item()
        == fit
    )


@pytest.mark.parametrize("opened", [False, True])
def test_the_reward_is_the_expectation_of_the_argmax_reward(opened):
    """Sampled position by position: 20,000 draws, within 4 sigma."""
    n = 20_000
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    logits[0, OPEN] += 0 if opened else 2
    drawn = torch.multinomial(
        logits.softmax(-1), n, replacement=True, generator=torch.Generator().manual_seed(1)
    ).T
    completions = [Completion(row, 1, 6, row, opened) for row in range(n)]
    mean = argmax_format_reward(most_probable(drawn.tolist()), completions, n, TAGS).mean().item()
    expected = reward_of(logits, opened).item()
    assert expected > 0.05
    assert abs(mean - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_a_completion_of_weight_0_is_no_completion():
    """Nothing of it is trained, the format neither."""
    ids, kinds = torch.tensor([[5, 6, 7, 5, 6, 7]]), torch.tensor([[0, 3, 3, 0, 3, 3]])
    batch = as_batch(ids, kinds)
    batch["weights"][0, 1:3] = 0
    assert [(c.start, c.end) for c in find_completions(batch, TAGS)] == [(4, 6)]


# ---------------------------------------------------------------------------------------------- negative weights


@pytest.mark.parametrize("negative", ["nll", "unlikelihood", "floor"])
def test_token_losses_are_the_formulas(negative):
    """Values and gradients in float64, probabilities from 1e-9 to almost 1."""
    p = (
        torch.tensor([[1e-9, 1e-4, 0.02, 0.3, 0.9, 0.999999]], dtype=torch.float64)
        .log()
        .requires_grad_()
    )
    for weight in (2.0, 0.5, 0.0, -1.0, -0.25):
        weights = torch.full(p.shape, weight, dtype=torch.float64)
        got = token_losses(p, weights, negative, floor=5.0)
        q = p.exp()
        wanted = -weight * p
        if weight < 0 and negative == "unlikelihood":
            wanted = weight * (1 - q).log()
        if weight < 0 and negative == "floor":
            wanted = weight * torch.minimum(-p, torch.tensor(5.0, dtype=torch.float64))
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-12)
        ours, theirs = (
            torch.autograd.grad(x.sum(), p, retain_graph=True)[0] for x in (got, wanted)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_unlikelihood_pushes_down_a_token_that_is_all_but_certain():
    """p rounds to 1 in float32; the gradient on its logit is w p, not 0 and not NaN."""
    for gap in (5.0, 15.0, 25.0, 200.0):
        logits = torch.tensor([[[gap, 0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
        log_p = logits.log_softmax(-1)[..., 0]
        loss = token_losses(log_p, torch.tensor([[-1.0]]), "unlikelihood").sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and gradient.isfinite().all()
        assert gap > 25 or gradient[0, 0, 0].item() == pytest.approx(1, rel=0.2)


def test_a_token_below_the_floor_is_left_alone():
    log_p = torch.tensor([[-4.0, -6.0]], requires_grad=True)
    token_losses(log_p, torch.tensor([[-1.0, -1.0]]), "floor", floor=5.0).sum().backward()
    assert log_p.grad.tolist() == [[1.0, 0.0]]
