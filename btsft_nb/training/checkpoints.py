"""The checkpoints of a run folder: written whole or not at all, with room for all; and the one to go on from."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from torch import nn
from transformers import TrainerState, TrainingArguments

CONFIG, ENVIRONMENT, REPORT = (
    "training_config.json",
    "environment.json",
    "data_report.json",
)  # how it was made
_LAST = "trainer_state.json"  # transformers writes it when all else is there
_FREE = re.compile(  # settings that may differ after a resume, since the same steps come out
    r"(output_dir|run_|job_type|project|log|report_to|trackio_|hub_|push_|save_|(per_device_)?eval_|prediction_loss|"
    r"include_|batch_eval|load_best|metric_for|greater_is|disable_tqdm|dataloader_(?!drop_last)|ddp_|do_|debug|local_|"
    r"skip_memory|resume_|restore_|enable_jit|torch_|(gradient|activation)_checkpointing|use_c|auto_find)"
)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        return bool(json.loads((checkpoint / _LAST).read_text()))
    except (OSError, ValueError):
        return False


def checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints of a run folder, whole or not, by step."""
    found = [
        path
        for path in Path(run).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal()
    ]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def last_checkpoint(run: str | Path) -> Path:
    """The whole checkpoint that was written last; what a killed run left of others is removed.

    The last in time, not the highest step: the folder may hold those of an earlier, longer run as well.

    Raises ValueError where there is none.
    """
    whole = [path for path in checkpoints(run) if is_whole(path)]
    for path in set(checkpoints(run)) - set(whole):
        shutil.rmtree(path)
    if not whole:
        raise ValueError(
            f"{run} has no whole checkpoint to resume from; train() without it starts anew"
        )
    return max(
        whole, key=lambda path: ((path / _LAST).stat().st_mtime_ns, int(path.name.split("-")[1]))
    )


def check_same(checkpoint: Path, now: dict[str, dict]) -> None:
    """Raises ValueError, with a table of what differs, where a run would go on with other settings than it had.

    What leaves the steps as they are may differ: logging, saving, evaluation, trackers, workers, gradient
    checkpointing, and how the examples of a step are split over batches, accumulation and processes. More steps make
    another schedule, unless learning rate and threshold are constant. `now`: a checkpoint's JSON files, by name.
    """
    if not (checkpoint / ENVIRONMENT).is_file():
        return print(
            f"{checkpoint} does not say how it was made: whether all is as it was is not checked."
        )
    read = {
        name: json.loads((checkpoint / name).read_text("utf-8"))
        for name in now
        if (checkpoint / name).is_file()
    }
    then, now = _bound(read), _bound(json.loads(json.dumps(now)))
    if then["lr_scheduler_type"] == "constant" and then["threshold_end"] is None:
        then |= {name: now[name] for name in ("max_steps", "num_train_epochs")}
    changed = {
        name: (value, now[name])
        for name, value in then.items()
        if name in now and value != now[name]
    }
    if changed:
        table = pd.DataFrame(changed, ["then", "now"], dtype=object).T.to_string()
        raise ValueError(
            f"{checkpoint} is of a run with other settings:\n{table}\nSet them as they were to go on, or train() anew "
            "in another output_dir. max_steps and num_train_epochs may change under lr_scheduler_type='constant' "
            "without threshold_end"
        )


def _bound(files: dict[str, dict]) -> dict:
    """What has to stay as it is, by name; of the sizes of batches only the examples of a step."""
    kept, found = (
        {name: value for name, value in files[CONFIG].items() if not _FREE.match(name)},
        files[ENVIRONMENT],
    )
    batch = kept.pop("per_device_train_batch_size") * kept.pop("gradient_accumulation_steps")
    kept |= {
        "examples per step": batch * found["processes"],
        "data": files.get(REPORT, {}).get("source"),
    }
    return kept | {name: found[name] for name in ("examples", "base_model")}


def check_room(args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
    """Raises OSError where the disk has less room than the checkpoints to come will need, by estimate.

    Each holds the weights that are saved, and two moments of each trained one, in an 8-bit optimiser a byte each.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    saved = trained if hasattr(model, "peft_config") else model.parameters()
    weights = sum(p.numel() * p.element_size() for p in saved)
    two = 2 if "adam" in args.optim else 1
    moments = sum(
        two * p.numel() * (1 if "8bit" in args.optim else p.element_size()) for p in trained
    )
    every = {"steps": state.save_steps, "best": state.eval_steps}.get(args.save_strategy.value)
    every = every or max(state.max_steps, 1) / max(state.num_train_epochs, 1)
    new = (
        0
        if args.save_strategy == "no"
        else math.ceil((state.max_steps - state.global_step) / every)
    )
    if args.save_total_limit:  # one is written before one is removed
        new = min(new, max(args.save_total_limit + 1 - len(checkpoints(args.output_dir)), 1))
    need = (weights + new * (weights + moments * (not args.save_only_model))) / 1e6
    if need > (free := shutil.disk_usage(args.output_dir).free / 1e6):
        raise OSError(
            f"{args.output_dir}: {new} checkpoints and the model take about {need:,.1f} MB, and its disk has "
            f"{free:,.1f} MB left; set save_total_limit=1, a larger save_steps, or another output_dir"
        )


@contextmanager
def writing(checkpoint: Path, *, main: bool) -> Iterator[None]:
    """Within, a checkpoint is written; if that fails, what is there of it is removed, and the error says so.

    Args:
        main: whether this process is the one that writes trainer_state.json.
    """
    if main:  # of an earlier run's checkpoint, written over, it would say that all is there
        (checkpoint / _LAST).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        if checkpoint.is_dir() and not is_whole(checkpoint):
            free = shutil.disk_usage(checkpoint).free  # torch.save does not name a full disk
            shutil.rmtree(checkpoint, ignore_errors=True)
            error.add_note(
                f"{checkpoint} was not finished and is removed; its disk had {free / 1e6:.1f} MB left"
            )
        raise
