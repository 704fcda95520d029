"""What stands behind a log: the sums of the objective since the last one, and how fast the steps were."""

import time
from collections import Counter

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

    def take(self, accelerator):
        """The sums over all processes as numbers; these here start anew."""
        totals = accelerator.reduce(dict(self), "sum")
        self.clear()
        return {name: total.item() for name, total in totals.items()}


def means(sums):
    """The means of a log; one without anything to average is left out.

    `nll_tag`, `nll_think` and `nll_answer` are over supervised tokens, blurred or not; `blurred_share` over supervised
    thought tokens; `p_open` and `p_close`, the probabilities of the tags, over the places where they stand;
    `expected_reward` and `format_reward` (of the most probable tokens) over sequences.
    """
    logs = {name: sums[name] / sums[count] for name, count in _COUNT_OF.items() if sums[count]}
    logs["blurred_share"] = sums["blurred"] / max(sums["tokens_think"], 1)
    return logs


def evaluation_means(sums):
    """The means of a log, and the loss and its parts, over a whole set."""
    loss_nll = sums["loss_nll"] / max(sums["supervised"], 1)
    loss_format = sums["loss_format"] / sums["sequences"]
    losses = {"loss": loss_nll + loss_format, "loss_nll": loss_nll, "loss_format": loss_format}
    return losses | means(sums)


class Throughput:
    """A clock of the training, which starts at the step and the tokens that a TrainerState has seen."""

    def __init__(self, state):
        self.step = state.global_step
        self.tokens = state.num_input_tokens_seen
        self.since = time.perf_counter()

    def pause(self, seconds):
        """Leaves out time that was spent on something other than training."""
        self.since += seconds

    def tokens_per_second(self, state):
        """The speed since the start."""
        seconds = time.perf_counter() - self.since
        # a coarse clock may not have moved
        return (state.num_input_tokens_seen - self.tokens) / max(seconds, 1e-6)
