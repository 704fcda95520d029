"""The checkpoints of a run folder: written whole or not at all, and the one to go on from."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LAST = "trainer_state.json"  # transformers writes it when all else is there


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        return bool(json.loads((checkpoint / _LAST).read_text()))
    except (OSError, ValueError):
        return False


def last_checkpoint(run: str | Path) -> Path:
    """The whole checkpoint that was written last; what a killed run left of others is removed.

    The last in time, not the highest step: the folder may hold those of an earlier, longer run as well.

    Raises ValueError where there is none.
    """
    found = [path for path in Path(run).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    whole = [path for path in found if is_whole(path)]
    for path in set(found) - set(whole):
        shutil.rmtree(path)
    if not whole:
        raise ValueError(f"{run} has no whole checkpoint to resume from; train() without it starts anew")
    return max(whole, key=lambda path: ((path / _LAST).stat().st_mtime_ns, int(path.name.split("-")[1])))


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
            error.add_note(f"{checkpoint} was not finished and is removed; its disk had {free / 1e6:.1f} MB left")
        raise
