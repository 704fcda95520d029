"""The embedded reasoner: a small model that solves word problems in four ways of thinking, and its problems.

`python tools/make_tiny.py` makes model and tokenizer again, from one seed.
"""

import json
from pathlib import Path

import yaml

from .problems import SIZES, WAYS, rows, way_of  # noqa: F401, public here

RECIPE = yaml.safe_load(Path(__file__).parents[1].joinpath("recipes/tiny.yaml").read_text("utf-8"))
# Training arguments that suit this model and its data sets of 1,000 rows, on a CPU and a GPU alike.
TRAINING = {
    name: RECIPE[name]
    for name in (
        "max_steps",
        "per_device_train_batch_size",
        "learning_rate",
        "warmup_steps",
        "optim",
        "logging_steps",
        "save_strategy",
    )
}
# A run that is trained and measured in ten seconds: fewer and longer steps give the same picture.
DEMO = RECIPE | {
    "max_steps": 40,
    "learning_rate": 1.5e-3,
    "optim": "adamw_torch",
    "test_prompts": 50,
}


def evidence() -> dict:
    """What benchmarks/evidence.py measured of the dials, on this model and on a harder family of problems.

    Returns:
        `made` (command, date, versions, machine), `budget`, and `families`: for each arm `metrics`, as `evaluate` has
        them, `seeds` (metric -> the mean of each seed), and but for `before` its settings, the arm that is its
        `control`, and the paired `difference` from that.

    >>> sorted(bt.tiny.evidence()["families"])
    ['one step', 'two steps']
    """
    return json.loads(Path(__file__).with_name("evidence.json").read_text(encoding="utf-8"))
