"""Rows from anywhere -> prepared examples and a report of every one that was dropped; examples -> batches."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import accumulate

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .blur import Kind, example_key
from .formats import RowError, UnsuitableRow, to_messages
from .render import Example, Renderer


@dataclass
class Report:
    """What `prepare` did with each row. Lengths are in tokens."""

    source: str
    rows: int
    kept: int
    dropped: dict[str, int]  # reason -> examples
    flagged: dict[str, int]  # what is odd about the think tags -> examples, all kept
    tokens: dict[str, int]  # kind -> tokens kept
    supervised: int
    shortest: int
    longest: int

    def __str__(self) -> str:
        total = sum(self.tokens.values())
        shares = ", ".join(f"{kind} {count / total:.0%}" for kind, count in self.tokens.items())
        lines = [
            f"{self.source}: {self.rows:,} rows -> {self.kept:,} examples of {self.shortest} to {self.longest} tokens",
            f"  tokens   {total:,} ({shares}); {self.supervised:,} supervised",
        ]
        lines += [f"  dropped  {count:,}: {reason}" for reason, count in self.dropped.items()]
        lines += [f"  flagged  {count:,}: {reason}" for reason, count in self.flagged.items()]
        return "\n".join(lines)


def prepare(rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int = 1024) -> Dataset:
    """Rows -> a data set with `id`, `input_ids`, `weights` and `kinds`, one example (or one per turn) a row.

    Examples longer than `max_length` tokens, those of which nothing is supervised, and those without a thought where
    the template opens one, are dropped. The printed report counts them; it stays with the data set as
    `examples.report`.

    Raises:
        RowError: a malformed row, by source, row and field.
        ValueError: a tokenizer without a chat template or single-token think tags, or nothing left to train on.
    """
    source = getattr(rows, "source", "rows")
    renderer = Renderer(tokenizer)
    kept, dropped, flagged, lengths = [], Counter(), Counter(), []
    for i, row in enumerate(rows):
        try:
            fallback = f"{source}#{i}"
            messages = to_messages(row)
            rendered = renderer.examples(messages, str(row.get("id") or fallback))
        except UnsuitableRow as error:
            dropped[str(error)] += 1
            continue
        except RowError as error:
            raise error.at(source, i) from None
        for example in rendered:
            lengths.append(len(example.input_ids))
            if lengths[-1] > max_length:
                dropped[f"longer than max_length={max_length}"] += 1
            elif not any(example.weights):
                dropped["every weight is 0"] += 1
            else:
                kept.append(example)
                flagged.update(example.flags)
    if not kept:
        reasons = "; ".join(f"{count} {reason}" for reason, count in dropped.items()) or "there are no rows"
        raise ValueError(
            f"{source}: nothing left to train on: {reasons}; examples have {min(lengths, default=0)} to "
            f"{max(lengths, default=0)} tokens; raise max_length, or look at the rows"
        )
    examples = Dataset.from_list([asdict(example) for example in kept])
    examples.report = _report(source, len(rows), kept, dropped, flagged)
    print(examples.report)
    return examples


def _report(source: str, rows: int, kept: list[Example], dropped: Counter, flagged: Counter) -> Report:
    kinds = Counter(kind for example in kept for kind in example.kinds)
    lengths = [len(example.input_ids) for example in kept]
    supervised = sum(weight != 0 for example in kept for weight in example.weights)
    tokens = {kind.name.lower(): kinds[kind] for kind in Kind}
    return Report(source, rows, len(kept), dict(dropped), dict(flagged), tokens, supervised, min(lengths), max(lengths))


class Collator:
    """Examples -> a batch: everything that the objective needs but the blur.

    The blur is drawn by the trainer, in its own process, so that no worker can hold an outdated epoch.

    Returns a dict of (B, T) tensors `input_ids`, `labels` (-100 where nothing is supervised), `weights` float32,
    `kinds` and `sequence` (which example a token belongs to), and `keys`, the `example_key` of each example. Examples
    are padded on the right, with an `attention_mask`; or, with `padding_free`, laid end to end in one row, with
    `position_ids` that start anew at each.
    """

    def __init__(self, pad_token_id: int, padding_free: bool = False):
        self.pad_token_id, self.padding_free = pad_token_id, padding_free

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        lengths = [len(e["input_ids"]) for e in examples]
        places = [
            slice(end - n, end) if self.padding_free else slice(n)
            for end, n in zip(accumulate(lengths), lengths, strict=True)
        ]
        shape = (1, sum(lengths)) if self.padding_free else (len(examples), max(lengths))

        def filled(values: Iterable, padding: float, dtype: type) -> torch.Tensor:
            out = np.full(shape, padding, dtype)
            for i, (place, value) in enumerate(zip(places, values, strict=True)):
                out[0 if self.padding_free else i, place] = value
            return torch.from_numpy(out)

        batch = {
            "input_ids": filled((e["input_ids"] for e in examples), self.pad_token_id, np.int64),
            # nothing predicts the first token of an example
            "weights": filled(([0.0, *e["weights"][1:]] for e in examples), 0, np.float32),
            "kinds": filled((e["kinds"] for e in examples), Kind.PROMPT, np.int64),
            "sequence": filled(range(len(examples)), 0, np.int64),
        }
        if self.padding_free:
            batch["position_ids"] = filled(map(np.arange, lengths), 0, np.int64)
        else:
            batch["sequence"] = torch.arange(len(examples))[:, None].expand(shape).contiguous()
            batch["attention_mask"] = filled([1] * len(examples), 0, np.int64)
        batch["labels"] = batch["input_ids"].masked_fill(batch["weights"] == 0, -100)
        batch["keys"] = torch.tensor([example_key(e["id"]) for e in examples])
        return batch
