"""The sums of the objective, over processes, as the means that a log shows."""

from collections import Counter

import torch
from accelerate import Accelerator


def reduced(sums: Counter[str], accelerator: Accelerator) -> Counter[str]:
    """Sums of `objective` over micro-batches, tensors on any device: over all processes, as numbers."""
    if not sums:
        return Counter()
    values = torch.stack([sums[name].to(accelerator.device) for name in sorted(sums)])
    return Counter(dict(zip(sorted(sums), accelerator.reduce(values, "sum").tolist(), strict=True)))


def means(sums: Counter[str]) -> dict[str, float]:
    """Means of what `objective` sums up, as far as there is something to divide by.

    `nll_tag`, `nll_think` and `nll_answer` over supervised tokens, blurred or not; `blurred_share` of supervised
    thought tokens; `p_open` and `p_close`, the probability of the tags where they stand; `expected_reward` and
    `format_reward` (of the argmax) over sequences.
    """
    over = {f"nll_{kind}": f"tokens_{kind}" for kind in ("tag", "think", "answer")}
    over |= {"p_open": "tags_open", "p_close": "tags_close"}
    over |= {"expected_reward": "sequences", "format_reward": "sequences"}
    found = {name: sums[name] / sums[count] for name, count in over.items() if sums[count]}
    return found | {"blurred_share": sums["blurred"] / max(sums["tokens_think"], 1)}
