"""The benchmarks run and end in the line that others read. Figures are not tested: machines are noisy."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = {
    "head": ["time_vs_trl", "time_vs_naive", "memory_vs_naive", "product_fraction", "anchor_cost"],
    "step": ["tokens_per_s_vs_trl", "peak_memory_vs_trl"],
    "generate": ["speed_vs_single", "speed_vs_generate"],
    "prepare": ["speed_vs_trl", "speed_vs_reference", "fraction_of_limit"],
    "kill": ["kills", "bit_equal", "during_save"],
}


def last_line(name: str) -> dict[str, float]:
    """Of a quick run, as numbers by name."""
    command = [sys.executable, FOLDER / f"{name}.py", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {
        key: float(value) for key, value in re.findall(r"(\w+)=(\S+)", done.stdout.splitlines()[-1])
    }


@pytest.mark.parametrize("name", ["head", "step"])
def test_peers_are_measured(name):
    pytest.importorskip("trl", reason="the peers come with pip install -e '.[bench]'")
    figures = last_line(name)
    assert list(figures) == NAMES[name] and all(value > 0 for value in figures.values())


def test_preparations_are_measured(shared):
    pytest.importorskip("trl", reason="the peers come with pip install -e '.[bench]'")
    figures = last_line("prepare")
    assert list(figures) == NAMES["prepare"] and all(value > 0 for value in figures.values())


def test_killed_runs_end_bit_equal():
    figures = last_line("kill")
    assert list(figures) == NAMES["kill"] and figures["bit_equal"] == figures["kills"] == 2


def test_sampling_is_measured():
    figures = last_line("generate")
    assert list(figures) == NAMES["generate"] and all(value > 0 for value in figures.values())
