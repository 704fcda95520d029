"""What a run will take: two real steps of it on the longest examples, measured."""

import datetime
import gc
import math
import sys
import tempfile
import time

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import PrinterCallback

from ..data.render import Renderer
from ..evaluation.sampling import SamplingSettings, drawn, sampling_jobs
from ..models.keys import load_secrets
from ..objective.forward import eval_mode
from ..training.trainer import BTSFTTrainer
from .settings import Settings
from .stages import check_together, load, prepare_data

# What the measurement leaves out of a run: all that saves, reports or evaluates. The first step makes the optimiser's
# states, beside which the second one is measured.
_BARE = {
    "max_steps": 2,
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "report_to": "none",
    "resume_from_checkpoint": None,
    "disable_tqdm": True,
}
# What to change when a run does not fit into memory, in this order.
_REMEDIES = (
    "per_device_train_batch_size=1, more gradient_accumulation_steps",
    "gradient_checkpointing=true",
    "a smaller max_length, below the longest example",
    "method=qlora bits=4",
    "a smaller model",
)


def plan(settings: Settings, examples: Dataset | None = None) -> pd.DataFrame:
    """What a run would train and take, measured in two steps on the longest examples and one batch of samples.

    The model is loaded for it and dropped again: nothing of it shows in what is trained afterwards. It seeds the global
    random generators, as every training does. If it does not fit into a GPU's memory, the table says what to change,
    in order.

    Args:
        examples: what is trained on, if it is prepared already.

    Returns:
        One column, `this run`: parameters, steps, peak memory (on a CPU, of the process since it began), tokens a
        second, and the time that all steps will take; with `test` set also the time to sample its prompts from a model.

    >>> settings = bt.read_settings(model="tiny", data="tiny/teacher", examples=8, num_train_epochs=2)
    >>> bt.plan(settings).loc["steps", "this run"]  # doctest: +SKIP
    '2, 2 epochs'
    """
    load_secrets()
    check_together(settings)
    training = settings.training
    with tempfile.TemporaryDirectory() as folder:
        bare = Settings(settings.values | _BARE | {"output_dir": folder}, settings.source)
        # from its second batch on, a step has gradients beside activations
        bare.training.gradient_accumulation_steps = min(training.gradient_accumulation_steps, 2)
        model, tokenizer = load(bare)
        if examples is None:
            examples, _ = prepare_data(settings, tokenizer)
        lengths = np.array([len(ids) for ids in examples.with_format("numpy")["input_ids"]])
        longest = np.argsort(-lengths)[: training.per_device_train_batch_size]
        parameters = model.num_parameters()
        trainable = model.num_parameters(only_trainable=True)
        rows = {
            "parameters": f"{parameters:,}",
            "trainable": f"{trainable:,} ({trainable / parameters:.2%})",
            "examples": f"{len(lengths):,}, {lengths.sum():,} tokens, the longest {lengths.max():,}",
        }
        try:
            speed = _speed(bare.training, model, tokenizer, examples.select(longest))
            rows |= {"peak memory": _peak_memory()} | _course(training, lengths, speed)
            if settings.evaluation.test:
                rows["sampling"] = _sampling_time(settings.evaluation, model, tokenizer)
        except torch.OutOfMemoryError:
            rows["peak memory"] = "more than there is; what to change, in this order:"
            for number, remedy in enumerate(_REMEDIES, 1):
                rows[f"remedy {number}"] = remedy
        del model
        gc.collect()
        torch.cuda.empty_cache()
    return pd.DataFrame({"this run": rows})


class _Unsaved(BTSFTTrainer):
    """A trainer that keeps nothing of what it trains."""

    prints_end = False

    def save_model(self, output_dir=None, _internal_call=False):
        pass


def _speed(training, model, tokenizer, batch):
    """Tokens a second of all processes in the last step."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    repeats = training.gradient_accumulation_steps * training.world_size * training.max_steps
    batches = batch.select(list(range(len(batch))) * repeats)
    trainer = _Unsaved(model, training, batches, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    # behind the last step's log stands that of the whole run
    return trainer.state.log_history[-2]["tokens_per_second"]


def _sampling_time(evaluation, model, tokenizer):
    """How long a model takes to answer the test prompts, by the first batch of them."""
    renderer = Renderer(tokenizer)
    sampling = SamplingSettings(**evaluation.sampling())
    jobs = sampling_jobs(renderer, evaluation.prompts(), sampling)
    start = time.monotonic()
    with torch.no_grad(), eval_mode(model):
        batch = next(drawn(model, renderer, jobs, sampling))
    seconds = math.ceil((time.monotonic() - start) * len(jobs) / len(batch))
    return f"{len(jobs):,} completions, {datetime.timedelta(seconds=seconds)} a model"


def _peak_memory():
    """Of tensors on a GPU, and what there is; else of this process since it began."""
    if torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1]
        return f"{torch.cuda.max_memory_allocated() / 2**20:,.0f} of {total / 2**20:,.0f} MiB"
    try:
        import resource
    except ImportError:
        return "not known on Windows"
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:,.0f} MiB"


def _course(training, lengths, speed):
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
    # the speed counts no padding, of which the measured batch had some
    longest = np.sort(lengths)[-batch:]
    full = 1 if training.padding_free else longest.mean() / longest.max()
    seconds = math.ceil(steps * per_step * width * full / speed)
    return {
        "steps": f"{steps:,}, {steps / steps_per_epoch:.3g} epochs",
        "tokens a second": f"{speed:,.0f}",
        "time": str(datetime.timedelta(seconds=seconds)),
    }
