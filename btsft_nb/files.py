"""Files written whole and read back."""

import json
import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def read_lines(file):
    """The records of a file of JSON lines, without a last one that a kill cut off, or that is being written."""
    records = []
    with suppress(FileNotFoundError, json.JSONDecodeError):
        for line in file.read_text(encoding="utf-8").splitlines():
            records.append(json.loads(line))
    return records


def write(file, text):
    """Writes a file whole: another process that reads it meanwhile gets the old text or the new one."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def versions(libraries):
    """The version of each library, "absent" where it is not installed."""
    versions = dict.fromkeys(libraries, "absent")
    for library in libraries:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    return versions
