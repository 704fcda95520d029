"""Run, refresh and stamp the notebooks.

python tools/notebooks.py demo     run them in order, keep executed copies and figures, print the table of 03
python tools/notebooks.py refresh  run them and store the outputs in place, without widget state
python tools/notebooks.py pictures write the README's pictures, what cells tagged picture-NAME show, to docs
python tools/notebooks.py stamp    write the install cell, and the repository's address (pyproject.toml) into badges
python tools/notebooks.py stamp owner/name    the same for a fork, whose address goes into pyproject.toml first
"""

import base64
import json
import re
import shutil
import sys
import time
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
DEMO = (
    ROOT / "demo"
)  # where notebooks run, so that the results of a user who works in notebooks/ stay as they are
RUNS = DEMO / "runs"
WIDGET = "application/vnd.jupyter.widget-view+json"
# The second cell of every notebook; `stamped` puts in the address.
INSTALL = """\
import sys
from importlib.util import find_spec
from pathlib import Path

if "google.colab" in sys.modules:  # installs what Colab lacks, and moves nothing that it has
    below = [*Path.cwd().glob("*/"), *Path("/content/drive/MyDrive").glob("*/")]
    files = [d / "pyproject.toml" for d in [Path.cwd(), *Path.cwd().parents, *below]]
    ours = [str(f.parent) for f in files if f.is_file() and b'name = "btsft_nb"' in f.read_bytes()]
    ours += ["git+https://github.com/owner/name"]  # where no checkout is near
    names = "btsft_nb bitsandbytes sacrebleu portalocker colorama rouge_score math_verify latex2sympy2_extended"
    missing = [name for name in names.split() if not getattr(find_spec(name), "origin", None)]
    if missing:
        sources = [ours[0] if name == "btsft_nb" else name for name in missing]
        print("Installing", *sources)
        get_ipython().run_line_magic("pip", "install -q --no-deps " + " ".join(map(repr, sources)))"""


def execute(path: Path) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in DEMO; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": DEMO}}).execute()
    print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)
    return notebook


def strip(notebook: nbformat.NotebookNode) -> None:
    """Remove widget state, time stamps and whatever else differs from run to run or shows this machine.

    A widget without its state shows nothing; one that also has HTML keeps that alone.
    """
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_noise(output)]
            for data in (output.get("data", {}) for output in cell.outputs):
                if "text/html" in data:
                    data.pop(WIDGET, None)


def is_noise(output: dict) -> bool:
    """Warnings, and progress bars, which are widgets and show nothing once their state is gone."""
    data = output.get("data", {})
    progress = WIDGET in data and "/s]" in "".join(data.get("text/plain", ""))
    return output.get("name") == "stderr" or progress


def figures(notebook: nbformat.NotebookNode, name: str, folder: Path) -> list[Path]:
    """Write each picture in a notebook's outputs to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                made.append(folder / f"{name}-{i:02d}.png")
                made[-1].write_bytes(base64.b64decode(picture))
    return made


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def demo() -> None:
    empty(DEMO)
    executed, pictures = [], []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = execute(path)
        executed.append(DEMO / path.name)
        nbformat.write(notebook, executed[-1])
        pictures += figures(notebook, path.stem, DEMO / "figures")
    from btsft_nb import table

    found = json.loads((RUNS / "comparison-tiny" / "evaluation.json").read_text())["summaries"]
    print(f"\n{table(found).T.to_string()}\n")
    runs = sorted(config.parent for config in RUNS.glob("*/adapter_config.json"))
    for title, paths in {
        "Executed notebooks": executed,
        "Run folders": runs,
        "Figures": pictures,
    }.items():
        print(title, *(f"  {path.relative_to(ROOT)}" for path in paths), sep="\n")


def refresh() -> None:
    empty(DEMO)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = execute(path)
        strip(notebook)
        nbformat.write(notebook, path)


def pictures() -> None:
    """Figures as they are, views as a browser shows them on a light and on a dark page."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            for name in (
                tag.removeprefix("picture-")
                for tag in cell.metadata.get("tags", [])
                if "picture-" in tag
            ):
                shown = {
                    kind: data
                    for output in cell.outputs
                    for kind, data in output.get("data", {}).items()
                }
                if "image/png" in shown:
                    (ROOT / "docs" / f"{name}.png").write_bytes(
                        base64.b64decode(shown["image/png"])
                    )
                else:
                    photograph(shown["text/html"], name)


def photograph(html: str, name: str) -> None:
    """The inspector, its card open at the first thought token, to docs/NAME-light.png and docs/NAME-dark.png."""
    from btsft_nb.views.static_view import page as whole_page

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for scheme in ("light", "dark"):
            page = browser.new_page(
                viewport={"width": 1000, "height": 470},
                device_scale_factor=1.5,
                color_scheme=scheme,
            )
            page.set_content(whole_page(html, name))
            page.locator('.t:has-text("<think>") + .t').hover()
            page.screenshot(path=ROOT / "docs" / f"{name}-{scheme}.png", full_page=True)
        browser.close()


def repository() -> str:
    """The repository's address."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def stamped(path: Path) -> str:
    """A notebook's or the README's text with the install cell, and the repository's address where it belongs."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        notebook = nbformat.reads(text, as_version=4)
        for cell in notebook.cells:
            if '"google.colab" in sys.modules' in cell.source:
                cell.source = INSTALL
        text = nbformat.writes(notebook) + "\n"
    address = repository()
    text = re.sub(r"git\+https://github\.com/[\w./-]+", f"git+{address}", text)
    badge = "https://colab.research.google.com/github/"
    owner = address.removeprefix("https://github.com/")
    return re.sub(rf"{re.escape(badge)}[\w.-]+/[\w.-]+/blob/", f"{badge}{owner}/blob/", text)


def stamp(repo: str | None = None) -> None:
    """Writes what is stamped, of a fork its address first; what differs is written, and nothing else."""
    if repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        sys.exit(f"REPO={repo}: owner/name wanted, as in https://github.com/owner/name")
    if repo is not None:
        project = ROOT / "pyproject.toml"
        address = f'Repository = "https://github.com/{repo}"'
        project.write_text(re.sub("^Repository = .*", address, project.read_text(), flags=re.M))
    notebooks = [*NOTEBOOKS.glob("*.ipynb"), *(ROOT / "docs").glob("*.ipynb")]
    for path in [*sorted(notebooks), ROOT / "README.md"]:
        path.write_text(stamped(path))


if __name__ == "__main__":
    commands = {"demo": demo, "refresh": refresh, "pictures": pictures, "stamp": stamp}
    _, *words = sys.argv
    if not words or words[0] not in commands or (words[1:] and words[0] != "stamp"):
        sys.exit(__doc__)
    commands[words[0]](*words[1:])
