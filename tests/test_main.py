"""The command line: what it trains, compares, merges and shows; what goes wrong is one line and status 2."""

import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib

import pytest
import torch
from browser import ROOT
from transformers import AutoModelForCausalLM

import btsft_nb as bt
from btsft_nb.cli.main import main
from btsft_nb.evaluation import comparison

FILE = """\
model: tiny
data: tiny/teacher
examples: 12
max_steps: 3
per_device_train_batch_size: 4
learning_rate: 1e-3
logging_steps: 1
save_strategy: "no"
disable_tqdm: true
threshold: 0.3
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder that holds a model with all its weights: the embedded one, as it is."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    for part in bt.load_model("tiny"):
        part.save_pretrained(folder)
    return folder


def called(folder, *arguments: str) -> str:
    """What a command prints, called in a folder."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(list(arguments)) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which `train` was called in a shell, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run.yaml").write_text(FILE)
    words = "--config run.yaml threshold=0.6 output_dir=out seed=5"
    command = [sys.executable, "-m", "btsft_nb", *words.split()]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_last_line_is_the_trainers_and_names_the_folder(tmp_path):
    (tmp_path / "run.yaml").write_text(FILE)
    words = "train --config run.yaml output_dir=out max_steps=1 disable_tqdm=false"
    told = called(tmp_path, *words.split())
    assert told.splitlines()[-1].endswith(" -> out")


def test_train_follows_file_and_command_line(trained):
    """The command is left out here, as in the reference; the run says what it was made with, and whence."""
    folder, told = trained
    assert "12 rows" in told
    config = json.loads((folder / "out" / "training_config.json").read_text())
    assert (config["threshold"], config["seed"], config["max_steps"]) == (0.6, 5, 3)
    written = (folder / "out" / "settings.yaml").read_text().splitlines()
    assert written[0] == "# from run.yaml; overridden: threshold, output_dir, seed"
    assert {"threshold: 0.6", "max_steps: 3", "beta: 0.5"} <= set(written)
    model, _ = bt.load_model(folder / "out")
    assert any(p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)


def test_a_dry_run_measures_and_stops(trained):
    folder, _ = trained
    words = "train --config run.yaml --dry-run output_dir=nothing --num_train_epochs 2"
    told = called(folder, *words.split())
    assert "12 rows" in told and not (folder / "nothing").exists()
    for name in ("parameters", "steps", "peak memory", "tokens a second", "time"):
        assert any(line.startswith(name) for line in told.splitlines()), name


def test_a_run_is_not_written_over(trained, capsys, monkeypatch):
    folder, _ = trained
    monkeypatch.chdir(folder)
    before = (folder / "out" / "training_config.json").read_bytes()
    assert main(["--config", "run.yaml", "output_dir=out"]) == 2
    assert (
        "out holds a run: train --resume out, set another output_dir, or --overwrite"
        in capsys.readouterr().err
    )
    (folder / "notebook").mkdir(exist_ok=True)
    (folder / "notebook" / "training_config.json").write_text("{}")
    assert main(["--config", "run.yaml", "output_dir=notebook"]) == 2
    assert "notebook holds a run: " in capsys.readouterr().err
    assert (folder / "out" / "training_config.json").read_bytes() == before


def test_a_run_goes_on_by_its_folder(trained, tmp_path, capsys, monkeypatch):
    """Stopped after 2 of 4 steps, and alone: the same weights, bit for bit."""
    folder, _ = trained
    asked = [
        "--config",
        str(folder / "run.yaml"),
        "save_strategy=steps",
        "save_steps=2",
        "max_steps=4",
    ]
    called(tmp_path, *asked, "output_dir=alone")
    shutil.copytree(tmp_path / "alone", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoint-4")
    (tmp_path / "stopped" / "adapter_model.safetensors").unlink()
    text = (
        (tmp_path / "stopped" / "settings.yaml")
        .read_text()
        .replace("output_dir: alone", "output_dir: stopped")
    )
    (tmp_path / "stopped" / "settings.yaml").write_text(text)
    with monkeypatch.context() as here:
        here.chdir(tmp_path)
        assert main(["train", "--resume", "stopped", "lora_r=8", "examples=5"]) == 2
        told = capsys.readouterr().err
        assert (
            "stopped was begun with other settings: lora_r was 16 and is 8; examples was 12 and is 5"
            in told
        )
        assert main(["train", "--resume", "stopped", "learning_rate=0.5"]) == 2
        assert "learning_rate" in capsys.readouterr().err
    called(tmp_path, "train", "--resume", "stopped/checkpoint-2", "logging_steps=2")
    written = (tmp_path / "stopped" / "settings.yaml").read_text()
    assert written.startswith("# from stopped/settings.yaml; overridden: logging_steps, output_dir")
    assert "\nlogging_steps: 2\n" in written
    weights = [
        (tmp_path / name / "adapter_model.safetensors").read_bytes()
        for name in ("alone", "stopped")
    ]
    assert weights[0] == weights[1]


def test_merge_and_inspect_take_a_run(trained):
    """The merged model is a plain one with the adapter's logits, in float16; the page has the tokens' losses."""
    folder, _ = trained
    assert called(folder, "merge", "out").splitlines()[-1] == "out/merged"
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(
            folder / "out" / "merged", dtype=torch.float32
        )(ids).logits
        ours = bt.load_model(folder / "out")[0](ids).logits
    assert (merged - ours).abs().max() < 1e-3 * ours.abs().max()
    assert called(folder, "inspect", "out").splitlines()[-1] == "out/inspector.html"
    assert "probability" in (folder / "out" / "inspector.html").read_text()


def test_merge_takes_its_type_from_its_own_arguments(trained, tmp_path):
    """With and without a folder: the run's own dtype, of training, was that of the export in one of the two."""
    without_merged = shutil.ignore_patterns("merged")  # another test makes it
    folder = shutil.copytree(trained[0] / "out", tmp_path / "run", ignore=without_merged)
    settings = (folder / "settings.yaml").read_text()
    (folder / "settings.yaml").write_text(settings.replace("dtype: auto", "dtype: float32"))
    published = "float16"  # of tiny
    for words, merged, dtype in (
        ([], folder / "merged", published),
        ([str(tmp_path / "merged")], tmp_path / "merged", published),
        ([str(tmp_path / "half"), "--dtype", "bfloat16"], tmp_path / "half", "bfloat16"),
    ):
        assert main(["merge", str(folder), *words]) == 0
        assert json.loads((merged / "config.json").read_text())["dtype"] == dtype


def test_prepare_shows_the_report(trained):
    folder, _ = trained
    assert "12 rows" in called(folder, "prepare", "--config", "run.yaml")


def test_evaluate_prints_what_it_wrote(run, tmp_path):
    """The table, and the paths of JSON and page; with the ways of thinking of tiny data."""
    asked = "test=tiny/test report=out test_prompts=3 samples=2 max_new_tokens=64 sample_seed=5 evaluate_base=false"
    asked += " way_of=btsft_nb.tiny:way_of"
    told = called(tmp_path, "evaluate", str(run), *asked.split())
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert told.splitlines()[-2:] == ["out/evaluation.json", "out/index.html"]
    assert (tmp_path / "out" / "index.html").is_file()
    assert {name: record["settings"][name] for name in ("prompts", "n", "max_new_tokens", "seed", "temperature")} == {
        "prompts": 3, "n": 2, "max_new_tokens": 64, "seed": 5, "temperature": 1.0,
    }  # fmt: skip
    found = record["summaries"]["mine"]["metrics"]["accuracy"]
    line = next(line for line in told.splitlines() if line.startswith("accuracy"))
    assert line.split(maxsplit=1)[1] == "{value:.2f} [{low:.2f}, {high:.2f}]".format(**found)
    assert "ways of thinking" in told


def test_an_evaluation_goes_into_the_run(trained):
    """In the seed's spelling, from its own split, with BLEU; the most likely tokens each time."""
    folder, _ = trained
    rows = [
        {"Question": row["messages"][0]["content"], "Answer": row["answer"]}
        for row in bt.load_rows("tiny/test")[:3]
    ]
    (folder / "qa.json").write_text(json.dumps({"train": [], "test": rows}))
    asked = "test=qa.json samples=1 temperature=0 max_new_tokens=48 top_k=5 text_scores=true evaluate_base=false"
    called(folder, "evaluate", "out", *asked.split())
    record = json.loads((folder / "out" / "evaluation" / "evaluation.json").read_text())
    assert record["settings"]["top_k"] == 5 and "bleu" in record["summaries"]["out"]["metrics"]


def test_differences_are_printed(run, tmp_path, capsys):
    """Of a second run from the first: none, between equal models; rows of a file have no ways of thinking."""
    (tmp_path / "test.jsonl").write_text(
        '{"question": "Ann has 3 eggs and gets 4. How many?", "answer": "7"}\n'
    )
    second = shutil.copytree(run, tmp_path / "second")
    asked = [
        f"test={tmp_path / 'test.jsonl'}",
        f"report={tmp_path / 'out'}",
        "samples=2",
        "max_new_tokens=32",
    ]
    assert main(["evaluate", str(run), str(second), *asked]) == 0
    told = capsys.readouterr().out
    assert "less mine, with 95 % intervals:" in told and "ways" not in told
    (line,) = [
        line for line in told.splitlines() if line.split()[:3] == ["unique", "thoughts", "second"]
    ]
    assert line.split()[3:] == ["+0.000", "+0.000", "+0.000", "1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "evaluate nowhere/at/all test=tiny/test",
            "btsft: nowhere/at/all: neither a folder nor on the Hub; check spelling and network",
        ),
        ("evaluate {run} test=tiny/exam", "got 'tiny/exam'"),
        ("evaluate {run} test={folder}/none.jsonl", "No such file or directory: "),
        (
            "evaluate {run} test={folder}/broken.jsonl",
            "broken.jsonl, row 0: line 1: ",
        ),
        ("evaluate {run} {run} test=tiny/test", "'mine' cannot be the name of a run here"),
        ("evaluate {run} test=tiny/test report={folder}/broken.jsonl", "File exists: "),
        ("evaluate {run} test=tiny/test samples=two", "--samples: invalid int value: 'two'"),
        ("evaluate {run}", "evaluate needs test=ROWS"),
        ("merge", "merge needs a run folder"),
        ("train data=tiny/teacher", "the following arguments are required: --model"),
        ("train model=tiny", "the following arguments are required: --data"),
        (
            "train model=tiny data=tiny/teacher thresold=1",
            "unknown setting 'thresold', did you mean 'threshold'?",
        ),
        ("--config {folder}/none.yaml", "No such file or directory: "),
        ("train threshold=[", "threshold=[: its value is missing, or no YAML"),
        ("dance", "dance: "),
        ("train --dry_run=true", "unknown setting 'dry_run'"),
        ("train --config", "--config: its value is missing"),
        ("merge {run} --dry-run", "merge needs a run folder, and takes another folder and dtype="),
        ("merge {run} dtype=fp16", "dtype"),
        ("inspect {run} {run}", "neither key=value nor a command"),
        ("train model=tiny data=tiny/teacher method=full", "the anchor no reference: set anchor=0"),
        (
            "train model=tiny data=tiny/teacher eval_data=tiny/test",
            "eval_data is never used",
        ),
        ("--dry-run model=tiny data=tiny/teacher lora_targets=q_prj", "did you mean 'q_proj'"),
    ],
    ids=lambda value: value if " " in value else None,
)
def test_an_error_is_one_line(run, tmp_path, capsys, arguments, words):
    (tmp_path / "broken.jsonl").write_text("{\n")
    arguments = arguments.format(run=run, folder=tmp_path).split()
    if arguments[0] == "evaluate" and not any(word.startswith("report=") for word in arguments):
        arguments.append(f"report={tmp_path / 'out'}")
    assert main(arguments) == 2
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if line and "Loading weights" not in line]
    assert len(lines) == 1 and words in lines[0]


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "out"), torch.OutOfMemoryError("no\nroom")]
)
def test_what_the_machine_lacks_is_one_line(run, capsys, monkeypatch, error):
    def fail(*runs, **asked):
        raise error

    error.add_note("what was there is removed")
    monkeypatch.setattr(comparison, "compare", fail)
    assert main(["evaluate", str(run), "test=tiny/test", "report=out"]) == 2
    assert capsys.readouterr().err == f"btsft: {error}\nwhat was there is removed\n"


def test_help_and_a_misspelt_setting_answer_at_once(monkeypatch):
    """It took ten seconds of processor time, for torch; the best of up to three runs counts."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    startup = importlib.import_module("startup")
    for command in startup.COMMANDS.values():
        assert any(startup.processor_seconds(command) <= startup.LIMIT for _ in range(3))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "-h"]])
def test_help_has_commands_and_settings(capsys, arguments):
    assert main(arguments) == 0
    told = capsys.readouterr().out
    for command in ("train", "prepare", "evaluate", "merge", "inspect"):
        assert f"{command}" in told.split("Settings:")[0]
    assert "threshold=0.2" in told and max(map(len, told.splitlines())) <= 120


def test_the_console_script_is_this_command():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["btsft"]
    assert script == f"{main.__module__}:{main.__name__}"
