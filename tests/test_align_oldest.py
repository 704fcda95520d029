"""The job with the oldest TRL that is supported: tests/test_align.py once more, TRL 1.8 in place of the newest.

It is installed into a folder of its own, without what it asks for, which is here already.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
OLDEST = "1.8.0"


def test_everything_works_with_the_oldest_trl(tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), f"trl=={OLDEST}"]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "BTSFT_TRL": OLDEST}
    tests = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "tests/test_align.py"]
    done = subprocess.run(tests, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 60


def test_it_is_the_oldest_that_is_asked_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert (
        extras["align"] == [f"trl>={OLDEST.removesuffix('.0')}"]
        and f"(>= {OLDEST.removesuffix('.0')})" in (ROOT / "btsft_nb" / "align.py").read_text()
    )
