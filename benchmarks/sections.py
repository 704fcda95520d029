"""Sections of a benchmark: each gives rows, in a process of its own and within its budget, for one JSON file.

What a section leaves in memory, or a GPU that it brings down, is not met by the next; one that fails, dies or runs over
keeps the rows that it had.
"""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch
from common import installed, processor

ROOT = Path(__file__).parents[1]
AT_THE_END = ("not_run", "error")  # of a line of the table


def run(rows: Callable[[], Iterator[dict]], budget: float, packages: tuple[str, ...]) -> dict:
    """Where a section runs, by `facts`, its `seconds`, `rows`, the `error` that stopped it, or None, and last `output`.

    Without a GPU the process is a fork, which has imported all already; CUDA does not survive one. `rows` has to be
    picklable.
    """
    start = time.monotonic()
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    pipe, end = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile() as log:
        process = context.Process(target=_work, args=(rows, packages, end, log.name))
        process.start()
        end.close()
        sent, error = [], f"stopped after its {budget} seconds"
        try:
            while pipe.poll(max(0, start + budget - time.monotonic())):
                sent.append(pipe.recv())
        except EOFError:  # it has said all
            process.join(10)
            error = f"its process ended: {process.exitcode}" if process.exitcode else None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # those that it started, too
            process.kill()  # where it has no group yet
            process.join()
        output = log.read().decode(errors="replace").splitlines()[-40:]
    where, *found = sent or [{}]
    if found and isinstance(found[-1], str):
        error = found.pop()
    seconds = time.monotonic() - start
    return where | {"seconds": seconds, "rows": found, "error": error, "output": output}


def _work(rows, packages, pipe, log):
    """The section's process: sends facts, rows, and the traceback of what stopped them."""
    os.setpgrp()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    try:
        pipe.send(facts(packages))
        for row in rows():
            pipe.send(row)
    except Exception:
        pipe.send(traceback.format_exc())
    pipe.close()


def facts(packages: tuple[str, ...]) -> dict:
    """Command, date, GPU, processor and versions."""
    gpu, memory = None, None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = f"{properties.name}, sm_{properties.major}{properties.minor}"
        memory = properties.total_memory / 2**20
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    versions = {"commit": commit or None, "python": sys.version.split()[0]}
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": gpu,
        "gpu_mib": memory,
        "processor": f"{processor()}, {torch.get_num_threads()} threads",
        "versions": versions | {name: installed(name) for name in packages},
        "cuda": torch.version.cuda,
    }


def attempt(row: dict, method: Callable[[], dict], is_peer: bool = False) -> dict:
    """The row with what the method gives; else why a peer did not run, or the traceback of what is ours."""
    gc.collect()
    try:
        return row | method()
    except Exception as error:
        if not is_peer:
            return row | {"error": traceback.format_exc()}
        reason = (str(error).strip().splitlines() or [""])[0]
        return row | {"not_run": f"{type(error).__name__}: {reason[:200]}"}


def failed(section: dict) -> bool:
    """Whether the section or a row of it holds an error."""
    return bool(section["error"]) or any("error" in row for row in section["rows"])


def table(section: dict) -> str:
    """The rows under the names of their figures; what is not one number or word stays in the file."""
    rows = [
        {key: _cell(value) for key, value in row.items() if not isinstance(value, list | dict)}
        for row in section["rows"]
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in AT_THE_END))
    width = {key: max(len(key), *(len(row.get(key, "")) for row in rows)) for key in keys}
    lines = ["  ".join(key.rjust(width[key]) for key in keys)]
    for row in rows:
        line = "  ".join(row.get(key, "").rjust(width[key]) for key in keys)
        lines.append(" ".join([line.rstrip(), *(row[key] for key in AT_THE_END if key in row)]))
    if section["error"]:
        lines.append(f"FAILED: {_cell(section['error'])}")
    return "\n".join(lines)


def _cell(value):
    """A figure in four digits, a text by its last line."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "-" if value is None else (str(value).strip().splitlines() or [""])[-1]
