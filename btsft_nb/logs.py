"""Sums of `losses.objective` over micro-batches, and the means that a log shows."""

from collections import Counter

import torch
from accelerate import Accelerator
from torch import Tensor

PARTS = ("loss_nll", "loss_anchor", "loss_format")


class Sums(Counter):
    """Sums by name; they stay on their device until they are asked for."""

    def add(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            self[name] += value.double()

    def reduced(self, accelerator: Accelerator) -> Counter[str]:
        """Over all processes, as numbers."""
        names = sorted(self)
        if not names:
            return Counter()
        values = torch.stack([self[name].to(accelerator.device) for name in names])
        return Counter(dict(zip(names, accelerator.reduce(values, "sum").tolist(), strict=True)))


def means(sums: Counter[str]) -> dict[str, float]:
    """Means of what `losses.objective` sums up, as far as there is something to divide by.

    `nll_tag`, `nll_think` and `nll_answer` over supervised tokens, blurred or not; `blurred_share` of supervised
    thought tokens; `p_open` and `p_close`, the probability of the tags where they stand; `expected_reward` and
    `format_reward` (of the argmax) over sequences.
    """
    over = {f"nll_{kind}": f"tokens_{kind}" for kind in ("tag", "think", "answer")}
    over |= {"p_open": "tags_open", "p_close": "tags_close"}
    over |= {"expected_reward": "sequences", "format_reward": "sequences"}
    found = {name: sums[name] / sums[count] for name, count in over.items() if sums[count]}
    return found | {"blurred_share": sums["blurred"] / max(sums["tokens_think"], 1)}
