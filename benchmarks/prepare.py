"""`prepare` against TRL's preparation, the way of the reference, and the least that any preparation must do.

    python benchmarks/prepare.py [--quick] [--rows FILE] [--tokenizer NAME]

By default GSM8K's training rows and the tokenizer of Qwen3 from `../shared`; with the network, `--tokenizer
Qwen/Qwen3-0.6B --rows openai/gsm8k` are the same. All run in one process, without any cache, and take turns; a batch of
texts is tokenized by as many threads as there are cores, as tokenizers does by itself, and by one where
TOKENIZERS_PARALLELISM is false. Each method makes a `datasets.Dataset`, but for the limit:

- ours: raw rows to ids, weights, kinds and the report.
- TRL: `SFTTrainer`'s own preparation with `assistant_only_loss`, on rows that are messages already: ids and labels.
- the reference: one row at a time through `Dataset.map`, as its tokenize_function does it
  (github.com/mkurman/blurred-thoughts-SFT, btsft/func/training.py): template; tokenizer, padded to its 512 tokens, to
  tensors; the ids of both tags and of the response template looked up anew; and a loop over the elements of the tensor
  that finds the thought and blurs it.
- the limit: the template, and one batched call of the tokenizer with offsets. What is made of the ids is left out.

Nothing is compared before ours and TRL's supervise the same tokens.
"""

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
from pathlib import Path

import datasets
import torch
import transformers
from common import environment, medians
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

import btsft_nb as bt

SHARED = Path(__file__).parents[2] / "shared" / "data"
MAX_LENGTH = 1024
THRESHOLD, KEPT, PADDED = (
    0.2,
    5,
    512,
)  # the reference's: share blurred, first tokens never blurred, max_length
RESPONSE = "<|im_start|>assistant\n"


class Ours:
    """`prepare`, from raw rows."""

    def __init__(self, rows: bt.Rows, tokenizer: PreTrainedTokenizerBase):
        self.rows, self.tokenizer = rows, tokenizer

    def __call__(self, num_proc: int = 1) -> Dataset:
        with contextlib.redirect_stdout(io.StringIO()):  # the report
            return bt.prepare(self.rows, self.tokenizer, MAX_LENGTH, num_proc=num_proc, cache=False)


class TRL:
    """The preparation of an SFTTrainer, whose model has the vocabulary and next to nothing else."""

    def __init__(self, chats: Dataset, tokenizer: PreTrainedTokenizerBase, folder: str):
        self.chats, self.tokenizer = chats, tokenizer
        tiny = dict(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            head_dim=8,
        )
        model = Qwen3ForCausalLM(
            Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=1, **tiny)
        )
        self.config = SFTConfig(
            folder,
            assistant_only_loss=True,
            max_length=MAX_LENGTH,
            use_cpu=True,
            bf16=False,
            report_to="none",
        )
        few = chats.select(range(2))
        self.trainer = SFTTrainer(model, self.config, train_dataset=few, processing_class=tokenizer)

    def __call__(self) -> Dataset:
        return self.trainer._prepare_dataset(
            self.chats, self.tokenizer, self.config, False, None, "train"
        )


class Reference:
    """One row at a time, the tokens of a row one at a time."""

    def __init__(self, chats: Dataset, tokenizer: PreTrainedTokenizerBase):
        self.chats, self.tokenizer = chats, tokenizer

    def __call__(self) -> Dataset:
        return self.chats.map(self.row, remove_columns="messages")

    def row(self, row: dict) -> dict:
        text = self.tokenizer.apply_chat_template(row["messages"], tokenize=False)
        options = dict(
            max_length=PADDED, padding="max_length", truncation=True, return_tensors="pt"
        )
        encoded = self.tokenizer(text, **options)
        opening, closing, response = (
            self.tokenizer.encode(text, add_special_tokens=False)
            for text in ("<think>", "</think>", RESPONSE)
        )
        labels, opened = encoded["input_ids"][0].clone(), None
        for at, token in enumerate(encoded["input_ids"][0]):
            if token == opening[0]:
                opened = at
                labels[: max(at - len(response) - 1, 0)] = -100
            elif token == closing[0]:
                break
            elif opened is not None and at > opened + KEPT and random.random() < THRESHOLD:
                labels[at] = -100
        return {
            "input_ids": encoded["input_ids"][0],
            "attention_mask": encoded["attention_mask"][0],
            "labels": labels,
        }


class Limit:
    """Template and tokenizer, all rows at once."""

    def __init__(self, chats: list[list[dict]], tokenizer: PreTrainedTokenizerBase):
        self.chats, self.tokenizer = chats, tokenizer

    def __call__(self) -> object:
        texts = self.tokenizer.apply_chat_template(self.chats, tokenize=False)
        return self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)


def check_same(ours: Dataset, trl: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Exits where the supervised text differs, up to the newline that TRL's template trains after the last turn."""
    pairs = zip(ours, trl, strict=True)
    for i, (a, b) in enumerate(pairs):
        mine = [token for token, weight in zip(a["input_ids"], a["weights"], strict=True) if weight]
        theirs = [label for label in b["labels"] if label != -100]
        if tokenizer.decode(mine) != tokenizer.decode(theirs).removesuffix("\n"):
            sys.exit(
                f"row {i}: not the same supervision: {tokenizer.decode(mine)!r}, {tokenizer.decode(theirs)!r}"
            )
    print(f"same supervision: {len(ours):,} rows")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 rows, once")
    parser.add_argument("--rows", default=str(SHARED / "datasets" / "gsm8k" / "train.jsonl"))
    parser.add_argument("--tokenizer", default=str(SHARED / "tokenizers" / "qwen3"))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    datasets.disable_caching()
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    print(environment(torch.float32, ("tokenizers", "transformers", "datasets", "trl")))
    tokenizer = bt.load_tokenizer(options.tokenizer)
    rows = bt.load_rows(options.rows, config="main")[: 200 if options.quick else None]
    chats = [[{"role": m.role, "content": m.text} for m in bt.to_messages(row)] for row in rows]
    table = Dataset.from_dict({"messages": chats})
    with tempfile.TemporaryDirectory() as folder:
        ours, trl = Ours(rows, tokenizer), TRL(table, tokenizer, folder)
        methods = {
            "ours": ours,
            "trl": trl,
            "reference": Reference(table, tokenizer),
            "limit": Limit(chats, tokenizer),
        }
        check_same(ours(), trl(), tokenizer)
        seconds = medians(methods, 1 if options.quick else 3)
    for name, taken in seconds.items():
        print(f"{name:<10} {taken:7.2f} s  {len(rows) / taken:8,.0f} rows/s")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ours.rows = bt.Rows(list(rows) * (1 if options.quick else 4), rows.source)
    for processes in (n for n in (2, 4, 8) if n <= os.cpu_count()):
        pair = medians({"one": ours, "all": lambda n=processes: ours(n)}, 1 if options.quick else 3)
        print(
            f"ours in {processes} processes: {pair['one'] / pair['all']:.2f} times as fast as in one "
            f"({len(ours.rows):,} rows, a core each)"
        )
    speed = {name: taken / seconds["ours"] for name, taken in seconds.items()}
    print(
        f"speed_vs_trl={speed['trl']:.2f} speed_vs_reference={speed['reference']:.2f} "
        f"fraction_of_limit={speed['limit']:.2f}"
    )


if __name__ == "__main__":
    main()
