"""Prepared examples -> a batch of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..data.kinds import Kind
from ..objective.blur import example_key


class Collator:
    """Examples -> a batch with everything that the objective needs except the blur.

    The trainer draws the blur in its own process, so that no data loader worker can hold an outdated epoch.

    Args:
        pad_token_id: fills `input_ids` up to the longest example, on the right.
        padding_free: lay the examples end to end in one row instead.

    Returns (when called) a dict of (B, T) tensors: `input_ids`, `labels` (-100 where nothing is supervised), `weights`
    in float32, `kinds`, `sequence` (the example that a token belongs to), and `attention_mask`, or `position_ids` if
    padding-free; and `keys` (examples,), the `example_key` of each.

    >>> long = {"id": "a", "input_ids": [5, 6, 7], "weights": [0, 1, 1], "kinds": [0, 2, 3]}
    >>> short = {"id": "b", "input_ids": [5, 8], "weights": [0, 1], "kinds": [0, 3]}
    >>> batch = bt.Collator(pad_token_id=0)([long, short])
    >>> batch["labels"]
    tensor([[-100,    6,    7],
            [-100,    8, -100]])
    """

    def __init__(self, pad_token_id: int, padding_free: bool = False):
        self.pad_token_id = pad_token_id
        self.padding_free = padding_free

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        ids = [torch.as_tensor(example["input_ids"]) for example in examples]
        kinds = [torch.as_tensor(example["kinds"], dtype=torch.int64) for example in examples]
        weights = [torch.as_tensor(example["weights"], dtype=torch.float32) for example in examples]
        # nothing predicts the first token of an example
        weights = [F.pad(row[1:], (1, 0)) for row in weights]
        batch = {
            "input_ids": self._join(ids, self.pad_token_id),
            "weights": self._join(weights),
            "kinds": self._join(kinds, Kind.PROMPT),
        }
        if self.padding_free:
            batch["sequence"] = self._join([torch.full_like(row, i) for i, row in enumerate(ids)])
            batch["position_ids"] = self._join([torch.arange(len(row)) for row in ids])
        else:
            # padding belongs to the example of its row
            width = batch["kinds"].shape[1]
            batch["sequence"] = torch.arange(len(ids))[:, None].repeat(1, width)
            batch["attention_mask"] = self._join([torch.ones_like(row) for row in ids])
        batch["labels"] = batch["input_ids"].masked_fill(batch["weights"] == 0, -100)
        batch["keys"] = torch.tensor([example_key(example["id"]) for example in examples])
        return batch

    def _join(self, rows, padding=0):
        if self.padding_free:
            return torch.cat(rows)[None]
        return pad_sequence(rows, batch_first=True, padding_value=padding)
