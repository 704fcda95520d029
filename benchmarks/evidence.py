"""What the dials do, and what a sceptic would hold against it: every arm with five seeds and the same budget.

    python benchmarks/evidence.py [--worker 0/2]   trains and samples what is lacking, in runs/evidence
    python benchmarks/evidence.py --summarise      samples -> btsft_nb/tiny/evidence.json, which notebook 06 reads

Two families of problems: the embedded reasoner's own, and those of two_steps.py, on which a base model is trained
first. Each arm fine-tunes 4-bit LoRA layers for 48 steps of 16 rows (4 epochs of 192), and is sampled 8 times on each
of 100 problems that no training set holds. A seed changes the rows, the adapters, their order, the blur and the
samples. A run that is there is not run again, so an interrupted call goes on where it was; workers share the runs.

Intervals are 95 % percentiles over resampled seeds and problems, both at once; differences are paired by seed and
problem. With five seeds they are somewhat too narrow, so each seed's own mean stands beside them.
"""

import argparse
import json
import platform
import re
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

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
FAMILIES = {"one step": (bt.tiny.rows, 96), "two steps": (two_steps.rows, 160)}  # rows, and max_new_tokens


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
    one = ("one step",)
    arms = {"plain SFT": Arm("teacher"), "reference": Arm("teacher", {"threshold": 0.5, "beta": 0.05}, "reference")}
    for t in (0.2, 0.5, 0.8):
        both = tuple(FAMILIES) if t == 0.5 else one
        arms[f"blur {t}"] = Arm("teacher", {"threshold": t}, families=both)
        arms[f"down-weighted {t}"] = Arm("teacher", weights={"think": 1 - t}, families=both)
        arms[f"anchored {t}"] = Arm("teacher", {"threshold": t, "anchor": 1.0})
    arms["anchored 1.0"] = Arm("teacher", {"threshold": 1.0, "anchor": 1.0}, families=one)
    half, held = {"threshold": 0.5}, {"threshold": 0.5, "anchor": 1.0}
    for name, dials in {"blur 0.5": half, "anchored 0.5": held}.items():
        arms[f"{name}, drawn once"] = Arm("teacher", dials | {"resample": "never"}, families=one)
        arms[f"{name}, keep 5"] = Arm("teacher", dials | {"keep_first": 5}, families=one)
        for unit in ("word", "sentence", "thought"):
            arms[f"{name}, by {unit}"] = Arm("teacher", dials | {"unit": unit}, families=one)
    arms["anchor 0.3, 0.5"] = Arm("teacher", half | {"anchor": 0.3}, families=one)
    arms["anchor 3, 0.5"] = Arm("teacher", half | {"anchor": 3.0}, families=one)
    arms["anchored 0.5, in expectation"] = Arm("teacher", held, "expectation")
    arms["anchored 0.5, beta 0.5"] = Arm("teacher", held | {"beta": 0.5}, families=one)
    arms["NEFTune 5"] = Arm("teacher", {"neftune_noise_alpha": 5.0})
    arms["12 steps"] = Arm("teacher", {"max_steps": 12})
    arms["24 steps"] = Arm("teacher", {"max_steps": 24})
    for beta in (0.0, 0.05, 0.2, 0.5, 1.0, 2.0):
        arms[f"beta {beta:g}"] = Arm("messy", {"beta": beta}, families=one if beta in (0.05, 0.2, 1) else tuple(FAMILIES))
    arms["reference, beta 2"] = Arm("messy", {"threshold": 0.5, "beta": 2.0}, "reference")
    arms["messy, anchored 0.5"] = Arm("messy", held, families=one)
    arms["messy, anchored 0.5, beta 0.5"] = Arm("messy", held | {"beta": 0.5}, families=one)
    return arms


class Expectation(bt.BTSFTTrainer):
    """The anchored blur without chance: each thought token (1 - threshold) of its loss and threshold of its KL.

    The objective is linear in which tokens are blurred, so this is its expectation over the draws.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        thoughts = (inputs["kinds"] == bt.Kind.THINK) & (inputs["weights"] != 0)
        share = self.args.threshold
        none, whole = (
            super(Expectation, self).compute_loss(model, inputs | {"blurred": thoughts & on}, False, num_items_in_batch)
            for on in (torch.tensor(False), torch.tensor(True))
        )
        return (1 - share) * none + share * whole


class Reference(Trainer):
    """The reference implementation as published (mkurman/blurred-thoughts-SFT, btsft/func/training.py), written anew.

    Its collator makes the labels again from the ids, so that its blur is lost and the prompt is trained as well; its
    reward, of a regular expression on the argmax of the teacher-forced logits, is a number without a gradient.
    """

    def __init__(self, *args, beta: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.beta = beta

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["input_ids"], labels=inputs["labels"], num_items_in_batch=num_items_in_batch)
        texts = self.processing_class.batch_decode(outputs.logits.argmax(-1))
        fits = [bool(re.search(r"<think>((?!</?think>).)*</think>", text, re.DOTALL)) for text in texts]
        return outputs.loss + self.beta * (1 - sum(fits) / len(fits))


def train(arm: Arm, family: str, seed: int, base: str, folder: Path):
    """Fine-tunes; returns model and tokenizer."""
    model, tokenizer = bt.load_model(base, qlora=True, seed=seed)
    examples = bt.prepare(FAMILIES[family][0](arm.data, ROWS, seed), tokenizer, weights=arm.weights)
    dials = {"threshold": 0.0, "anchor": 0.0, "beta": 0.0} | arm.dials
    if arm.trainer == "reference":
        settings = TrainingArguments(str(folder), seed=seed, report_to="none", neftune_noise_alpha=0.1, **TRAINING)
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
        ids, more = np.array(example["input_ids"]), longest - len(example["input_ids"])
        blurred = bt.draws(example["kinds"], bt.example_key(example["id"]), seed, 0, keep_first=5) < threshold
        labels = np.where(blurred, -100, ids)
        padded = [
            np.pad(v, (0, more), constant_values=pad) for v, pad in ((ids, tokenizer.pad_token_id), (labels, -100))
        ]
        rows.append({"input_ids": padded[0].tolist(), "labels": padded[1].tolist()})
    return Dataset.from_list(rows)


def make_base(family: str, folder: Path) -> str:
    """What the arms of a family start from: "tiny", or for two steps that model after a training on all four ways."""
    if family == "one step":
        return "tiny"
    if not (folder / "model.safetensors").is_file():
        model, tokenizer = bt.load_model("tiny")
        settings = {"max_steps": 500, "per_device_train_batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 20}
        settings |= {"lr_scheduler_type": "cosine", "save_strategy": "no", "logging_steps": 50, "disable_tqdm": True}
        config = bt.BTSFTConfig(str(folder), threshold=0, beta=0, anchor=0, **settings)
        examples = bt.prepare(two_steps.rows("pretrain", 16_000), tokenizer)
        bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()
    return str(folder)


def run(family: str, name: str, seed: int, root: Path) -> None:
    """Trains and samples one arm with one seed; the samples stand whole or not at all in their file."""
    path = root / family / name / f"{seed}.jsonl"
    if path.is_file():
        return
    base, start = make_base(family, root / "base"), time.monotonic()
    rows, limit = FAMILIES[family]
    if name == "before":
        model, tokenizer = bt.load_model(base, qlora=True)
    else:
        model, tokenizer = train(ARMS[name], family, seed, base, root / "scratch" / f"{family} {name} {seed}")
    trained = time.monotonic()
    options = {"n": SAMPLES, "max_new_tokens": limit, "batch_size": 400, "seed": seed}
    records = bt.sample(model, tokenizer, rows("test", PROMPTS), **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(record) + "\n" for record in records))
    part.rename(path)
    path.with_suffix(".seconds").write_text(f"{trained - start:.1f} {time.monotonic() - trained:.1f}")
    print(f"{family}, {name}, seed {seed}: {trained - start:.1f} s + {time.monotonic() - trained:.1f} s", flush=True)


ARMS = _arms()


def by_seed(family: str, name: str, root: Path, seeds: int) -> dict[str, np.ndarray]:
    """(seeds, problems) of each metric; NaN where a problem has no value."""
    answers = [row["answer"] for row in FAMILIES[family][0]("test", PROMPTS)]
    found = []
    for seed in range(seeds):
        lines = (root / family / name / f"{seed}.jsonl").read_text().splitlines()
        found.append(bt.evaluate([json.loads(line) for line in lines], answers, bt.tiny.way_of)["values"])
    return {name: np.array([values[name] for values in found], float) for name in found[0]}


def interval(values: np.ndarray, draws: int = 2000) -> dict[str, float]:
    """The mean of (seeds, problems) and its 95 % interval over resampled seeds and problems."""
    rng = np.random.default_rng(0)
    seeds, problems = (rng.integers(n, size=(draws, n)) for n in values.shape)
    means = np.array([np.nanmean(values[s][:, p]) for s, p in zip(seeds, problems, strict=True)])
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": float(np.nanmean(values)), "low": float(low), "high": float(high)}


def summarise(root: Path, seeds: int) -> dict:
    """All that OUT holds: how it was made, and for each family and arm its metrics and differences from its control."""
    families, seconds = {}, 0.0
    for family in FAMILIES:
        values = {
            n: by_seed(family, n, root, seeds) for n in ("before", *ARMS) if n == "before" or family in ARMS[n].families
        }
        families[family] = {name: summary(name, values) for name in values}
        seconds += sum(sum(map(float, path.read_text().split())) for path in (root / family).rglob("*.seconds"))
    versions = {name: installed(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "btsft_nb")}
    made = {
        "command": "make evidence",
        "date": str(date.today()),
        "machine": processor(),
        "python": platform.python_version(),
    }
    made |= {"versions": versions, "hours on one core": round(seconds / 3600, 2)}
    budget = TRAINING | {"rows": ROWS, "problems": PROMPTS, "samples": SAMPLES, "seeds": seeds}
    return {"made": made, "budget": budget, "families": families}


def summary(name: str, values: dict[str, dict[str, np.ndarray]]) -> dict:
    """Of one arm: settings, `metrics`, the mean of each seed, and the paired difference from its control."""
    found = {"metrics": {metric: interval(array) for metric, array in values[name].items()}}
    found["seeds"] = {metric: np.nanmean(array, 1).tolist() for metric, array in values[name].items()}
    if name in ARMS:
        arm = ARMS[name]
        control = "plain SFT" if arm.data == "teacher" else "beta 0"
        settings = {"data": arm.data, "trainer": arm.trainer, "dials": arm.dials, "weights": arm.weights}
        found = settings | found | {"control": control}
        found["difference"] = {m: interval(array - values[control][m]) for m, array in values[name].items()}
    return found


def rounded(value: object) -> object:
    """Numbers to four digits, wherever they stand."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--worker", default="0/1", help="which worker of how many")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--summarise", action="store_true")
    options = parser.parse_args()
    if options.summarise:
        OUT.write_text(json.dumps(rounded(summarise(options.folder, options.seeds)), indent=1) + "\n")
        return
    worker, workers = map(int, options.worker.split("/"))
    logging.disable_progress_bar()
    jobs = [
        (family, name, seed)
        for seed in range(options.seeds)
        for family in options.families
        for name in ("before", *ARMS)
        if name == "before" or family in ARMS[name].families
    ]
    for job in jobs[worker::workers]:
        run(*job, options.folder)


if __name__ == "__main__":
    main()
