"""Print how large and how dense the package is, beside its ceilings: `python tools/measure.py`, or `make measure`.

Code characters leave out indentation, docstrings, comments and blank lines.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "btsft_nb"
COMMENTED = ("data", "objective")  # rooms whose lines want a reason beside them

# Set once, by issue 16, which ended at 209,961 code characters; issues 17 to 20 may bring them to 230,000. When one is
# hit, something goes.
CEILINGS = {
    "code characters": 230_000,
    "characters a code line": 43,
    "% of lines over 100": 3,
    "tuple assignments per 1,000 code lines": 10,
    "lines of the longest file": 300,
    "lines of the longest function": 40,
    "lines of JavaScript": 600,
}
FLOORS = {f"comments per 100 code lines in {room}/": 10 for room in COMMENTED}


@dataclass
class File:
    """What one Python file holds."""

    path: Path
    code: list[str] = field(default_factory=list)  # its code lines, as written
    lines: int = 0
    characters: int = 0
    comments: int = 0
    tuple_assignments: int = 0
    functions: dict[str, int] = field(default_factory=dict)  # name -> lines


def read(path: Path) -> File:
    """Measures one file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    file = File(path, lines=len(text.splitlines()))
    docstrings = {
        line for node in _docstrings(tree) for line in range(node.lineno, node.end_lineno + 1)
    }
    comment_at = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comment_at[token.start[0]] = token.start[1]
    for number, line in enumerate(text.splitlines(), 1):
        code = line[: comment_at.get(number)].strip()
        if code and number not in docstrings:
            file.code.append(line)
            file.characters += len(code)
    file.comments = len(comment_at)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            file.tuple_assignments += isinstance(node.targets[0], ast.Tuple)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            described = sum(
                doc.end_lineno - doc.lineno + 1 for doc in _docstrings(node, nested=False)
            )
            file.functions[node.name] = node.end_lineno - node.lineno + 1 - described
    return file


def _docstrings(tree: ast.AST, nested: bool = True) -> Iterator[ast.Expr]:
    """The docstrings of a tree, or of its root alone."""
    for node in ast.walk(tree) if nested else [tree]:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            value = getattr(first, "value", None)
            if (
                isinstance(first, ast.Expr)
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            ):
                yield first


def measure(package: Path = PACKAGE) -> dict[str, float]:
    """Name of a measure -> its value, for all Python and JavaScript of a package."""
    files = [read(path) for path in sorted(package.rglob("*.py"))]
    code = [line for file in files for line in file.code]
    scripts = [path.read_text(encoding="utf-8") for path in package.rglob("*.js")]
    values = {
        "code characters": sum(file.characters for file in files),
        "characters a code line": sum(file.characters for file in files) / len(code),
        "% of lines over 100": 100 * sum(len(line) > 100 for line in code) / len(code),
        "tuple assignments per 1,000 code lines": 1000
        * sum(file.tuple_assignments for file in files)
        / len(code),
        "lines of the longest file": max(file.lines for file in files),
        "lines of the longest function": max(
            max(file.functions.values(), default=0) for file in files
        ),
        "lines of JavaScript": sum(len(script.splitlines()) for script in scripts),
    }
    for room in COMMENTED:
        inside = [file for file in files if file.path.parent.name == room]
        lines = sum(len(file.code) for file in inside)
        values[f"comments per 100 code lines in {room}/"] = (
            100 * sum(file.comments for file in inside) / lines
        )
    return values


def over(values: dict[str, float]) -> list[str]:
    """The measures beyond their ceiling, or below their floor."""
    beyond = [name for name, ceiling in CEILINGS.items() if values[name] > ceiling]
    return beyond + [name for name, floor in FLOORS.items() if values[name] < floor]


def rooms(package: Path = PACKAGE) -> dict[str, tuple[int, int]]:
    """Room -> its code characters and code lines."""
    sizes = {}
    for path in sorted(package.rglob("*.py")):
        file = read(path)
        inside = path.relative_to(package).parts
        room = f"{inside[0]}/" if len(inside) > 1 else inside[0]
        characters, lines = sizes.get(room, (0, 0))
        sizes[room] = (characters + file.characters, lines + len(file.code))
    return sizes


def main() -> None:
    """Prints the rooms and the measures; exits with 1 where a ceiling is hit."""
    for room, (characters, lines) in rooms().items():
        print(f"{room:42} {characters:>9,} characters {lines:>6,} lines {characters / lines:>6.1f}")
    values = measure()
    print()
    for name, value in values.items():
        bound = f"at most {CEILINGS[name]:,}" if name in CEILINGS else f"at least {FLOORS[name]}"
        print(f"{name:42} {value:>9,.1f}   {bound}")
    if beyond := over(values):
        sys.exit(f"over: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
