"""A whole optimiser step of BTSFTTrainer against TRL's SFTTrainer: the same model, adapters, batches and optimiser.

    python benchmarks/step.py [--quick]

Each measurement is a process of its own that calls `trainer.train()`. TRL gets data that are tokenized already
(`skip_prepare_dataset`) and is otherwise as it comes, but for float32 without gradient checkpointing, as ours has it;
one row has what TRL sets by default, bfloat16 and gradient checkpointing, for both. The model has the widths and the
vocabulary of Qwen3-0.6B with random weights, and fewer layers, so that it fits a CPU; one row has all 28. On a GPU it
has 1.5 B parameters in 4 bits and computes in bfloat16. The sequences of a batch are of one length, without padding; a
quarter of each is a prompt, which is not supervised. Nothing is compared before losses and gradients agree.

TRL's large blocks cost it much of its time on a CPU where glibc gives each back to Linux, which zeroes it anew. So the
first case also runs with malloc told to keep what was freed, as do all that follow, where TRL is faster and memory
varies less from run to run. The last line has the worse figure of the two.
"""

import argparse
import ctypes
import gc
import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
import transformers
from common import environment, peak_bytes, synchronise
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from btsft_nb import BTSFTConfig, BTSFTTrainer, Kind
from btsft_nb.data.tokens import tag_ids
from btsft_nb.models.load import load_model, load_tokenizer

GPU = torch.cuda.is_available()
VOCABULARY, SMALL_VOCABULARY = 151_936, 32_000
SHAPE = dict(
    hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8
)  # Qwen3-0.6B
if GPU:
    SHAPE = dict(
        hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2
    )
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    trainer: str = "ours"  # or trl
    batch: int = 8 if GPU else 2
    length: int = 1024 if GPU else 512
    layers: int = 28 if GPU else 4
    vocabulary: int = VOCABULARY
    warm_up: int = 1  # steps that are not timed
    steps: int = 10 if GPU else 2  # steps that are
    blurred: bool = False  # ours: threshold .5, anchor 1, beta .5 in place of plain SFT
    trl_defaults: bool = False  # bfloat16 and gradient checkpointing
    pooled: bool = False  # malloc keeps what was freed

    def __str__(self) -> str:
        notes = (", threshold .5 anchor 1 beta .5" * self.blurred) + (
            ", bf16 checkpointing" * self.trl_defaults
        )
        notes += ", malloc pooled" * self.pooled
        return (
            f"{self.batch} x {self.length}, {self.layers} layers, {self.vocabulary:,} tokens{notes}"
        )


class Watch(TrainerCallback):
    """When each step ended, and the gradients of the first."""

    def __init__(self):
        self.times, self.gradients = [], None

    def on_train_begin(self, *_, **__):
        synchronise()
        self.times.append(time.perf_counter())

    def on_pre_optimizer_step(self, *_, model, **__):
        if self.gradients is None:
            gradients = [p.grad.float().flatten() for p in model.parameters() if p.requires_grad]
            self.gradients = torch.cat(gradients).cpu().numpy()

    def on_step_end(self, *_, **__):
        synchronise()
        self.times.append(time.perf_counter())


def load(case: Case, folder: Path):
    """Model and tokenizer, of which only the think tags are used. Neither LoRA factor is 0: all gradients count."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer("tiny")
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    config = Qwen3Config(
        vocab_size=case.vocabulary, num_hidden_layers=case.layers, tie_word_embeddings=True, **SHAPE
    )
    model = Qwen3ForCausalLM(config)
    if not GPU:
        return get_peft_model(model, lora), tokenizer
    for part in model.to(torch.bfloat16), tokenizer:
        part.save_pretrained(folder / "base")
    return load_model(folder / "base", qlora=True, lora=lora)


def examples(case: Case, tags: tuple[int, int]) -> Dataset:
    """Prompt, open tag, thought, close tag and answer of random tokens, with the columns of both trainers."""
    rng, n = np.random.default_rng(0), case.length
    prompt, close = n // 4, n - n // 8
    kinds = np.full(n, Kind.THINK)
    kinds[:prompt], kinds[close:], kinds[[prompt, close]] = Kind.PROMPT, Kind.ANSWER, Kind.TAG
    weights, rows = (kinds != Kind.PROMPT).astype(float), []
    for i in range(case.batch * (case.warm_up + case.steps)):
        ids = rng.integers(max(tags) + 1, case.vocabulary, n)
        ids[[prompt, close]] = tags
        labels = np.where(weights, ids, -100)
        rows.append(
            {"id": str(i), "input_ids": ids, "weights": weights, "kinds": kinds, "labels": labels}
        )
    return Dataset.from_list(rows)


def make_trainer(case: Case, folder: Path, watch: Watch):
    model, tokenizer = load(case, folder)
    data = examples(case, tag_ids(tokenizer))
    shared = dict(
        output_dir=str(folder),
        max_steps=case.warm_up + case.steps,
        per_device_train_batch_size=case.batch,
        learning_rate=1e-4,
        use_cpu=not GPU,
        bf16=GPU or case.trl_defaults,
        gradient_checkpointing=case.trl_defaults,
        dataloader_pin_memory=GPU,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if case.trainer == "trl":
        config = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **shared)
        data = data.select_columns(["input_ids", "labels"])
        return SFTTrainer(
            model, config, train_dataset=data, processing_class=tokenizer, callbacks=[watch]
        )
    dials = (
        dict(threshold=0.5, anchor=1.0, beta=0.5)
        if case.blurred
        else dict(threshold=0.0, anchor=0.0, beta=0.0)
    )
    config, data = BTSFTConfig(**dials, **shared), data.remove_columns("labels")
    return BTSFTTrainer(model, config, data, processing_class=tokenizer, callbacks=[watch])


def measure(case: Case) -> dict:
    """Trains in this process: seconds of the steps, the most memory over what the model takes, and what was learnt."""
    transformers.logging.set_verbosity_error()
    if case.pooled:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
            ctypes.CDLL(None).mallopt(option, value)
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch()
        trainer = make_trainer(case, Path(folder), watch)
        trainer.remove_callback(PrinterCallback)
        gc.collect()
        if not GPU:
            ctypes.CDLL(None).malloc_trim(0)  # what building the model freed
        peak = peak_bytes(trainer.train)
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "seconds": np.diff(watch.times).tolist()[case.warm_up :],
        "mib": peak / 2**20,
        "losses": [entry["loss"] for entry in steps],
        "gradients": watch.gradients * max(steps[0]["grad_norm"], 1),  # they were clipped to norm 1
    }


def run(case: Case) -> dict:
    """`measure` in a process of its own; a fork has imported everything already, but could not use CUDA."""
    with multiprocessing.get_context("spawn" if GPU else "fork").Pool(1) as pool:
        return pool.apply(measure, [case])


def run_pair(case: Case, repetitions: int = 1) -> dict[str, dict]:
    """Ours and TRL's in turn. Exits where they did not train the same."""
    runs = {"ours": [], "trl": []}
    for _ in range(repetitions):
        for name, results in runs.items():
            results.append(run(replace(case, trainer=name)))
    check_same(runs["ours"][0], runs["trl"][0], 0.05 if GPU or case.trl_defaults else 1e-4)
    return {name: summary(case, results) for name, results in runs.items()}


def check_same(ours: dict, theirs: dict, tolerance: float) -> None:
    a, b = ours["gradients"], theirs["gradients"]
    gradients = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    losses = float(np.max(np.abs(np.array(ours["losses"]) / theirs["losses"] - 1)))
    print(
        f"  same training: losses differ by {losses:.0e}, gradients by {gradients:.0e} (relative)",
        flush=True,
    )
    if not max(gradients, losses) < tolerance:
        sys.exit(f"not the same training (tolerance {tolerance}): nothing to compare")


def summary(case: Case, results: list[dict]) -> dict[str, float]:
    seconds = median(s for result in results for s in result["seconds"])
    mib = median(result["mib"] for result in results)
    return {"seconds": seconds, "rate": case.batch * case.length / seconds, "mib": mib}


def show(case: Case, pair: dict[str, dict]) -> None:
    ours, theirs = pair["ours"], pair["trl"]
    cells = [f"{case!s:<82}"]
    for key, form in (("seconds", "9.2f"), ("rate", "9,.0f"), ("mib", "9,.0f")):
        cells += [f"{ours[key]:{form}}", f"{theirs[key]:{form}}"]
    cells += [f"{ours['rate'] / theirs['rate']:9.2f}", f"{ours['mib'] / theirs['mib']:9.2f}"]
    print(" ".join(cells), flush=True)


def cases(quick: bool) -> tuple[list[Case], list[Case]]:
    """Those of the last line, and those that follow them in the table."""
    case = replace(Case(), batch=1, length=256, steps=1) if quick else Case()
    first = [case] if GPU else [case, replace(case, pooled=True)]
    case = first[-1]
    if quick:
        return first, [replace(case, vocabulary=SMALL_VOCABULARY)]
    rows = [replace(case, trl_defaults=True)]
    if not GPU:
        rows.append(replace(case, batch=1, layers=28))
    for vocabulary in (VOCABULARY, SMALL_VOCABULARY):
        for length in (128, 512, 2048, 8192):
            once = (
                dict(warm_up=0, steps=1) if length > 512 and not GPU else {}
            )  # steps so long need no warm-up
            rows.append(replace(case, batch=1, length=length, vocabulary=vocabulary, **once))
    return first, rows


def print_head() -> None:
    names = f"{'batch x length, layers, vocabulary':<82}"
    groups = (
        f"{title:>19}" for title in ("seconds a step", "tokens a second", "MiB over the model")
    )
    print(f"{'':<82} {' '.join(groups)}      ours over TRL")
    print(names + f"{'ours':>10}{'TRL':>10}" * 3 + f"{'tokens/s':>10}{'memory':>10}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small cases, under a minute")
    quick = parser.parse_args().quick
    print(
        environment(
            torch.bfloat16 if GPU else torch.float32, ("torch", "transformers", "peft", "trl")
        )
    )
    first, rows = cases(quick)
    print_head()
    pairs = []
    for case in first:
        pairs.append(run_pair(case, 1 if quick else 3))
        show(case, pairs[-1])
    if not quick:
        blurred = replace(first[-1], blurred=True)
        show(blurred, pairs[-1] | {"ours": summary(blurred, [run(blurred)])})
    for row in rows:
        show(row, run_pair(row))
    rate = min(pair["ours"]["rate"] / pair["trl"]["rate"] for pair in pairs)
    memory = max(pair["ours"]["mib"] / pair["trl"]["mib"] for pair in pairs)
    print(f"tokens_per_s_vs_trl={rate:.2f} peak_memory_vs_trl={memory:.2f}")


if __name__ == "__main__":
    main()
