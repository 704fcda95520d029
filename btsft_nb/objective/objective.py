"""The objective, from what a model says of each token, which `head` makes without logits.

    L = 1/N [ sum_{t in S, not blurred} w_t nll_t  +  anchor * sum_{t blurred} KL(p_ref(.|x_<t) || p(.|x_<t)) ]
        + beta * 1/B sum_sequences (1 - R_seq)

S are the completion's tokens with a weight other than 0, N = |S| and B the number of sequences, both over the whole
accumulation window and all ranks. R_seq is the probability that a completion drawn position by position from the
teacher-forced distributions fits the think format: exactly one open tag, at the first position, and exactly one close
tag after it. It is the expectation of the reference implementation's 0/1 reward, which is not differentiable.

Every tensor here is aligned to the token it speaks of: entry t belongs to the prediction of token t from tokens < t.
The first token of a sequence has no prediction. A batch has (B, T) `input_ids`, `weights`, `kinds`, `blurred`, and
`sequence`, which of its sequences each token belongs to: the row of a padded batch, or a stretch of a packed one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..data.kinds import Kind
from .format_reward import Completion, argmax_format_reward, expected_format_reward

PARTS = ("loss_nll", "loss_anchor", "loss_format")


class TokenValues(NamedTuple):
    """What a model says of the tokens of a batch, in nats; 0 where nothing is predicted."""

    log_probs: Tensor  # (B, T) log p(x_t | x_<t)
    log_tags: Tensor  # (3, B, T) float64, of the open tag, the close tag and anything else
    argmax: Tensor  # (B, T) int64, the most probable token, -1 where nothing is predicted
    kl: Tensor | None = None  # (B, T) KL(p_ref || p); None without a reference


def token_losses(
    log_probs: Tensor, weights: Tensor, negative: str = "nll", floor: float = 10.0
) -> Tensor:
    """What each token adds to the sum: w * nll, or for a negative weight what `negative` says.

    Args:
        log_probs: (B, T) of the tokens.
        weights: (B, T).
        negative: "nll": w * nll too, which has no lower bound. "unlikelihood": |w| * -log(1 - p), at least 0 (Welleck
            et al., https://arxiv.org/abs/1908.04319). "floor": w * min(nll, floor): a token less probable than
            exp(-floor) is left alone.
        floor: in nats.

    >>> token_losses(torch.tensor([-2.0, -20.0]), torch.tensor([1.0, -1.0]), "floor")
    tensor([  2., -10.])
    """
    losses = -log_probs * weights
    if negative == "nll":
        return losses
    if negative == "floor":
        bounded = losses.clamp(min=weights * floor)
    else:
        # log(1 - p) by expm1, which loses nothing where p is almost 1; 1e-12 keeps it finite at 1, gradient included
        log_other = torch.log(-torch.expm1(log_probs.double() - 1e-12))
        bounded = (weights * log_other).to(losses.dtype)
    return torch.where(weights < 0, bounded, losses)


def objective(
    values: TokenValues,
    batch: dict[str, Tensor],
    completions: list[Completion],
    *,
    tag_ids: tuple[int, int],
    n_tokens: float,
    n_sequences: float,
    beta: float = 0.0,
    anchor: float = 0.0,
    negative: str = "nll",
    floor: float = 10.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one micro-batch, and the sums to report.

    Args:
        values: of the model in training; `kl` where anchor is not 0.
        batch: see above.
        completions: what `find_completions` finds in it.
        tag_ids: the ids of the open and the close tag.
        n_tokens, n_sequences: N and B of the objective, over all micro-batches that share an optimiser step.
        beta, anchor: the dials.
        negative, floor: as for `token_losses`.

    Returns:
        The loss, a scalar connected to all values, and sums over this micro-batch, scalars without gradient:
        `loss_nll`, `loss_anchor`, `loss_format` (the three parts, they add up to the loss); `nll_*` and `tokens_*` by
        kind, over supervised tokens; `p_*` and `tags_*` of open and close tag, the probability where they stand;
        `expected_reward`, `format_reward`, `sequences`; `blurred`, `supervised`.
    """
    zero = values.log_probs.new_zeros(())
    parts = dict.fromkeys(PARTS, zero)
    # 1/N sum_{t not blurred} w_t nll_t
    weights = batch["weights"].masked_fill(batch["blurred"], 0)
    losses = token_losses(values.log_probs, weights, negative, floor)
    parts["loss_nll"] = losses.sum() / n_tokens
    # anchor * 1/N sum_{t blurred} KL(p_ref || p)
    if anchor:
        parts["loss_anchor"] = anchor * values.kl[batch["blurred"]].sum() / n_tokens
    # beta * 1/B sum (1 - R), measured also where it is no part of the loss
    sequences = int(batch["sequence"].max()) + 1
    with torch.set_grad_enabled(beta != 0):
        expected = expected_format_reward(values.log_tags, completions, sequences)
    of_argmax = argmax_format_reward(values.argmax, completions, sequences, tag_ids)
    parts["loss_format"] = beta * (1 - expected).sum().float() / n_sequences

    sums = parts | _token_sums(values.log_probs, batch, tag_ids)
    sums["expected_reward"] = expected.sum()
    sums["format_reward"] = of_argmax.sum()
    sums["sequences"] = zero + sequences
    return sum(parts.values()), {name: value.detach() for name, value in sums.items()}


def _token_sums(log_probs, batch, tag_ids):
    """Sums over the supervised tokens, blurred or not, by kind and of the two tags."""
    supervised = batch["weights"] != 0
    kinds = batch["kinds"]
    sums = {"blurred": batch["blurred"].sum(), "supervised": supervised.sum()}
    for kind in (Kind.TAG, Kind.THINK, Kind.ANSWER):
        chosen = supervised & (kinds == kind)
        sums[f"tokens_{kind.name.lower()}"] = chosen.sum()
        sums[f"nll_{kind.name.lower()}"] = -log_probs[chosen].sum()
    for name, tag_id in zip(("open", "close"), tag_ids, strict=True):
        chosen = supervised & (kinds == Kind.TAG) & (batch["input_ids"] == tag_id)
        sums[f"tags_{name}"] = chosen.sum()
        sums[f"p_{name}"] = log_probs[chosen].exp().sum()
    return sums
