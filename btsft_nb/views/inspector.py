"""The token inspector: what each token is, weighs and costs, whether it is blurred, and the dials that move it.

In a notebook it is a widget (anywidget, `inspector.js`). Wherever no widget can run the same view stands as HTML that
needs nothing else, with the sliders where script is allowed (`static_view`). Draws and values come from here
(`inspector_data`); the browser compares the draws with the threshold.
"""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
from traitlets import (
    Bool,
    CFloat,
    CInt,
    Dict,
    Enum,
    Float,
    Int,
    List,
    Tuple,
    Unicode,
    observe,
    validate,
)
from transformers import PreTrainedTokenizerBase

from ..checks import check_keys
from ..objective import BETA, THRESHOLD
from ..objective.blur import UNITS
from .inspector_data import VIEWS, ShownExample, check_match
from .palette import css_variables
from .static_view import page, static_view, with_script

_PLACE = CInt(min=0)
_TOKENS_IN_A_CELL = 4000  # in the HTML of a cell's output; `to_html` with a path holds all


class TokenInspector(anywidget.AnyWidget):
    """Shows the tokens of prepared examples, coloured by a view, with dials for what the trainer would do to them.

    Args:
        examples: a row of what `prepare` returns, or several: a list, or the whole data set.
        tokenizer: the one that prepared them.
        score: what `score` returns for them. The views loss, probability and gradient need it, kl needs one made with
            `kl=True`; so does the strip that shows where the tags are expected.
        compare: what `score` returns for another model; the view change needs it.
        dials: `view`, by default "kind": one of kind, weight, blur (the draws), loss (weight times nll, as it enters
            the sum), probability, kl (to the reference), change (log-probability, minus that of `compare`) and
            gradient: half the summed absolute gradient by the logits, |weight| (1 - p) / N of the nll, and beta times
            that of the format. Loss and gradient are those of `negative="nll"`.
            `threshold`, `beta`, `epoch`, `unit`, `keep_first`, `seed`: as in training, with its defaults, so that the
            same tokens are blurred; with `resample="never"` epoch 0 stands for all.
            `editable`, by default False: whether the weight of selected tokens can be set. The prompt keeps its own.
            `index`, by default 0: the example to show first.

    The traits `threshold`, `beta`, `epoch`, `unit`, `view`, `index`, `selection` ([start, stop] in tokens, or empty)
    and `edits` (a list of [index, start, stop, weight]) follow what is done in the browser, and can be set and
    observed. `example` has the edited weights, and trains as it is: `datasets.Dataset.from_list([inspector.example])`.

    Raises:
        ValueError: for an unknown dial or view, a view that lacks its score, scores of other examples, an index too
            large, or an edit out of range.
        TraitError: for a dial out of its range.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> examples = bt.prepare(bt.load_rows("tiny/teacher")[:3], tokenizer)
    tiny/teacher: 3 rows -> 3 examples...
    >>> inspector = bt.TokenInspector(examples, tokenizer, threshold=0.5)
    >>> inspector
    TokenInspector('tiny/teacher/0': 66 tokens, 14 of 26 thought tokens blurred at threshold 0.50)
    >>> inspector.threshold = 1
    >>> int(inspector.blurred.sum())
    26
    """

    _esm = Path(__file__).with_name("inspector.js")
    _ipython_display_ = None  # that of ipywidgets 7 would hide _repr_mimebundle_

    css = Unicode().tag(sync=True)
    views = Dict().tag(sync=True)  # name -> explanation, of those that can be shown
    count = Int().tag(sync=True)
    index = Int(min=0).tag(sync=True)
    view = Unicode("kind").tag(sync=True)
    threshold = Float(THRESHOLD, min=0, max=1).tag(sync=True)
    beta = Float(BETA, min=0, max=1e6).tag(sync=True)
    epoch = Int(min=0, max=2**32 - 1).tag(sync=True)
    unit = Enum(UNITS, "token").tag(sync=True)
    seed = Int(42, min=0, max=2**32 - 1)
    keep_first = Int(min=0)
    editable = Bool().tag(sync=True)
    selection = List(Int(min=0)).tag(sync=True)
    edits = List(Tuple(_PLACE, _PLACE, _PLACE, CFloat())).tag(sync=True)
    # of the example that is shown, as the browser gets them
    data = Dict().tag(sync=True)
    token_values = Dict().tag(sync=True)
    token_draws = List().tag(sync=True)

    def __init__(
        self,
        examples: dict | Sequence[dict],
        tokenizer: PreTrainedTokenizerBase,
        *,
        score: dict | Sequence[dict] | None = None,
        compare: dict | Sequence[dict] | None = None,
        **dials,
    ):
        check_keys(dials, self.class_trait_names())
        self._examples = _listed(examples)
        self._tokenizer = tokenizer
        if not len(self._examples):
            raise ValueError("no example to show")
        self._scores = self._checked("score", score)
        self._others = self._checked("compare", compare)
        available = {"kind", "blur", *self._at(0).values()}
        super().__init__(
            css=css_variables() + Path(__file__).with_suffix(".css").read_text(encoding="utf-8"),
            views={name: VIEWS[name]._asdict() for name in VIEWS if name in available},
            count=len(self._examples),
            **dials,
        )
        self._follow()

    def _checked(self, name, scores):
        """What was scored of each example, if anything."""
        if scores is None:
            return [None] * len(self._examples)
        scores = _listed(scores)
        check_match(name, [score["log_probs"] for score in scores], self._examples)
        return scores

    @validate("view")
    def _check_view(self, proposal):
        view = proposal["value"]
        if view not in self.views:
            raise ValueError(
                f"view={view!r} is none of {', '.join(self.views)}; "
                "score=bt.score(..., kl=True) and compare= bring others"
            )
        return view

    @validate("edits")
    def _check_edits(self, proposal):
        for index, start, stop, weight in proposal["value"]:
            if not (index < self.count and start <= stop and abs(weight) <= 1e6):
                raise ValueError(f"an edit is out of range: {[index, start, stop, weight]}")
        return proposal["value"]

    @validate("index")
    def _check_index(self, proposal):
        index = proposal["value"]
        if index >= self.count:
            raise ValueError(f"index={index}, but there are {self.count} examples")
        return index

    @observe("index", "edits", "epoch", "unit", "seed", "keep_first")
    def _follow(self, change=None):
        self._shown = self._at(self.index)
        with self.hold_sync():  # the browser gets all of an example at once
            self.data = self._shown.browser_data()
            self.token_values = self._shown.json_values()
            self.token_draws = np.minimum(self.draws, 1).tolist()
            if change and change["name"] == "index":
                self.selection = []

    def _at(self, index):
        edits = [edit[1:] for edit in self.edits if edit[0] == index]
        return ShownExample(
            self._examples[index], self._tokenizer, self._scores[index], self._others[index], edits
        )

    @property
    def example(self) -> dict:
        """The example that is shown, with the weights that it was given by hand."""
        return {**self._examples[self.index], "weights": self._shown.weights.tolist()}

    @property
    def tokens(self) -> list[str]:
        """The text of each token of the example that is shown."""
        return self._shown.texts

    @property
    def draws(self) -> np.ndarray:
        """(T,) the draw of each token, as the trainer makes it; infinity for what is never blurred."""
        return self._shown.draws(self.seed, self.epoch, self.keep_first, self.unit)

    @property
    def blurred(self) -> np.ndarray:
        """(T,) bool: which tokens the threshold blurs."""
        return (self.draws < self.threshold) & (self._shown.weights != 0)

    def values(self) -> np.ndarray:
        """(T,) or, for the view gradient, (2, T): what the view shows of each token; NaN where it shows nothing."""
        if self.view == "kind":
            return self._shown.kinds
        if self.view == "blur":
            return np.where(np.isfinite(self.draws), self.draws, np.nan)
        by_view = self._shown.values()
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
        html = with_script(static_view(self), self._state(range(self.count)))
        if path is not None:
            Path(path).write_text(page(html, self.data["id"]), encoding="utf-8")
        return html

    def _repr_mimebundle_(self, **kwargs):
        """The widget, and the same view for where none can run, with as many examples as fit."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        html = static_view(self, _TOKENS_IN_A_CELL)
        # all examples where they are few and short, else the one that is shown
        for indices in (range(self.count), range(self.index, self.index + 1)):
            sizes = (len(self._examples[i]["kinds"]) for i in indices)
            if len(indices) <= 50 and sum(sizes) <= _TOKENS_IN_A_CELL:
                html = with_script(html, self._state(indices))
                break
        return {**data, "text/html": html}, metadata

    def _state(self, indices):
        """What a page needs to do without Python."""
        epochs = sorted({*range(5), self.epoch})
        examples = []
        for index in indices:
            shown = self._at(index)
            draws = shown.page_draws(self.seed, epochs, self.keep_first, self.threshold)
            examples.append({**shown.browser_data(), "values": shown.json_values(), "draws": draws})
        names = ("css", "count", "index", "views", "view", "threshold", "beta", "epoch", "unit")
        own = {"epochs": epochs, "examples": examples, "first": indices.start}
        return self.get_state(names) | own

    @property
    def share(self):
        """How many tokens are blurred, in words."""
        return f"{self.blurred.sum()} of {np.isfinite(self.draws).sum()} thought tokens blurred"

    def __repr__(self):
        blurred = f"{self.share} at threshold {self.threshold:.2f}"
        return f"TokenInspector({self.data['id']!r}: {len(self.tokens)} tokens, {blurred})"


def _listed(value):
    return [value] if isinstance(value, dict) else value
