"""What the dials do, and what a sceptic would hold against it: every arm with five seeds and the same budget.

    python benchmarks/evidence.py [--workers 2]

trains and samples what runs/evidence lacks, and writes btsft_nb/tiny/evidence.json, one arm a line, which notebook 06
and the README read.

Two families of problems: the embedded reasoner's own, and those of two_steps.py, on which a base model is trained
first. Each arm fine-tunes 4-bit LoRA layers for 48 steps of 16 rows (4 epochs of 192), and is sampled 8 times on each
of 100 problems that no training set holds. A seed changes the rows, the adapters, their order, the blur and the
samples. The budget is equal in rows and steps; the anchor costs a second forward pass, and its expectation two steps
in one. A run that is there and was made with the same settings is not run again, so an interrupted call goes on where
it was.

Intervals are 95 % percentiles over resampled seeds and problems, both at once; differences are paired by seed and
problem. With five seeds they are somewhat too narrow, so each seed's own mean stands beside them. The 100 questions of
the harder family are on 89 problems: some differ in names and things alone.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import two_steps
from common import installed, processor
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
from transformers.utils import logging

import btsft_nb as bt

OUT = Path(bt.tiny.__file__).with_name("evidence.json")
STEPS, ROWS, PROMPTS, SAMPLES = 48, 192, 100, 8
TRAINING = {
    "max_steps": STEPS, "per_device_train_batch_size": 16, "learning_rate": 1.5e-3, "warmup_steps": 5,
    "save_strategy": "no", "logging_steps": 8, "disable_tqdm": True,
}  # fmt: skip
METRICS = (  # what the file keeps of a summary
    "compliance", "accuracy", "unique thoughts", "different right thoughts", "ways of thinking", "right ways",
)  # fmt: skip


class Family(NamedTuple):
    """Problems, made by `rows(set, n, seed)`, and the tokens that a completion may have."""

    rows: Callable[..., list[dict]]
    max_new_tokens: int


FAMILIES = {"one step": Family(bt.tiny.rows, 96), "two steps": Family(two_steps.rows, 160)}


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune: on which set, by which trainer, with which settings of BTSFTConfig."""

    data: str
    dials: dict = field(default_factory=dict)
    trainer: str = "ours"
    weights: dict | None = None
    families: tuple[str, ...] = tuple(FAMILIES)


def _arms() -> dict[str, Arm]:
    """All arms by name. Dials that an arm does not name are 0."""
    one = ("one step",)  # the families of an arm that the harder problems were not run with
    arms = {
        "plain SFT": Arm("teacher"),
        "reference": Arm("teacher", {"threshold": 0.5, "beta": 0.05}, "reference"),
    }
    for t in (0.2, 0.5, 0.8):
        families = tuple(FAMILIES) if t == 0.5 else one
        arms[f"blur {t}"] = Arm("teacher", {"threshold": t}, families=families)
        arms[f"down-weighted {t}"] = Arm("teacher", weights={"think": 1 - t}, families=families)
        arms[f"anchored {t}"] = Arm("teacher", {"threshold": t, "anchor": 1.0})
    arms["anchored 1.0"] = Arm("teacher", {"threshold": 1.0, "anchor": 1.0}, families=one)
    half = {"threshold": 0.5}
    anchored = {"threshold": 0.5, "anchor": 1.0}
    for name, dials in {"blur 0.5": half, "anchored 0.5": anchored}.items():
        arms[f"{name}, drawn once"] = Arm("teacher", dials | {"resample": "never"}, families=one)
        arms[f"{name}, keep 5"] = Arm("teacher", dials | {"keep_first": 5}, families=one)
        for unit in ("word", "sentence", "thought"):
            arms[f"{name}, by {unit}"] = Arm("teacher", dials | {"unit": unit}, families=one)
    arms["anchor 0.3, 0.5"] = Arm("teacher", half | {"anchor": 0.3}, families=one)
    arms["anchor 3, 0.5"] = Arm("teacher", half | {"anchor": 3.0}, families=one)
    arms["anchored 0.5, in expectation"] = Arm("teacher", anchored, "expectation")
    arms["anchored 0.5, beta 0.5"] = Arm("teacher", anchored | {"beta": 0.5}, families=one)
    arms["NEFTune 5"] = Arm("teacher", {"neftune_noise_alpha": 5.0})
    arms["12 steps"] = Arm("teacher", {"max_steps": 12})
    arms["24 steps"] = Arm("teacher", {"max_steps": 24})
    for beta in (0.0, 0.05, 0.2, 0.5, 1.0, 2.0):
        families = one if beta in (0.05, 0.2, 1) else tuple(FAMILIES)
        arms[f"beta {beta:g}"] = Arm("messy", {"beta": beta}, families=families)
    arms["reference, beta 2"] = Arm("messy", {"threshold": 0.5, "beta": 2.0}, "reference")
    arms["messy, anchored 0.5"] = Arm("messy", anchored, families=one)
    arms["messy, anchored 0.5, beta 0.5"] = Arm("messy", anchored | {"beta": 0.5}, families=one)
    return arms


class Expectation(bt.BTSFTTrainer):
    """The anchored blur without chance: each thought token (1 - threshold) of its loss and threshold of its KL.

    The objective is linear in which tokens are blurred, so this is its expectation over the draws. (What it logs is
    counted twice.)
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        thoughts = (inputs["kinds"] == bt.Kind.THINK) & (inputs["weights"] != 0)
        no_thought = torch.zeros_like(thoughts)
        plain = super().compute_loss(
            model, inputs | {"blurred": no_thought}, False, num_items_in_batch
        )
        anchored = super().compute_loss(
            model, inputs | {"blurred": thoughts}, False, num_items_in_batch
        )
        return (1 - self.args.threshold) * plain + self.args.threshold * anchored


class Reference(Trainer):
    """The reference implementation as published (mkurman/blurred-thoughts-SFT, btsft/func/training.py), written anew.

    Its collator makes the labels again from the ids, so that its blur is lost and the prompt is trained as well; its
    reward, of a regular expression on the argmax of the teacher-forced logits, is a number without a gradient.
    """

    def __init__(self, *args, beta: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.beta = beta

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(
            inputs["input_ids"], labels=inputs["labels"], num_items_in_batch=num_items_in_batch
        )
        texts = self.processing_class.batch_decode(outputs.logits.argmax(-1))
        fits = [
            bool(re.search(r"<think>((?!</?think>).)*</think>", text, re.DOTALL)) for text in texts
        ]
        return outputs.loss + self.beta * (1 - sum(fits) / len(fits))


def train(arm: Arm, family: str, seed: int, base: str, folder: Path):
    """Fine-tunes; returns model and tokenizer."""
    model, tokenizer = bt.load_model(base, qlora=True, seed=seed)
    examples = bt.prepare(
        FAMILIES[family].rows(arm.data, ROWS, seed), tokenizer, weights=arm.weights
    )
    dials = {"threshold": 0.0, "anchor": 0.0, "beta": 0.0} | arm.dials
    if arm.trainer == "reference":
        settings = TrainingArguments(
            str(folder), seed=seed, report_to="none", neftune_noise_alpha=0.1, **TRAINING
        )
        data = as_published(examples, tokenizer, dials.pop("threshold"), seed)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        options = {"processing_class": tokenizer, "beta": dials["beta"]}
        Reference(model, settings, collator, data, **options).train()
    else:
        kind = Expectation if arm.trainer == "expectation" else bt.BTSFTTrainer
        config = bt.BTSFTConfig(str(folder), seed=seed, **(TRAINING | dials))
        kind(model, config, examples, processing_class=tokenizer).train()
    return model, tokenizer


def as_published(examples: Dataset, tokenizer, threshold: float, seed: int) -> Dataset:
    """Ids, padded to one length, and labels with blurred tokens left out, the first five of a thought kept."""
    longest = max(map(len, examples["input_ids"]))
    rows = []
    for example in examples:
        ids = np.array(example["input_ids"])
        key = bt.example_key(example["id"])
        is_blurred = bt.draws(example["kinds"], key, seed, 0, keep_first=5) < threshold
        labels = np.where(is_blurred, -100, ids)
        padding = (0, longest - len(ids))
        ids = np.pad(ids, padding, constant_values=tokenizer.pad_token_id)
        labels = np.pad(labels, padding, constant_values=-100)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return Dataset.from_list(rows)


def make_base(family: str, folder: Path) -> str:
    """What the arms of a family start from: "tiny", or for two steps that model after a training on all four ways."""
    if family == "one step":
        return "tiny"
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        model, tokenizer = bt.load_model("tiny")
        settings = {
            "max_steps": 500,
            "per_device_train_batch_size": 32,
            "learning_rate": 1e-3,
            "warmup_steps": 20,
            "lr_scheduler_type": "cosine",
            "save_strategy": "no",
            "logging_steps": 50,
            "disable_tqdm": True,
        }
        config = bt.BTSFTConfig(str(part), threshold=0, beta=0, anchor=0, **settings)
        examples = bt.prepare(two_steps.rows("pretrain", 16_000), tokenizer)
        bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()
        part.rename(folder)
    return str(folder)


def settings_of(name: str) -> dict:
    """All that decides what a run of an arm comes to, but for family, seed and machine."""
    arm = asdict(ARMS[name]) if name in ARMS else {}
    arm.pop("families", None)
    versions = {
        package: installed(package)
        for package in ("torch", "transformers", "peft", "bitsandbytes", "btsft_nb")
    }
    return {
        "arm": arm,
        "training": TRAINING,
        "rows": ROWS,
        "problems": PROMPTS,
        "samples": SAMPLES,
        "versions": versions,
    }


def run(family: str, name: str, seed: int, root: Path) -> None:
    """Trains and samples one arm with one seed, unless that is done; its file is there whole or not at all."""
    path = root / family / name / f"{seed}.json"
    settings = settings_of(name)
    if path.is_file() and json.loads(path.read_text())["settings"] == settings:
        return
    base = make_base(family, root / "base")
    start = time.monotonic()
    if name == "before":
        model, tokenizer = bt.load_model(base, qlora=True)
    else:
        scratch = root / "scratch" / f"{family} {name} {seed}"
        model, tokenizer = train(ARMS[name], family, seed, base, scratch)
    problems = FAMILIES[family].rows("test", PROMPTS)
    limit = FAMILIES[family].max_new_tokens
    samples = bt.sample(
        model, tokenizer, problems, n=SAMPLES, max_new_tokens=limit, batch_size=400, seed=seed
    )
    record = {
        "settings": settings,
        "date": str(date.today()),
        "seconds": round(time.monotonic() - start, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record | {"samples": samples}) + "\n")
    part.rename(path)
    print(f"{family}, {name}, seed {seed}: {record['seconds']:.1f} s", flush=True)


ARMS = _arms()


def read_runs(family: str, name: str, root: Path, seeds: int) -> list[dict]:
    """What `run` wrote of an arm. Raises ValueError for a run that today's settings would not make."""
    runs = []
    for seed in range(seeds):
        record = json.loads((root / family / name / f"{seed}.json").read_text())
        if record["settings"] != settings_of(name):
            raise ValueError(
                f"{family}, {name}, seed {seed} was made with other settings: run evidence.py first"
            )
        runs.append(record)
    return runs


def by_seed(family: str, runs: list[dict]) -> dict[str, np.ndarray]:
    """(seeds, problems) of each metric."""
    answers = [row["answer"] for row in FAMILIES[family].rows("test", PROMPTS)]
    values = [bt.evaluate(run["samples"], answers, bt.tiny.way_of)["values"] for run in runs]
    return {name: np.array([of_seed[name] for of_seed in values], float) for name in METRICS}


def interval(values: np.ndarray, draws: int = 2000) -> dict[str, float]:
    """The mean of (seeds, problems), its 95 % interval over resampled seeds and problems, and n, the problems."""
    rng = np.random.default_rng(0)
    seeds = rng.integers(values.shape[0], size=(draws, values.shape[0]))
    problems = rng.integers(values.shape[1], size=(draws, values.shape[1]))
    means = [values[s][:, p].mean() for s, p in zip(seeds, problems, strict=True)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "value": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "n": values.shape[1],
    }


def summarise(root: Path, seeds: int) -> dict:
    """All that OUT holds: how it was made, and for each family and arm its metrics and differences from its control."""
    families = {}
    records = []
    for family in FAMILIES:
        names = ["before", *(name for name, arm in ARMS.items() if family in arm.families)]
        runs = {name: read_runs(family, name, root, seeds) for name in names}
        values = {name: by_seed(family, found) for name, found in runs.items()}
        families[family] = {name: summary(name, values) for name in names}
        records += [record for found in runs.values() for record in found]
    made = {
        "command": "make evidence",
        "dates": sorted({record["date"] for record in records}),
        "machine": processor(),
        "python": platform.python_version(),
        **records[0]["settings"]["versions"],
        "runs": len(records),
        "hours on one core": sum(record["seconds"] for record in records) / 3600,
    }
    budget = TRAINING | {"rows": ROWS, "problems": PROMPTS, "samples": SAMPLES, "seeds": seeds}
    return {"made": made, "budget": budget, "families": families}


def summary(name: str, values: dict[str, dict[str, np.ndarray]]) -> dict:
    """Of one arm: `metrics`, the mean of each seed, and the paired difference from its control."""
    own = values[name]
    parts = {"metrics": {metric: interval(array) for metric, array in own.items()}}
    parts["seeds"] = {metric: array.mean(axis=1).tolist() for metric, array in own.items()}
    if name in ARMS:
        parts["control"] = "plain SFT" if ARMS[name].data == "teacher" else "beta 0"
        control = values[parts["control"]]
        parts["difference"] = {m: interval(array - control[m]) for m, array in own.items()}
    return parts


def rounded(value: object) -> object:
    """Numbers to four digits, wherever they stand."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def to_json(evidence: dict) -> str:
    """JSON with each arm on a line of its own, so that a new arm is one line of a diff."""
    families = []
    for family, arms in evidence["families"].items():
        lines = [f"   {json.dumps(name)}: {json.dumps(arm)}" for name, arm in arms.items()]
        families.append(f"  {json.dumps(family)}: {{\n" + ",\n".join(lines) + "\n  }")
    head = [f' "{part}": {json.dumps(evidence[part])}' for part in ("made", "budget")]
    return "{\n" + ",\n".join([*head, ' "families": {\n' + ",\n".join(families) + "\n }"]) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share the runs, one thread each"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # which of them this is
    options = parser.parse_args()
    logging.disable_progress_bar()
    for family in FAMILIES:
        make_base(family, options.folder / "base")
    if options.workers > 1 and options.worker is None:
        share_out(options.workers)
    else:
        jobs = [(family, "before", seed) for seed in range(options.seeds) for family in FAMILIES]
        jobs += [
            (f, name, seed)
            for seed in range(options.seeds)
            for name, arm in ARMS.items()
            for f in arm.families
        ]
        for job in jobs[options.worker or 0 :: options.workers]:
            run(*job, options.folder)
    if options.worker is None:
        options.out.write_text(to_json(rounded(summarise(options.folder, options.seeds))))


def share_out(workers: int) -> None:
    """This command in several processes; when one fails, the others end too."""
    command = [sys.executable, *sys.argv, "--worker"]
    processes = [
        subprocess.Popen([*command, str(i)], env=os.environ | {"OMP_NUM_THREADS": "1"})
        for i in range(workers)
    ]
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                sys.exit("a worker failed, see above")
            time.sleep(1)
    finally:
        for process in processes:
            process.terminate()


if __name__ == "__main__":
    main()
