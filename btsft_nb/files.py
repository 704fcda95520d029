"""Files written whole and read back."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def read_lines(file: Path) -> list[dict]:
    """The records of a file of JSON lines, without a last one that a kill cut off, or that is being written."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write(file: Path, text: str) -> None:
    """Writes a file whole: another process that reads it meanwhile gets the old text or the new one."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """The version of each library, "absent" where it is not installed."""
    versions = dict.fromkeys(libraries, "absent")
    for library in libraries:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    return versions
