"""README.md of a run folder: a model card for the Hub, made of card.md and what the folder holds."""

import html
import os
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..text import visible

# that of a file or of a generated set is none
_HUB_ID = re.compile(r"(?!tiny/|.*\.(jsonl?|parquet)$)\w[\w.-]*/\w[\w.-]*", re.ASCII)
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+.!|~$@:/=^-])")


def model_card(run, merged=None):
    """The card of a `Run` as it is now, or of its model merged into the folder at a path.

    Its front matter (https://huggingface.co/docs/hub/model-cards) names base model and data set if they are on the
    Hub. What comes from data or names stands in it as text, as neither Markdown nor HTML.
    """
    facts = {"base_model": "unknown", "data": "unknown"} | run.summary
    folder = merged or run.path
    is_adapter = not merged and bool(run.base or run.environment.get("adapter"))
    front = ModelCardData(
        base_model=_hub_id(facts["base_model"]),
        datasets=_hub_id(facts["data"].partition(" [")[0]),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["btsft_nb", "blurred-thoughts-sft"] + (["lora"] if is_adapter else []),
    )
    return ModelCard.from_template(
        front,
        str(Path(__file__).with_name("card.md")),
        run=run,
        folder=folder,
        facts=facts,
        is_adapter=is_adapter,
        text=_text,
    )


def _hub_id(name):
    return name if _HUB_ID.fullmatch(name) and not os.path.exists(name) else None


def _text(value):
    """As Markdown that shows just this text: no markup, no link, no line break."""
    shown = f"{value:.4g}" if isinstance(value, float) else visible(value)
    return html.escape(_MARKUP.sub(r"\\\1", shown))
