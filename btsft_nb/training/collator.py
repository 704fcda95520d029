"""Examples -> a batch."""

from collections.abc import Iterable
from itertools import accumulate

import numpy as np
import torch

from ..data.kinds import Kind
from ..objective.blur import example_key


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
