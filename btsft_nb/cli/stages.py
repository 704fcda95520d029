"""The stages of a run: what the command line does, each in one call that a notebook can make as well."""

import logging
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
from transformers import TrainerCallback

from ..data.chat_templates import use_template
from ..data.preparation import prepare
from ..data.report import show
from ..data.rows import Rows, load_rows
from ..evaluation.tracking import TrackSamples
from ..models.keys import load_secrets
from ..models.load import load_model
from ..models.tokenizer import load_tokenizer
from ..text import visible
from ..training.checkpoints import check_same, resumable
from ..training.trainer import BTSFTTrainer
from .runs import FREE
from .settings import SETTINGS_FILE, Settings, read_settings


def prepare_data(settings, tokenizer, report=True):
    """The examples to train on, and those of `eval_data` if it is set. Sets the tokenizer's template.

    Of several processes on a machine one prepares, and the others read what it made.

    Args:
        report: whether to print what became of the rows.
    """
    data = settings.data
    training = settings.training
    if data.template != "auto":
        use_template(tokenizer, data.template)
    elif tokenizer.chat_template is None:
        use_template(tokenizer, "chatml")
        name = tokenizer.name_or_path
        logging.getLogger(__name__).warning("%s has no chat template: using chatml", name)
    names = ("format", "response_marker", "too_long", "duplicates", "strict", "num_proc")
    options = {name: getattr(data, name) for name in names}
    options["print_report"] = False
    sets = [(data.data, data.split, data.data_config, data.examples)]
    if data.eval_data is not None:
        sets.append((data.eval_data, data.eval_split, data.eval_config, None))
    prepared = []
    with training.main_process_first(desc="preparing the data"):
        for name, split, config, count in sets:
            rows = load_rows(name, split, config, stream=Path(name).exists(), strict=data.strict)
            if count is not None:
                source = f"{rows.source}, the first {count}"
                rows = Rows(islice(rows, count), source, rows.name)
            prepared.append(prepare(rows, tokenizer, data.max_length, **options))
            if report and training.process_index == 0:
                show(prepared[-1].report, again=False)
    return [*prepared, None][:2]


def tokenizer_of(settings):
    """The tokenizer alone, of the settings' model."""
    return load_tokenizer(settings.model.tokenizer or settings.model.model)


def load(settings):
    """The model as the settings have it, ready to be trained, and its tokenizer."""
    model = settings.model
    if settings.training.use_cpu and torch.cuda.is_available():
        model = replace(model, device_map=model.device_map or "cpu")
    return load_model(model, seed=settings.training.seed)


def finetune(
    settings: Settings, callbacks: list[TrainerCallback] | None = None, *, report: bool = True
) -> BTSFTTrainer:
    """The main job: load the model, prepare the rows, train, and save to `output_dir`.

    With `resume_from_checkpoint`, a checkpoint or a run folder, the run goes on from there; with "auto" from the last
    checkpoint in `output_dir`, where there is one.

    Args:
        report: whether to print what became of the rows; in one line if this process has done so before.

    Returns:
        The trainer, with its model and history.

    >>> settings = bt.read_settings(model="tiny", data="tiny/teacher", examples=4, max_steps=1)
    >>> bt.finetune(settings).state.global_step  # doctest: +SKIP
    1
    """
    load_secrets()
    training = settings.training
    if training.resume_from_checkpoint == "auto":
        training.resume_from_checkpoint = resumable(training.output_dir)
    check_together(settings)
    _check_folder(settings)
    evaluation = settings.evaluation
    model, tokenizer = load(settings)
    examples, held_out = prepare_data(settings, tokenizer, report)
    callbacks = [*(callbacks or []), _WriteSettings(settings)]
    if evaluation.track_every:
        tracker = TrackSamples(
            evaluation.prompts(),
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


def _check_folder(settings):
    """Raises ValueError where the run's folder holds one of another model or other data, which would be lost."""
    folder = Path(settings.training.output_dir)
    if settings.training.process_index or not (folder / SETTINGS_FILE).is_file():
        return
    before = read_settings(folder)
    for name, then, now in (
        ("model", before.model.model, settings.model.model),
        ("data", before.data.data, settings.data.data),
    ):
        if then != now:
            raise ValueError(
                f"{folder} holds a run with {name}={visible(then)}, not {visible(now)}: set another "
                "output_dir, or delete it"
            )


class _WriteSettings(TrainerCallback):
    """Writes settings.yaml when the run begins or goes on: one that is refused leaves the old file."""

    def __init__(self, settings):
        self.text = settings.to_yaml()

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            Path(args.output_dir, SETTINGS_FILE).write_text(self.text, encoding="utf-8")


def check_together(settings):
    """Raises ValueError, before anything is loaded, for an anchor without a reference, data that no one uses, or a
    resume with other model or data.

    The trainer checks its own settings.
    """
    training = settings.training
    if settings.model.method == "full" and training.is_anchored:
        raise ValueError("method=full leaves the anchor no reference: set anchor=0, or use lora")
    is_evaluated = training.eval_strategy != "no" or training.eval_on_start
    if settings.data.eval_data and not is_evaluated:
        raise ValueError("eval_data is never used: set eval_strategy=epoch")
    resumed = Path(training.resume_from_checkpoint or "none")
    for folder in (resumed, resumed.parent):
        if training.resume_from_checkpoint and (folder / SETTINGS_FILE).is_file():
            before = read_settings(folder)
            then = asdict(before.model) | asdict(before.data)
            now = asdict(settings.model) | asdict(settings.data)
            check_same(then, now, [name for name in now if name not in FREE], folder)
            return
