"""A comparison as one HTML page, which reads without script and without colour, and asks for nothing.

`page.html` is its template. Names, questions, texts and settings come from data and models and are hostile: Jinja
escapes all that is put into it, and `visible` shows what cannot be seen.
"""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment
from matplotlib.figure import Figure

from ..text import visible
from ..views import plots
from .answers import Parsed, is_correct, parse

if TYPE_CHECKING:
    from .comparison import Comparison

_PROMPTS = 20  # are shown
_TEXTS = 8  # different ones of a model for a prompt
_LONGEST = 2000  # characters of a text
_CHARACTERS = 400_000  # of all texts together, so that the page stays under 2 MB
_DIALS = ("base_model", "qlora", "data", "examples", "threshold", "beta", "anchor")
# where a run lies and what it shows and sends while it trains: nothing that made the model another one
_UNRELATED = ("output_dir", "log", "run_name", "report_to", "disable_tqdm", "project", "trackio_")
_UNRELATED += ("hub_", "push_to_hub", "adapter.peft_version", "adapter.inference_mode")

_ENVIRONMENT = Environment(autoescape=True)
_ENVIRONMENT.filters["visible"] = visible
_TEMPLATE = _ENVIRONMENT.from_string(
    Path(__file__).with_name("page.html").read_text(encoding="utf-8")
)


def page(comparison: "Comparison") -> str:
    """The whole page. Of many prompts the first are shown, and of long texts the beginning."""
    differences = defaultdict(dict)
    for row in comparison.differences().reset_index().to_dict("records"):
        differences[row["metric"]][row["model"]] = row
    settings = comparison.settings
    prompts = [_prompt(comparison, i) for i in range(min(_PROMPTS, settings["prompts"]))]
    n_texts = sum(len(texts[:_TEXTS]) for prompt in prompts for texts in prompt["models"].values())
    return _TEMPLATE.render(
        settings=settings,
        configuration=_configuration(comparison.configs),
        runs=list(comparison.configs),
        summaries=comparison.summaries,
        differences=differences,
        pictures=_pictures(comparison.summaries),
        prompts=prompts,
        most_texts=_TEXTS,
        longest=min(_LONGEST, _CHARACTERS // n_texts),
    )


def _configuration(configs: dict[str, dict]) -> dict[str, list[str] | None]:
    """Setting -> its value in each run, for the dials and what differs; None for what is equal in all runs."""
    rows = {}
    for name in dict.fromkeys([*_DIALS, *(name for config in configs.values() for name in config)]):
        values = [json.dumps(c[name]) if name in c else "\u2013" for c in configs.values()]
        different = set(values)
        if name.startswith("adapter."):  # a run without one differs by its data and base
            different -= {"\u2013"}
        if (
            different != {"\u2013"}
            and not name.startswith(_UNRELATED)
            and not name.endswith("_token")
        ):
            rows[name] = values if name in _DIALS or len(different) > 1 else None
    return rows


def _png(draw: Callable[[object], object], height: float, columns: int = 1) -> str:
    """What is drawn into the Axes of a figure that no notebook shows, in base 64."""
    figure = Figure((9, height), layout="constrained")
    draw(figure.subplots(1, columns))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return base64.b64encode(file.getvalue()).decode()


def _pictures(summaries: dict[str, dict]) -> dict[str, str]:
    """In words -> as PNG: the main metrics, ways of thinking, and accuracy over diversity, as far as measured."""
    first = next(iter(summaries.values()))
    wanted = ("unique thoughts", "accuracy", "compliance")
    metrics = [metric for metric in wanted if metric in first["metrics"]]
    pictures = {}
    height = 1 + 0.4 * len(summaries)
    words = f"{', '.join(metrics)} of each model, in bars"
    pictures[words] = _png(
        lambda axes: plots.intervals(summaries, metrics, axes), height, len(metrics)
    )
    if first["ways"]:
        words = "; ".join(f"{name}: {summary['ways']}" for name, summary in summaries.items())
        pictures[words] = _png(lambda axes: plots.ways(summaries, axes), height)
    if "accuracy" in metrics:
        points = {name: {name: summary} for name, summary in summaries.items()}
        pictures["accuracy of each model over its unique thoughts"] = _png(
            lambda axes: plots.frontier(points, "unique thoughts", "accuracy", axes), 4.2
        )
    return pictures


class _Text(NamedTuple):
    """Equal samples of a model."""

    text: str
    samples: list[int]
    parsed: Parsed
    is_right: bool | None  # None without a reference


def _prompt(comparison: "Comparison", number: int) -> dict:
    """A prompt, its right answer, and the different texts of each model, the most frequent first."""
    references = comparison.references
    reference = None if references is None else references[number]
    models = {}
    for name, records in comparison.samples.items():
        equal = defaultdict(list)
        for record in records:
            if record["prompt"] == number:
                question = record["question"]
                equal[record["text"], record["prefilled"], record["finished"]].append(
                    record["sample"]
                )
        texts = []
        for (text, prefilled, finished), samples in equal.items():
            parsed = parse(text, prefilled=prefilled, finished=finished)
            is_right = None
            if reference is not None:
                is_right = is_correct(parsed.answer, reference, comparison.settings["answer"])
            texts.append(_Text(text, samples, parsed, is_right))
        models[name] = sorted(texts, key=lambda text: -len(text.samples))
    return {"question": question, "reference": reference, "models": models}
