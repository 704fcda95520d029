"""The text of an assistant turn -> spans, each of one kind and one weight, and what is odd about its think tags."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise

from .kinds import Kind
from .messages import Block
from .think import CLOSE, OPEN, split


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


def oddities(text, opened=False) -> set[str]:
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


def kind_at(text) -> dict[int, Kind]:
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


def turn_spans(message, encoder, tags) -> list[Span]:
    """A turn cut where a kind or a block begins, with `tags` as its think tags."""
    text = message.text
    kinds = kind_at(text)
    # where each block begins, of empty ones the last
    ends = accumulate((len(block.text) for block in message.blocks), initial=0)
    block_at = dict(zip(ends, message.blocks, strict=False))
    starts = list(block_at)
    spans = []
    for start, stop in pairwise([*kinds, len(text)]):
        kind = kinds[start]
        if kind == Kind.TAG:
            # A tag is one token, of the block in which it begins; no block cuts it.
            cuts = []
            pieces = [tags[0] if text.startswith(OPEN, start) else tags[1]]
        else:
            # control tokens are looked for in each stretch by itself: a tag ends them
            cuts = [at for at in starts if start < at < stop]
            pieces = encoder.protect(text[start:stop], [at - start for at in cuts])
        for first, piece in zip([start, *cuts], pieces, strict=True):
            block = block_at[starts[bisect_right(starts, first) - 1]]
            # assistant turns weigh 1 unless their row says otherwise
            weight = 1.0 if block.weight is None else float(block.weight)
            spans.append(Span(piece, kind, weight, block))
    return spans


def joined(turns, example_id) -> Draft | None:
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


def named_blocks(spans, edges) -> list[dict]:
    """The named blocks in tokens; `edges` are the tokens between which the spans lie."""
    tags = []
    stretches = [
        (span.block, start, stop)
        for span, (start, stop) in zip(spans, pairwise(edges), strict=True)
        if start < stop
    ]
    # the spans of one block are one stretch; prompts and ends of turns are of no block
    for _, group in groupby(stretches, lambda stretch: id(stretch[0])):
        run = list(group)
        block = run[0][0]
        if block and block.tag is not None:
            tags.append({"tag": block.tag, "start": run[0][1], "stop": run[-1][2]})
    return tags
