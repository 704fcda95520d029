"""Run, refresh and stamp the notebooks.

python tools/notebooks.py demo     run them in order, keep executed copies and figures, print the table of 03
python tools/notebooks.py refresh  run them and store the outputs in place, without widget state
python tools/notebooks.py pictures write the README's pictures, what cells tagged picture-NAME show, to docs
python tools/notebooks.py stamp    write the repository's address (pyproject.toml) into badges and install cells
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

    found = json.loads((RUNS / "comparison" / "evaluation.json").read_text())["summaries"]
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


def stamped(text: str) -> str:
    """A notebook's or the README's source with the repository's address where it belongs."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    owner = address.removeprefix("https://github.com/")
    text = re.sub(r"git\+https://github\.com/[\w./-]+", f"git+{address}", text)
    colab = f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/"
    return re.sub(
        r"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/main/notebooks/",
        colab,
        text,
    )


def stamp() -> None:
    for path in [*sorted(NOTEBOOKS.glob("*.ipynb")), ROOT / "README.md"]:
        path.write_text(stamped(path.read_text()))


if __name__ == "__main__":
    commands = {"demo": demo, "refresh": refresh, "pictures": pictures, "stamp": stamp}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]]()
