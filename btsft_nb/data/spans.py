"""The text of an assistant turn -> spans, each of one kind and one weight, and what is odd about its think tags."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from .kinds import Kind
from .messages import Block, Message
from .think import CLOSE, OPEN, split
from .tokens import Encoder, mark


@dataclass(slots=True)
class Span:
    """A stretch of text of one kind and one weight, and the block of the row that it comes from."""

    text: str
    kind: Kind
    weight: float
    block: Block | None = None


@dataclass
class Draft:
    """An example before it is tokenized."""

    id: str
    spans: list[Span]
    flags: set[str]


def oddities(text: str, opened: bool = False) -> set[str]:
    """What is odd about the think tags of a turn. `opened`: the prompt holds the open tag already.

    >>> sorted(oddities("<think>a</think>b</think>")), sorted(oddities("a"))
    (['extra tags'], ['untagged'])
    """
    parts = split(text)
    has_open = parts.open_at is not None
    has_close = parts.close_at is not None
    # either tag shows that a thought was meant
    is_tagged = has_open or has_close
    checks = {
        "unclosed": has_open and not has_close,
        "untagged": not is_tagged,
        "unopened": has_close and not has_open and not opened,
        "empty thought": is_tagged and not parts.thought.strip(),
        "extra tags": parts.extra_opens > 0 or parts.extra_closes > 0,
        "text before the thought": parts.before.strip() != "",
    }
    return {name for name, holds in checks.items() if holds}


def kind_at(text: str) -> dict[int, Kind]:
    """Where each stretch of a kind begins. Tags beyond the first pair are plain text.

    >>> {start: kind.name for start, kind in kind_at("<think>a</think>b").items()}
    {0: 'TAG', 7: 'THINK', 8: 'TAG', 16: 'ANSWER'}
    """
    parts = split(text)
    # A lone close tag ends a thought that began with the turn. (Later entries replace earlier ones: nothing is empty.)
    is_thought_first = parts.open_at is None and parts.close_at is not None
    kinds = {0: Kind.THINK if is_thought_first else Kind.ANSWER}
    if parts.open_at is not None:
        kinds[parts.open_at] = Kind.TAG
        kinds[parts.open_at + len(OPEN)] = Kind.THINK
    if parts.close_at is not None:
        kinds[parts.close_at] = Kind.TAG
        kinds[parts.close_at + len(CLOSE)] = Kind.ANSWER
    # nothing follows a tag at the end of the text
    kinds.pop(len(text), None)
    return kinds


def turn_spans(message: Message, encoder: Encoder, tags: tuple[str, str]) -> list[Span]:
    """A turn cut where a kind or a block begins, with `tags` as its think tags."""
    text = message.text
    kinds = kind_at(text)
    # where each block begins in the text of the turn
    block_starts = list(accumulate((len(block.text) for block in message.blocks), initial=0))
    spans = []
    for start, stop in pairwise([*kinds, len(text)]):
        kind = kinds[start]
        cuts = {start, stop}
        # A tag is one token, of the block in which it begins; no block cuts it.
        if kind != Kind.TAG:
            cuts.update(at for at in block_starts if start < at < stop)
            # control tokens are looked for in each stretch by itself: a tag ends them
            marks = encoder.marks(text, start, stop)
        for first, last in pairwise(sorted(cuts)):
            # the last block that begins there; the others before it are empty
            block = message.blocks[bisect_right(block_starts, first) - 1]
            if kind == Kind.TAG:
                piece = tags[0] if text.startswith(OPEN, first) else tags[1]
            else:
                piece = mark(text, marks, first, last)
            # assistant turns weigh 1 unless their row says otherwise
            weight = 1.0 if block.weight is None else float(block.weight)
            spans.append(Span(piece, kind, weight, block))
    return spans


def cut_blocks(blocks: list[Block], start: int, stop: int) -> list[Block]:
    """What the blocks hold from one character of their joined text to another."""
    parts = []
    at = 0  # where the block begins
    for block in blocks:
        text = block.text[max(start - at, 0) : max(stop - at, 0)]
        parts.append(replace(block, text=text))
        at += len(block.text)
    return parts


def joined(turns: list[Draft], example_id: str) -> Draft | None:
    """All turns as one text; None where the template rewrote an earlier turn."""
    whole = Draft(example_id, [], set())
    for turn in turns:
        # the prompt of a turn comes first
        prompt, *completion = turn.spans
        before = "".join(span.text for span in whole.spans)
        if not prompt.text.startswith(before):
            return None
        whole.spans += [replace(prompt, text=prompt.text[len(before) :]), *completion]
        whole.flags |= turn.flags
    return whole


def named_blocks(spans: list[Span], edges: list[int]) -> list[dict]:
    """The named blocks in tokens; `edges` are the tokens between which the spans lie."""
    tags = []
    last_block = None
    for span, (start, stop) in zip(spans, pairwise(edges), strict=True):
        # prompts and ends of turns are of no block
        if span.block is None or span.block.tag is None or start == stop:
            continue
        # the spans of one block are one stretch
        if span.block is last_block and tags[-1]["stop"] == start:
            tags[-1]["stop"] = stop
        else:
            tags.append({"tag": span.block.tag, "start": start, "stop": stop})
        last_block = span.block
    return tags
