"""The expected think-format reward, and the completions that it is taken over."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..data.kinds import Kind


@dataclass
class Completion:
    """Where one completion stands in a batch: row, first and last + 1 position; its sequence, and what opened it."""

    row: int
    start: int
    end: int
    sequence: int
    opened: bool  # the prompt ends in the open tag, white space of at most one token aside


def find_completions(batch: dict[str, Tensor], tag_ids: tuple[int, int]) -> list[Completion]:
    """The completions in a batch: runs of tokens that are not PROMPT, of which at least one has a weight other than 0.

    The first token of a sequence cannot be predicted and is left out, and so is a single token before the open
    tag: some templates write white space there.
    """
    ids, weights, kinds, sequence = (
        batch[name].cpu() for name in ("input_ids", "weights", "kinds", "sequence")
    )
    same = F.pad((sequence.diff(dim=1) == 0).int(), (1, 0))
    step = F.pad((kinds != Kind.PROMPT).int() * same, (1, 1)).diff(dim=1)
    found = []
    for (row, start), (_, end) in zip(
        (step == 1).nonzero().tolist(), (step == -1).nonzero().tolist(), strict=True
    ):
        if not weights[row, start:end].any():
            continue
        start += bool(
            kinds[row, start] == Kind.ANSWER and (ids[row, start + 1 : end][:1] == tag_ids[0]).any()
        )
        before = ids[row, max(start - 2, 0) : start][
            sequence[row, max(start - 2, 0) : start] == sequence[row, start]
        ]
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
    free = (position < lengths[:, None]) & (
        (position > 0) | opened[:, None]
    )  # where close or other may stand
    rest = torch.where(free, log_other, 0).sum(1)
    close = torch.where(free, log_close - log_other, -torch.inf).logsumexp(1)
    return torch.where(opened, 0, log_open[:, 0]) + rest + close


def expected_format_reward(
    log_tags: Tensor, completions: list[Completion], sequences: int
) -> Tensor:
    """R of each sequence of a batch: log_tags (3, B, T) -> (sequences,) float64 in [0, 1].

    A sequence with several completions fits when all of them do, and one without any fits.
    """
    lengths = torch.tensor([c.end - c.start for c in completions], device=log_tags.device)
    opened = torch.tensor([c.opened for c in completions], device=log_tags.device)
    pieces = pad_sequence(
        [log_tags[:, c.row, c.start : c.end].T for c in completions], batch_first=True
    )
    log_r = format_log_prob(pieces.permute(2, 0, 1), opened, lengths)
    owner = torch.tensor([c.sequence for c in completions], device=log_tags.device)
    return (
        torch.zeros(sequences, dtype=log_r.dtype, device=log_r.device)
        .index_add(0, owner, log_r)
        .exp()
    )


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
