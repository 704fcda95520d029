"""The token inspector: what each token is, weighs and costs, whether it is blurred, and the dials that move it.

In a notebook it is a widget (anywidget, `inspector.js`); wherever no widget can run the same view stands as HTML that
needs nothing else, with the sliders where script is allowed (`inspector_html`). The dials act in the browser, which
makes the trainer's draws itself (`inspector_data` is what it gets).
"""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from transformers import PreTrainedTokenizerBase

from ..data.kinds import Kind
from ..data.tokens import token_texts
from ..objective.blur import UNITS, draws, example_key
from .inspector_data import browser_data, check_match, shown
from .static_view import page, static_view, with_script

_NEEDS = {
    "loss": "score",
    "probability": "score",
    "gradient": "score",
    "kl": "kl",
    "change": "compare",
}
_HOW = {
    "score": "score=btsft_nb.score(model, tokenizer, examples)",
    "kl": "score=btsft_nb.score(model, tokenizer, examples, kl=True)",
    "compare": "score=... of one model and compare=... of the other",
}
VIEWS = {  # and what stands under each token
    "kind": "its kind",
    "weight": "its weight in the loss",
    "blur": "its draw; below the threshold it is blurred",
    "loss": "weight times nll, in nats",
    "probability": "its probability",
    "kl": "KL to the reference, in nats",
    "change": "its log-probability minus that of the other model, in nats",
    "gradient": "what it adds to the gradient, nll + format, in thousandths",
}
_IN_A_CELL = 4000  # tokens that the HTML in a cell's output holds; `to_html` with a path holds all


class TokenInspector(anywidget.AnyWidget):
    """Shows the tokens of prepared examples, coloured by a view, with dials for what the trainer would do to them.

    Args:
        examples: a row of what `prepare` returns, or several: a list, or the whole data set.
        tokenizer: the one that prepared them.
        score: what `score` returns for them; for the views loss, probability and gradient, for kl where it has that,
            and for the strip that shows where the tags are expected.
        compare: what `score` returns for another model; for the view change.
        view: one of kind, weight, blur (the draws), loss (weight times nll, as it enters the sum), probability, kl (to
            the reference), change (log-probability, minus that of `compare`) and gradient: half the summed absolute
            gradient by the logits, |weight| (1 - p) / N of the nll, and beta times that of the format. Loss and
            gradient are those of `negative="nll"`.
        threshold, beta, epoch, unit, keep_first, seed: as in training, so that the same tokens are blurred; with
            `resample="never"` epoch 0 stands for all.
        editable: whether the weight of selected tokens can be set. Prompt and end of turn keep theirs.

    The traits `threshold`, `beta`, `epoch`, `unit`, `view`, `index` (which example), `selection` ([start, stop] in
    tokens, or empty) and `edits` (a list of [index, start, stop, weight]) follow what is done in the browser, and can
    be set and observed. `example` has the edited weights; `to_row` makes a data row of it.

    Raises ValueError for an unknown view, one that lacks its score, scores that do not fit the examples, and edits that
    do not; TraitError for a dial out of its range.
    """

    _esm = Path(__file__).with_name("inspector.js")
    _ipython_display_ = None  # that of ipywidgets 7 would hide _repr_mimebundle_

    data = traitlets.Dict().tag(sync=True)
    count = traitlets.Int().tag(sync=True)
    index = traitlets.Int(0, min=0).tag(sync=True)
    view = traitlets.Unicode("kind").tag(sync=True)
    threshold = traitlets.Float(0.2, min=0, max=1).tag(sync=True)
    beta = traitlets.Float(0.05, min=0, max=1e6).tag(sync=True)
    epoch = traitlets.Int(0, min=0, max=2**32 - 1).tag(sync=True)
    unit = traitlets.Enum(UNITS, "token").tag(sync=True)
    seed = traitlets.Int(42, min=0, max=2**32 - 1).tag(sync=True)
    keep_first = traitlets.Int(0, min=0).tag(sync=True)
    editable = traitlets.Bool(False).tag(sync=True)
    selection = traitlets.List(traitlets.Int(min=0)).tag(sync=True)
    edits = traitlets.List().tag(sync=True)
    query = traitlets.Unicode().tag(sync=True)
    found = traitlets.Dict({"examples": []}).tag(sync=True)

    def __init__(
        self,
        examples: dict | Sequence[dict],
        tokenizer: PreTrainedTokenizerBase,
        *,
        score: dict | Sequence[dict] | None = None,
        compare: dict | Sequence[dict] | None = None,
        view: str = "kind",
        threshold: float = 0.2,
        beta: float = 0.05,
        epoch: int = 0,
        unit: str = "token",
        keep_first: int = 0,
        seed: int = 42,
        editable: bool = False,
        index: int = 0,
    ):
        self._examples, self._tokenizer = (
            [examples] if isinstance(examples, dict) else examples,
            tokenizer,
        )
        if not len(self._examples):
            raise ValueError("no example to show: give a row of what prepare returns, or several")
        self._scores, self._others = (
            [given] if isinstance(given, dict) else given for given in (score, compare)
        )
        for name, scores in (("score", self._scores), ("compare", self._others)):
            if scores is not None:
                check_match(name, [score["log_probs"] for score in scores], self._examples)
        dials = dict(
            threshold=threshold, beta=beta, epoch=epoch, unit=unit, keep_first=keep_first, seed=seed
        )
        super().__init__(
            count=len(self._examples), view=view, editable=editable, index=index, **dials
        )
        if not self.data:
            self._load()

    @traitlets.validate("view")
    def _known_view(self, proposal: dict) -> str:
        view = proposal["value"]
        if view not in VIEWS:
            raise ValueError(f"view={view!r}: one of {', '.join(VIEWS)} wanted")
        need = _NEEDS.get(view)
        has = {
            "score": self._scores,
            "kl": self._scores and "kl" in self._scores[0],
            "compare": self._others,
        }
        if need and not (self._scores and has[need]):
            raise ValueError(f"view={view!r} needs {_HOW[need]}")
        return view

    @traitlets.validate("edits")
    def _known_edits(self, proposal: dict) -> list[list]:
        edits = [[*map(int, edit[:3]), float(edit[3])] for edit in proposal["value"]]
        for index, start, stop, weight in edits:
            if not (0 <= index < self.count and 0 <= start <= stop and abs(weight) <= 1e6):
                wanted = f"[index below {self.count}, start, stop, weight within 1e6 of 0] wanted"
                raise ValueError(f"edits: {wanted}, got {[index, start, stop, weight]}")
        return edits

    @traitlets.validate("index")
    def _known_index(self, proposal: dict) -> int:
        if proposal["value"] >= len(self._examples):
            raise ValueError(f"index={proposal['value']}: there are {len(self._examples)} examples")
        return proposal["value"]

    @traitlets.observe("index")
    def _load(self, change: dict | None = None) -> None:
        self.data, self.selection = self._data(self.index), []

    @traitlets.observe("query")
    def _search(self, change: dict) -> None:
        wanted, found = self.query.lower(), []
        for i, example in enumerate(self._examples):
            texts, _ = shown(self._tokenizer, np.asarray(example["input_ids"]).tolist())
            if wanted in "".join(texts).lower():
                found.append(i)
        self.found = {"query": self.query, "examples": found}

    @property
    def example(self) -> dict:
        """The example that is shown, with the weights that it was given by hand."""
        example, fixed = self._examples[self.index], self.data["fixed"]
        weights = list(example["weights"])
        for index, start, stop, weight in self.edits:
            for i in range(start, min(stop, len(weights)) if index == self.index else start):
                weights[i] = weights[i] if fixed[i] else float(weight)
        return {**example, "weights": weights}

    @property
    def tokens(self) -> list[str]:
        """The text of each token of the example that is shown."""
        return token_texts(self._tokenizer, self.data["ids"])

    @property
    def draws(self) -> np.ndarray:
        """(T,) the draw of each token, as the trainer makes it; infinity for what is never blurred."""
        units = None if self.unit == "token" else np.array(self.data["units"][self.unit])
        return draws(
            self.data["kinds"],
            example_key(self.data["id"]),
            self.seed,
            self.epoch,
            self.keep_first,
            units,
        )

    @property
    def blurred(self) -> np.ndarray:
        """(T,) bool: which tokens the threshold blurs."""
        return (self.draws < self.threshold) & (np.array(self.example["weights"]) != 0)

    def values(self) -> np.ndarray:
        """(T,) or, for the view gradient, (2, T): what the view shows of each token; NaN where it shows nothing."""
        if self.view == "kind":
            return np.array(self.data["kinds"])
        if self.view == "blur":
            return np.where(np.isfinite(self.draws), self.draws, np.nan)
        weights = np.where(self.blurred, 0.0, self.example["weights"])
        if self.view == "weight":
            return weights
        score = self._scores[self.index]
        log_probs = np.asarray(score["log_probs"])
        if self.view in ("kl", "change"):
            moved = (
                score["kl"]
                if self.view == "kl"
                else log_probs - self._others[self.index]["log_probs"]
            )
            return np.where(np.array(self.data["kinds"]) == Kind.PROMPT, np.nan, moved)
        if self.view == "probability":
            return np.where(np.arange(len(weights)) > 0, np.exp(log_probs), np.nan)
        if self.view == "loss":
            return -weights * log_probs
        supervised = max(np.count_nonzero(self.example["weights"]), 1)
        nll = np.abs(weights) * (1 - np.exp(log_probs)) / supervised
        return np.stack([nll, self.beta * np.asarray(score["format_pull"])])

    def to_html(self, path: str | Path | None = None) -> str:
        """The view as HTML that asks nothing of a network, with all examples, and sliders where script is allowed.

        With a path, it is written there as a page that can be sent to a colleague.
        """
        html = with_script(self._static(), self._state(range(len(self._examples)), self.index))
        if path is not None:
            Path(path).write_text(page(html, self.data["id"]), encoding="utf-8")
        return html

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict, dict]:
        """The widget, and the same view for where none can run, with as many examples as `_IN_A_CELL` allows."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        held, rest = range(min(self.count, 50)), range(self.index, min(self.count, self.index + 50))
        if self.count > 50 or self._tokens(held).sum() > _IN_A_CELL:
            held = rest[: np.searchsorted(self._tokens(rest).cumsum(), _IN_A_CELL, side="right")]
        html = self._static(_IN_A_CELL)
        if held:
            html = with_script(html, self._state(held, held.index(self.index)))
        return {**data, "text/plain": repr(self), "text/html": html}, metadata

    def _tokens(self, examples: Sequence[int]) -> np.ndarray:
        return np.array([len(self._examples[i]["input_ids"]) for i in examples])

    def _state(self, examples: Sequence[int], index: int) -> dict:
        held = [self._data(i) | {"index": at} for at, i in enumerate(examples)]
        names = ("count", "view", "threshold", "beta", "epoch", "unit", "seed", "keep_first")
        traits = {name: getattr(self, name) for name in names}
        edits = [[examples.index(edit[0]), *edit[1:]] for edit in self.edits if edit[0] in examples]
        return traits | {
            "edits": edits,
            "editable": False,
            "examples": held,
            "held": len(held),
            "index": index,
        }

    def _static(self, limit: int | None = None) -> str:
        notes = [
            f"example {self.index + 1} of {self.count}; under each token: {VIEWS[self.view]}",
            f"threshold {self.threshold:.2f}, epoch {self.epoch}, unit {self.unit}: {self._share} (struck out)",
        ]
        if self._scores:
            reward = self._scores[self.index]["expected_reward"]
            term = self.beta * (1 - reward)
            notes.append(
                f"expected reward R {reward:.4f}; at \u03b2 {self.beta:.2f} the format term is {term:.4f}"
            )
        return static_view(self.data, self.view, self.values(), self.blurred, notes, limit)

    def _data(self, index: int) -> dict:
        score, other = (scores and scores[index] for scores in (self._scores, self._others))
        return browser_data(self._examples[index], self._tokenizer, index, score, other)

    @property
    def _share(self) -> str:
        return f"{self.blurred.sum()} of {np.isfinite(self.draws).sum()} thought tokens blurred"

    def __repr__(self) -> str:
        tokens = len(self.data["ids"])
        return f"TokenInspector({self.data['id']!r}: {tokens} tokens, {self._share} at threshold {self.threshold:.2f})"
