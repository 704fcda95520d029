"""What stands behind a log: the sums of the objective since the last one, and how fast the steps were."""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import TrainerState

# Each mean of a log, and the count that its sum is divided by.
_COUNT_OF = {
    "nll_tag": "tokens_tag",
    "nll_think": "tokens_think",
    "nll_answer": "tokens_answer",
    "p_open": "tags_open",
    "p_close": "tags_close",
    "expected_reward": "sequences",
    "format_reward": "sequences",
}


class StepSums(Counter):
    """Sums of `objective` over micro-batches, float64 tensors that stay on their device until a log needs them."""

    def take(self, accelerator: Accelerator) -> Counter[str]:
        """The sums over all processes as numbers; these here start anew."""
        names = sorted(self)
        values = torch.stack([self[name].to(accelerator.device) for name in names])
        self.clear()
        totals = accelerator.reduce(values, "sum").tolist()
        return Counter(dict(zip(names, totals, strict=True)))


def means(sums: Counter[str]) -> dict[str, float]:
    """The means of a log; one without anything to average is left out.

    `nll_tag`, `nll_think` and `nll_answer` are over supervised tokens, blurred or not; `blurred_share` over supervised
    thought tokens; `p_open` and `p_close`, the probabilities of the tags, over the places where they stand;
    `expected_reward` and `format_reward` (of the most probable tokens) over sequences.
    """
    logs = {name: sums[name] / sums[count] for name, count in _COUNT_OF.items() if sums[count]}
    logs["blurred_share"] = sums["blurred"] / max(sums["tokens_think"], 1)
    return logs


def evaluation_means(sums: Counter[str]) -> dict[str, float]:
    """The means of a log, and the loss and its parts, over a whole set."""
    loss_nll = sums["loss_nll"] / max(sums["supervised"], 1)
    loss_format = sums["loss_format"] / max(sums["sequences"], 1)
    losses = {"loss": loss_nll + loss_format, "loss_nll": loss_nll, "loss_format": loss_format}
    return losses | means(sums)


def merged_logs(state: TrainerState, step: int | None = None) -> dict[str, float]:
    """All that was logged, at one step or so far, the last value of each name."""
    merged = {}
    for log in state.log_history:
        if step in (None, log["step"]):
            merged |= log
    return merged


def end_line(folder: str, state: TrainerState, mean_loss: float) -> str:
    """How a training ended, in one line; the loss is that of the last log."""
    last = {"loss": mean_loss} | merged_logs(state)
    spent = f"{last['step']} steps, {last['train_runtime']:.0f} s"
    return f"{Path(folder).name}: {spent}, loss {last['loss']:.3g} -> {Path(folder)}"


@dataclass
class Throughput:
    """A clock that runs while the model trains: its start, and the step and the tokens seen by then."""

    step: int
    tokens: int
    since: float = field(default_factory=time.perf_counter)

    def pause(self, seconds: float) -> None:
        """Leaves out time that was spent on something other than training."""
        self.since += seconds

    def tokens_per_second(self, tokens: int) -> float:
        """The speed since the start, when so many tokens have been seen by now."""
        seconds = time.perf_counter() - self.since
        # a coarse clock may not have moved
        return (tokens - self.tokens) / max(seconds, 1e-6)
