"""What the package imports is declared: in pyproject.toml, and what is not an extra in environment.yml too."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml
from packaging.utils import canonicalize_name

import btsft_nb

PACKAGE = Path(btsft_nb.__file__).parent
NOT_INSTALLED = {"google"}  # google.colab, which exists in Colab alone
CONDA_NAMES = {"pytorch": "torch"}


def imported() -> set[str]:
    """The top-level modules that any file of the package imports, anywhere in it."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"btsft_nb"} - NOT_INSTALLED


def distributions() -> set[str]:
    """The packages that these modules come from, by the first that has them."""
    known = packages_distributions()
    return {canonicalize_name(known.get(name, [name])[0]) for name in imported()}


def declared(requirements: list[str]) -> set[str]:
    return {canonicalize_name(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def project() -> dict:
    return tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]


def test_every_import_is_declared():
    extras = project()["optional-dependencies"]
    extras = [
        requirement
        for name in extras
        if name not in ("dev", "bench")
        for requirement in extras[name]
    ]
    assert {
        "torch",
        "python-dotenv",
        "huggingface-hub",
    } <= distributions()  # the parser sees imports
    assert distributions() - declared(project()["dependencies"] + extras) == set()


def test_conda_has_what_pip_has():
    environment = yaml.safe_load((PACKAGE.parent / "environment.yml").read_text())
    names = []
    for entry in environment["dependencies"]:
        names += entry["pip"] if isinstance(entry, dict) else [entry]
    names.remove("-e .[trackio]")
    conda = {CONDA_NAMES.get(name, name) for name in declared(names)}
    assert declared(project()["dependencies"]) - conda == set()
