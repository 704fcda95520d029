"""The token inspector: what each token is, weighs and costs, whether it is blurred, and the dials that move it.

In a notebook it is a widget (anywidget, `inspector.js`). Wherever no widget can run the same view stands as HTML that
needs nothing else, with the sliders where script is allowed (`static_view`). Draws and values come from here
(`inspector_data`); the browser compares the draws with the threshold.
"""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from transformers import PreTrainedTokenizerBase

from ..data.tokens import token_texts
from ..objective import BETA, THRESHOLD
from ..objective.blur import UNITS, draws, example_key, unit_ids
from .inspector_data import (
    VIEWS,
    browser_data,
    check_match,
    fixed_weights,
    json_numbers,
    rounded_draws,
    values_by_view,
)
from .palette import css_variables
from .static_view import page, static_view, with_script

_PAGE_EPOCHS = range(5)  # whose draws a page has, beside those of the epoch that it was made in
_TOKENS_IN_A_CELL = 4000  # in the HTML of a cell's output; `to_html` with a path holds all


class TokenInspector(anywidget.AnyWidget):
    """Shows the tokens of prepared examples, coloured by a view, with dials for what the trainer would do to them.

    Args:
        examples: a row of what `prepare` returns, or several: a list, or the whole data set.
        tokenizer: the one that prepared them.
        score: what `score` returns for them. The views loss, probability and gradient need it, kl needs one made with
            `kl=True`; so does the strip that shows where the tags are expected.
        compare: what `score` returns for another model; the view change needs it.
        view: one of kind, weight, blur (the draws), loss (weight times nll, as it enters the sum), probability, kl (to
            the reference), change (log-probability, minus that of `compare`) and gradient: half the summed absolute
            gradient by the logits, |weight| (1 - p) / N of the nll, and beta times that of the format. Loss and
            gradient are those of `negative="nll"`.
        threshold, beta, epoch, unit, keep_first, seed: as in training, so that the same tokens are blurred; with
            `resample="never"` epoch 0 stands for all.
        editable: whether the weight of selected tokens can be set. Prompt and end of turn keep theirs.
        index: the example to show first.

    The traits `threshold`, `beta`, `epoch`, `unit`, `view`, `index`, `selection` ([start, stop] in tokens, or empty)
    and `edits` (a list of [index, start, stop, weight]) follow what is done in the browser, and can be set and
    observed. `example` has the edited weights; `to_row` makes a data row of it.

    Raises:
        ValueError: for an unknown view, one that lacks its score, scores of other examples, or edits out of range.
        TraitError: for a dial out of its range.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> examples = bt.prepare(bt.load_rows("tiny/teacher")[:3], tokenizer)  # doctest: +ELLIPSIS
    tiny/teacher: ...
    >>> inspector = bt.TokenInspector(examples, tokenizer, threshold=0.5)
    >>> inspector
    TokenInspector('tiny/teacher/0': 66 tokens, 12 of 26 thought tokens blurred at threshold 0.50)
    >>> inspector.threshold = 1
    >>> int(inspector.blurred.sum())
    26
    """

    _esm = Path(__file__).with_name("inspector.js")
    _ipython_display_ = None  # that of ipywidgets 7 would hide _repr_mimebundle_

    css = traitlets.Unicode().tag(sync=True)
    views = traitlets.Dict().tag(sync=True)  # name -> explanation, of those that can be shown
    count = traitlets.Int().tag(sync=True)
    index = traitlets.Int(min=0).tag(sync=True)
    view = traitlets.Unicode().tag(sync=True)
    threshold = traitlets.Float(min=0, max=1).tag(sync=True)
    beta = traitlets.Float(min=0, max=1e6).tag(sync=True)
    epoch = traitlets.Int(min=0, max=2**32 - 1).tag(sync=True)
    unit = traitlets.Enum(UNITS).tag(sync=True)
    seed = traitlets.Int(min=0, max=2**32 - 1)
    keep_first = traitlets.Int(min=0)
    editable = traitlets.Bool().tag(sync=True)
    selection = traitlets.List(traitlets.Int(min=0)).tag(sync=True)
    edits = traitlets.List().tag(sync=True)
    # of the example that is shown, as the browser gets them
    data = traitlets.Dict().tag(sync=True)
    token_values = traitlets.Dict().tag(sync=True)
    token_draws = traitlets.List().tag(sync=True)

    def __init__(
        self,
        examples: dict | Sequence[dict],
        tokenizer: PreTrainedTokenizerBase,
        *,
        score: dict | Sequence[dict] | None = None,
        compare: dict | Sequence[dict] | None = None,
        view: str = "kind",
        threshold: float = THRESHOLD,
        beta: float = BETA,
        epoch: int = 0,
        unit: str = "token",
        keep_first: int = 0,
        seed: int = 42,
        editable: bool = False,
        index: int = 0,
    ):
        self._examples = _listed(examples)
        self._tokenizer = tokenizer
        self._scores = _listed(score)
        self._others = _listed(compare)
        if not len(self._examples):
            raise ValueError("no example to show")
        for name, scores in (("score", self._scores), ("compare", self._others)):
            if scores is not None:
                check_match(name, [one["log_probs"] for one in scores], self._examples)
        super().__init__(
            css=css_variables() + Path(__file__).with_suffix(".css").read_text(encoding="utf-8"),
            views=self._available_views(),
            count=len(self._examples),
            view=view,
            threshold=threshold,
            beta=beta,
            epoch=epoch,
            unit=unit,
            keep_first=keep_first,
            seed=seed,
            editable=editable,
            index=index,
        )
        self._load()

    @traitlets.validate("view")
    def _check_view(self, proposal: dict) -> str:
        view = proposal["value"]
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
        if view not in self.views:
            raise ValueError(f"view={view!r} needs {VIEWS[view].needs}")
        return view

    @traitlets.validate("edits")
    def _check_edits(self, proposal: dict) -> list[list]:
        edits = []
        for index, start, stop, weight in proposal["value"]:
            edit = [int(index), int(start), int(stop), float(weight)]
            if not (0 <= index < self.count and 0 <= start <= stop and abs(weight) <= 1e6):
                raise ValueError(f"edits must be [index, start, stop, weight], got {edit}")
            edits.append(edit)
        return edits

    @traitlets.validate("index")
    def _check_index(self, proposal: dict) -> int:
        if proposal["value"] >= len(self._examples):
            raise ValueError(
                f"index={proposal['value']}, but there are {len(self._examples)} examples"
            )
        return proposal["value"]

    @traitlets.observe("index")
    def _load(self, change: dict | None = None) -> None:
        with self.hold_sync():  # the browser gets all of an example at once
            self.data = self._data(self.index)
            self.selection = []
            self._send_values()
            self._send_draws()

    @traitlets.observe("edits")
    def _send_values(self, change: dict | None = None) -> None:
        self.token_values = self._json_values(self.index)

    @traitlets.observe("epoch", "unit", "seed", "keep_first")
    def _send_draws(self, change: dict | None = None) -> None:
        self.token_draws = np.minimum(self.draws, 1).tolist()

    @property
    def example(self) -> dict:
        """The example that is shown, with the weights that it was given by hand."""
        return {**self._examples[self.index], "weights": self._weights(self.index).tolist()}

    @property
    def tokens(self) -> list[str]:
        """The text of each token of the example that is shown."""
        return self._texts(self.index)

    @property
    def draws(self) -> np.ndarray:
        """(T,) the draw of each token, as the trainer makes it; infinity for what is never blurred."""
        return self._draws(self.index, self.unit, self.epoch)

    @property
    def blurred(self) -> np.ndarray:
        """(T,) bool: which tokens the threshold blurs."""
        return (self.draws < self.threshold) & (self._weights(self.index) != 0)

    def values(self) -> np.ndarray:
        """(T,) or, for the view gradient, (2, T): what the view shows of each token; NaN where it shows nothing."""
        if self.view == "kind":
            return np.asarray(self._examples[self.index]["kinds"])
        if self.view == "blur":
            return np.where(np.isfinite(self.draws), self.draws, np.nan)
        by_view = self._values(self.index)
        values = by_view[self.view]
        if VIEWS[self.view].is_of_loss:
            values = np.where(self.blurred, 0.0, values)
        if self.view == "gradient":
            return np.stack([values, self.beta * by_view["format"]])
        return values

    def to_html(self, path: str | Path | None = None) -> str:
        """The view as HTML that works offline, with all examples, and sliders where script is allowed.

        The sliders reach the first epochs, and the one that is shown.

        Args:
            path: where to write it as a page that can be sent to a colleague.
        """
        html = with_script(self._static(), self._state(range(self.count)))
        if path is not None:
            Path(path).write_text(page(html, self.data["id"]), encoding="utf-8")
        return html

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict, dict]:
        """The widget, and the same view for where none can run, with as many examples as fit."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        html = self._static(_TOKENS_IN_A_CELL)
        # all examples where they are few and short, else the one that is shown
        for indices in (range(self.count), range(self.index, self.index + 1)):
            if len(indices) <= 50 and sum(map(self._size, indices)) <= _TOKENS_IN_A_CELL:
                html = with_script(html, self._state(indices))
                break
        return {**data, "text/plain": repr(self), "text/html": html}, metadata

    def _state(self, indices: range) -> dict:
        """What a page needs to do without Python."""
        names = ("css", "views", "count", "view", "threshold", "beta", "epoch", "unit")
        epochs = sorted({*_PAGE_EPOCHS, self.epoch})
        examples = []
        for index in indices:
            drawn = {
                unit: {
                    epoch: rounded_draws(self._draws(index, unit, epoch), self.threshold)
                    for epoch in epochs
                }
                for unit in UNITS
            }
            values = self._json_values(index)
            examples.append({**self._data(index), "values": values, "draws": drawn})
        return {name: getattr(self, name) for name in names} | {
            "epochs": epochs,
            "examples": examples,
            "index": self.index - indices.start,
        }

    def _static(self, limit: int | None = None) -> str:
        notes = [
            f"example {self.index + 1} of {self.count}; {self.view}: {VIEWS[self.view].explanation}",
            f"threshold {self.threshold:.2f}, epoch {self.epoch}, unit {self.unit}: {self._share} (struck out)",
        ]
        if self._scores:
            reward = self._scores[self.index]["expected_reward"]
            notes.append(
                f"expected format reward R = {reward:.4f}; "
                f"format term \u03b2 (1 - R) = {self.beta * (1 - reward):.4f} at \u03b2 {self.beta:.2f}"
            )
        return static_view(self.data, self.view, self.values(), self.blurred, notes, limit)

    def _available_views(self) -> dict[str, dict]:
        names = {"kind", "blur", *self._values(0)}
        return {name: view._asdict() for name, view in VIEWS.items() if name in names}

    def _size(self, index: int) -> int:
        return len(self._examples[index]["kinds"])

    def _texts(self, index: int) -> list[str]:
        return token_texts(self._tokenizer, np.asarray(self._examples[index]["input_ids"]).tolist())

    def _weights(self, index: int) -> np.ndarray:
        example = self._examples[index]
        weights = np.array(example["weights"], dtype=float)
        for edited, start, stop, weight in self.edits:
            if edited == index:
                weights[start:stop] = weight
        return np.where(fixed_weights(example, self._tokenizer), example["weights"], weights)

    def _draws(self, index: int, unit: str, epoch: int) -> np.ndarray:
        example = self._examples[index]
        kinds = np.asarray(example["kinds"])
        units = unit_ids(kinds, self._texts(index), unit)
        return draws(kinds, example_key(example["id"]), self.seed, epoch, self.keep_first, units)

    def _values(self, index: int) -> dict[str, np.ndarray]:
        score = self._scores[index] if self._scores else None
        other = self._others[index] if self._others else None
        kinds = np.asarray(self._examples[index]["kinds"])
        return values_by_view(kinds, self._weights(index), score, other)

    def _json_values(self, index: int) -> dict[str, list]:
        return {name: json_numbers(values) for name, values in self._values(index).items()}

    def _data(self, index: int) -> dict:
        score = self._scores[index] if self._scores else None
        return browser_data(self._examples[index], self._tokenizer, index + 1, score)

    @property
    def _share(self) -> str:
        return f"{self.blurred.sum()} of {np.isfinite(self.draws).sum()} thought tokens blurred"

    def __repr__(self) -> str:
        tokens = len(self.data["ids"])
        return f"TokenInspector({self.data['id']!r}: {tokens} tokens, {self._share} at threshold {self.threshold:.2f})"


def _listed(value: dict | Sequence[dict] | None) -> Sequence[dict] | None:
    return [value] if isinstance(value, dict) else value
