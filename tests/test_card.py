"""The model card of a run folder: what the Hub reads in it, what a person does, and hostile names in neither."""

import functools
import json
import re

import jinja2
import pytest
import yaml
from huggingface_hub import ModelCard
from payloads import PAYLOADS

import btsft_nb as bt
from btsft_nb.training.card import model_card


def folder_of(
    path,
    *,
    base="Qwen/Qwen3-0.6B",
    data="open-r1/OpenR1-Math [train]",
    adapter=True,
):
    """A run folder by its files, without the training; it has taken 30 of 60 steps."""
    path.mkdir(parents=True)
    environment = {"base_model": base, "adapter": adapter, "max_steps": 60, "finished": None}
    config = {"threshold": 0.3, "beta": 0.5, "anchor": 1.0, "unit": "word", "run_name": "x"}
    empty = dict(
        kept=4,
        dropped={},
        changed={},
        flagged={},
        duplicates=[],
        added_tags=[],
        supervised=9,
        suspicious=[],
    )
    spread = {
        part: {"shortest": 1, "longest": 7} for part in ("sequence", "prompt", "thought", "answer")
    }
    tokens = {"prompt": 1, "tag": 2, "think": 3, "answer": 4}
    report = dict(source=data, rows=5, tokens=tokens, lengths=spread, **empty)
    files = {
        "environment.json": environment,
        "training_config.json": config,
        "data_report.json": report,
    }
    for name, record in files.items():
        (path / name).write_text(json.dumps(record))
    logs = [
        {"step": 10, "loss": 2.0},
        {"step": 20, "eval_loss": 0.75, "eval_runtime": 3.0},
        {"step": 30, "loss": 1.0},
    ]
    logs[1]["eval_choices/accuracy"] = float("nan")  # of a model that has diverged
    (path / "history.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs))
    return path


def test_the_front_matter_is_what_the_hub_reads(tmp_path):
    """Read back by the Hub's own library; base model and data set by their ids."""
    model_card(bt.Run(folder_of(tmp_path / "demo"))).save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "Qwen/Qwen3-0.6B" and card.data.datasets == "open-r1/OpenR1-Math"
    assert card.data.library_name == "peft" and {"blurred-thoughts-sft", "lora"} <= set(
        card.data.tags
    )
    full = model_card(bt.Run(folder_of(tmp_path / "full", adapter=False)))
    assert full.data.library_name == "transformers" and "lora" not in full.data.tags


@pytest.mark.parametrize(
    "name", ["tiny", "tiny/teacher", "/home/me/models/mine", "data/rows.jsonl", "a b/c", "<b>/x"]
)
def test_only_what_is_on_the_hub_is_linked(tmp_path, name):
    card = model_card(bt.Run(folder_of(tmp_path / "demo", base=name, data=name)))
    assert card.data.base_model is None and card.data.datasets is None


def test_the_text_says_what_it_is_and_how_far(tmp_path):
    """Also which files there are, and only those that are there."""
    run = bt.Run(folder_of(tmp_path / "demo"))
    text = model_card(run).text
    assert "Not complete: 30 of 60 steps" in text and "| threshold | 0\\.3 |" in text
    lines = [f"    {line}" for line in str(run.report).splitlines()]
    assert "open-r1/OpenR1-Math [train]: 5 rows" in lines[0] and "\n".join(lines) in text
    assert "- `history.jsonl`: loss" in text and "`evaluation`" not in text
    assert "bt.load_model(" in text


def test_hostile_names_are_text(tmp_path, monkeypatch):
    """In Markdown as the Hub renders it: no tag, link, heading, table cell or list of their own; in YAML the same."""
    # the template is compiled once
    monkeypatch.setattr(jinja2, "Template", functools.cache(jinja2.Template))
    markdown = (
        pytest.importorskip("markdown_it")
        .MarkdownIt("gfm-like", {"linkify": False})
        .enable("table")
    )
    payloads = [
        *PAYLOADS.values(),
        "x\n# heading",
        "[a](javascript:alert(1))",
        "![a](//x)",
        "a | b | c",
        "``` `x` ~~~",
        "---\nx: 1",
    ]
    shapes = set()
    for i, payload in enumerate(["plain", *payloads]):
        card = model_card(bt.Run(folder_of(tmp_path / str(i), base=payload, data=payload)))
        content = str(card)
        front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", content, re.DOTALL).groups()
        assert "btsft_nb" in yaml.safe_load(front)["tags"]
        tokens = [
            child for token in markdown.parse(body) for child in [token, *(token.children or [])]
        ]
        shape = tuple(token.type for token in tokens if token.type not in ("text", "text_special"))
        shapes.add(shape)
        assert not [t.type for t in tokens if t.type.startswith(("html", "link", "image"))]
    assert len(shapes) == 1
