"""What the inspector says of the tokens of an example: the list of views, their values, and data for the browser."""

from typing import NamedTuple

import numpy as np

from ..data.kinds import Kind
from ..data.tokens import decoded, token_texts
from ..objective.blur import UNITS, draws, example_key, unit_ids
from ..text import visible


class View(NamedTuple):
    """A way to colour tokens."""

    explanation: str
    is_of_loss: bool = False  # 0 where a token is blurred


# one list for Python, JavaScript and static HTML
VIEWS = {
    "kind": View("what each token is"),
    "weight": View("weight in the loss, 0 where blurred", is_of_loss=True),
    "blur": View("draw of each thought token; it is blurred if below the threshold"),
    "loss": View("weight × nll in nats, 0 where blurred", is_of_loss=True),
    "probability": View("probability that the model gives the token"),
    "kl": View("KL to the reference, in nats"),
    "change": View("log-probability minus that of the other model, in nats"),
    "gradient": View(
        "what the token adds to the gradient, in thousandths: nll (below), β × format (above)",
        is_of_loss=True,
    ),
}


class ShownExample:
    """An example beside what one model, or two, make of it.

    Args:
        score, other: what `score` returned for it; None where there is none.
        edits: stretches of tokens with weights set by hand: [start, stop, weight].
    """

    def __init__(self, example, tokenizer, score, other, edits=()):
        self.id = str(example["id"])
        self.ids = np.asarray(example["input_ids"]).tolist()
        self.kinds = np.asarray(example["kinds"])
        self.texts = token_texts(tokenizer, self.ids)
        self._score = score
        self._other = other
        self._tokenizer = tokenizer
        self.weights = np.array(list(example["weights"]), dtype=float)
        is_free = self.kinds != Kind.PROMPT
        is_free[:1] = False  # nothing predicts the first token
        for start, stop, weight in edits:
            self.weights[start:stop][is_free[start:stop]] = weight

    def draws(self, seed, epoch, keep_first, unit):
        """(T,) the draw of each token, as the trainer makes it; infinity for what is never blurred."""
        units = unit_ids(self.kinds, self.texts, unit)
        return draws(self.kinds, example_key(self.id), seed, epoch, keep_first, units)

    def page_draws(self, seed, epochs, keep_first, threshold):
        """Unit -> epoch -> draws rounded down to three digits, and infinity to 1.

        Each is below the threshold, and below any that the slider of a page reaches, where the draw itself is.
        """
        steps = np.union1d(np.arange(1001) / 1000, threshold)
        rounded = {unit: {} for unit in UNITS}
        for unit in UNITS:
            for epoch in epochs:
                u = self.draws(seed, epoch, keep_first, unit)
                rounded[unit][epoch] = steps[np.searchsorted(steps, u, "right") - 1].tolist()
        return rounded

    def values(self):
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
        values["probability"] = np.array([np.nan, *probability[1:]])
        is_prompt = self.kinds == Kind.PROMPT
        if "kl" in score:
            values["kl"] = np.where(is_prompt, np.nan, score["kl"])
        if self._other is not None:
            change = score["log_probs"] - self._other["log_probs"]
            values["change"] = np.where(is_prompt, np.nan, change)
        supervised = max(np.count_nonzero(self.weights), 1)
        values["gradient"] = np.abs(self.weights) * (1 - probability) / supervised
        values["format"] = score["format_pull"]
        return values

    def json_values(self):
        """`values` for the browser."""
        return {name: json_numbers(values) for name, values in self.values().items()}

    def browser_data(self):
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
        top_ids = np.unique(score["top_ids"]).tolist()
        names = token_texts(self._tokenizer, top_ids)
        return data | {
            "nll": json_numbers(-score["log_probs"]),
            "rank": score["rank"].tolist(),
            "tags": json_numbers(score["tags"]),
            "reward": score["expected_reward"],
            "top": score["top_ids"].tolist(),
            "top_probs": json_numbers(np.exp(score["top_log_probs"])),
            # a row of the head beyond the tokenizer has no text
            "names": {i: visible(name) or f"⟨{i}⟩" for i, name in zip(top_ids, names, strict=True)},
        }


def visible_texts(tokenizer, ids):
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


def json_numbers(values):
    """Rounded to six digits; JSON has no NaN and no infinity."""
    rounded = np.round(np.clip(np.asarray(values, dtype=float), -999, 999), 6)
    return np.where(np.isnan(rounded), None, rounded).tolist()


def check_match(name, values, examples):
    """Raises ValueError unless there is one list of values for each example, as long as it."""
    if [len(row) for row in values] != [len(example["input_ids"]) for example in examples]:
        raise ValueError(
            f"{name} must have one for each of the {len(examples)} examples, a value for each token"
        )
