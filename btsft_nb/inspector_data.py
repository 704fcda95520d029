"""What the browser gets of an example and its score, and how the text of tokens is written so that all can be seen."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from .blur import UNITS, Kind, example_key, unit_ids

_MARKS = {ord("\n"): "\u21b5", ord("\t"): "\u21e5", 0x7F: "\u2421"}
_UNSEEN = [
    *range(0x80, 0xA0),
    0xAD,
    0x61C,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
]
_SEEN = (
    {code: chr(0x2400 + code) for code in range(32)} | {code: f"\u27e8U+{code:04X}\u27e9" for code in _UNSEEN} | _MARKS
)


def token_texts(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int]) -> list[str]:
    """The text of each token on its own."""
    known = dict.fromkeys(input_ids)
    known = dict(zip(known, tokenizer.batch_decode([[token] for token in known]), strict=True))
    return [known[token] for token in input_ids]


def shown(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """The text of each token, with a mark for what cannot be seen or would move other text, as bidi controls do.

    Where several tokens make up one character the first has it and the others are "\u2025"; the second list has those.
    """
    texts, joined, i = token_texts(tokenizer, ids), [], 0
    while i < len(ids):
        stop = i + 1
        if "\ufffd" in texts[i]:  # bytes of a character whose others follow
            whole = ((end, tokenizer.decode(ids[i:end])) for end in range(i + 2, min(i + 5, len(ids) + 1)))
            stop, text = next(((end, text) for end, text in whole if "\ufffd" not in text), (stop, texts[i]))
            texts[i:stop] = [text, *["\u2025"] * (stop - i - 1)]
            joined += range(i + 1, stop)
        i = stop
    return [text.translate(_SEEN) for text in texts], joined


def browser_data(
    example: dict, tokenizer: PreTrainedTokenizerBase, index: int, score: dict | None, other: dict | None
) -> dict:
    """JSON for the browser: lists of the example's length, but for `id`, `key`, `joined`, `names` and `reward`.

    Args:
        index: of the example in its set. score, other: what `score` returned for it, of one model and another.
    """
    ids, kinds, key = example["input_ids"], example["kinds"], example_key(example["id"])
    (texts, joined), raw = shown(tokenizer, ids), token_texts(tokenizer, ids)
    special, fixed = set(tokenizer.all_special_ids), [kind == Kind.PROMPT for kind in kinds]
    for i in reversed(range(len(ids))):  # the end of turn
        fixed[i] |= ids[i] in special and kinds[i] == Kind.ANSWER and (i + 1 == len(ids) or fixed[i + 1])
    data = {
        **{"id": str(example["id"]), "index": index, "number": index + 1, "key": [key >> 32, key & 0xFFFFFFFF]},
        **{"texts": texts, "joined": joined, "ids": list(ids), "kinds": list(kinds), "fixed": fixed},
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
    names = [text.translate(_SEEN) for text in token_texts(tokenizer, known)]
    data = {
        **{"log_probs": _rounded(score["log_probs"]), "rank": np.asarray(score["rank"]).tolist()},
        **{"open": _rounded(score["tags"][0]), "close": _rounded(score["tags"][1])},
        **{"pull": _rounded(score["format_pull"]), "reward": float(score["expected_reward"])},
        **{"top": top.tolist(), "names": dict(zip(map(str, known), names, strict=True))},
        "top_probs": _rounded(np.exp(score["top_log_probs"])),
    }
    return data | ({"kl": _rounded(score["kl"])} if "kl" in score else {})


def _rounded(values: np.ndarray) -> list:
    return (np.round(np.asarray(values, dtype=float), 6) + 0.0).tolist()  # no -0
