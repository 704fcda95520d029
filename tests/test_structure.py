"""The shape of the package: which module imports which, and how long files and functions are."""

import ast
from pathlib import Path

import pytest

import btsft_nb

ROOT = Path(btsft_nb.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT).with_suffix("")) for path in FILES]
LEAVES = [
    name
    for name in (
        *("formats", "messages", "blur", "losses", "head", "head_matrix", "metrics", "plots", "points"),
        *("inspector", "inspector_data", "inspector_html"),
        *("answers", "diversity", "intervals", "likelihood", "text_scores"),
    )
    if name in NAMES
]
MAY_IMPORT_TRAINER = {"__init__", "__main__", "playground", "stages", "tiny/__main__"}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it: `blur`, `tiny/problems`, `__init__`."""
    package = path.relative_to(ROOT).parent.parts  # () or ("tiny",)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (ROOT.name, *package[: len(package) - node.level + 1]) if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            names = [(*base, alias.name) for alias in node.names]
        else:
            continue
        for parts in (parts[1:] for parts in names if parts[0] == ROOT.name):
            candidates = ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]
            known = [c for c in candidates if c in NAMES or f"{c}/__init__" in NAMES]
            found.add(known[0] if known else "__init__")
    return found


def functions(path: Path) -> list[tuple[str, int]]:
    """Name and number of lines of each function of a file, decorators and docstring left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(getattr(first, "value", None), ast.Constant)
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            found.append((node.name, node.end_lineno - node.lineno + 1 - docstring))
    return found


def test_the_parser_sees_imports():
    """Else the tests below would pass on anything."""
    assert {"blur", "config", "forward", "losses"} <= imported(ROOT / "trainer.py")
    assert {"trainer", "data", "tiny", "plots"} <= imported(ROOT / "__init__.py")
    assert "tiny/problems" in imported(ROOT / "tiny" / "__init__.py")
    assert {"messages", "models", "__init__"} <= imported(ROOT / "tiny" / "__main__.py")


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_import_only_the_kinds(name):
    """What they work on are values; `blur` has Kind and the draws. Some are in several files each."""
    other_half = {"head": {"head_matrix"}, "formats": {"messages"}}
    other_half["metrics"] = {"answers", "diversity", "intervals", "likelihood", "text_scores"}
    other_half |= {"likelihood": {"blur", "inspector_data", "intervals"}, "text_scores": {"intervals"}}
    other_half["inspector"] = {"blur", "inspector_data", "inspector_html"}
    assert imported(ROOT / f"{name}.py") <= other_half.get(name, {"blur"})


@pytest.mark.parametrize("name", NAMES)
def test_only_the_entrances_import_the_trainer(name):
    """Data goes one way. A whole package import would bring it in by the back door."""
    if name not in MAY_IMPORT_TRAINER:
        assert not imported(ROOT / f"{name}.py") & {"trainer", "__init__", "__main__"}


def test_no_import_goes_in_a_circle():
    """Take away modules that import nothing that is left, until none is left."""
    left = {name: imported(ROOT / f"{name}.py") for name in NAMES}
    left = {
        name: {f"{m}/__init__" if f"{m}/__init__" in NAMES else m for m in ms} - {name} for name, ms in left.items()
    }
    while ready := [name for name, modules in left.items() if not modules & set(left)]:
        left = {name: modules for name, modules in left.items() if name not in ready}
    assert not left


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_and_functions_are_short(path):
    """A file under 300 lines, a function under 40 without its docstring."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300
    assert [(name, lines) for name, lines in functions(path) if lines >= 40] == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_module_and_public_function_says_what_it_is(path):
    """A docstring each, for whatever has no leading underscore; nested functions and overridden hooks are free."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_the_package_is_small():
    """Under 9,050 lines of Python."""
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES) < 9050
