"""The command line: a run is compared from a shell; what goes wrong is one line and status 2."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import tomllib

import pytest
from browser import ROOT

import btsft_nb as bt
from btsft_nb.__main__ import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder that holds a model with all its weights: the embedded one, as it is."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    for part in bt.load_model("tiny"):
        part.save_pretrained(folder)
    return folder


def test_evaluate_prints_what_it_wrote(run, tmp_path):
    """In a process of its own: the table, and the paths of JSON and page; with the ways of thinking of tiny data."""
    command = [sys.executable, "-m", "btsft_nb", "evaluate", str(run), "--test", "tiny/test", "--folder", "out"]
    command += ["--prompts=3", "--samples=2", "--max-new-tokens=64", "--seed=5", "--no-base"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert done.stdout.splitlines()[-2:] == ["out/evaluation.json", "out/index.html"]
    assert (tmp_path / "out" / "index.html").is_file()
    assert {name: record["settings"][name] for name in ("prompts", "n", "max_new_tokens", "seed", "temperature")} == {
        "prompts": 3, "n": 2, "max_new_tokens": 64, "seed": 5, "temperature": 1.0,
    }  # fmt: skip
    found = record["summaries"]["mine"]["metrics"]["accuracy"]
    line = next(line for line in done.stdout.splitlines() if line.startswith("accuracy"))
    assert line.split(maxsplit=1)[1] == "{value:.2f} [{low:.2f}, {high:.2f}]".format(**found)
    assert "ways of thinking" in done.stdout


def test_differences_are_printed(run, tmp_path, capsys):
    """Of a second run from the first: none, between equal models; rows of a file have no ways of thinking."""
    (tmp_path / "test.jsonl").write_text('{"question": "Ann has 3 eggs and gets 4. How many?", "answer": "7"}\n')
    second = shutil.copytree(run, tmp_path / "second")
    asked = [f"--test={tmp_path / 'test.jsonl'}", f"--folder={tmp_path / 'out'}", "--samples=2", "--max-new-tokens=32"]
    assert main(["evaluate", str(run), str(second), *asked]) == 0
    told = capsys.readouterr().out
    assert "less mine, with 95 % intervals:" in told and "ways" not in told
    (line,) = [line for line in told.splitlines() if line.split()[:3] == ["unique", "thoughts", "second"]]
    assert line.split()[3:] == ["+0.000", "+0.000", "+0.000", "1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere/at/all", "--test=tiny/test"], "btsft: nowhere/at/all: no such run folder"),
        (["{run}", "--test=tiny/exam"], "btsft: unknown data set 'tiny/exam'"),
        (["{run}", "--test={folder}/none.jsonl"], "none.jsonl: no such file"),
        (["{run}", "--test={folder}/broken.jsonl"], "broken.jsonl, row 0: line 1: not valid JSON"),
        (["{run}", "{run}", "--test=tiny/test"], "two models are called 'mine'"),
        (["{run}", "--test=tiny/test", "--folder={folder}/broken.jsonl"], "File exists: "),
    ],
)
def test_an_error_is_one_line(run, tmp_path, capsys, arguments, words):
    (tmp_path / "broken.jsonl").write_text("{\n")
    arguments = [argument.format(run=run, folder=tmp_path) for argument in arguments]
    assert main(["evaluate", f"--folder={tmp_path / 'out'}", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and "Traceback" not in told


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "out"), ImportError("no\nbitsandbytes")])
def test_what_the_machine_lacks_is_one_line(run, capsys, monkeypatch, error):
    def fail(**asked):
        raise error

    monkeypatch.setattr(sys.modules["btsft_nb.__main__"], "_evaluate", fail)
    assert main(["evaluate", str(run), "--test=tiny/test", "--folder=out"]) == 2
    assert capsys.readouterr().err == f"btsft: {' '.join(str(error).split())}\n"


NEEDED = ["evaluate", "x", "--test=tiny/test", "--folder=out"]


@pytest.mark.parametrize(
    "arguments", [[], ["evaluate"], [*NEEDED, "--samples=two"], [*NEEDED, "--answer=guess"], ["dance"]]
)
def test_arguments_that_are_none_are_told_with_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: btsft" in capsys.readouterr().err


def test_help_has_the_defaults_of_compare(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    defaults = {name: p.default for name, p in inspect.signature(bt.compare).parameters.items()}
    flags = {"n": "--samples N", "max_new_tokens": "--max-new-tokens TOKENS", "temperature": "--temperature T"}
    flags |= {"batch_size": "--batch-size N", "seed": "--seed N"}
    flags["answer"] = "--answer {auto,exact,number,boxed,choice}"
    for name, flag in flags.items():
        assert f"(default: {defaults[name]})" in told.split(f" {flag} ")[-1].split(" --")[0], name


def test_the_console_script_is_this_command():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["btsft"]
    assert script == f"{main.__module__}:{main.__name__}"
