"""What the inspector says of the tokens of an example: the list of views, their values, and data for the browser."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.kinds import Kind
from ..data.tokens import decoded, token_texts
from ..objective.blur import UNITS, draws, example_key, unit_ids
from ..text import visible

_SCORE = "score=bt.score(model, tokenizer, examples)"


class View(NamedTuple):
    """A way to colour tokens."""

    explanation: str
    needs: str = ""  # the scores that it shows
    is_of_loss: bool = False  # 0 where a token is blurred


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


class ShownExample:
    """An example beside what a model makes of it.

    Args:
        score: what `score` returned for it; its `change` is the log-probability minus that of another model.
        edits: stretches of tokens with weights set by hand: [start, stop, weight].
    """

    def __init__(
        self,
        example: dict,
        tokenizer: PreTrainedTokenizerBase,
        score: dict | None,
        edits: Sequence[tuple[int, int, float]] = (),
    ):
        self.id = str(example["id"])
        self.ids = np.asarray(example["input_ids"]).tolist()
        self.kinds = np.asarray(example["kinds"])
        self.texts = token_texts(tokenizer, self.ids)
        self._score = score
        self._tokenizer = tokenizer
        weights = np.array(list(example["weights"]), dtype=float)
        edited = weights.copy()
        for start, stop, weight in edits:
            edited[start:stop] = weight
        self.weights = np.where(self._fixed(), weights, edited)

    def _fixed(self) -> np.ndarray:
        """(T,) bool: the tokens whose weights stay, which are those of the prompt and the end of turn."""
        added = self._tokenizer.added_tokens_decoder.items()
        # text is never read as special tokens, so that in an answer they are its end of turn
        is_special = np.isin(self.ids, [token for token, about in added if about.special])
        fixed = (self.kinds == Kind.PROMPT) | (self.kinds == Kind.ANSWER) & is_special
        fixed[:1] = True  # nothing predicts the first token
        return fixed

    def draws(self, seed: int, epoch: int, keep_first: int, unit: str) -> np.ndarray:
        """(T,) the draw of each token, as the trainer makes it; infinity for what is never blurred."""
        units = unit_ids(self.kinds, self.texts, unit)
        return draws(self.kinds, example_key(self.id), seed, epoch, keep_first, units)

    def page_draws(
        self, seed: int, epochs: Sequence[int], keep_first: int, threshold: float
    ) -> dict[str, dict[int, list]]:
        """Unit -> epoch -> draws, as exact as the threshold and the slider of a page without Python need them."""
        return {
            unit: {
                epoch: rounded_draws(self.draws(seed, epoch, keep_first, unit), threshold)
                for epoch in epochs
            }
            for unit in UNITS
        }

    def values(self) -> dict[str, np.ndarray]:
        """View -> (T,) its values where nothing is blurred, NaN where it has none.

        The view gradient has a second part, `format`, that is to be multiplied by beta.
        """
        values = {"weight": self.weights}
        score = self._score
        if score is None:
            return values
        log_probs = np.maximum(score["log_probs"], -999.0)  # so that 0 times it is 0
        probability = np.exp(log_probs)
        values["loss"] = -self.weights * log_probs
        values["probability"] = np.where(np.arange(len(self.ids)) > 0, probability, np.nan)
        for name in ("kl", "change"):
            if name in score:
                values[name] = np.where(self.kinds == Kind.PROMPT, np.nan, score[name])
        supervised = max(np.count_nonzero(self.weights), 1)
        values["gradient"] = np.abs(self.weights) * (1 - probability) / supervised
        values["format"] = np.asarray(score["format_pull"])
        return values

    def json_values(self) -> dict[str, list]:
        """`values` for the browser."""
        return {name: json_numbers(values) for name, values in self.values().items()}

    def browser_data(self) -> dict:
        """JSON for the browser: what no dial changes. Its lists have the example's length."""
        texts, joined = visible_texts(self._tokenizer, self.ids)
        data = {
            "id": self.id,
            "texts": texts,
            "joined": joined,
            "ids": self.ids,
            "kinds": self.kinds.tolist(),
        }
        score = self._score
        if score is None:
            return data
        top = np.asarray(score["top_ids"])
        top_ids = np.unique(top).tolist()
        names = [visible(text) for text in token_texts(self._tokenizer, top_ids)]
        return data | {
            "nll": json_numbers(-np.asarray(score["log_probs"])),
            "rank": np.asarray(score["rank"]).tolist(),
            "open": json_numbers(score["tags"][0]),
            "close": json_numbers(score["tags"][1]),
            "reward": float(score["expected_reward"]),
            "top": top.tolist(),
            "top_probs": [json_numbers(row) for row in np.exp(score["top_log_probs"])],
            # a row of the head beyond the tokenizer has no text
            "names": {
                i: name or f"\u27e8{i}\u27e9" for i, name in zip(top_ids, names, strict=True)
            },
        }


def visible_texts(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]
) -> tuple[list[str], list[int]]:
    """The text of each token with all that is in it made visible, and the tokens that go with the one before.

    Those are the pieces of a character after its first; the first has the character, and they "\u2025".
    """
    texts = token_texts(tokenizer, ids)
    joined = []
    for start in range(len(ids)):
        if "\ufffd" not in texts[start]:
            continue
        # a character in UTF-8 has up to four bytes, and a token may be one of them
        for stop in range(start + 2, min(start + 5, len(ids) + 1)):
            (whole,) = decoded(tokenizer, [ids[start:stop]])
            if "\ufffd" not in whole:
                texts[start:stop] = [whole] + ["\u2025"] * (stop - start - 1)
                joined += range(start + 1, stop)
                break
    return [visible(text) for text in texts], joined


def rounded_draws(u: np.ndarray, threshold: float) -> list[float]:
    """Draws rounded down to three digits, and infinity to 1.

    Each is below the threshold, and below any other of up to three digits, where the draw itself is.
    """
    steps = np.union1d(np.arange(1001) / 1000, threshold)
    return steps[np.searchsorted(steps, u, side="right") - 1].tolist()


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
