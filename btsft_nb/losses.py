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

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .blur import Kind

PARTS = ("loss_nll", "loss_anchor", "loss_format")


class TokenValues(NamedTuple):
    """What a model says of the tokens of a batch, in nats."""

    log_probs: Tensor  # (B, T) log p(x_t | x_<t), 0 where nothing is predicted
    log_tags: Tensor  # (3, B, T) float64, of the open tag, the close tag and anything else
    argmax: Tensor  # (B, T) int64, the most probable token, -1 where nothing is predicted
    kl: Tensor | None = None  # (B, T) KL(p_ref || p); None without a reference


@dataclass
class Completion:
    """Where one completion stands in a batch: row, first and last + 1 position; its sequence, and what opened it."""

    row: int
    start: int
    end: int
    sequence: int
    opened: bool  # the prompt ends in the open tag, white space of at most one token aside


def tag_log_probs(logits: Tensor, tag_ids: tuple[int, int]) -> Tensor:
    """log p of the open tag, the close tag and anything else: logits (B, T, V) -> (3, B, T) float64.

    The third is a sum of its own, not 1 minus the others, so that all three stay finite where a tag is all but certain.
    Position 0 holds log 1/3, an arbitrary finite value.
    """
    logits = logits[:, :-1].float()
    tags = torch.tensor(tag_ids, device=logits.device)
    other = logits.index_fill(-1, tags, -torch.inf).logsumexp(-1)
    three = torch.stack([logits[..., tag_ids[0]], logits[..., tag_ids[1]], other]).double()
    return F.pad(three, (1, 0)).log_softmax(0)


def kl_divergence(ref_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p_ref || p) at each position: (B, T, V) twice -> (B, T) float32, 0 at position 0."""
    ref, new = (x[:, :-1].float().log_softmax(-1) for x in (ref_logits, logits))
    terms = (ref.exp() * (ref - new)).masked_fill(ref == -torch.inf, 0)  # a masked token adds nothing
    return F.pad(terms.sum(-1), (1, 0))


def find_completions(batch: dict[str, Tensor], tag_ids: tuple[int, int]) -> list[Completion]:
    """The completions in a batch: runs of tokens that are not PROMPT, of which at least one has a weight other than 0.

    The first token of a sequence cannot be predicted and is left out, and so is a single token before the open
    tag: some templates write white space there.
    """
    ids, weights, kinds, sequence = (batch[name].cpu() for name in ("input_ids", "weights", "kinds", "sequence"))
    same = F.pad((sequence.diff(dim=1) == 0).int(), (1, 0))
    step = F.pad((kinds != Kind.PROMPT).int() * same, (1, 1)).diff(dim=1)
    found = []
    for (row, start), (_, end) in zip((step == 1).nonzero().tolist(), (step == -1).nonzero().tolist(), strict=True):
        if not weights[row, start:end].any():
            continue
        start += bool(kinds[row, start] == Kind.ANSWER and (ids[row, start + 1 : end][:1] == tag_ids[0]).any())
        before = ids[row, max(start - 2, 0) : start][sequence[row, max(start - 2, 0) : start] == sequence[row, start]]
        tags = before[(before == tag_ids[0]) | (before == tag_ids[1])]
        opened = bool(len(tags) and tags[-1] == tag_ids[0])
        found.append(Completion(row, start, end, int(sequence[row, start]), opened))
    return found


def format_log_prob(log_tags: Tensor, opened: Tensor, lengths: Tensor) -> Tensor:
    """log of the probability that completions drawn position by position fit the think format.

    With o, c, n the probabilities of open tag, close tag and anything else, the open tag at the first position and
    the close tag at j > 1:  log R = log o_1 + sum_{t>1} log n_t + logsumexp_{j>1}(log c_j - log n_j).
    Where the prompt opened the thought, log o_1 falls away and j may be 1.

    Args:
        log_tags: (3, C, L) float64, `tag_log_probs` of C completions, padded to length L.
        opened: (C,) bool. lengths: (C,) int.

    Returns:
        (C,) float64; -inf for a completion too short to fit.
    """
    log_open, log_close, log_other = log_tags
    position = torch.arange(log_open.shape[1], device=log_open.device)
    free = (position < lengths[:, None]) & ((position > 0) | opened[:, None])  # where close or other may stand
    rest = torch.where(free, log_other, 0).sum(1)
    close = torch.where(free, log_close - log_other, -torch.inf).logsumexp(1)
    return torch.where(opened, 0, log_open[:, 0]) + rest + close


def expected_format_reward(log_tags: Tensor, completions: list[Completion], sequences: int) -> Tensor:
    """R of each sequence of a batch: log_tags (3, B, T) -> (sequences,) float64 in [0, 1].

    A sequence with several completions fits when all of them do, and one without any fits.
    """
    lengths = torch.tensor([c.end - c.start for c in completions], device=log_tags.device)
    opened = torch.tensor([c.opened for c in completions], device=log_tags.device)
    pieces = pad_sequence([log_tags[:, c.row, c.start : c.end].T for c in completions], batch_first=True)
    log_r = format_log_prob(pieces.permute(2, 0, 1), opened, lengths)
    owner = torch.tensor([c.sequence for c in completions], device=log_tags.device)
    return torch.zeros(sequences, dtype=log_r.dtype, device=log_r.device).index_add(0, owner, log_r).exp()


def argmax_format_reward(
    argmax: Tensor, completions: list[Completion], sequences: int, tag_ids: tuple[int, int]
) -> Tensor:
    """The reference implementation's reward, to compare: 1 where the argmax of the logits fits the format, else 0.

    argmax (B, T) -> (sequences,) float32. It has no gradient.
    """
    device, argmax, fits = argmax.device, argmax.cpu(), torch.ones(sequences)
    for c in completions:
        tokens = argmax[c.row, c.start : c.end]
        at_open, at_close = (tokens == tag_ids[0]).nonzero(), (tokens == tag_ids[1]).nonzero()
        opens = len(at_open) == 0 if c.opened else len(at_open) == 1 and at_open[0] == 0
        fits[c.sequence] *= float(opens and len(at_close) == 1)
    return fits.to(device)


def token_losses(log_probs: Tensor, weights: Tensor, negative: str = "nll", floor: float = 10.0) -> Tensor:
    """What each token adds to the sum, all (B, T): w * nll, but for negative weights as `negative` says.

    `nll`: w * nll too, which has no lower bound. `unlikelihood`: |w| * -log(1 - p), at least 0 (Welleck et al.,
    https://arxiv.org/abs/1908.04319). `floor`: w * min(nll, floor), at least w * floor: a token less probable than
    exp(-floor) is left alone.
    """
    losses = -log_probs * weights
    if negative == "unlikelihood":
        # log(1 - p) by expm1, which loses nothing where p is almost 1; 1e-12 keeps it finite at 1, gradient included
        bounded = -weights * -torch.log(-torch.expm1(log_probs.double() - 1e-12))
        return torch.where(weights < 0, bounded.to(losses.dtype), losses)
    return torch.where(weights < 0, losses.clamp(min=weights * floor), losses) if negative == "floor" else losses


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
        batch: see above. completions: what `find_completions` finds in it.
        tag_ids: the ids of the open and the close tag.
        n_tokens, n_sequences: N and B of the objective, over all micro-batches that share an optimiser step.
        beta, anchor: the dials. negative, floor: as for `token_losses`.

    Returns:
        The loss, a scalar connected to all values, and sums over this micro-batch, scalars without gradient:
        `loss_nll`, `loss_anchor`, `loss_format` (the three parts, they add up to the loss); `nll_*` and `tokens_*` by
        kind, over supervised tokens; `p_*` and `tags_*` of open and close tag, the probability where they stand;
        `expected_reward`, `format_reward`, `sequences`; `blurred`, `supervised`.
    """
    weights, kinds, blurred = batch["weights"], batch["kinds"], batch["blurred"]
    none = values.log_probs.new_zeros(())
    losses = token_losses(values.log_probs, weights.masked_fill(blurred, 0), negative, floor)
    parts = {"loss_nll": losses.sum() / n_tokens, "loss_anchor": none, "loss_format": none}
    if anchor:
        parts["loss_anchor"] = anchor * values.kl[blurred].sum() / n_tokens
    sequences = int(batch["sequence"].max()) + 1
    reward = argmax = none.new_ones(sequences)
    if completions:
        with torch.set_grad_enabled(torch.is_grad_enabled() and beta != 0):
            reward = expected_format_reward(values.log_tags, completions, sequences)
            parts["loss_format"] = beta * (1 - reward).sum().float() / n_sequences
        argmax = argmax_format_reward(values.argmax, completions, sequences, tag_ids)
    rewards = {"expected_reward": reward.sum(), "format_reward": argmax.sum(), "sequences": none + sequences}
    groups = {kind.name.lower(): kinds == kind for kind in (Kind.TAG, Kind.THINK, Kind.ANSWER)}
    sums = {**parts, **rewards, "blurred": blurred.sum(), "supervised": (weights != 0).sum()}
    for name, chosen in groups.items():
        at = chosen & (weights != 0)
        sums |= {f"tokens_{name}": at.sum(), f"nll_{name}": -values.log_probs[at].sum()}
    for name, tag in zip(("open", "close"), tag_ids, strict=True):
        at = groups["tag"] & (batch["input_ids"] == tag) & (weights != 0)
        sums |= {f"tags_{name}": at.sum(), f"p_{name}": values.log_probs[at].exp().sum()}
    return sum(parts.values()), {name: value.detach() for name, value in sums.items()}


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
