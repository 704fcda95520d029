"""The objective, in plain PyTorch with full logits: the reference that faster code is tested against.

    L = 1/N [ sum_{t in S, not blurred} w_t nll_t  +  anchor * sum_{t blurred} KL(p_ref(.|x_<t) || p(.|x_<t)) ]
        + beta * 1/B sum_sequences (1 - R_seq)

S are the completion's tokens with a weight other than 0, N = |S| and B the number of sequences, both over the whole
accumulation window and all ranks. R_seq is the probability that a completion drawn position by position from the
teacher-forced distributions fits the think format: exactly one open tag, at the first position, and exactly one close
tag after it. It is the expectation of the reference implementation's 0/1 reward, which is not differentiable.

Every tensor here is aligned to the token it speaks of: entry t belongs to the prediction of token t from tokens < t.
Position 0 has no prediction.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .blur import Kind


@dataclass
class Completion:
    """Where one completion stands in a batch: row, first and last + 1 position, and whether the prompt opened it."""

    row: int
    start: int
    end: int
    opened: bool


def token_log_probs(logits: Tensor, input_ids: Tensor) -> Tensor:
    """log p(x_t | x_<t): logits (B, T, V) and input_ids (B, T) -> (B, T) float32, 0 at position 0."""
    log_probs = -F.cross_entropy(logits[:, :-1].float().transpose(1, 2), input_ids[:, 1:], reduction="none")
    return F.pad(log_probs, (1, 0))


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
    return F.pad((ref.exp() * (ref - new)).sum(-1), (1, 0))


def find_completions(batch: dict[str, Tensor], tag_ids: tuple[int, int]) -> list[Completion]:
    """The completions in a batch: runs of tokens that are not PROMPT, of which at least one has a weight other than 0.

    Position 0 cannot be predicted and is left out.

    `opened`: the prompt ends in the open tag, white space of at most one token aside.
    """
    ids, weights = batch["input_ids"].cpu(), batch["weights"].cpu()
    completion = F.pad((batch["kinds"][:, 1:] != Kind.PROMPT).int(), (1, 1)).cpu()
    step = completion.diff(dim=1)
    starts, ends = (step == 1).nonzero() + torch.tensor([0, 1]), (step == -1).nonzero() + torch.tensor([0, 1])
    found = []
    for (row, start), (_, end) in zip(starts.tolist(), ends.tolist(), strict=True):
        if not weights[row, start:end].any():
            continue
        before = ids[row, max(start - 2, 0) : start]
        tags = before[(before == tag_ids[0]) | (before == tag_ids[1])]
        found.append(Completion(row, start, end, bool(len(tags) and tags[-1] == tag_ids[0])))
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


def expected_format_reward(log_tags: Tensor, completions: list[Completion], rows: int) -> Tensor:
    """R of each sequence of a batch: log_tags (3, B, T) -> (B,) float64 in [0, 1].

    A sequence with several completions fits when all of them do.
    """
    lengths = torch.tensor([c.end - c.start for c in completions], device=log_tags.device)
    opened = torch.tensor([c.opened for c in completions], device=log_tags.device)
    pieces = pad_sequence([log_tags[:, c.row, c.start : c.end].T for c in completions], batch_first=True)
    log_r = format_log_prob(pieces.permute(2, 0, 1), opened, lengths)
    owner = torch.tensor([c.row for c in completions], device=log_tags.device)
    return torch.zeros(rows, dtype=log_r.dtype, device=log_r.device).index_add(0, owner, log_r).exp()


def argmax_format_reward(logits: Tensor, completions: list[Completion], rows: int, tag_ids: tuple[int, int]) -> Tensor:
    """The reference implementation's reward, to compare: 1 where the argmax of the logits fits the format, else 0.

    logits (B, T, V) -> (B,) float32. It has no gradient.
    """
    best = F.pad(logits[:, :-1].argmax(-1), (1, 0), value=-1)
    fits = torch.ones(rows, device=logits.device)
    for c in completions:
        tokens = best[c.row, c.start : c.end]
        at_open, at_close = (tokens == tag_ids[0]).nonzero(), (tokens == tag_ids[1]).nonzero()
        opens = len(at_open) == 0 if c.opened else len(at_open) == 1 and at_open[0] == 0
        fits[c.row] *= float(opens and len(at_close) == 1)
    return fits


def objective(
    logits: Tensor,
    batch: dict[str, Tensor],
    *,
    tag_ids: tuple[int, int],
    n_tokens: float,
    n_sequences: float,
    beta: float = 0.0,
    anchor: float = 0.0,
    ref_logits: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one micro-batch, and the sums to report.

    Args:
        logits: (B, T, V) of the model in training.
        batch: `input_ids`, `weights`, `kinds`, `blurred`, each (B, T), as the collator and the trainer make them.
        tag_ids: the ids of the open and the close tag.
        n_tokens, n_sequences: N and B of the objective, over all micro-batches that share an optimiser step.
        beta, anchor: the dials.
        ref_logits: (B, T, V) of the reference model; needed where anchor is not 0.

    Returns:
        The loss, a scalar connected to every logit, and sums over this micro-batch, without gradient:
        `loss_nll`, `loss_anchor`, `loss_format` (the three parts, they add up to the loss); `nll_*` and `tokens_*`
        by kind, over supervised tokens; `blurred`, `supervised`, `expected_reward`, `format_reward`, `sequences`.
    """
    weights, kinds, blurred = batch["weights"], batch["kinds"], batch["blurred"]
    log_probs = token_log_probs(logits, batch["input_ids"])
    none = log_probs.new_zeros(())
    parts = {"loss_nll": -(log_probs * weights.masked_fill(blurred, 0)).sum() / n_tokens}
    parts |= {"loss_anchor": none, "loss_format": none}
    if anchor:
        parts["loss_anchor"] = anchor * kl_divergence(ref_logits, logits)[blurred].sum() / n_tokens
    rewards = {"expected_reward": none, "format_reward": none, "sequences": none}
    completions, rows = find_completions(batch, tag_ids), len(weights)
    if completions:
        with torch.set_grad_enabled(torch.is_grad_enabled() and beta != 0):
            reward = expected_format_reward(tag_log_probs(logits, tag_ids), completions, rows)
            parts["loss_format"] = beta * (1 - reward).sum().float() / n_sequences
        argmax = argmax_format_reward(logits, completions, rows, tag_ids)
        rewards = {"expected_reward": reward.detach().sum(), "format_reward": argmax.sum(), "sequences": none + rows}
    with torch.no_grad():
        sums = {name: value.detach() for name, value in parts.items()}
        supervised = weights != 0
        for kind in (Kind.TAG, Kind.THINK, Kind.ANSWER):
            chosen = supervised & (kinds == kind)
            sums[f"tokens_{kind.name.lower()}"] = chosen.sum()
            sums[f"nll_{kind.name.lower()}"] = -log_probs[chosen].sum()
        sums |= {"blurred": blurred.sum(), "supervised": supervised.sum(), **rewards}
    return sum(parts.values()), sums
