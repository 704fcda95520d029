"""The stages of a run: what the command line does, each in one call that a notebook can make as well."""

import contextlib
import math
import os
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback

from ..data.preparation import prepare
from ..data.rows import Rows, load_rows
from ..data.templates import use_template
from ..evaluation.tracking import TrackSamples
from ..models.estimate import SHARE, estimate, measured_speed
from ..models.hardware import choose_dtype, detect
from ..models.keys import load_secrets
from ..models.load import load_model, load_tokenizer
from ..training.config import BTSFTConfig
from ..training.trainer import BTSFTTrainer
from .settings import FILE, Settings, read_settings

_FREE = (
    "attention",
    "device_map",
    "max_memory",
    "num_proc",
    "eval_",
)  # beginnings of what a resume may change


def prepare_data(
    settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset, Dataset | None]:
    """The examples to train on, and those of `eval_data` where it is given; sets the tokenizer's template.

    Of several processes on a machine one prepares, and the others read what it made.
    """
    data = settings.data
    if data.template != "auto":
        use_template(tokenizer, data.template)
    elif tokenizer.chat_template is None:
        use_template(tokenizer, "chatml")
        print(
            f"{tokenizer.name_or_path} has no chat template: chatml is taken; template=qa or alpaca are others."
        )
    quiet = (
        contextlib.redirect_stdout(None)
        if settings.training.process_index
        else contextlib.nullcontext()
    )
    names = ("format", "response_marker", "too_long", "duplicates", "strict", "num_proc")
    how = {name: getattr(data, name) for name in names}

    def prepared(name: str, split: str, subset: str | None, count: int | None = None) -> Dataset:
        rows = load_rows(name, split, subset, stream=Path(name).exists(), strict=data.strict)
        rows = (
            rows
            if count is None
            else Rows(islice(rows, count), f"{rows.source}, the first {count}")
        )
        return prepare(rows, tokenizer, data.max_length, **how)

    with settings.training.main_process_first(desc="preparing the data"), quiet:
        examples = prepared(data.data, data.split, data.data_config, data.examples)
        held_out = (
            None
            if data.eval_data is None
            else prepared(data.eval_data, data.eval_split, data.eval_config)
        )
    return examples, held_out


def plan(settings: Settings, examples: Dataset | None = None) -> pd.DataFrame:
    """What a run would train and what it would take: parameters, steps, memory and time, before a model is loaded.

    Args:
        examples: what is trained on, where it is prepared already.

    The time is for half a second's speed of this machine's largest products, of which training reaches the share that
    is said; memory is `estimate`'s, for the longest example in a full batch. See docs/scale.md for how good both are.
    """
    load_secrets()
    _check(settings)
    model, training = settings.model, settings.training
    if examples is None:
        examples, _ = prepare_data(settings, load_tokenizer(model.tokenizer or model.model))
    lengths = np.array([len(ids) for ids in examples.with_format("numpy")["input_ids"]])
    batch, processes = training.per_device_train_batch_size, training.world_size
    window = batch * training.gradient_accumulation_steps * processes
    an_epoch = math.ceil(len(lengths) / window)
    steps = (
        training.max_steps
        if training.max_steps > 0
        else math.ceil(an_epoch * training.num_train_epochs)
    )
    try:
        needs = estimate(
            model, training, int(lengths.max()), processes=processes, sharding=_sharding(training)
        )
        kind, _ = choose_dtype(model.dtype, detect(), model.method)
        kind = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else kind
        tokens = (
            _padded(lengths, 1 if training.padding_free else batch) / len(lengths) * window * steps
        )
        time = f"about {_time(needs.seconds(tokens, measured_speed(training.device.type, kind) * SHARE))}"
        figures = needs.table()
    # an optimiser that it does not know, a model that cannot be traced, or wants a package that is not there
    except (RuntimeError, ImportError) as error:
        figures, time = {"memory": f"no estimate: {error}"}, "no estimate"
    cuda = training.device.type == "cuda"
    memory = torch.cuda.mem_get_info(training.device)[1] if cuda else psutil.virtual_memory().total
    rows = {
        "model": f"{model.model}, {model.method}"
        + (f" in {model.bits} bits" if model.method == "qlora" else ""),
        **figures,
        "memory there is": f"{memory / 2**20:,.0f} MiB",
        "examples": f"{len(lengths):,}, {lengths.sum():,} tokens, the longest {lengths.max():,}",
        "examples a step": f"{window} = {batch} x {training.gradient_accumulation_steps} x {processes} processes",
        "steps": f"{steps:,}, {steps / an_epoch:.3g} epochs",
        "time": time,
    }
    return pd.DataFrame({"this run": rows})


def _padded(lengths: np.ndarray, batch: int) -> int:
    """Tokens of an epoch in batches of so many, drawn at random, with their padding."""
    shuffled = np.random.default_rng(0).permutation(lengths)
    return sum(
        int(part.max()) * len(part)
        for part in np.split(shuffled, range(batch, len(shuffled), batch))
    )


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _sharding(training: BTSFTConfig) -> str:
    plugin = training.deepspeed_plugin
    if plugin is not None:
        return {2: "zero2", 3: "zero3"}.get(plugin.zero_stage, "none")
    return "fsdp" if os.environ.get("ACCELERATE_USE_FSDP") == "true" or training.fsdp else "none"


def finetune(
    settings: Settings, callbacks: list[TrainerCallback] | None = None, *, show_plan: bool = False
) -> BTSFTTrainer:
    """The main job: load the model, prepare the rows, train, and save to `output_dir`, with the settings.

    With `resume_from_checkpoint`, a checkpoint or a run folder, for the last one in it, the run goes on from there.

    Args:
        show_plan: print what `plan` says of the run before it starts.

    Returns the trainer, with its model and history.
    """
    load_secrets()
    training, asked, loaded = settings.training, settings.evaluation, settings.model
    _check(settings)
    _check_resumed(settings)
    if training.use_cpu and torch.cuda.is_available():
        loaded = replace(loaded, device_map=loaded.device_map or "cpu")
    model, tokenizer = load_model(loaded, seed=training.seed)
    examples, held_out = prepare_data(settings, tokenizer)
    callbacks = [*(callbacks or []), _WriteSettings(settings)]
    if show_plan and not training.process_index:
        print(plan(settings, examples).to_string(header=False))
    if asked.track_every:
        prompts = load_rows(asked.test, asked.test_split, asked.test_config)[: asked.test_prompts]
        how = dict(every=asked.track_every, answer=asked.answer, text_scores=asked.text_scores)
        callbacks.append(TrackSamples(prompts, tokenizer, **how, **asked.sampling()))
    trainer = BTSFTTrainer(
        model, training, examples, held_out, processing_class=tokenizer, callbacks=callbacks
    )
    trainer.train(training.resume_from_checkpoint)
    return trainer


class _WriteSettings(TrainerCallback):
    """Into the run folder when the run begins or goes on; one that is refused leaves those of the run as they are."""

    def __init__(self, settings: Settings):
        self.text = settings.to_yaml()

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            Path(args.output_dir, FILE).write_text(self.text, encoding="utf-8")


def _check(settings: Settings) -> None:
    """Raises ValueError for settings of different groups that do not go together, before anything is loaded."""
    data, training = settings.data, settings.training
    blurred = training.threshold or training.threshold_end
    if settings.model.method == "full" and training.anchor and blurred:
        raise ValueError(
            "method='full' leaves the anchor no reference: set anchor=0, or train adapters"
        )
    if data.eval_data and training.eval_strategy == "no" and not training.eval_on_start:
        raise ValueError(
            f"eval_data={data.eval_data!r} is never used: set eval_strategy=epoch, or steps with eval_steps"
        )


def _check_resumed(settings: Settings) -> None:
    """Raises ValueError where a run would go on with another model or data set. The trainer checks its arguments."""
    resumed = Path(settings.training.resume_from_checkpoint or "")
    file = next(
        (folder / FILE for folder in (resumed, resumed.parent) if (folder / FILE).is_file()), None
    )
    if settings.training.resume_from_checkpoint and file:
        then = read_settings(file)
        pairs = (
            (asdict(then.model) | asdict(then.data)).items(),
            asdict(settings.model) | asdict(settings.data),
        )
        changed = [
            f"{key} was {was!r} and is {pairs[1][key]!r}"
            for key, was in pairs[0]
            if was != pairs[1][key]
        ]
        if changed := [text for text in changed if not text.startswith(_FREE)]:
            raise ValueError(
                f"{resumed} was begun otherwise: {'; '.join(changed)}; go on with what was, or begin anew"
            )
