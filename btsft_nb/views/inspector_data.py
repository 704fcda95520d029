"""What the inspector says of the tokens of an example: the list of views, their values, and data for the browser."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.kinds import Kind
from ..data.tokens import _decoded, token_texts
from ..text import visible


class View(NamedTuple):
    """A way to colour tokens."""

    explanation: str
    needs: str = ""  # the scores that it shows
    is_of_loss: bool = False  # 0 where a token is blurred


_SCORE = "score=bt.score(model, tokenizer, examples)"

# one list for Python, JavaScript and static HTML
VIEWS = {
    "kind": View("what each token is"),
    "weight": View("weight in the loss, 0 where blurred", is_of_loss=True),
    "blur": View("draw of each thought token; it is blurred if below the threshold"),
    "loss": View("weight × nll in nats, 0 where blurred", _SCORE, is_of_loss=True),
    "probability": View("probability that the model gives the token", _SCORE),
    "kl": View("KL to the reference, in nats", "score=bt.score(..., kl=True)"),
    "change": View("log-probability minus that of the other model, in nats", "score= and compare="),
    "gradient": View(
        "what the token adds to the gradient, in thousandths: nll (below), β × format (above)",
        _SCORE,
        is_of_loss=True,
    ),
}


def visible_texts(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]
) -> tuple[list[str], list[int]]:
    """The text of each token with all that is in it made visible, and the tokens that go with the one before.

    Those are the pieces of a character after its first; the first has the character, and they "\u2025".
    """
    texts = token_texts(tokenizer, ids)
    joined = []
    i = 0
    while i < len(ids):
        stop = i + 1
        if "\ufffd" in texts[i]:
            # a character in UTF-8 has up to four bytes, and a token may be one of them
            ends = range(i + 2, min(i + 5, len(ids) + 1))
            pieces = _decoded(tokenizer, [ids[i:end] for end in ends]) if ends else []
            for end, text in zip(ends, pieces, strict=True):
                if "\ufffd" not in text:
                    stop = end
                    texts[i] = text
                    break
        for piece in range(i + 1, stop):
            texts[piece] = "\u2025"
            joined.append(piece)
        i = stop
    return [visible(text) for text in texts], joined


def fixed_weights(example: dict, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(T,) bool: the tokens whose weights cannot be edited, which are those of the prompt and the end of turn."""
    ids = np.asarray(example["input_ids"]).tolist()
    kinds = np.asarray(example["kinds"])
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    fixed = kinds == Kind.PROMPT
    fixed[:1] = True  # nothing predicts the first token
    for i in reversed(range(len(ids))):
        is_last = i + 1 == len(ids) or fixed[i + 1]
        if is_last and kinds[i] == Kind.ANSWER and ids[i] in special:
            fixed[i] = True
    return fixed


def values_by_view(
    kinds: np.ndarray, weights: np.ndarray, score: dict | None, other: dict | None
) -> dict[str, np.ndarray]:
    """View -> (T,) its values where nothing is blurred, NaN where it has none.

    The view gradient has a second part, `format`, that is to be multiplied by beta.
    """
    values = {"weight": weights}
    if score is None:
        return values
    log_probs = np.maximum(score["log_probs"], -999.0)  # so that 0 times it is 0
    probability = np.exp(log_probs)
    supervised = max(np.count_nonzero(weights), 1)
    is_prompt = kinds == Kind.PROMPT
    values["loss"] = -weights * log_probs
    values["probability"] = np.where(np.arange(len(kinds)) > 0, probability, np.nan)
    if "kl" in score:
        values["kl"] = np.where(is_prompt, np.nan, score["kl"])
    if other is not None:
        values["change"] = np.where(is_prompt, np.nan, log_probs - other["log_probs"])
    values["gradient"] = np.abs(weights) * (1 - probability) / supervised
    values["format"] = np.asarray(score["format_pull"])
    return values


def rounded_draws(u: np.ndarray, threshold: float) -> list[float]:
    """Draws rounded down to three digits, and infinity to 1.

    Each is below the threshold, and below any other of up to three digits, where the draw itself is.
    """
    steps = np.union1d(np.arange(1001) / 1000, threshold)
    return steps[np.searchsorted(steps, u, side="right") - 1].tolist()


def browser_data(
    example: dict, tokenizer: PreTrainedTokenizerBase, number: int, score: dict | None
) -> dict:
    """JSON for the browser: what no dial changes. Its lists have the example's length.

    Args:
        number: of the example in its set, from 1.
        score: what `score` returned for it.
    """
    ids = np.asarray(example["input_ids"]).tolist()
    texts, joined = visible_texts(tokenizer, ids)
    data = {
        "id": str(example["id"]),
        "number": number,
        "texts": texts,
        "joined": joined,
        "ids": ids,
        "kinds": np.asarray(example["kinds"]).tolist(),
    }
    if score is None:
        return data
    top = np.asarray(score["top_ids"])
    top_ids = np.unique(top).tolist()
    names = [visible(text) for text in token_texts(tokenizer, top_ids)]
    return data | {
        "nll": json_numbers(-np.asarray(score["log_probs"])),
        "rank": np.asarray(score["rank"]).tolist(),
        "open": json_numbers(score["tags"][0]),
        "close": json_numbers(score["tags"][1]),
        "reward": float(score["expected_reward"]),
        "top": top.tolist(),
        "top_probs": [json_numbers(row) for row in np.exp(score["top_log_probs"])],
        # a row of the head beyond the tokenizer has no text
        "names": {i: name or f"\u27e8{i}\u27e9" for i, name in zip(top_ids, names, strict=True)},
    }


def json_numbers(values: Sequence[float]) -> list[float | None]:
    """Rounded to six digits; JSON has no NaN, no infinity, and needs no -0."""
    rounded = np.round(np.clip(np.asarray(values, dtype=float), -999, 999), 6) + 0.0
    return [None if math.isnan(value) else value for value in rounded.tolist()]


def check_match(name: str, values: Sequence[Sequence], examples: Sequence[dict]) -> None:
    """Raises ValueError unless there is one list of values for each example, as long as it."""
    for i, (row, example) in enumerate(zip_longest(values, examples)):
        if row is None or example is None or len(row) != len(example["input_ids"]):
            wanted = f"one for each of the {len(examples)} examples, with a value for each token"
            raise ValueError(f"{name} must have {wanted}; {name}[{i}] does not fit")
