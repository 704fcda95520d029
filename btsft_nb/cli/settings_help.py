"""The names of all settings and what they are, read from source: to import them takes torch, and seconds."""

import ast
import json
import re
import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from .. import objective  # whose constants two dials start at

_PACKAGE = Path(__file__).parents[1]
_TRANSFORMERS = Path(find_spec("transformers").origin).parent
# The dataclasses of a run's settings, and the files that define them.
_CLASSES = {
    "ModelConfig": _PACKAGE / "models" / "config.py",
    "DataConfig": _PACKAGE / "cli" / "settings_groups.py",
    "BTSFTConfig": _PACKAGE / "training" / "config.py",
    "EvaluationConfig": _PACKAGE / "cli" / "settings_groups.py",
    "TrainingArguments": _TRANSFORMERS / "training_args.py",
}


def setting_names() -> list[str]:
    """The names of all settings."""
    return [name for class_name in _CLASSES for name in _defaults(class_name)]


def describe() -> str:
    """All settings: ours with their defaults and what they are, and the names of transformers'."""
    lines = []
    for class_name in list(_CLASSES)[:-1]:
        lines.append(f"\n{class_name}:")
        docstring = ast.get_docstring(_definition(class_name))
        for name, default in _defaults(class_name).items():
            about = re.search(rf"^    {name}: (.+(\n {{8}}.+)*)", docstring, re.MULTILINE)[1]
            line = f"  {name}={default}".ljust(34) + " ".join(about.split())
            lines.append(textwrap.fill(line, 118, subsequent_indent=" " * 34))
    names = ", ".join(_defaults("TrainingArguments"))
    lines.append(f"\nand all of transformers.TrainingArguments:\n{textwrap.fill(names, 118)}")
    return "\n".join(lines)


@cache
def _definition(class_name: str) -> ast.ClassDef:
    tree = ast.parse(_CLASSES[class_name].read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return classes[class_name]


def _defaults(class_name: str) -> dict[str, str]:
    """The fields of a dataclass and their defaults, empty where these are no plain values."""
    defaults = {}
    for node in _definition(class_name).body:
        if not isinstance(node, ast.AnnAssign) or node.target.id.startswith("_"):
            continue
        default = ""
        if isinstance(node.value, ast.Constant):
            default = json.dumps(node.value.value).strip('"')
        elif isinstance(node.value, ast.Name):
            default = str(getattr(objective, node.value.id))
        defaults[node.target.id] = default
    return defaults
