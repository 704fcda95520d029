"""Colab's packages in an environment of their own: the install cell moves none of them, and all notebooks run there.

Python and torch's CPU build differ from Colab, with what they ask for (DIFFERS, ADDED); `google.colab` is a stub.
The environment takes minutes to make: BTSFT_COLAB_VENV names a folder in which it is kept for the next run.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tools"))
import notebooks as tool  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What Colab has of all that the package and the notebooks import, or that changes what these do by being there.
PRESENT = [
    "absl-py", "accelerate", "antlr4-python3-runtime", "anywidget", "datasets", "huggingface_hub", "ipykernel",
    "ipython", "ipywidgets", "jupyter_client", "lxml", "matplotlib", "mpmath", "nbclient", "nltk", "numpy", "pandas",
    "peft", "psutil", "pyarrow", "python-dotenv", "regex", "safetensors", "sympy", "tabulate", "tokenizers", "torch",
    "torchao", "transformers",
]  # fmt: skip
DIFFERS = {"torch": "2.13.0", "setuptools": "77.0.3"}  # torch 2.13 asks for setuptools 77 or newer
ADDED = {
    "jedi",
    "overrides",
}  # IPython asks for the one, and Colab takes it out; the other is for Python below 3.12
INSTALLED = {
    "bitsandbytes",
    "btsft-nb",
    "colorama",
    "latex2sympy2-extended",
    "math-verify",
    "portalocker",
    "rouge-score",
    "sacrebleu",
}  # by the install cell
MOVED_BY_TRL = {"datasets", "huggingface-hub", "pyarrow"}
STUB = '''"""A stub of Colab's module: what anywidget asks of it, and nothing behind it."""


class _widgets:
    _installed_url = None


def enable_custom_widget_manager():
    pass
'''


def pinned(freeze: str) -> dict[str, str]:
    """Name -> version of pip's list, without the suffix of a build (+cpu); where there is no version, the address."""
    lines = [line for line in freeze.splitlines() if line and not line.startswith("#")]
    pairs = [line.partition(" @ " if " @ " in line else "==")[::2] for line in lines]
    return {canonicalize_name(name): version.partition("+")[0] for name, version in pairs}


def pip(python: Path, *words: str) -> str:
    done = subprocess.run([python, "-m", "pip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"pip {' '.join(words)}\n{done.stderr}")
    return done.stdout


class Colab:
    """The environment: its Python, and cells run in its kernel, where `google.colab` is imported and nobody answers."""

    def __init__(self, folder: Path, home: Path):
        self.python, self.home, self.work = folder / "bin" / "python", home, home / "work"
        package = next(folder.glob("lib/python*/site-packages")) / "google" / "colab"
        startup = home / "ipython" / "profile_default" / "startup"
        for path in (package, startup, self.work, home / "kernels" / "colab"):
            path.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package / "output.py").write_text(STUB)
        (startup / "colab.py").write_text("import google.colab.output")
        argv = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {
            "argv": argv,
            "display_name": "Colab",
            "language": "python",
            "env": {"IPYTHONDIR": str(home / "ipython")},
        }
        (home / "kernels" / "colab" / "kernel.json").write_text(json.dumps(spec))

    def packages(self) -> dict[str, str]:
        return pinned(pip(self.python, "freeze"))

    def run(self, notebook: nbformat.NotebookNode) -> str:
        """Runs a notebook in the work folder, without an answer to `input`; returns what it printed."""
        specs = KernelSpecManager(kernel_dirs=[str(self.home / "kernels")])
        kernel = AsyncKernelManager(kernel_name="colab", kernel_spec_manager=specs)
        resources = {"metadata": {"path": str(self.work)}}
        NotebookClient(notebook, km=kernel, timeout=600, resources=resources).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        return "".join(output.get("text", "") for output in outputs)

    def run_cells(self, *sources: str) -> str:
        return self.run(new_notebook(cells=[new_code_cell(source) for source in sources]))


@pytest.fixture(scope="module")
def listed(shared) -> dict[str, str]:
    """Colab's packages and their versions."""
    return pinned((shared / "colab-pip-freeze-2026-08-19.txt").read_text())


@pytest.fixture(scope="module")
def colab(listed, tmp_path_factory) -> Iterator[Colab]:
    """The environment before the install cell: made, or found complete in BTSFT_COLAB_VENV."""
    kept = os.environ.get("BTSFT_COLAB_VENV")
    folder = Path(kept or tempfile.mkdtemp(prefix="btsft_colab_"))
    home = tmp_path_factory.mktemp("colab")
    constraints = "\n".join(
        f"{name}=={version}" for name, version in listed.items() if name not in DIFFERS
    )
    constraints = f"{constraints}\ntorch=={DIFFERS['torch']}\nsetuptools>={DIFFERS['setuptools']}\n"
    complete = folder / "constraints.txt"
    python = folder / "bin" / "python"
    if not complete.is_file() or complete.read_text() != constraints + " ".join(PRESENT):
        (home / "constraints.txt").write_text(constraints)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip(python, "install", "-c", str(home / "constraints.txt"), *PRESENT)
        complete.write_text(constraints + " ".join(PRESENT))
    pip(python, "uninstall", "-y", *INSTALLED)
    yield Colab(folder, home)
    if not kept:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def before(colab) -> dict[str, str]:
    return colab.packages()


@pytest.fixture(scope="module")
def installed(colab, before) -> Colab:
    """The environment after the install cell, in which this checkout's wheel stands for the repository's address."""
    source = colab.home / "source"
    shutil.copytree(ROOT / "btsft_nb", source / "btsft_nb")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip(Path(sys.executable), "wheel", "--no-deps", "-w", str(colab.home), str(source))
    (wheel,) = colab.home.glob("btsft_nb-*.whl")
    cell = nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source
    address = f"git+{tool.repository()}"
    assert cell.count(address) == 1
    colab.run_cells(cell.replace(address, str(wheel)))
    return colab


def test_the_environment_is_colabs(before, listed):
    """Every package that is there is there in Colab, in the same version, but for what DIFFERS and is ADDED."""
    assert set(map(canonicalize_name, PRESENT)) <= set(before)
    assert set(before) - set(listed) <= ADDED
    assert {name for name in before if before[name] != listed.get(name)} <= DIFFERS.keys() | ADDED


def test_the_install_cell_moves_nothing(before, installed):
    after = installed.packages()
    assert set(after) - set(before) == INSTALLED
    assert {name: after[name] for name in before} == before


def test_the_wheel_is_what_runs(installed):
    """And not this checkout."""
    printed = installed.run_cells(
        "import importlib.util; print(importlib.util.find_spec('btsft_nb').origin)"
    )
    assert Path(printed.strip()).is_relative_to(installed.python.parent.parent)


def test_bleu_and_rouge_have_what_they_need(installed):
    """Of which the install cell brings a part."""
    scores = "(score(['a b c d'], ['a b c d']) for score in (bt.metrics.bleu, bt.metrics.rouge))"
    printed = installed.run_cells(f"import btsft_nb as bt; print(*{scores})")
    assert "'value': 100.0" in printed and "'rougeL': {'value': 1.0" in printed


def test_adapters_on_plain_layers_and_their_plan(installed):
    """Which PEFT refuses beside this torchao, left to itself."""
    settings = "bt.read_settings(model='tiny', method='lora', data='tiny/teacher', examples=4, max_steps=1)"
    cell = f"import btsft_nb as bt; s = {settings}; print(bt.plan(s).loc['peak memory']); bt.finetune(s)"
    cell += "; print(bt.load_model(s.training.output_dir)[0].peft_config)"
    printed = installed.run_cells(cell)
    assert "MiB" in printed and "LoraConfig(" in printed


def test_nobody_answers_a_question(installed):
    """So a notebook that asks for a key or a choice fails below, and does not wait."""
    with pytest.raises(CellExecutionError, match="StdinNotImplementedError"):
        installed.run_cells("input()")


@pytest.mark.parametrize("path", NOTEBOOKS[:-1], ids=lambda path: path.stem)
def test_a_notebook_runs_to_the_end(before, installed, path):
    """In Colab's order and with its leftovers; its own install cell finds nothing to do."""
    notebook = nbformat.read(path, as_version=4)
    installed.run(notebook)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert {
        name: version for name, version in installed.packages().items() if name in before
    } == before


def test_after_sft_runs_once_trl_is_asked_for(before, installed):
    """It stops and says what to do; asked to, it moves the three packages that it names, and stops for the restart; and
    then it runs to the end."""
    path = NOTEBOOKS[-1]
    assert path.stem == "08_after_sft"
    with pytest.raises(CellExecutionError, match="set INSTALL_TRL = True"):
        installed.run(nbformat.read(path, as_version=4))
    assert installed.packages().items() >= before.items()
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source = notebook.cells[2].source.replace(
        "INSTALL_TRL = False", "INSTALL_TRL = True"
    )
    try:
        with pytest.raises(CellExecutionError, match="restart the session"):
            installed.run(notebook)
        after = installed.packages()
        assert {name for name in before if after.get(name) != before[name]} == MOVED_BY_TRL
        installed.run(notebook)
        assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    finally:  # the environment may be kept
        pip(installed.python, "uninstall", "-y", "trl")
        pip(installed.python, "install", *(f"{name}=={before[name]}" for name in MOVED_BY_TRL))
