"""README.md of a run folder: a model card for the Hub, made of card.md and what the folder holds."""

import html
import json
import os
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..text import visible
from .run import Run

_TEMPLATE = str(Path(__file__).with_name("card.md"))
_FILE = re.compile(r"\.(jsonl?|parquet)$")
_HUB_ID = re.compile(r"(?!tiny/)\w[\w.-]*/\w[\w.-]*", re.ASCII)
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+.!|~$@:/=^-])")


def model_card(run: Run, merged: Path | None = None) -> ModelCard:
    """The card of a run as it is now, or of its model merged into a folder.

    Its front matter (https://huggingface.co/docs/hub/model-cards) names base model and data set if they are on the
    Hub, and the evaluation. What comes from data or names stands in it as text, as neither Markdown nor HTML.
    """
    facts = {"base_model": "unknown", "data": "unknown"} | run.summary
    folder = merged or run.path
    is_adapter = not merged and run.environment.get("adapter", bool(run.base))
    test, metrics = _evaluation(run)
    results = []
    for name, value in metrics.items():
        results.append(EvalResult("text-generation", "held-out", test, name, value))
    front = ModelCardData(
        base_model=_hub_id(facts["base_model"]),
        datasets=_hub_id(facts["data"].partition(" [")[0]),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["btsft_nb", "blurred-thoughts-sft"] + (["lora"] if is_adapter else []),
        model_name=folder.resolve().name if results else None,
        eval_results=results or None,
    )
    context = {"run": run, "folder": folder, "facts": facts, "is_adapter": is_adapter}
    return ModelCard.from_template(
        front, _TEMPLATE, **context, test=test, metrics=metrics, text=_text
    )


def _evaluation(run: Run) -> tuple[str, dict[str, float]]:
    """What this run was evaluated on, and the metrics by name; none before it is."""
    file = run.path / "evaluation" / "evaluation.json"
    evaluation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    # an older one is of an earlier run in the folder
    if evaluation is None or evaluation["settings"].get("date", "") < run.environment.get(
        "started", ""
    ):
        return "", {}
    summaries = evaluation["summaries"]
    summary = summaries.get(run.path.resolve().name) or list(summaries.values())[-1]
    metrics = {visible(name): metric["value"] for name, metric in summary["metrics"].items()}
    return visible(evaluation["settings"]["test"]), metrics


def _hub_id(name: str) -> str | None:
    """The name if it can be one on the Hub, and is not that of a file or of a generated set."""
    is_id = _HUB_ID.fullmatch(name) and not _FILE.search(name) and not os.path.exists(name)
    return name if is_id else None


def _text(value: object) -> str:
    """As Markdown that shows just this text: no markup, no link, no line break."""
    shown = f"{value:.4g}" if isinstance(value, float) else visible(value)
    return html.escape(_MARKUP.sub(r"\\\1", shown))
