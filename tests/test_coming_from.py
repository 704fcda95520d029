"""docs/coming_from.md: every setting that it names is one, and every function is there."""

import re
from dataclasses import fields

import pytest
import yaml
from browser import ROOT

import btsft_nb as bt
from btsft_nb.cli.settings import DataConfig, EvaluationConfig, read_settings
from btsft_nb.models.config import ModelConfig
from btsft_nb.training.config import BTSFTConfig

TEXT = (ROOT / "docs" / "coming_from.md").read_text()
HERE = [
    line.split(" | ", 1)[1]
    for line in TEXT.splitlines()
    if line.startswith("| ") and "there | here" not in line
]
KEYS = {
    f.name for cls in (BTSFTConfig, DataConfig, EvaluationConfig, ModelConfig) for f in fields(cls)
}
# settings, key=value; those of a function or of another command's options stand in brackets
LINES = [
    code
    for line in HERE
    for code in re.findall(r"`([^`]+)`", line)
    if re.match(r"[a-z]\w*=[^=]", code)
]


def test_the_page_has_lines_to_check():
    assert len(LINES) > 20 and len(HERE) > 60


@pytest.mark.parametrize("line", sorted(set(LINES)))
def test_a_line_of_settings_is_taken(line):
    given = dict(word.split("=", 1) for word in line.split())
    assert set(given) <= KEYS
    values = {key: yaml.safe_load(value) for key, value in given.items() if value != "..."}
    read_settings(**values)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`[^`]*?\bbt\.([\w.]+)", TEXT))))
def test_a_function_that_is_named_is_there(name):
    found = bt
    for part in name.split("."):
        found = getattr(found, part)


@pytest.mark.parametrize(
    "key", sorted({w for line in HERE for w in re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", line)})
)
def test_a_setting_that_is_named_alone_is_one(key):
    """Or a field of a history or a dial's reward."""
    assert key in KEYS | {"format_reward", "expected_reward", "max_prompt_length"}
