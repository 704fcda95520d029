"""The notebooks as a newcomer finds them: their form, their stamps, alone in an empty folder, and on a Hub model.

That they run from top to bottom is nbval's part of `make test`.
"""

import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from nbclient import NotebookClient
from transformers import Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.append(str(ROOT / "tools"))
import notebooks as tool  # noqa: E402


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def run(
    path: Path, folder: Path, knobs: dict[str, str] | None = None, until: str | None = None
) -> str:
    """Runs a copy of a notebook in a folder, with some knobs turned, up to a heading; returns all that it printed."""
    notebook = nbformat.read(path, as_version=4)
    stop = [
        i
        for i, cell in enumerate(notebook.cells)
        if until and cell.source.startswith(f"## {until}")
    ]
    assert len(stop) == (until is not None)
    notebook.cells = notebook.cells[: (stop or [None])[0]]
    for name, value in (knobs or {}).items():
        cell = notebook.cells[2]
        cell.source, found = re.subn(
            rf"^{name} = .*$", f"{name} = {value}", cell.source, count=1, flags=re.M
        )
        assert found, f"{path.name} has no knob {name}"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_the_four_stages_are_there():
    names = ["01_prepare_data", "02_train_qlora", "03_evaluate", "04_visualize"]
    assert [path.stem for path in NOTEBOOKS][:4] == names


def test_form(notebook):
    """Title with what you will see, install cell, knobs; then short cells without definitions, and asserts."""
    title, install, knobs, *rest = notebook.cells
    assert (
        re.match(r"# .+\n\n\[!\[Open in Colab\]", title.source)
        and "What you will see" in title.source
    )
    assert '"google.colab" in sys.modules' in install.source
    assert re.search(r"^(RECIPE|MODEL) = ", knobs.source, re.M)
    code = [cell.source for cell in rest if cell.cell_type == "code"]
    assert not any(re.search(r"^\s*(def|class) |input\(|login\(", source, re.M) for source in code)
    assert max(source.count("\n") + 1 for source in code) <= 15
    assert sum("assert" in source for source in code) >= 2


def test_committed_executed_and_clean(notebook):
    """Outputs are there, in order, without errors, widget state, warnings or this machine's paths."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not [
        o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"
    ]
    assert "widgets" not in notebook.metadata
    assert not [o for o in outputs if {"text/html", tool.WIDGET} <= set(o.get("data", {}))], (
        "run make notebooks"
    )
    text = nbformat.writes(notebook)
    assert not re.search(r"/(work|root|home|tmp)/|\.venv", text)


def test_stamps_agree_with_pyproject():
    """The repository's address stands in pyproject.toml; badges and install cells have it from there."""
    address = tool.repository()
    for path in [*NOTEBOOKS, ROOT / "README.md"]:
        assert tool.stamped(path) == path.read_text(), f"{path.name}: run make colab"
    for path in NOTEBOOKS:
        text = path.read_text()
        assert f"git+{address}" in text
        assert (
            f"{address.replace('https://github.com', '/github')}/blob/main/notebooks/{path.name}"
            in text
        )


def test_the_install_cell_is_the_second_and_short(notebook):
    source = notebook.cells[1].source
    assert source == tool.INSTALL.replace("https://github.com/owner/name", tool.repository())
    assert source.count("\n") < 15 and not re.search(r"^\s*(def|class) ", source, re.M)


def addressed(folder: Path) -> dict[str, set[str]]:
    """File -> the repositories on GitHub that it names in badges, for pip and as its own."""
    pattern = r"(?:colab\.research\.google\.com/github/|git\+https://github\.com/"
    pattern += r'|^Repository = "https://github\.com/)([\w.-]+/[\w.-]+)'
    files = ["pyproject.toml", "README.md", *(f"notebooks/{path.name}" for path in NOTEBOOKS)]
    return {name: set(re.findall(pattern, (folder / name).read_text(), re.M)) for name in files}


def test_a_fork_is_stamped_and_back(tmp_path):
    """make colab REPO=owner/name: no other address is left; twice is as once; the first one's brings all back."""
    for name in ("Makefile", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("tools", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=lambda *_: {"runs"})

    def make(*words):
        """Every file's text after `make colab`, in which this Python stands for what make installs."""
        line = ["make", "-o", ".venv/installed", f"BIN={Path(sys.executable).parent}", "colab"]
        done = subprocess.run([*line, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        kept = [path for path in tmp_path.rglob("*") if path.suffix in (".toml", ".md", ".ipynb")]
        return {path: path.read_text() for path in kept}

    before = make()
    original = tool.repository().removeprefix("https://github.com/")
    assert set.union(*addressed(tmp_path).values()) == {original}
    fork = make("REPO=some.one/My-Fork_2")
    assert set(map(frozenset, addressed(tmp_path).values())) == {frozenset({"some.one/My-Fork_2"})}
    assert make("REPO=some.one/My-Fork_2") == fork == make() != before
    assert make(f"REPO={original}") == before


@pytest.mark.parametrize("repo", ["https://github.com/a/b", "b", "a/b/c", "a/b c", ""])
def test_what_is_no_repository_is_refused(repo):
    """Before anything is written."""
    with pytest.raises(SystemExit, match=r"REPO=.*: owner/name wanted"):
        tool.stamp(repo)


@pytest.mark.parametrize("name", ["03_evaluate", "04_visualize"])
def test_a_notebook_makes_what_it_lacks(tmp_path, name):
    """In an empty folder, as Colab opens each notebook on a fresh machine."""
    run(ROOT / "notebooks" / f"{name}.ipynb", tmp_path)
    assert (tmp_path / "runs" / "bt-sft" / "adapter_model.safetensors").is_file()
    made = {"03_evaluate": "comparison-tiny/evaluation.json", "04_visualize": "tokens.html"}[name]
    assert (tmp_path / "runs" / made).is_file()


def hub_cache(folder: Path, repo: str, tokenizer) -> None:
    """A Hub cache as a download leaves it, holding a two-layer Qwen3 with random weights and a real tokenizer."""
    home = folder / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / ("0" * 40)
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=32,
    )
    config = Qwen3Config(
        vocab_size=151_936, num_key_value_heads=1, tie_word_embeddings=True, **sizes
    )
    Qwen3ForCausalLM(config).save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)


def test_training_on_a_hub_model_by_its_id(tmp_path, monkeypatch, qwen3):
    """Notebook 02's path with a model from the Hub: offline from its cache, by its id, in 4 bits."""
    hub_cache(tmp_path / "hub", "someone/small-qwen3", qwen3)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    changes = (
        "dict(model='someone/small-qwen3', data='tiny/teacher', test='tiny/test', max_steps=4, "
    )
    changes += "split='train', data_config=None, test_config=None, per_device_train_batch_size=8, "
    changes += "learning_rate=1e-2, logging_steps=1, "
    changes += "test_prompts=4, max_new_tokens=8)"
    knobs = {"RECIPE": '"smollm2-cpu"', "CHANGES": changes}
    printed = run(ROOT / "notebooks" / "02_train_qlora.ipynb", tmp_path, knobs)
    assert "type nf4" in printed and "adapter_model.safetensors" in printed
    config = (tmp_path / "runs" / "bt-sft" / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": "someone/small-qwen3"' in config


def test_own_data_and_model_in_notebook_01(tmp_path, shared, qwen3):
    """The knobs take a user's file and model: GSM8K with the real Qwen3 tokenizer."""
    qwen3.save_pretrained(tmp_path / "model")
    data = tmp_path / "gsm8k.jsonl"
    lines = (shared / "datasets" / "gsm8k" / "train.jsonl").read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:200]))
    printed = run(
        ROOT / "notebooks" / "01_prepare_data.ipynb",
        tmp_path,
        {"CHANGES": "dict(model='model', data='gsm8k.jsonl', messy_data=None)"},
    )
    assert "gsm8k.jsonl: 200 rows -> 200 examples" in printed


def test_real_traces_in_notebook_05(tmp_path, shared):
    """The cells that make weights, with the importances that others measured: every sentence is found."""
    traces = str(shared / "datasets" / "r1_traces" / "thought_anchors_20.jsonl")
    knobs = {"TRACES": repr(traces), "CHANGES": "dict(max_length=40_000)"}
    printed = run(
        ROOT / "notebooks" / "05_token_weights.ipynb", tmp_path, knobs, until="Train with them"
    )
    assert (
        "thought_anchors_20.jsonl: 20 rows -> 20 examples" in printed and "dropped" not in printed
    )


def test_after_sft_is_skipped_by_name_without_trl():
    """By nbval; run by hand it says what to do, and what that changes."""
    path = ROOT / "notebooks" / "08_after_sft.ipynb"
    code = (
        "import sys; sys.modules['trl'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    words = ["-q", "-rs", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env", str(path)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert done.returncode == 0 and f"SKIPPED [{len(cells)}]" in done.stdout, done.stdout
    assert "TRL is not installed: pip install" in done.stdout
    (install,) = [
        cell.source for cell in cells if "find_spec" in cell.source and "ImportError" in cell.source
    ]
    shell = types.SimpleNamespace(run_line_magic=lambda *words: called.append(words))
    util = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
    called, given = [], {"get_ipython": lambda: shell, "importlib": util}
    with pytest.raises(ImportError, match="set INSTALL_TRL = True"):
        exec(install, given | {"INSTALL_TRL": False})
    assert not called
    with pytest.raises(
        RuntimeError, match=r"newer datasets, pyarrow and huggingface_hub.*restart the session"
    ):
        exec(install, given | {"INSTALL_TRL": True})
    assert called == [("pip", "install -q 'trl>=1.8'")]


def test_environment_yml_has_the_same_dependencies():
    """conda's names differ in two: torch is pytorch, playwright is playwright-python."""
    project = tool.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    extras = project["optional-dependencies"]
    wanted = (
        project["dependencies"]
        + extras["wandb"]
        + extras["tensorboard"]
        + extras["align"]
        + extras["dev"]
    )
    conda = {"torch>=": "pytorch>=", "playwright>=": "playwright-python>="}
    wanted = {
        re.sub("|".join(conda), lambda name: conda[name[0]], line)
        for line in wanted
        if not line.startswith("btsft_nb")
    }
    *lines, pip = environment
    assert {*lines, *pip["pip"]} - {"python>=3.11", "pip", "-e .[trackio]"} == wanted
