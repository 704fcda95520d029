"""The think format on token ids, and the probability that a model complies with it.

A completion complies when it has exactly one open tag, at its first position, and exactly one close tag after it.
Where the prompt ends in the open tag already, the completion has none. `data.think` has the format on text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.kinds import Kind


def is_opened(prompt: Sequence[int], tag_ids: tuple[int, int]) -> bool:
    """Whether a prompt begins the thought: it ends in the open tag, one token of white space aside.

    >>> is_opened([5, 1, 9], tag_ids=(1, 2)), is_opened([1, 2, 9], tag_ids=(1, 2))
    (True, False)
    """
    tags = [token for token in prompt[-2:] if token in tag_ids]
    return tags[-1:] == [tag_ids[0]]


def complies(completion: Sequence[int], tag_ids: tuple[int, int], opened: bool) -> bool:
    """Whether the tags of a completion are where the format wants them.

    >>> complies([1, 7, 2, 8], tag_ids=(1, 2), opened=False)
    True
    >>> complies([1, 7, 2, 8], tag_ids=(1, 2), opened=True)
    False
    """
    open_id, close_id = tag_ids
    opens = [at for at, token in enumerate(completion) if token == open_id]
    closes = [at for at, token in enumerate(completion) if token == close_id]
    # an open tag at 0 stands before any close tag
    return opens == ([] if opened else [0]) and len(closes) == 1


@dataclass
class Completion:
    """Where one completion stands in a batch."""

    row: int
    start: int
    end: int  # one past its last position
    sequence: int  # which of the batch's sequences it belongs to
    opened: bool  # whether the prompt begins the thought


def find_completions(batch: dict[str, Tensor], tag_ids: tuple[int, int]) -> list[Completion]:
    """The completions in a batch: runs of tokens that are not PROMPT, of which at least one has a weight other than 0.

    The first token of a sequence cannot be predicted and is left out, and so is a single token before the open
    tag: some templates write white space there.

    >>> kinds = torch.tensor([[0, 0, 1, 2, 1, 3]])
    >>> batch = {"input_ids": torch.tensor([[5, 5, 1, 7, 2, 8]]), "kinds": kinds}
    >>> find_completions(batch | {"weights": kinds > 0, "sequence": 0 * kinds}, tag_ids=(1, 2))
    [Completion(row=0, start=2, end=6, sequence=0, opened=False)]
    """
    names = ("input_ids", "kinds", "weights", "sequence")
    ids, kinds, weights, sequence = (batch[name].cpu() for name in names)
    # False at the first token of each sequence, so that runs of two sequences are apart
    is_predicted = F.pad(sequence.diff(dim=1) == 0, (1, 0))
    is_completion = is_predicted & (kinds != Kind.PROMPT)
    # 1 where a run starts, -1 one past its end
    edges = F.pad(is_completion.int(), (1, 1)).diff(dim=1)
    starts = (edges == 1).nonzero().tolist()
    ends = (edges == -1).nonzero().tolist()
    completions = []
    for (row, start), (_, end) in zip(starts, ends, strict=True):
        if not weights[row, start:end].any():
            continue
        # white space of the template before the tag is no part of the format
        is_tag_next = ids[row, start + 1 : end][:1].tolist() == [tag_ids[0]]
        if is_tag_next and kinds[row, start] == Kind.ANSWER:
            start += 1
        number = int(sequence[row, start])
        before = slice(max(start - 2, 0), start)
        prompt = ids[row, before][sequence[row, before] == number]
        opened = is_opened(prompt.tolist(), tag_ids)
        completions.append(Completion(row, start, end, number, opened))
    return completions


def format_log_prob(log_tags: Tensor, opened: bool) -> Tensor:
    """log R: how likely a completion that is drawn position by position complies with the format.

    With o, c, n the probabilities of open tag, close tag and anything else, the open tag at the first position and
    the close tag at j > 1:  log R = log o_1 + sum_{t>1} log n_t + logsumexp_{j>1}(log c_j - log n_j).
    Where the prompt opened the thought, log o_1 falls away and j may be 1.

    Args:
        log_tags: (3, L) float64, log o, log c and log n at the L positions of the completion.

    Returns:
        A scalar; -inf for a completion too short to comply.

    >>> log_tags = torch.tensor([[0.9, 0.1], [0.05, 0.8], [0.05, 0.1]]).log()
    >>> format_log_prob(log_tags, opened=False).exp()  # 0.9 * 0.8
    tensor(0.7200)
    """
    first = 0.0
    if not opened:
        first = log_tags[0, 0]
        log_tags = log_tags[:, 1:]
    _, log_close, log_other = log_tags
    # as if nothing closed, and one of them closes instead
    return first + log_other.sum() + (log_close - log_other).logsumexp(0)


def expected_format_reward(log_tags, completions, sequences):
    """R of each sequence of a batch: log_tags (3, B, T) -> (sequences,) float64 in [0, 1].

    A sequence with several completions complies when all of them do, and one without any complies.

    >>> log_tags = torch.full((3, 1, 4), 1 / 3, dtype=torch.float64).log()
    >>> completion = Completion(row=0, start=1, end=4, sequence=0, opened=False)
    >>> expected_format_reward(log_tags, [completion], 1)  # open, then a close tag at 2 or 3: 2 of 27
    tensor([0.0741], dtype=torch.float64)
    """
    # the product over a sequence's completions, in logarithms
    log_r = list(log_tags.new_zeros(sequences))
    for c in completions:
        log_r[c.sequence] = log_r[c.sequence] + format_log_prob(
            log_tags[:, c.row, c.start : c.end], c.opened
        )
    return torch.stack(log_r).exp()


def argmax_format_reward(argmax, completions, sequences, tag_ids):
    """The reference implementation's reward, to compare: 1 where the most probable tokens comply, else 0.

    argmax (B, T) -> (sequences,) float32. It has no gradient.

    >>> completion = Completion(row=0, start=1, end=5, sequence=0, opened=False)
    >>> argmax_format_reward(torch.tensor([[-1, 1, 7, 2, 8]]), [completion], 1, tag_ids=(1, 2))
    tensor([1.])
    """
    rewards = torch.ones(sequences)
    tokens = argmax.cpu()
    for c in completions:
        if not complies(tokens[c.row, c.start : c.end].tolist(), tag_ids, c.opened):
            rewards[c.sequence] = 0
    return rewards.to(argmax.device)
