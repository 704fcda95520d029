"""A comparison as one HTML page, which reads without script and without colour, and asks for nothing.

`page.html` is its template. Names, questions, texts and settings come from data and models and are hostile: Jinja
escapes all that is put into it, and `visible` shows what cannot be seen.
"""

import json
from collections import defaultdict
from pathlib import Path

from jinja2 import Environment

from ..text import visible
from .answers import is_correct, parse_record

_TEXTS = 8  # of a model for a prompt are shown
_DIALS = ("base_model", "qlora", "data", "examples", "threshold", "beta", "anchor")
# where a run lies and what it shows and sends while it trains: nothing that made the model another one
_UNRELATED = (
    "output_dir",
    "log",
    "run_name",
    "report_to",
    "disable_tqdm",
    "project",
    "trackio_",
    "hub_",
    "push_to_hub",
    "adapter.peft_version",
    "adapter.inference_mode",
)


def page(comparison) -> str:
    """The whole page. Of many prompts the first are shown, and of long texts the beginning."""
    prompts = [_prompt(comparison, i) for i in range(min(comparison.settings["prompts"], 20))]
    n_texts = sum(len(texts[:_TEXTS]) for prompt in prompts for texts in prompt["models"].values())
    environment = Environment(autoescape=True)
    environment.filters["visible"] = visible
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        vars(comparison),
        configuration=_configuration(comparison.configs),
        differences=comparison.differences().to_dict("index"),  # by metric and model
        prompts=prompts,
        most_texts=_TEXTS,
        longest=min(2000, 400_000 // n_texts),  # characters, so that the page stays under 2 MB
    )


def _configuration(configs):
    """Setting -> its value in each run, for the dials and what differs; None for what is equal in all runs."""
    rows = {}
    names = dict.fromkeys(name for config in configs.values() for name in config)
    for name in sorted(names, key=lambda name: name not in _DIALS):
        if name.startswith(_UNRELATED) or name.endswith("_token"):
            continue
        texts = {run: json.dumps(config[name]) for run, config in configs.items() if name in config}
        values = [texts.get(run, "\u2013") for run in configs]
        # a run without adapters differs by its data and base
        compared = texts.values() if name.startswith("adapter.") else values
        is_shown = name in _DIALS or len(set(compared)) > 1
        rows[name] = values if is_shown else None
    return rows


def _prompt(comparison, number):
    """A prompt, its right answer, and the different texts of each model, the most frequent first."""
    reference = None if comparison.references is None else comparison.references[number]
    models = {}
    for name, records in comparison.samples.items():
        records = [record for record in records if record["prompt"] == number]
        equal = defaultdict(list)
        for record in records:
            equal[record["text"], parse_record(record)].append(record["sample"])
        texts = []
        for (text, parsed), samples in equal.items():
            is_right = None
            if reference is not None:
                is_right = is_correct(parsed.answer, reference, comparison.settings["answer"])
            texts.append({"text": text, "parsed": parsed, "samples": samples, "is_right": is_right})
        models[name] = sorted(texts, key=lambda text: -len(text["samples"]))
    return {"question": records[0]["question"], "reference": reference, "models": models}
