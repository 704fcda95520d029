"""The estimate of memory and time against runs that are measured, and the table of docs/scale.md.

    python benchmarks/memory.py [--quick] [--table]

Each case is a process of its own that loads a model with random weights and trains two steps; its peak is what the
resident set (on a GPU the allocator) grew by since before the model was loaded, and after a run of the embedded model
had loaded whatever libraries load when they are first used. malloc is told to give back what is freed: as it comes,
glibc keeps gaps between tensors, which took up to 60 % more than the tensors did. `--table` measures nothing: it writes
what the estimator says of models from 0.5 B to 72 B between the markers of docs/scale.md.
"""

import argparse
import ctypes
import gc
import multiprocessing
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from common import _status, environment
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)

from btsft_nb import BTSFTConfig, BTSFTTrainer, Kind, load_model, load_tokenizer, tag_ids
from btsft_nb.models.config import ModelConfig
from btsft_nb.objective import head_matrix

sys.path.append(str(Path(__file__).parents[1] / "tools"))
from estimate import estimate, measured_speed

PAGE, MARKERS = (
    Path(__file__).parents[1] / "docs" / "scale.md",
    ("<!-- table -->\n", "<!-- end -->\n"),
)
QWEN = dict(
    hidden_size=896,
    intermediate_size=4864,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151_936,
)
SMOL = dict(
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49_152,
)
SHAPES = {
    "Qwen2.5-0.5B": (Qwen2Config, Qwen2ForCausalLM, QWEN),
    "SmolLM-135M": (LlamaConfig, LlamaForCausalLM, SMOL),
}
M_MMAP_THRESHOLD = -3  # of glibc's mallopt
SIZES = {  # width, feed-forward, layers, heads, key-value heads, vocabulary, tied
    "Qwen2.5 0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "Qwen2.5 1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "Qwen2.5 7B": (3584, 18_944, 28, 28, 4, 152_064, False),
    "Llama 3.1 8B": (4096, 14_336, 32, 32, 8, 128_256, False),
    "Qwen2.5 14B": (5120, 13_824, 48, 40, 8, 152_064, False),
    "Qwen2.5 32B": (5120, 27_648, 64, 40, 8, 152_064, False),
    "Llama 3.1 70B": (8192, 28_672, 80, 64, 8, 128_256, False),
    "Qwen2.5 72B": (8192, 29_568, 80, 64, 8, 152_064, False),
}


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    shape: str = "SmolLM-135M"
    layers: int = 4
    method: str = "lora"
    length: int = 512
    batch: int = 1
    checkpointing: bool = False

    def __str__(self) -> str:
        note = ", checkpointing" * self.checkpointing
        return (
            f"{self.shape}, {self.layers} layers, {self.method}, {self.batch} x {self.length}{note}"
        )


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.times = []

    def on_step_end(self, *_, **__):
        self.times.append(time.perf_counter())


def training(case: Case, folder: str, **more) -> BTSFTConfig:
    anchor = 0.0 if case.method == "full" else 1.0
    settings = dict(
        per_device_train_batch_size=case.batch, anchor=anchor, use_cpu=not torch.cuda.is_available()
    )
    settings |= dict(
        max_steps=2,
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=case.checkpointing,
    )
    return BTSFTConfig(folder, **settings, **more)


def examples(case: Case, tags: tuple[int, int]) -> Dataset:
    """Random tokens; all but the first supervised, all thought but the tags and an answer of eight tokens."""
    rng, n, rows = np.random.default_rng(0), case.length, []
    kinds = np.full(n, Kind.THINK)
    kinds[0], kinds[[1, n - 9]], kinds[-8:] = Kind.PROMPT, Kind.TAG, Kind.ANSWER
    for i in range(2 * case.batch):
        ids = rng.integers(max(tags) + 1, SHAPES[case.shape][2]["vocab_size"], n)
        ids[[1, n - 9]] = tags
        rows.append(
            {
                "id": str(i),
                "input_ids": ids,
                "weights": (kinds != Kind.PROMPT).astype(float),
                "kinds": kinds,
            }
        )
    return Dataset.from_list(rows)


def measure(case: Case, folder: str) -> tuple[int, float]:
    """Bytes at the peak of training, model and all, and seconds of the second step."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer, clock = load_tokenizer("tiny"), Clock()
    data, config = examples(case, tag_ids(tokenizer)), training(case, folder)
    small, _ = load_model("tiny", qlora=case.method == "qlora", lora=lora)
    BTSFTTrainer(
        small, training(case, folder + "/small"), data.map(_small), processing_class=tokenizer
    ).train()
    del small
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    options = {"qlora": case.method == "qlora", "lora": None if case.method == "full" else lora}
    model, _ = load_model(folder, **options)
    trainer = BTSFTTrainer(model, config, data, processing_class=tokenizer, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    trainer.save_model = lambda *_, **__: None  # the files are no part of training
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    trainer.train()
    peak = (
        torch.cuda.max_memory_allocated()
        if torch.cuda.is_available()
        else _status("VmHWM") - before
    )
    return peak, clock.times[1] - clock.times[0]


def _small(row: dict) -> dict:
    """The example with ids that the embedded model has."""
    return {
        "input_ids": [i if i in (449, 450) else i % 400 for i in row["input_ids"]]
    }  # its tags, and others


def write_model(case: Case, folder: str) -> None:
    """Random weights and the embedded tokenizer, of which only the think tags are used."""
    config, model, shape = SHAPES[case.shape]
    model(config(num_hidden_layers=case.layers, tie_word_embeddings=True, **shape)).save_pretrained(
        folder
    )
    load_tokenizer("tiny").save_pretrained(folder)


def compare(case: Case, speed: float) -> tuple[float, float]:
    """Prints a row; the estimate's bytes over those measured, and the share of `speed` that training reached."""
    with tempfile.TemporaryDirectory() as folder:
        for work in write_model, measure:  # each in a process of its own
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(work, [case, folder])
        wanted = estimate(
            ModelConfig(folder, method=case.method), training(case, folder), case.length
        )
    peak, seconds = found
    ratio, share = wanted.total / peak, wanted.seconds(case.batch * case.length, speed) / seconds
    sizes = f"{peak / 2**20:>9,.0f}{wanted.total / 2**20:>11,.0f}{ratio:>8.2f}"
    print(f"| {case!s:<62} |{sizes} |{seconds:>8.2f}{share:>8.2f} |", flush=True)
    return ratio, share


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case(layers=2)]
    smol = [
        Case(method=m, checkpointing=c) for m in ("lora", "qlora", "full") for c in (False, True)
    ]
    qwen = [Case("Qwen2.5-0.5B", 2, m, 512, 2) for m in ("lora", "qlora", "full")]
    return [*smol, Case(length=2048), Case(length=2048, checkpointing=True), *qwen]


def table(names=tuple(SIZES)) -> str:
    """GiB a GPU, by size and method: 1 x 4,096 tokens, checkpointing, bfloat16; one GPU, and eight with FSDP2."""
    head_matrix.CHUNK["cpu"] = (
        2**24
    )  # the estimate's tensors are the CPU's; the blocks shall be a GPU's
    lines = [
        "| model | parameters | QLoRA | LoRA | LoRA, 8 GPUs | full, 8 GPUs | TFLOP per 1,000 tokens (QLoRA) |"
    ]
    lines.append("|---" * 7 + "|")
    for name in names:
        width, inner, layers, heads, kv_heads, vocabulary, tied = SIZES[name]
        shape = dict(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            vocab_size=vocabulary,
        )
        shape |= dict(
            num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied
        )
        with tempfile.TemporaryDirectory() as folder:
            (Qwen2Config if "Qwen" in name else LlamaConfig)(**shape).save_pretrained(folder)
            found = [
                _size(folder, method, n)
                for method, n in (("qlora", 1), ("lora", 1), ("lora", 8), ("full", 8))
            ]
        cells = [f"{e.total / 2**30:.0f}" for e in found]
        work = f"{found[0].flops_per_token / 1e9:,.0f}"
        lines.append(
            f"| {name} | {found[3].parameters / 1e9:.1f} B | {' | '.join(cells)} | {work} |"
        )
    return "\n".join(lines) + "\n"


def _size(folder: str, method: str, processes: int):
    case = Case(method=method, length=4096, checkpointing=True)
    dtype = "float32" if method == "full" else "bfloat16"
    config, model = (
        training(case, folder, bf16=True),
        ModelConfig(folder, method=method, dtype=dtype),
    )
    return estimate(
        model,
        config,
        case.length,
        processes=processes,
        sharding="fsdp" if processes > 1 else "none",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case")
    parser.add_argument("--table", action="store_true", help="write the table into docs/scale.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.table:
        before, rest = PAGE.read_text().split(MARKERS[0])
        PAGE.write_text(before + MARKERS[0] + table() + MARKERS[1] + rest.split(MARKERS[1])[1])
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(environment(torch.float32, ("torch", "transformers", "peft", "bitsandbytes")))
    print(f"| {'':<62} |  MiB measured, estimated, ratio | seconds a step, share |")
    found = [
        compare(case, measured_speed(device, torch.float32)) for case in cases(arguments.quick)
    ]
    worst, share = (
        max(abs(ratio - 1) for ratio, _ in found),
        np.median([share for _, share in found]),
    )
    print(f"worst_error={worst:.2f} share={share:.2f}")


if __name__ == "__main__":
    main()
