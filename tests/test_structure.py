"""The shape of the package: which room knows which, how large and dense it is, and how it is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import btsft_nb as bt

ROOT = Path(bt.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
sys.path.append(str(ROOT.parent / "tools"))
import measure  # noqa: E402

# A room may import itself, and these. What stands beside the rooms (align.py, dials.py, __init__.py) may import all.
MAY_IMPORT = {
    "tiny": set(),
    "data": {"tiny"},
    "models": {"tiny", "data"},
    "objective": {"data"},
    "training": {"data", "models", "objective"},
    "views": {"data", "objective"},
    "evaluation": {"data", "models", "objective", "training", "views"},
    "cli": {"tiny", "data", "models", "objective", "training", "views", "evaluation"},
}
FOR_ALL = {"files", "checks", "text"}  # these import nothing of the package


def imported(path: Path) -> set[str]:
    """The rooms, or modules beside them, that a file imports anywhere in it; "" is the package itself."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {
                alias.name.removeprefix("btsft_nb.")
                for alias in node.names
                if "btsft_nb" in alias.name
            }
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
            names |= {".".join(base)} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "btsft_nb":
            names.add(node.module.removeprefix("btsft_nb").removeprefix("."))
    return {name.split(".")[0] for name in names}


def test_the_parser_sees_imports():
    """Else the test below would pass on anything."""
    assert {"data", "objective", "training"} <= imported(ROOT / "training" / "trainer.py")
    assert {"data", "evaluation"} <= imported(ROOT / "align.py")


@pytest.mark.parametrize("name", NAMES)
def test_data_goes_one_way(name):
    room = Path(name).parts[0]
    if name.removesuffix(".py") in FOR_ALL:
        assert not imported(ROOT / name)
    elif room in MAY_IMPORT:
        assert imported(ROOT / name) <= {room, *MAY_IMPORT[room], *FOR_ALL}


def test_no_module_has_the_name_of_a_public_function():
    """Else one of them could not be reached by its name."""
    functions = {name for name in bt.__all__ if callable(getattr(bt, name))}
    assert not functions & {path.stem for path in FILES}


@pytest.mark.parametrize("name", [*measure.CEILINGS, *measure.FLOORS])
def test_under_all_ceilings(name, measured):
    assert name not in measure.over(measured)


@pytest.fixture(scope="module")
def measured():
    return measure.measure()


def test_the_measure_counts_what_it_says(tmp_path):
    file = tmp_path / "data" / "a.py"
    file.parent.mkdir()
    file.write_text(
        '"""Doc."""\n\n\ndef f():\n    """Doc."""\n    a, b = 1, 2  # why\n    return a\n'
    )
    found = measure.read(file)
    assert (found.characters, len(found.code), found.comments) == (27, 3, 1)
    assert (found.tuple_assignments, found.functions) == (1, {"f": 3})


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_module_and_public_function_says_what_it_is(path):
    """A docstring each, for whatever has no leading underscore; nested functions and overridden hooks are free."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_importing_the_package_imports_neither_torch_nor_matplotlib():
    code = "import sys, btsft_nb; print({'torch', 'matplotlib', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'TokenInspecter'"):
        bt.TokenInspecter  # noqa: B018
    assert set(bt.__all__) <= set(dir(bt))
