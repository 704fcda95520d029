"""What the browser gets of an example and its score, and how the text of tokens is written so that all can be seen."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.kinds import Kind
from ..data.tokens import _decoded, token_texts
from ..objective.blur import UNITS, example_key, unit_ids

_MARKS = {ord("\n"): "\u21b5", ord("\t"): "\u21e5", 0x7F: "\u2421"}
_UNSEEN = [
    *range(0x80, 0xA0),
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
]
_UNSEEN += [0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180E, 0x3164, 0xFEFF, 0xFFA0]
_UNSEEN += [*range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)]
_SEEN = (
    {code: chr(0x2400 + code) for code in range(32)}
    | {code: f"\u27e8U+{code:04X}\u27e9" for code in _UNSEEN}
    | _MARKS
)


def shown(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """The text of each token, with a mark for what cannot be seen or would move other text, as bidi controls do.

    Where several tokens make up one character the first has it and the others are "\u2025"; the second list has those.
    """
    texts, joined, i = token_texts(tokenizer, ids), [], 0
    while i < len(ids):
        stop = i + 1
        if "\ufffd" in texts[i]:  # bytes of a character whose others follow
            ends = range(i + 2, min(i + 5, len(ids) + 1))
            whole = zip(
                ends, _decoded(tokenizer, [ids[i:end] for end in ends]), strict=False
            )  # [] decodes to [""]
            stop, text = next(
                ((end, text) for end, text in whole if "\ufffd" not in text), (stop, texts[i])
            )
            texts[i:stop] = [text, *["\u2025"] * (stop - i - 1)]
            joined += range(i + 1, stop)
        i = stop
    return [text.translate(_SEEN) for text in texts], joined


def browser_data(
    example: dict,
    tokenizer: PreTrainedTokenizerBase,
    index: int,
    score: dict | None,
    other: dict | None,
) -> dict:
    """JSON for the browser: lists of the example's length, but for `id`, `key`, `joined`, `names` and `reward`.

    Args:
        index: of the example in its set. score, other: what `score` returned for it, of one model and another.
    """
    ids, kinds = (np.asarray(example[name]).tolist() for name in ("input_ids", "kinds"))
    key = example_key(example["id"])
    (texts, joined), raw = shown(tokenizer, ids), token_texts(tokenizer, ids)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    fixed = [
        i == 0 or kind == Kind.PROMPT for i, kind in enumerate(kinds)
    ]  # nothing predicts the first token
    for i in reversed(range(len(ids))):  # the end of turn
        fixed[i] |= (
            ids[i] in special and kinds[i] == Kind.ANSWER and (i + 1 == len(ids) or fixed[i + 1])
        )
    data = {
        **{
            "id": str(example["id"]),
            "index": index,
            "number": index + 1,
            "key": [key >> 32, key & 0xFFFFFFFF],
        },
        **{"texts": texts, "joined": joined, "ids": ids, "kinds": kinds, "fixed": fixed},
        "weights": [float(weight) for weight in example["weights"]],
        "units": {unit: unit_ids(kinds, raw, unit).tolist() for unit in UNITS[1:]},
    }
    if score is not None:
        data |= _score_data(score, tokenizer)
    if score is not None and other is not None:
        data["change"] = _rounded(np.asarray(score["log_probs"]) - other["log_probs"])
    return data


def _score_data(score: dict, tokenizer: PreTrainedTokenizerBase) -> dict:
    top = np.asarray(score["top_ids"])
    known = np.unique(top).tolist()
    named = zip(known, token_texts(tokenizer, known), strict=True)
    names = [
        text.translate(_SEEN) or f"\u27e8{token}\u27e9" for token, text in named
    ]  # rows beyond the tokenizer
    data = {
        **{"log_probs": _rounded(score["log_probs"]), "rank": np.asarray(score["rank"]).tolist()},
        **{"open": _rounded(score["tags"][0]), "close": _rounded(score["tags"][1])},
        **{"pull": _rounded(score["format_pull"]), "reward": float(score["expected_reward"])},
        **{"top": top.tolist(), "names": dict(zip(map(str, known), names, strict=True))},
        "top_probs": _rounded(np.exp(score["top_log_probs"])),
    }
    return data | ({"kl": _rounded(score["kl"])} if "kl" in score else {})


def _rounded(values: np.ndarray) -> list:
    finite = np.nan_to_num(
        np.asarray(values, dtype=float), nan=0, neginf=-999, posinf=999
    )  # JSON has no others
    return (np.round(finite, 6) + 0.0).tolist()  # no -0


def check_match(name: str, values: Sequence[Sequence], examples: Sequence[dict]) -> None:
    """Raises ValueError where there is not one list of values of each example's length; `name` is what they are."""
    if len(values) != len(examples):
        raise ValueError(
            f"{name}: one for each of the {len(examples)} examples wanted, got {len(values)}"
        )
    for i, (found, example) in enumerate(zip(values, examples, strict=True)):
        if len(found) != len(example["input_ids"]):
            given = f"{name}[{i}] has {len(found)} tokens, its example {len(example['input_ids'])}"
            raise ValueError(f"{given}: {name} of the same examples wanted")
