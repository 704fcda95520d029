"""The text of an assistant turn -> spans, each of one kind and one weight, and what is odd about its think tags."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from .kinds import Kind
from .messages import Block
from .think import OPEN, split


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


def text_of(spans) -> str:
    """The text of all spans."""
    return "".join(span.text for span in spans)


def oddities(text, opened=False) -> set[str]:
    """What is odd about the think tags of a turn. `opened`: the prompt holds the open tag already.

    >>> sorted(oddities("<think>a</think>b</think>")), sorted(oddities("a"))
    (['extra tags'], ['untagged'])
    """
    parts = split(text)
    # either tag shows that a thought was meant
    is_tagged = parts.open_tag or parts.close_tag
    checks = {
        "unclosed": parts.open_tag and not parts.close_tag,
        "untagged": not is_tagged,
        "unopened": parts.close_tag and not parts.open_tag and not opened,
        "empty thought": is_tagged and not parts.thought.strip(),
        "extra tags": parts.extra_opens or parts.extra_closes,
        "text before the thought": parts.before.strip(),
    }
    return {name for name, holds in checks.items() if holds}


def turn_spans(message, encoder, tags) -> list[Span]:
    """A turn cut where a kind or a block begins, with `tags` as its think tags. Tags beyond the first pair are text."""
    # where each block begins, of empty ones the last
    ends = accumulate((len(block.text) for block in message.blocks), initial=0)
    block_at = dict(zip(ends, message.blocks, strict=False))
    starts = list(block_at)
    parts = split(message.text)
    stretches = [
        (Kind.ANSWER, parts.before),
        (Kind.TAG, parts.open_tag),
        (Kind.THINK, parts.thought),
        (Kind.TAG, parts.close_tag),
        (Kind.ANSWER, parts.answer),
    ]
    spans = []
    stop = 0
    for kind, text in stretches:
        if not text:
            continue
        start = stop
        stop += len(text)
        # A tag is one token, of the block in which it begins; no block cuts it.
        cuts = []
        pieces = [tags[0] if text == OPEN else tags[1]]
        if kind != Kind.TAG:
            # control tokens are looked for in each stretch by itself: a tag ends them
            cuts = [at for at in starts if start < at < stop]
            pieces = encoder.protect(text, [at - start for at in cuts])
        for first, piece in zip([start, *cuts], pieces, strict=True):
            block = block_at[starts[bisect_right(starts, first) - 1]]
            # assistant turns weigh 1 unless their row says otherwise
            weight = 1.0 if block.weight is None else block.weight
            spans.append(Span(piece, kind, weight, block))
    return spans


def joined(turns, example_id) -> Draft | None:
    """All turns as one text; None where the template rewrote an earlier turn."""
    whole = Draft(example_id, [], set())
    for turn in turns:
        # the prompt of a turn comes first
        prompt, *completion = turn.spans
        before = text_of(whole.spans)
        if not prompt.text.startswith(before):
            return None
        whole.spans += [replace(prompt, text=prompt.text.removeprefix(before)), *completion]
        whole.flags |= turn.flags
    return whole


def named_blocks(spans, edges) -> list[dict]:
    """The named blocks in tokens; `edges` are the tokens between which the spans lie."""
    tags = {}
    for span, (start, stop) in zip(spans, pairwise(edges), strict=True):
        block = span.block
        # prompts and ends of turns are of no block
        if start < stop and block and block.tag is not None:
            # the spans of one block are one stretch, which ends where the last of them does
            tag = tags.setdefault(id(block), {"tag": block.tag, "start": start})
            tag["stop"] = stop
    return list(tags.values())
