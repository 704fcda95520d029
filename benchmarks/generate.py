"""Throughput of `btsft_nb.sample` against one prompt at a time, on the embedded reasoner.

    python benchmarks/generate.py [--quick]

Both draw the same completions of the same prompts; that they are equal is checked. They take turns, 16 prompts with 8
samples each time, so that a slow minute of the machine meets both. The last line is
`speed_vs_single= speed_vs_generate=`: completions a second against `sample` with batch_size=1, and against
transformers' own `generate` called for one completion after the other.
"""

import statistics
import sys
import time

import torch
from common import environment
from transformers import GenerationConfig
from transformers.utils import logging

import btsft_nb as bt

LIMIT = 96


def by_transformers(model, renderer, prompts: list[dict], n: int) -> int:
    """Completions of `generate`, one at a time, at random."""
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=LIMIT,
        eos_token_id=renderer.stop_ids(),
        pad_token_id=renderer.stop_ids()[0],
    )
    for prompt in prompts:
        ids = torch.tensor([renderer.prompt_ids(bt.to_prompt(prompt))])
        for _ in range(n):
            model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return n * len(prompts)


def main(quick: bool) -> None:
    logging.disable_progress_bar()
    model, tokenizer = bt.load_model("tiny")
    renderer, rounds, n = bt.Renderer(tokenizer), 1 if quick else 5, 8
    problems = bt.load_rows("tiny/test")[: 16 * rounds]
    drawn: dict[str, list] = {"batches of 64": [], "one at a time": []}
    rates = {name: [] for name in (*drawn, "transformers' generate")}
    for i in range(rounds):
        part = problems[i::rounds]
        for name, batch_size in (("batches of 64", 64), ("one at a time", 1)):
            start = time.perf_counter()
            drawn[name] += bt.sample(
                model, tokenizer, part, n, max_new_tokens=LIMIT, batch_size=batch_size
            )
            rates[name].append(n * len(part) / (time.perf_counter() - start))
        start = time.perf_counter()
        rates["transformers' generate"].append(
            by_transformers(model, renderer, part, n) / (time.perf_counter() - start)
        )
    equal = sum(a == b for a, b in zip(*drawn.values(), strict=True))
    print(environment(torch.float32, ("torch", "transformers")))
    print(f"{equal} of {n * len(problems)} completions are equal in both")
    if equal < 0.99 * n * len(problems):
        sys.exit("more than rounding tells the two apart")
    median = {name: statistics.median(rate) for name, rate in rates.items()}
    for name, rate in median.items():
        print(f"{name:>24}: {rate:7.1f} completions a second")
    fast, single, other = median.values()
    print(f"speed_vs_single={fast / single:.3g} speed_vs_generate={fast / other:.3g}")


if __name__ == "__main__":
    main("--quick" in sys.argv)
