"""Blurred-Thoughts SFT in notebooks: see every token, move the two dials, fine-tune the same model for real.

>>> import btsft_nb as bt
>>> model, tokenizer = bt.load_model("tiny", qlora=True)
>>> examples = bt.prepare(bt.load_rows("tiny/teacher"), tokenizer)
>>> config = bt.BTSFTConfig("runs/demo", threshold=0.5, anchor=1.0, beta=0.5, **bt.tiny.TRAINING)
>>> bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()
"""

import logging

# bitsandbytes warns when it is imported that it lacks a CPU kernel, which `models._load_base` does not use.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in record.msg)

from . import align, metrics, plots, tiny
from .blur import Kind, draws, example_key
from .callbacks import LiveCurves
from .choices import choices
from .collator import Collator
from .compare import Comparison, compare
from .config import BTSFTConfig, ModelConfig
from .data import mix, overlap, prepare
from .evaluate import evaluate, table
from .export import merge, push
from .formats import to_messages, to_prompt
from .generation import sample, score
from .inspector import TokenInspector, token_texts
from .messages import RowError
from .models import load_model, load_tokenizer
from .playground import Playground
from .readback import to_row
from .render import Example, Renderer
from .report import Report
from .rows import Rows, RowStream, load_rows
from .run import Run
from .secrets import load_secrets
from .settings import read_settings
from .stages import finetune, plan
from .templates import use_template
from .tokens import add_tags, tag_ids
from .tracking import TrackChoices, TrackLogProbs, TrackSamples
from .trainer import BTSFTTrainer
from .weights import sentence_weights

__version__ = "0.1.0"
__all__ = [
    "BTSFTConfig", "BTSFTTrainer", "Collator", "Comparison", "Example", "Kind", "LiveCurves", "ModelConfig",
    "Playground", "Renderer", "Report", "RowError", "RowStream", "Rows", "Run", "TokenInspector", "TrackChoices",
    "TrackLogProbs", "TrackSamples", "add_tags", "align", "choices", "compare", "draws", "evaluate", "example_key",
    "finetune", "load_model", "load_rows", "load_secrets", "load_tokenizer", "merge", "metrics", "mix", "overlap",
    "plan", "plots", "prepare", "push", "read_settings", "sample", "score", "sentence_weights", "table", "tag_ids",
    "tiny", "to_messages", "to_prompt", "to_row", "token_texts", "use_template",
]  # fmt: skip
