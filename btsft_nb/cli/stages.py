"""The stages of a run: what the command line does, each in one call that a notebook can make as well."""

import contextlib
import logging
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..data.chat_templates import use_template
from ..data.preparation import prepare
from ..data.rows import Rows, load_rows
from ..evaluation.tracking import TrackSamples
from ..models.keys import load_secrets
from ..models.load import load_model
from ..models.tokenizer import load_tokenizer
from ..training.checkpoints import check_same
from ..training.trainer import BTSFTTrainer
from .settings import SETTINGS_FILE, Settings, read_settings

# Settings of model and data that a resumed run may change.
_FREE = (
    "attention",
    "device_map",
    "max_memory",
    "num_proc",
    "eval_data",
    "eval_split",
    "eval_config",
)
_log = logging.getLogger(__name__)


def prepare_data(
    settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset, Dataset | None]:
    """The examples to train on, and those of `eval_data` if it is set. Sets the tokenizer's template.

    Of several processes on a machine one prepares, and the others read what it made.
    """
    data = settings.data
    training = settings.training
    if data.template != "auto":
        use_template(tokenizer, data.template)
    elif tokenizer.chat_template is None:
        use_template(tokenizer, "chatml")
        _log.warning("%s has no chat template: using chatml", tokenizer.name_or_path)
    quiet = contextlib.redirect_stdout(None) if training.process_index else contextlib.nullcontext()
    held_out = None
    with training.main_process_first(desc="preparing the data"), quiet:
        rows = _rows(data.data, data.split, data.data_config, data.strict)
        if data.examples is not None:
            source = f"{rows.source}, the first {data.examples}"
            rows = Rows(islice(rows, data.examples), source, rows.name)
        examples = _prepared(settings, tokenizer, rows)
        if data.eval_data is not None:
            rows = _rows(data.eval_data, data.eval_split, data.eval_config, data.strict)
            held_out = _prepared(settings, tokenizer, rows)
    return examples, held_out


def _rows(name: str, split: str, config: str | None, strict: bool) -> Rows:
    return load_rows(name, split, config, stream=Path(name).exists(), strict=strict)


def _prepared(settings: Settings, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> Dataset:
    data = settings.data
    return prepare(
        rows,
        tokenizer,
        data.max_length,
        format=data.format,
        response_marker=data.response_marker,
        too_long=data.too_long,
        duplicates=data.duplicates,
        strict=data.strict,
        num_proc=data.num_proc,
    )


def tokenizer_of(settings: Settings) -> PreTrainedTokenizerBase:
    """The tokenizer alone, of the settings' model."""
    return load_tokenizer(settings.model.tokenizer or settings.model.model)


def load(settings: Settings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model as the settings have it, ready to be trained, and its tokenizer."""
    model = settings.model
    if settings.training.use_cpu and torch.cuda.is_available():
        model = replace(model, device_map=model.device_map or "cpu")
    return load_model(model, seed=settings.training.seed)


def finetune(settings: Settings, callbacks: list[TrainerCallback] | None = None) -> BTSFTTrainer:
    """The main job: load the model, prepare the rows, train, and save to `output_dir`.

    With `resume_from_checkpoint`, a checkpoint or a run folder, the run goes on from there.

    Returns:
        The trainer, with its model and history.

    >>> settings = bt.read_settings(model="tiny", data="tiny/teacher", examples=4, max_steps=1)
    >>> bt.finetune(settings).state.global_step  # doctest: +SKIP
    1
    """
    load_secrets()
    check_together(settings)
    _check_resumed(settings)
    training = settings.training
    evaluation = settings.evaluation
    model, tokenizer = load(settings)
    examples, held_out = prepare_data(settings, tokenizer)
    callbacks = [*(callbacks or []), _WriteSettings(settings)]
    if evaluation.track_every:
        prompts = load_rows(evaluation.test, evaluation.test_split, evaluation.test_config)
        tracker = TrackSamples(
            prompts[: evaluation.test_prompts],
            tokenizer,
            every=evaluation.track_every,
            answer=evaluation.answer,
            text_scores=evaluation.text_scores,
            **evaluation.sampling(),
        )
        callbacks.append(tracker)
    trainer = BTSFTTrainer(
        model, training, examples, held_out, processing_class=tokenizer, callbacks=callbacks
    )
    trainer.train(training.resume_from_checkpoint)
    return trainer


class _WriteSettings(TrainerCallback):
    """Writes settings.yaml when the run begins or goes on: one that is refused leaves the old file."""

    def __init__(self, settings: Settings):
        self.text = settings.to_yaml()

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            Path(args.output_dir, SETTINGS_FILE).write_text(self.text, encoding="utf-8")


def check_together(settings: Settings) -> None:
    """Raises ValueError for settings of different groups that contradict each other, before anything is loaded."""
    training = settings.training
    is_blurred = training.threshold or training.threshold_end
    if settings.model.method == "full" and training.anchor and is_blurred:
        raise ValueError("method=full leaves the anchor no reference: set anchor=0, or use lora")
    is_evaluated = training.eval_strategy != "no" or training.eval_on_start
    if settings.data.eval_data and not is_evaluated:
        raise ValueError(
            "eval_data is never used: set eval_strategy=epoch, or steps and eval_steps"
        )


def _check_resumed(settings: Settings) -> None:
    """Raises ValueError if a run would go on with another model or data. The trainer checks its own settings."""
    resumed = settings.training.resume_from_checkpoint
    if not resumed:
        return
    for folder in (Path(resumed), Path(resumed).parent):
        if (folder / SETTINGS_FILE).is_file():
            before = read_settings(folder)
            then = asdict(before.model) | asdict(before.data)
            now = asdict(settings.model) | asdict(settings.data)
            check_same(then, now, [name for name in now if name not in _FREE], folder)
            return
