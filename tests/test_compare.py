"""Run folders compared on the same prompts: what is sampled, measured, written, taken up again, and refused by name."""

import dataclasses
import json
import shutil
import sys
import weakref
from pathlib import Path

import pytest
import torch
from browser import ROOT

import btsft_nb as bt

ASKED = {"n": 2, "max_new_tokens": 48, "seed": 3}
PROMPTS = 5


def trained(folder, data: str, qlora: bool = True, **dials):
    """A run folder after three steps that leave their mark."""
    model, tokenizer = bt.load_model("tiny", qlora=qlora)
    settings = bt.tiny.TRAINING | {
        "max_steps": 3,
        "warmup_steps": 0,
        "learning_rate": 5e-3,
        "disable_tqdm": True,
    }
    settings |= {"optim": "adamw_torch", "use_cpu": True, "anchor": 0} | dials
    examples = bt.prepare(bt.load_rows(data)[:64], tokenizer)
    config = bt.BTSFTConfig(str(folder), **settings)
    bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict:
    """Two runs on the same base in 4 bits, and one that trained all weights."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "plain": trained(folder / "plain", "tiny/teacher", threshold=0.0, beta=0.0),
        "messy": trained(folder / "messy", "tiny/messy", threshold=0.5, beta=0.5, weight_decay=0.1),
        "full": trained(folder / "full", "tiny/teacher", qlora=False, learning_rate=1e-3),
    }


@pytest.fixture(scope="module")
def found(runs, tmp_path_factory) -> bt.Comparison:
    folder = tmp_path_factory.mktemp("out") / "comparison"
    return bt.compare(runs, "tiny/test", folder, prompts=PROMPTS, way_of=bt.tiny.way_of, **ASKED)


def test_each_model_gives_what_it_gives_alone(found, runs):
    """The runs before it and the order change nothing."""
    problems = bt.load_rows("tiny/test")[:PROMPTS]
    models = {"before": bt.load_model("tiny", qlora=True)} | {
        name: bt.load_model(run) for name, run in runs.items()
    }
    alone = {name: bt.sample(*model, problems, **ASKED) for name, model in models.items()}
    assert list(found.samples) == list(found.summaries) == ["before", "plain", "messy", "full"]
    assert found.samples == alone
    assert len({json.dumps(records) for records in alone.values()}) == 4


def test_a_run_is_freed_before_the_next_is_loaded(runs, tmp_path, monkeypatch):
    """A GPU has room for one. The model before is that of the first run with adapters, and stands first."""
    module = sys.modules["btsft_nb.evaluation.comparison"]
    loaded = []

    def load(path):
        assert all(model() is None for model in loaded)
        model, tokenizer = bt.load_model(path)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(module, "load_model", load)
    folders = [runs["full"], runs["plain"], runs["messy"]]
    found = bt.compare(folders, ["How many?"], tmp_path, n=1, max_new_tokens=4)
    assert list(found.samples) == ["before", "full", "plain", "messy"] and len(loaded) == 3


def test_the_summaries_are_those_of_evaluate(found):
    answers = [row["answer"] for row in bt.load_rows("tiny/test")[:PROMPTS]]
    for name, records in found.samples.items():
        assert found.summaries[name] == bt.evaluate(records, answers, bt.tiny.way_of)


def test_differences_are_paired_with_the_first_model(found):
    differences = found.differences("accuracy", "compliance")
    assert list(differences.index) == [
        (m, name) for m in ("accuracy", "compliance") for name in list(found.summaries)[1:]
    ]
    for (metric, name), row in differences.iterrows():
        first, other = (
            found.summaries[model]["metrics"][metric]["value"] for model in ("before", name)
        )
        assert (
            row["value"] == pytest.approx(other - first)
            and row["low"] <= row["value"] <= row["high"]
        )
        assert row["n"] == PROMPTS
    assert set(found.differences().reset_index()["metric"]) <= set(
        found.summaries["before"]["metrics"]
    )
    with pytest.raises(ValueError, match=r"metric must be one of 'compliance', .*, got 'speed'"):
        found.differences("speed")


def test_a_metric_that_two_models_know_on_different_prompts_has_no_difference(found):
    """One has a value on prompt 0 only, the other on prompt 1 only."""
    record = {
        "sample": 0,
        "question": "How many?",
        "finished": True,
        "prefilled": False,
        "tokens": 9,
    }
    summaries = {
        name: bt.evaluate(
            [
                record | {"prompt": i, "text": f"<think>{t}</think>1"}
                for i, t in enumerate(thoughts)
            ],
            None,
            str.strip,
        )
        for name, thoughts in {"a": ("sum", " "), "b": (" ", "sum"), "c": ("sum", "sum")}.items()
    }
    for summary, known in zip(summaries.values(), ([0, None], [None, 0], [0, 0]), strict=True):
        summary["values"]["self-BLEU"] = known
    differences = dataclasses.replace(found, summaries=summaries).differences()
    assert ("self-BLEU", "b") not in differences.index and (
        "compliance",
        "b",
    ) in differences.index
    assert differences.loc[("self-BLEU", "c")]["n"] == 1


def test_what_is_written(found):
    """The folder holds all of it; the table shows in a notebook."""
    names = [
        "before.jsonl",
        "evaluation.json",
        "full.jsonl",
        "index.html",
        "messy.jsonl",
        "plain.jsonl",
    ]
    assert sorted(path.name for path in found.folder.iterdir()) == names
    record = json.loads((found.folder / "evaluation.json").read_text())
    assert record["summaries"] == found.summaries and record["configs"] == found.configs
    assert record["settings"] == found.settings
    assert (record["settings"]["test"], record["settings"]["prompts"]) == ("tiny/test", PROMPTS)
    assert {name: record["settings"][name] for name in ASKED} == ASKED
    assert record["settings"]["versions"]["torch"] == torch.__version__
    assert len(record["differences"]) == len(found.differences())
    assert list(bt.table(found.summaries).index) == list(found.summaries)
    assert all(name in found._repr_html_() for name in found.summaries)


def test_the_configuration_says_what_made_each_run(found):
    plain, messy, full = found.configs.values()
    assert (plain["base_model"], plain["qlora"], plain["data"], plain["examples"]) == (
        "tiny",
        True,
        "tiny/teacher",
        64,
    )
    assert (messy["threshold"], messy["weight_decay"], messy["data"]) == (0.5, 0.1, "tiny/messy")
    assert (
        plain["adapter.r"] == 16
        and plain["adapter.target_modules"] == messy["adapter.target_modules"]
    )
    assert "adapter.r" not in full and full["learning_rate"] == 1e-3


def test_a_call_that_was_stopped_goes_on(found, runs, tmp_path):
    """From the samples that are there; what is whole stays as it is, byte for byte."""
    for path in found.folder.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    whole = (tmp_path / "messy.jsonl").read_bytes()
    (tmp_path / "messy.jsonl").write_bytes(whole[: len(whole) // 2])
    again = bt.compare(runs, "tiny/test", tmp_path, prompts=PROMPTS, way_of=bt.tiny.way_of, **ASKED)
    assert again.samples == found.samples and again.summaries == found.summaries
    for name in ("before", "plain", "full"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (
            found.folder / f"{name}.jsonl"
        ).read_bytes()


def test_without_answers_the_rest_is_measured(runs, tmp_path):
    """Also of rows that are a list or a stream; a model with all its weights trained has no base beneath it."""
    rows = [{"messages": [{"role": "user", "content": "How many?"}]}, "How much?"]
    found = bt.compare([runs["full"]], iter(rows), tmp_path, n=2, max_new_tokens=8)
    assert list(found.summaries) == ["full"] and found.references is None
    assert "accuracy" not in found.summaries["full"]["metrics"]
    assert found.settings["prompts"] == 2 and len(found.differences()) == 0


def test_no_path_of_the_machine_is_told(runs, tmp_path, monkeypatch):
    """Though the run was trained in a folder that was given whole."""
    shutil.copytree(runs["plain"], tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    found = bt.compare(["run"], "tiny/test", "out", prompts=1, n=1, max_new_tokens=4)
    assert found.configs["run"]["output_dir"] == "run"
    for name in ("evaluation.json", "index.html"):
        told = (tmp_path / "out" / name).read_text()
        assert not [
            path
            for path in (tmp_path, runs["plain"].parent, Path.home(), ROOT)
            if f"{path}/" in told
        ]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"runs": []}, ValueError, "no runs to compare"),
        (
            {"runs": ["nowhere/at all"]},
            FileNotFoundError,
            "nowhere/at all: neither a folder nor on the Hub",
        ),
        (
            {"runs": ["{plain}", "{plain}"]},
            ValueError,
            "'plain' cannot be the name of a run here; give name -> folder",
        ),
        ({"runs": {"before": "{plain}"}}, ValueError, "'before' cannot be the name of a run here"),
        ({"runs": {"a/b": "{plain}"}}, ValueError, "'a/b' cannot be the name of a run here"),
        ({"runs": {"../a": "{plain}"}}, ValueError, "'../a' cannot be the name of a run here"),
        ({"test": "tiny/exam"}, ValueError, "tiny/exam"),
        ({"test": "nothing.jsonl"}, FileNotFoundError, "nothing.jsonl"),
        ({"test": []}, ValueError, "rows: no rows to sample"),
        ({"test": [{"messages": []}]}, bt.RowError, "rows, row 0"),
        (
            {"test": ["a", {"question": "b", "answer": "1"}]},
            ValueError,
            "1 of 2 rows have no answer, the first is row 0",
        ),
        ({"prompts": 0}, ValueError, "tiny/test: no rows to sample"),
        ({"top_p": 2}, ValueError, "top_p must be a number between 0 and 1, got 2"),
        ({"answer": "guess"}, ValueError, "tiny/test, row 0: answer must be one of"),
        (
            {"answer": "choice"},
            ValueError,
            "tiny/test, row 0: the reference '.*' has no answer of the kind 'choice'",
        ),
    ],
)
def test_what_cannot_be_compared_is_named_before_anything_is_sampled(
    runs, tmp_path, change, error, words
):
    asked = {"runs": ["{plain}"], "test": "tiny/test", "n": 1, "max_new_tokens": 4} | change
    at = {name: str(run) for name, run in runs.items()}
    named = asked["runs"]
    if isinstance(named, dict):
        asked["runs"] = {name: run.format(**at) for name, run in named.items()}
    else:
        asked["runs"] = [run.format(**at) for run in named]
    with pytest.raises(error, match=words):
        bt.compare(folder=tmp_path / "out", **asked)
    assert not list(tmp_path.rglob("*.jsonl"))
