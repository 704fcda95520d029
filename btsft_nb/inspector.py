"""Tokens as coloured text: what each is, weighs, costs, and whether it was blurred. Static HTML, and sliders for it.

Text from a data set is hostile: it goes through `html.escape` with quotes, into text and attributes alike. Colour only
repeats what a number or a word under each token says.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
from transformers import PreTrainedTokenizerBase

from .blur import Kind, draws, example_key

VIEWS = ("kind", "weight", "loss", "probability", "gradient")
_KINDS = {Kind.PROMPT: "#ececec", Kind.TAG: "#ffd27f", Kind.THINK: "#bfe0ff", Kind.ANSWER: "#c5ecc7"}
_CELL = "display:inline-block;text-align:center;margin:1px;padding:0 2px;border:1px solid #999;white-space:pre"


def token_texts(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int]) -> list[str]:
    """The text of each token on its own."""
    return tokenizer.batch_decode([[token] for token in input_ids])


class TokenInspector:
    """Shows the tokens of a prepared example. In a notebook cell it is static HTML; `dials()` puts sliders to it.

    Args:
        example: a row of what `prepare` returns.
        tokenizer: the one that prepared it.
        threshold, beta: the dials. seed, epoch, keep_first: as in training, so that the same tokens are blurred.
        score: what `score` returns for the example; the views loss, probability and gradient need it.
        view: one of kind, weight, loss (weight times nll, as it enters the sum), probability, gradient (how strongly
            the token's prediction is moved: |weight| (1 - p) / N of the nll, and beta times the pull of the format).

    Raises ValueError for an unknown view or one that lacks its score.
    """

    def __init__(
        self,
        example: dict,
        tokenizer: PreTrainedTokenizerBase,
        *,
        threshold: float = 0.2,
        beta: float = 0.05,
        seed: int = 42,
        epoch: int = 0,
        keep_first: int = 0,
        score: dict | None = None,
        view: str = "kind",
    ):
        if view not in VIEWS:
            raise ValueError(f"view={view!r}: one of {', '.join(VIEWS)} wanted")
        if score is None and view not in ("kind", "weight"):
            raise ValueError(f"view={view!r} needs score=btsft_nb.score(model, tokenizer, [example])[0]")
        self.tokens = token_texts(tokenizer, example["input_ids"])
        self.kinds = np.asarray(example["kinds"])
        self.weights = np.asarray(example["weights"], dtype=float)
        self.draws = draws(self.kinds, example_key(example["id"]), seed, epoch, keep_first)
        self.title, self.score = example["id"], score
        self.threshold, self.beta, self.epoch, self.view = threshold, beta, epoch, view

    @property
    def blurred(self) -> np.ndarray:
        """(T,) bool: which tokens the threshold blurs."""
        return (self.draws < self.threshold) & (self.weights != 0)

    def values(self) -> np.ndarray:
        """(T,) or, for the view gradient, (2, T): what the current view shows for each token."""
        weights = np.where(self.blurred, 0, self.weights)
        if self.view == "kind":
            return self.kinds
        if self.view == "weight":
            return weights
        log_probs = self.score["log_probs"]
        if self.view == "probability":
            return np.exp(log_probs)
        if self.view == "loss":
            return -weights * log_probs
        supervised = max((self.weights != 0).sum(), 1)
        nll = np.abs(weights) * (1 - np.exp(log_probs)) / supervised
        return np.stack([nll, self.beta * self.score["format_pull"]])

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """The view as HTML without script, style sheet or request."""
        values, blurred = self.values(), self.blurred
        cells = [self._cell(i, values[..., i], blurred[i], np.abs(values).max()) for i in range(len(self.tokens))]
        breaks = ["<br>" if "\n" in token else "" for token in self.tokens]
        lines = "".join(cell + after for cell, after in zip(cells, breaks, strict=True))
        return (
            '<div style="font-family:monospace;font-size:13px;line-height:1.25;background:#fff;color:#000;padding:6px">'
            f"<div>{self._legend()}</div><div style='margin-top:6px'>{lines}</div></div>"
        )

    def _legend(self) -> str:
        kinds = " ".join(
            f'<span style="{_CELL};background:{color}">{kind.name.lower()} {int((self.kinds == kind).sum())}</span>'
            for kind, color in _KINDS.items()
        )
        thought = int(np.isfinite(self.draws).sum())
        lines = [
            f"<b>{escape(str(self.title), quote=True)}</b> &nbsp; view: {self.view} &nbsp; {kinds}",
            f"threshold {self.threshold:.2f}, epoch {self.epoch}: {self.blurred.sum()} of {thought} <s>blurred</s>",
        ]
        if self.score is not None:
            reward = self.score["expected_reward"]
            term = f"&beta; (1 &minus; R) = {self.beta * (1 - reward):.4f}"
            lines.append(f"expected reward R = {reward:.4f}, format term at &beta; {self.beta:.2f}: {term}")
        under = {"kind": "its kind", "gradient": "nll + format, in thousandths"}.get(self.view, f"its {self.view}")
        return "<br>".join([*lines, f"under each token: {under}"])

    def _cell(self, i: int, value: np.ndarray, blurred: bool, top: float) -> str:
        kind = Kind(int(self.kinds[i]))
        if self.view == "kind":
            under, color = ("blur" if blurred else kind.name.lower()[:6]), _KINDS[kind]
        else:
            numbers = np.atleast_1d(value)
            under = f"{value:.2f}" if value.ndim == 0 else "+".join(f"{1000 * number:.1f}" for number in numbers)
            strength = min(float(np.abs(numbers).sum()) / (float(top) or 1), 1)
            red, green, blue = (213, 94, 0) if numbers.sum() < 0 or self.view != "probability" else (0, 114, 178)
            color = f"rgba({red},{green},{blue},{0.75 * strength:.2f})"
        text = escape(self.tokens[i].replace("\n", "\u21b5"), quote=True) or "&nbsp;"
        text = f"<s>{text}</s>" if blurred else text
        hint = f"{i}: {self.tokens[i]!r} {kind.name.lower()} weight {self.weights[i]:g}" + " blurred" * bool(blurred)
        if self.score is not None and i:
            hint += f" p {np.exp(self.score['log_probs'][i]):.4f} nll {-self.score['log_probs'][i]:.3f}"
        opacity = "opacity:0.55;" if blurred or kind == Kind.PROMPT else ""
        style = f"{_CELL};{opacity}background:{color}"
        return f'<span style="{style}" title="{escape(hint, quote=True)}">{text}<br><small>{under}</small></span>'

    def dials(self):
        """Sliders for threshold and beta and a choice of view; each redraws the tokens. Needs ipywidgets."""
        import ipywidgets

        def redraw(threshold: float, beta: float, view: str) -> None:
            self.threshold, self.beta, self.view = threshold, beta, view
            page.value = self.to_html()

        page = ipywidgets.HTML()
        views = VIEWS if self.score is not None else VIEWS[:2]
        controls = {
            "threshold": ipywidgets.FloatSlider(self.threshold, min=0, max=1, step=0.05, description="threshold"),
            "beta": ipywidgets.FloatSlider(self.beta, min=0, max=max(2, self.beta), step=0.05, description="beta"),
            "view": ipywidgets.Dropdown(value=self.view, options=views, description="view"),
        }
        ipywidgets.interactive_output(redraw, controls)
        return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), page])
