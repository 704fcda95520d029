"""The runs in a folder that belong together: those of one model, trained on the same data."""

from dataclasses import asdict
from pathlib import Path

from ..text import visible
from ..training.run import Run
from .settings import SETTINGS_FILE, Settings, read_settings

# Settings of model and data that change no example and no weight.
FREE = {
    "attention",
    "device_map",
    "max_memory",
    "num_proc",
    "eval_data",
    "eval_split",
    "eval_config",
    "messy_data",
}


def find_runs(folder: str | Path, settings: Settings, *others: Settings) -> dict[str, Path]:
    """The finished runs in a folder whose model and data are those of one of the settings.

    Each of the others is named in a line, with what it was trained on, and left out.

    Returns:
        The name of a run -> its folder, by name.

    >>> bt.find_runs("runs-of-none", bt.read_settings("tiny"))
    {}
    """
    runs = {}
    wanted = [_bound(each) for each in (settings, *others)]
    for file in sorted(Path(folder).glob(f"*/{SETTINGS_FILE}")):
        run = file.parent
        bound = _bound(read_settings(run))
        if bound not in wanted:
            # of the nearest, what differs
            differences = [[name for name in bound if bound[name] != one[name]] for one in wanted]
            names = min(differences, key=len)
            values = ", ".join(f"{name}={visible(bound[name])}" for name in names)
            print(f"{visible(run)} is left out: it was trained with {values}")
        elif not Run(run).finished:
            print(f"{visible(run)} is left out: its training is not finished")
        else:
            runs[run.name] = run
    return runs


def _bound(settings):
    """Name -> value, of the settings that make two runs comparable."""
    values = asdict(settings.model) | asdict(settings.data)
    return {name: value for name, value in values.items() if name not in FREE}
