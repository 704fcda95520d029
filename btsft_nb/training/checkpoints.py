"""The checkpoints of a run folder: written whole or not at all, and resumed only with the same settings."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

CONFIG_FILE = "training_config.json"
ENVIRONMENT_FILE = "environment.json"
REPORT_FILE = "data_report.json"
_STATE_FILE = "trainer_state.json"  # transformers writes it when all else is there

# What makes the steps of a run what they are. All else may differ after a resume: logging, saving, evaluation,
# trackers, workers, and how the examples of a step are split over batches, accumulation and processes.
_BOUND = (
    "data",
    "examples",
    "examples_per_step",
    "base_model",
    "max_steps",
    "num_train_epochs",
    "threshold",
    "threshold_end",
    "anchor",
    "beta",
    "unit",
    "resample",
    "keep_first",
    "negative",
    "negative_floor",
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "ignore_data_skip",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "optim_target_modules",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
    "tf32",
    "fsdp",
    "deepspeed",
)


def is_whole(checkpoint):
    """Whether a checkpoint was written to its end."""
    try:
        return bool(json.loads((checkpoint / _STATE_FILE).read_text()))
    except (OSError, ValueError):
        return False


def checkpoints(run):
    """The checkpoints of a run folder by step, whole or not."""
    start = len("checkpoint-")
    folders = [path for path in Path(run).glob("checkpoint-*") if path.name[start:].isdecimal()]
    return sorted(folders, key=lambda path: int(path.name[start:]))


def last_checkpoint(folder):
    """The whole checkpoint in a run folder that was written last; the folder itself if it is one.

    The last in time, not the highest step: the folder may hold those of an earlier, longer run as well. What a killed
    run left of a checkpoint is deleted.

    Raises:
        ValueError: there is none.
    """
    if is_whole(Path(folder)):
        return Path(folder)
    for path in checkpoints(folder):
        if not is_whole(path):
            shutil.rmtree(path)
    whole = checkpoints(folder)
    if not whole:
        raise ValueError(f"{folder} has no whole checkpoint to resume; train() starts anew")
    # where the file system keeps no times, the highest
    return sorted(whole, key=lambda path: (path / _STATE_FILE).stat().st_mtime_ns)[-1]


def resumable(run) -> str | None:
    """The run folder itself where it has a whole checkpoint to go on from."""
    return str(run) if any(map(is_whole, checkpoints(run))) else None


def check_same(then, now, bound, folder):
    """Raises ValueError if a resume from `folder` would change one of the bound settings, by name.

    A setting that one of the two lacks is not compared.

    >>> check_same({"seed": 1, "lr": 1}, {"seed": 2, "lr": 3}, ["seed"], "runs/mine")
    Traceback (most recent call last):
    ValueError: runs/mine was begun with other settings: seed was 1 and is 2. Set them back, or train anew
    """
    changed = []
    for name in bound:
        if name in then and name in now and then[name] != now[name]:
            changed.append(f"{name} was {then[name]!r} and is {now[name]!r}")
    if changed:
        raise ValueError(
            f"{folder} was begun with other settings: {'; '.join(changed)}. Set them back, or train anew"
        )


def check_resume(checkpoint, files):
    """Raises ValueError if a run would go on from a checkpoint with other settings, data or model.

    More steps make another schedule, unless learning rate and threshold are constant.

    Args:
        files: what a checkpoint of the run as it is now would hold, by file name.

    Raises:
        FileNotFoundError: a checkpoint of another trainer, which does not say how it was made.
    """
    then = {}
    now = {}
    for name in (ENVIRONMENT_FILE, CONFIG_FILE):
        then |= json.loads(Path(checkpoint, name).read_text("utf-8"))
        now |= files[name]
    constant = then["lr_scheduler_type"] == "constant" and then["threshold_end"] is None
    free = ("max_steps", "num_train_epochs") if constant else ()
    check_same(then, now, [name for name in _BOUND if name not in free], checkpoint)


@contextmanager
def writing(checkpoint, *, main):
    """Context manager for writing a checkpoint: one that fails is deleted, and the error says so.

    Args:
        main: whether this process is the one that writes trainer_state.json.
    """
    if main:
        # that of an earlier run would say that all of this one is there
        (checkpoint / _STATE_FILE).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        if checkpoint.is_dir() and not is_whole(checkpoint):
            # torch.save does not say that a disk is full
            free = shutil.disk_usage(checkpoint).free / 1e6
            shutil.rmtree(checkpoint, ignore_errors=True)
            error.add_note(f"{checkpoint} is removed, unfinished; its disk had {free:.1f} MB left")
        raise
