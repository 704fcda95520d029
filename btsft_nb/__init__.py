"""Blurred-Thoughts SFT in notebooks: see every token, move the two dials, fine-tune the same model for real.

>>> import btsft_nb as bt
>>> model, tokenizer = bt.load_model("tiny", qlora=True)
>>> examples = bt.prepare(bt.load_rows("tiny/teacher"), tokenizer)
tiny/teacher: 1,000 rows -> 1,000 examples...
>>> config = bt.BTSFTConfig("runs/demo", threshold=0.5, anchor=1.0, beta=0.5, **bt.tiny.TRAINING)
>>> bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()  # doctest: +SKIP

The rooms of the package, in the order of the flow; each says in its own docstring what comes in and what goes out:
`data`, `models`, `objective`, `training`, `evaluation`, `views`, `cli`.
"""

import logging
import warnings
from importlib import import_module

__version__ = "0.1.0"

# What libraries say although nothing is wrong, by the logger that it comes from.
_LOGS = {
    "bitsandbytes.backends.cpu.ops": "gemm_4bit_forward",  # a CPU kernel that `models.load` does not use
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs",  # are cast, which is what LLM.int8 is
    "transformers.integrations.bitsandbytes": "and casted to",  # the dtype that `merge` asks for
}
for _name, _text in _LOGS.items():
    logging.getLogger(_name).addFilter(lambda record, text=_text: text not in str(record.msg))
# transformers has new names for these; PEFT reads the old one, and 5.15 has no other.
_TEXT = "`(is_)?gradient_checkpointing(_kwargs)?` is deprecated"
warnings.filterwarnings("ignore", _TEXT, FutureWarning, r"transformers\.")

# Module -> the public names that it defines. A module is imported when a name of it is first used.
_PUBLIC = {
    "data.errors": "RowError",
    "data.formats": "to_messages to_prompt",
    "data.kinds": "Kind",
    "data.preparation": "prepare",
    "data.render": "Example Renderer",
    "data.report": "Report report_of",
    "data.rows": "Rows load_rows",
    "data.sets": "overlap",
    "data.chat_templates": "use_template",
    "data.tokens": "add_tags tag_ids token_texts",
    "models.config": "ModelConfig",
    "models.keys": "load_secrets",
    "models.load": "load_model",
    "models.tokenizer": "load_tokenizer",
    "objective.blur": "draws example_key",
    "training.collator": "Collator",
    "training.config": "BTSFTConfig",
    "training.export": "merge",
    "training.run": "Run",
    "training.trainer": "BTSFTTrainer",
    "evaluation.comparison": "Comparison compare",
    "evaluation.multiple_choice": "choices",
    "evaluation.sampling": "sample",
    "evaluation.scoring": "score",
    "evaluation.summary": "evaluate table",
    "evaluation.tracking": "TrackChoices TrackLogProbs TrackSamples",
    "views.inspector": "TokenInspector",
    "views.live": "LiveCurves",
    "cli.runs": "find_runs",
    "cli.settings": "read_settings",
    "cli.planning": "plan",
    "cli.stages": "finetune",
    "dials": "Dials",
}
_MODULES = {
    "align": "align",
    "metrics": "evaluation.metrics",
    "plots": "views.plots",
    "tiny": "tiny",
}
_MODULE_OF = {
    name: module for module, names in _PUBLIC.items() for name in names.split()
} | _MODULES

__all__ = sorted(_MODULE_OF)


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = import_module(f".{_MODULE_OF[name]}", __name__)
    if name not in _MODULES:
        value = getattr(value, name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__():
    return __all__
