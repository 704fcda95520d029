"""What a run will take: two real steps of it on the longest examples, measured."""

import datetime
import gc
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import psutil
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from ..models.keys import load_secrets
from ..training.trainer import BTSFTTrainer
from .settings import Settings
from .stages import check_together, load, prepare_data

# What the measurement leaves out of a run: all that writes, reports or evaluates. The first step makes the optimiser's
# states, beside which the second one is measured.
_BARE = {
    "max_steps": 2,
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "logging_strategy": "no",
    "report_to": "none",
    "resume_from_checkpoint": None,
    "disable_tqdm": True,
}


def plan(settings: Settings, examples: Dataset | None = None) -> pd.DataFrame:
    """What a run would train and what it would take, measured in two steps on the longest examples.

    The model is loaded for it and dropped again: nothing of it shows in what is trained afterwards. If it does not fit
    into a GPU's memory, the table says what to change, in order.

    Args:
        examples: what is trained on, if it is prepared already.

    Returns:
        One column, `this run`: parameters, steps, peak memory (on a CPU, of the process since it began), tokens a
        second, and the time that all steps will take.

    >>> settings = bt.read_settings(model="tiny", data="tiny/teacher", examples=8, num_train_epochs=2)
    >>> bt.plan(settings).loc["steps", "this run"]  # doctest: +SKIP
    '2, 2 epochs'
    """
    load_secrets()
    check_together(settings)
    training = settings.training
    with _random_states_kept(), tempfile.TemporaryDirectory() as folder:
        bare = Settings(settings.values | _BARE | {"output_dir": folder}, settings.source)
        # from its second batch on, a step has gradients beside activations
        bare.training.gradient_accumulation_steps = min(training.gradient_accumulation_steps, 2)
        model, tokenizer = load(bare)
        if examples is None:
            examples, _ = prepare_data(settings, tokenizer)
        lengths = np.array([len(ids) for ids in examples.with_format("numpy")["input_ids"]])
        parameters = model.num_parameters()
        trainable = model.num_parameters(only_trainable=True)
        longest = np.argsort(-lengths, kind="stable")[: training.per_device_train_batch_size]
        speed = _speed(bare.training, model, tokenizer, examples.select(longest))
        peak, total = _memory()
        del model
        gc.collect()
        torch.cuda.empty_cache()
    rows = {
        "model": f"{settings.model.model}, {settings.model.method}",
        "parameters": f"{parameters:,}",
        "trainable": f"{trainable:,} ({trainable / parameters:.2%})",
        "examples": f"{len(lengths):,}, {lengths.sum():,} tokens, the longest {lengths.max():,}",
        "peak memory": f"{peak / 2**20:,.0f} MiB",
        "memory there is": f"{total / 2**20:,.0f} MiB",
    }
    if speed is None:
        rows["peak memory"] = "more than there is; what to change, in this order:"
        for number, remedy in enumerate(_remedies(settings, lengths.max()), 1):
            rows[f"remedy {number}"] = remedy
    else:
        rows |= _course(training, lengths, speed)
    return pd.DataFrame({"this run": rows})


@contextmanager
def _random_states_kept() -> Iterator[None]:
    python = random.getstate()
    numpy = np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)


class _Clock(TrainerCallback):
    """Times each step; `seconds` is that of the last one."""

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = self._now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = self._now() - self.start

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class _Unsaved(BTSFTTrainer):
    """A trainer that keeps nothing of what it trains."""

    def save_model(self, output_dir=None, _internal_call=False):
        pass


def _speed(training, model, tokenizer, batch: Dataset) -> float | None:
    """Tokens a second of all processes, padding included; None if training does not fit into memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clock = _Clock()
    repeats = training.gradient_accumulation_steps * training.world_size
    batches = batch.select(list(range(len(batch))) * repeats * training.max_steps)
    try:
        trainer = _Unsaved(model, training, batches, processing_class=tokenizer, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    except torch.OutOfMemoryError:
        return None
    return max(map(len, batch["input_ids"])) * len(batch) * repeats / clock.seconds


def _memory() -> tuple[int, int]:
    """Bytes at the peak and in all, of tensors on a GPU, else of this process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
    total = psutil.virtual_memory().total
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset, total
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, total


def _course(training, lengths: np.ndarray, speed: float) -> dict[str, str]:
    """Steps and time of the run."""
    batch = training.per_device_train_batch_size
    per_step = batch * training.gradient_accumulation_steps * training.world_size
    steps_per_epoch = math.ceil(len(lengths) / per_step)
    steps = training.max_steps
    if steps <= 0:
        steps = math.ceil(steps_per_epoch * training.num_train_epochs)
    # batches are as wide as the longest of their examples, which are drawn at random
    shape = (math.ceil(len(lengths) / batch), 1 if training.padding_free else batch)
    shuffled = np.random.default_rng(0).permutation(lengths)
    width = np.resize(shuffled, shape).max(axis=1).mean()
    seconds = math.ceil(steps * per_step * width / speed)
    return {
        "examples a step": str(per_step),
        "steps": f"{steps:,}, {steps / steps_per_epoch:.3g} epochs",
        "tokens a second": f"{speed:,.0f}",
        "time": str(datetime.timedelta(seconds=seconds)),
    }


def _remedies(settings: Settings, longest: int) -> list[str]:
    """What to change when a run does not fit into memory, in this order."""
    training = settings.training
    batch = training.per_device_train_batch_size
    accumulation = training.gradient_accumulation_steps * batch
    remedies = [
        f"per_device_train_batch_size=1 gradient_accumulation_steps={accumulation}",
        "gradient_checkpointing=true",
        f"max_length below {longest}, the longest example",
        "method=qlora bits=4",
        "a smaller model",
    ]
    if settings.model.method == "qlora" and settings.model.bits == 4:
        remedies.remove("method=qlora bits=4")
    if training.gradient_checkpointing:
        remedies.remove("gradient_checkpointing=true")
    return remedies[1:] if batch == 1 else remedies
