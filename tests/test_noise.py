"""What a user sees of a whole run, in a notebook and in a script: what it has to say, and no word of libraries."""

import re
import subprocess
import sys
import warnings

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from transformers.utils import logging as transformers_logging

import btsft_nb as bt
from btsft_nb.text import no_weight_bars

RUN = 'model="tiny", data="tiny/teacher", examples=16, max_steps=1'
WALK = {
    "load": 'import btsft_nb as bt\nmodel, tokenizer = bt.load_model("tiny", qlora=True)',
    "prepare": 'examples = bt.prepare(bt.load_rows("tiny/teacher")[:8], tokenizer)',
    "plan": f'settings = bt.read_settings({RUN}, output_dir="runs/one")\ntable = bt.plan(settings)',
    "finetune": "trainer = bt.finetune(settings)",
    "again": f"""settings = bt.read_settings({RUN}, output_dir="runs/two", disable_tqdm=True)
trainer = bt.finetune(settings, [bt.LiveCurves("two")])""",
    "checkpointing": """config = bt.BTSFTConfig("runs/three", max_steps=1, gradient_checkpointing=True)
out = bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()""",
    "go on": """model, tokenizer = bt.load_model(bt.ModelConfig("runs/one"))
config = bt.BTSFTConfig("runs/four", max_steps=1, disable_tqdm=True)
out = bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()
model.save_pretrained("adapter")""",
    "merge": 'merged = bt.merge("runs/four", "merged")\nmodel, tokenizer = bt.load_model(merged)',
    "policy": 'model, tokenizer = bt.align.load_policy("runs/one")\nmodel.save_pretrained("policy")',
    "compare": """rows = bt.load_rows("tiny/test")[:2]
compared = bt.compare(["runs/one", "runs/two"], rows, "runs/all", n=1, max_new_tokens=4)""",
    "sample": "samples = bt.sample(model, tokenizer, rows, n=1, max_new_tokens=4)",
    "8 bits": """model, tokenizer = bt.load_model(bt.ModelConfig("tiny", bits=8))
score = bt.score(model, tokenizer, examples, kl=True)""",
    "inspect": "inspector = bt.TokenInspector(examples, tokenizer, score=score)",
    "dials": f"""test = dict(test="tiny/test", test_prompts=2, samples=1, max_new_tokens=4)
dials = bt.Dials(bt.read_settings({RUN}, output_dir="runs/five", **test))
point = dials.run()
point = dials.run()""",
    "prepare again": 'examples = bt.prepare(bt.load_rows("tiny/teacher")[:8], tokenizer)',
}
BAR = re.compile(
    r"(?:sampling: +)?\d+%\|.*?it/s\]"
)  # of training and sampling, which a user waits for
REPORT = re.compile(r"tiny/teacher.*: \d+ rows -> \d+ examples\n(  .*\n)+")
# What is wrong, or the user's own, with the words that are left out where they mean nothing.
TRUE = """import warnings
from pathlib import Path
from transformers import AutoModelForCausalLM
from transformers.utils import logging
import btsft_nb as bt
text = "`is_gradient_checkpointing` is deprecated"
warnings.warn(text + ", says the user", FutureWarning)
where = dict(filename="a.py", lineno=1, module="transformers.modeling_utils")
warnings.warn_explicit("`other_name` is deprecated", FutureWarning, **where)
warnings.warn_explicit(text + ", in another category", UserWarning, **where)
model, tokenizer = bt.load_model("tiny")
kept = {name: value for name, value in model.state_dict().items() if "layers.0.mlp.up" not in name}
model.save_pretrained("broken", state_dict=kept)
tokenizer.save_pretrained("broken")
model, tokenizer = bt.load_model("broken")
print("bars:", logging.is_progress_bar_enabled())
same = AutoModelForCausalLM.from_pretrained("broken")"""


def run_notebook(folder, cells):
    """The outputs of each cell, run in a kernel as a user's notebook is."""
    notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    return [cell.outputs for cell in notebook.cells]


def text_of(outputs, name):
    return "".join(output["text"] for output in outputs if output.get("name") == name)


@pytest.fixture(scope="module", autouse=True)
def environment():
    """A user's: of the setting that keeps tests from the network, a library says a line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE")
        yield


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Cell -> its outputs."""
    outputs = run_notebook(tmp_path_factory.mktemp("notebook"), WALK.values())
    return dict(zip(WALK, outputs, strict=True))


@pytest.mark.parametrize("name", WALK)
def test_a_notebook_shows_no_word_of_libraries(seen, name):
    """No warning, and no bar but that of sampling: a bar is a widget, with the text that it began with."""
    assert text_of(seen[name], "stderr") == ""
    widgets = [output["data"] for output in seen[name] if "data" in output]
    texts = [
        data["text/plain"] for data in widgets if "application/vnd.jupyter.widget" in str(data)
    ]
    assert all(text.startswith("sampling:") for text in texts)
    assert len(texts) == {"compare": 3, "sample": 1}.get(name, 0)


def test_the_data_report_is_printed_once(seen):
    """By plan, and not again by what trains on the same rows; whoever prepares them again sees it again."""
    said = {name: text_of(outputs, "stdout") for name, outputs in seen.items()}
    told = "tiny/teacher, the first 16: 16 rows -> 16 examples"
    assert REPORT.fullmatch(said["plan"]) and said["plan"].startswith(f"{told}\n")
    for name in ("finetune", "again"):
        assert said[name].splitlines()[0] == f"{told}, as reported before"
        assert not REPORT.search(said[name])
    assert REPORT.fullmatch(said["prepare"]) and said["prepare again"] == said["prepare"]


def test_a_training_ends_in_one_line_that_names_the_folder(seen):
    """With a bar, with curves, and with neither; plan and dials, whose folders are gone, say nothing of any."""
    folders = {"finetune": "one", "again": "two", "checkpointing": "three", "go on": "four"}
    for name, outputs in seen.items():
        lines = text_of(outputs, "stdout").splitlines()
        ends = [line for line in lines if "runs/" in line or "/tmp/" in line]
        if name not in folders:
            assert not ends
            continue
        assert len(ends) == 1 and ends == lines[-1:]
        folder = folders[name]
        pattern = rf"{folder}: 1 steps, \d+ s, loss [\d.]+ -> runs/{folder}"
        assert re.fullmatch(pattern, ends[0])
    assert text_of(seen["dials"], "stdout") == ""


def test_a_script_shows_no_word_of_libraries(tmp_path):
    """Its bars are text, those of training and sampling."""
    code = "\n".join(WALK.values())
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert BAR.search(done.stderr)
    assert BAR.sub("", done.stderr).split() == []
    assert len(REPORT.findall(done.stdout)) == 3  # prepared twice, planned


def test_what_is_true_is_still_said(tmp_path):
    """The user's own warning, another one of the same module, weights that are missing, the user's own bars."""
    (outputs,) = run_notebook(tmp_path, [TRUE])
    said = text_of(outputs, "stderr")
    for text in ("says the user", "`other_name` is deprecated", "in another category"):
        assert text in said
    assert re.search(r"layers\.0\.mlp\.up_proj\.weight\W+\| MISSING", said)
    assert text_of(outputs, "stdout") == "bars: True\n"
    bars = [output["data"]["text/plain"] for output in outputs if "data" in output]
    assert [bar.partition(":")[0] for bar in bars] == ["Writing model shards", "Loading weights"]


def test_the_users_own_hook_for_bars_stays():
    """It sees all other bars while weights are read, and is there again afterwards, also after an error."""
    described = []

    def hook(factory, args, kwargs):
        described.append((kwargs["desc"], kwargs.get("disable", False)))
        return factory(*args, **kwargs)

    before = transformers_logging.set_tqdm_hook(hook)
    try:
        with pytest.raises(ZeroDivisionError), no_weight_bars():
            for name in ("mine", "Loading weights"):
                list(transformers_logging.tqdm([], desc=name))
            _ = 1 / 0
        list(transformers_logging.tqdm([], desc="Loading weights"))
    finally:
        assert transformers_logging.set_tqdm_hook(before) is hook
    assert described == [("mine", False), ("Loading weights", True), ("Loading weights", False)]


def test_no_setting_of_warnings_is_a_blanket_one():
    """Importing the package adds filters that name a text, a category and a module, and takes none away."""
    code = "import warnings; before = list(warnings.filters); import btsft_nb; after = warnings.filters"
    check = "new = after[: len(after) - len(before)]; assert new and after[len(new) :] == before"
    names = "assert all(a == 'ignore' and m and c is FutureWarning and r for a, m, c, r, _ in new)"
    subprocess.run([sys.executable, "-c", "\n".join([code, check, names])], check=True)


def test_loading_changes_no_filter():
    before = list(warnings.filters)
    bt.load_model("tiny", qlora=True)
    assert warnings.filters == before
