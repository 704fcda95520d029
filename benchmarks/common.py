"""What benchmarks share: the line that says where they ran, medians of methods taken in turn, and peak memory."""

import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def environment(dtype: torch.dtype, packages: tuple[str, ...] = ("torch",)) -> str:
    """Processor, cores or GPU, dtype and versions, on one line."""
    where = f"{processor()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        where = f"{torch.cuda.get_device_name()}, {where}"
    return ", ".join(
        [
            where,
            str(dtype).removeprefix("torch."),
            *(f"{name} {installed(name)}" for name in packages),
        ]
    )


def processor() -> str:
    """The CPU's name, as Linux knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def installed(package: str) -> str:
    """Its version, or `absent`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def medians(methods: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each. They take turns, so that a slow minute of the machine meets them all; no warm-up."""
    seconds = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            synchronise()
            start = time.perf_counter()
            method()
            synchronise()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _status(field: str) -> int:
    """Bytes, of a field of /proc/self/status."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def peak_bytes(method: Callable[[], object]) -> int:
    """What a call needs at its peak beyond what was there before.

    On a CPU the peak of the resident set, which the kernel counts: call it in a fresh process, or memory that an
    earlier call freed and malloc kept would serve this one unseen.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        method()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    method()
    return _status("VmHWM") - before
