"""Processor seconds, user and system, before a command answers: help, a misspelt setting, and the bare import.

    python benchmarks/startup.py

The best of three runs each, in processes of their own; `btsft --help` and a misspelt setting have to stay under LIMIT.
"""

import os
import subprocess
import sys
import tempfile

LIMIT = 1.5
COMMANDS = {
    "btsft --help": ["-m", "btsft_nb", "--help"],
    "btsft train thresold=1": ["-m", "btsft_nb", "train", "model=tiny", "thresold=1"],
    "import btsft_nb": ["-c", "import btsft_nb"],
}


def processor_seconds(arguments: list[str]) -> float:
    """Of one run, by what this process's children have used before and after."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.times()
        subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
        after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def main() -> int:
    seconds = {}
    for name, arguments in COMMANDS.items():
        seconds[name] = min(processor_seconds(arguments) for _ in range(3))
        print(f"{name:<24}{seconds[name]:6.2f} s")
    return int(max(seconds.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
