"""The job with the oldest TRL that is supported, in place of the newest: tests/test_align.py and notebook 08 once more.

It is installed into a folder of its own, without what it asks for, which is here already.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OLDEST = "1.8.0"
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Variables under which Python finds that TRL first."""
    folder = str(tmp_path_factory.mktemp("trl"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        folder,
        f"trl=={OLDEST}",
    ]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return os.environ | {"PYTHONPATH": os.pathsep.join([folder, str(ROOT)]), "BTSFT_TRL": OLDEST}


def test_the_way_to_trl_and_back(environment):
    done = subprocess.run(
        [*PYTEST, "tests/test_align.py"], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 60


def test_the_chapter_after_sft(environment, tmp_path):
    notebook = shutil.copy(ROOT / "notebooks" / "08_after_sft.ipynb", tmp_path)
    how = ["-x", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300"]
    done = subprocess.run(
        [*PYTEST, *how, notebook], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_it_is_the_oldest_that_is_asked_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    asked = f">={OLDEST.removesuffix('.0')}"
    assert extras["align"] == [f"trl{asked}"]
    module, notebook = (
        ROOT / name for name in ("btsft_nb/align.py", "notebooks/08_after_sft.ipynb")
    )
    assert (
        asked.replace("=", "= ") in module.read_text() and f"'trl{asked}'" in notebook.read_text()
    )
