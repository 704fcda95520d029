"""The names of all settings and what they are, read from source: to import them takes torch, and seconds."""

import ast
import json
import re
import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from .. import objective  # whose constants two dials start at

# The dataclasses of a run's settings, and the files that define them, seen from the package.
_FILES = {
    "ModelConfig": "models/config.py",
    "DataConfig": "cli/groups.py",
    "BTSFTConfig": "training/config.py",
    "EvaluationConfig": "cli/groups.py",
    "TrainingArguments": Path(find_spec("transformers").origin).with_name("training_args.py"),
}


def setting_names():
    """The names of all settings."""
    return [name for class_name in _FILES for name in _read(class_name)[1]]


def describe():
    """All settings: ours with their defaults and what they are, and the names of transformers'."""
    lines = []
    for class_name in list(_FILES)[:-1]:
        lines.append(f"\n{class_name}:")
        docstring, defaults = _read(class_name)
        for name, default in defaults.items():
            about = re.search(rf"^    {name}: (.+(\n {{8}}.+)*)", docstring, re.MULTILINE)[1]
            line = f"  {name}={default}".ljust(34) + " ".join(about.split())
            lines.append(textwrap.fill(line, 118, subsequent_indent=" " * 34))
    names = textwrap.fill(", ".join(_read("TrainingArguments")[1]), 118)
    return "\n".join([*lines, f"\nand all of transformers.TrainingArguments:\n{names}"])


@cache
def _read(class_name):
    """The docstring of a dataclass, and its fields with their defaults, empty where these are no plain values."""
    path = Path(__file__).parents[1] / _FILES[class_name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (definition,) = (node for node in tree.body if getattr(node, "name", None) == class_name)
    defaults = {}
    for node in definition.body:
        if isinstance(node, ast.AnnAssign):
            default = ""
            if isinstance(node.value, ast.Constant):
                default = json.dumps(node.value.value).strip('"')
            elif isinstance(node.value, ast.Name):
                default = getattr(objective, node.value.id)
            defaults[node.target.id] = default
    return ast.get_docstring(definition), defaults
