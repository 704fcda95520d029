"""README.md of a run folder: a model card for the Hub, made of what the folder holds."""

import html
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..files import plain
from .run import Run

_FILES = {
    "adapter_model.safetensors": "the weights that were trained, an adapter on the model that btsft_base.json names",
    "model.safetensors": "the weights, with config.json for their shape",
    "tokenizer.json": "the tokenizer",
    "settings.yaml": "what the command line was given",
    "training_config.json": "every argument of the training",
    "environment.json": "versions, devices, commit, command, beginning and end",
    "data_report.json": "what became of every row of the data",
    "history.jsonl": "loss, learning rate, gradient norm and what else was logged, a line each",
    "evaluation": "the evaluation: a page, its figures as JSON, and the samples",
}
_BODY = """
# {name}

{what} {base}, fine-tuned on {data} by Blurred-Thoughts SFT with btsft_nb. {state}

    import btsft_nb as bt
    model, tokenizer = bt.load_model("path/of/this/folder")
    bt.sample(model, tokenizer, ["How many?"], n=4)

{summary}

## Data

{report}

## Evaluation

{evaluation}

## Files

{files}
"""


def model_card(run: Run, merged: Path | None = None) -> ModelCard:
    """The card of a run as it is now, or of its model merged into a folder; `model_card(bt.Run(folder)).save(path)`.

    Its front matter (https://huggingface.co/docs/hub/model-cards) names base model and data set where they are on the
    Hub, and the evaluation. What comes from data or names stands in it as text, as neither Markdown nor HTML.
    """
    folder = merged or run.path
    name, adapter = (
        folder.resolve().name,
        not merged and run.environment.get("adapter", "qlora" in run.summary),
    )
    base, data = (run.summary.get(key, "an unknown one") for key in ("base_model", "data"))
    test, metrics = _measured(run)
    facts = ModelCardData(
        base_model=_hub_id(base),
        datasets=_hub_id(re.sub(r" \[[^\[\]]*\]$", "", data)),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["btsft_nb", "blurred-thoughts-sft", *["lora"] * adapter],
        model_name=name if metrics else None,
        eval_results=[
            EvalResult("text-generation", "held-out", test, *metric) for metric in metrics.items()
        ]
        or None,
    )
    resume = "`trainer.train(resume_from_checkpoint=True)` goes on from the last checkpoint."
    steps = f"{run.step} of {run.max_steps} steps"
    files = {path.name: "measured while it trained" for path in run.path.glob("*.jsonl")} | _FILES
    files |= {path.name: "a checkpoint, to go on from" for path in run.checkpoints}
    body = _BODY.format(
        name=_text(name),
        what="An adapter of" if adapter else "A model, made of",
        base=_text(base),
        data=_text(data),
        state=f"Complete: {steps}."
        if run.finished
        else f"**Not complete: {steps} when this was written.** {resume}",
        summary=_table(run.summary.items()),
        report="\n".join(f"    {line}" for line in str(run.report).splitlines()),
        evaluation=_table([("on", test), *metrics.items()]) if metrics else "None.",
        files="\n".join(
            f"- {_text(name)}: {about}" for name, about in files.items() if (folder / name).exists()
        ),
    )
    return ModelCard(f"---\n{facts.to_yaml()}\n---\n{body}")


def _measured(run: Run) -> tuple[str, dict[str, float]]:
    """On what, and the metrics: of the evaluation in the folder, else what was measured last while it trained."""
    file = run.path / "evaluation" / "evaluation.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if found and found["settings"].get("date", "") >= run.environment.get(
        "started", ""
    ):  # not of an earlier run here
        summary = (
            found["summaries"].get(run.path.resolve().name) or list(found["summaries"].values())[-1]
        )
        return plain(found["settings"]["test"]), {
            plain(n): m["value"] for n, m in summary["metrics"].items()
        }
    names = [
        n
        for n in run.history
        if n.startswith("eval_") and not n.endswith(("_runtime", "_per_second"))
    ]
    values = {
        name.removeprefix("eval_"): float(v)
        for name in names
        for v in run.history[name].dropna().tail(1)
    }
    return "held-out data, while it trained", values


def _hub_id(name: str) -> str | None:
    """The name where it can be one of the Hub's, and is none of a file here or of a generated set."""
    can = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) and not re.search(
        r"^tiny/|\.(jsonl?|parquet)$", name
    )
    return name if can and not os.path.exists(name) else None


def _table(rows: Iterable[tuple]) -> str:
    cells = [[_text(f"{c:.4g}" if isinstance(c, float) else c) for c in row] for row in rows]
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in (["name", "value"], ["---"] * 2, *cells)
    )


def _text(value: object) -> str:
    """As Markdown that shows just this text: no markup, no link, no line break."""
    return html.escape(re.sub(r"([\\`*_{}\[\]()#+.!|~$@:/=^-])", r"\\\1", plain(value)))
