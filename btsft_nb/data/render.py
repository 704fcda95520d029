"""Messages + tokenizer -> examples: exactly the tokens that the model would have to generate, each with its kind.

A completion is what stands between the generation prompt and the end of turn. The prompt comes from the template with
`add_generation_prompt=True`, the end of turn from a probe of the template; no model is known by name. Text from a row
never becomes a control token: only the template, the think tags and the end of turn do. Text that comes formatted
already is cut at a marker instead.
"""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, groupby, pairwise

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .kinds import Kind
from .messages import THINK_TAGS, Block, Message, RowError, UnsuitableRow
from .templates import Template
from .tokens import Encoded, Encoder, mark, tag_ids, think_tags, unmarked

OPEN, CLOSE = THINK_TAGS  # as they stand in messages, whatever the tokenizer's own are


@dataclass
class Example:
    """One training sequence; the first three lists have its length T.

    `weights` is 0 for the prompt and whatever is not trained. `flags` says what is odd about its think tags. `tags`
    are the named blocks: dicts of `tag`, `start` and `stop` (in tokens).
    """

    id: str
    input_ids: list[int]
    weights: list[float]
    kinds: list[int]
    flags: list[str] = field(default_factory=list)
    tags: list[dict] = field(default_factory=list)


@dataclass(slots=True)
class Span:
    """A stretch of text of one kind and one weight; `tag` is the name of the block that it is of, if it has one."""

    text: str
    kind: Kind
    weight: float
    block: tuple[int, int] = (0, 0)  # turn, block
    tag: str | None = None


@dataclass
class Draft:
    """An example before it is tokenized."""

    id: str
    spans: list[Span]
    flags: list[str]


class Renderer:
    """Renders conversations for one tokenizer.

    Args:
        kind_weights: (4,) by `Kind`, what the weight of each token is multiplied with.
        response_marker: for texts that are formatted already: what stands before each completion.

    Raises ValueError where the tokenizer splits a think tag, cannot map tokens to text, or has no end of turn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        kind_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        response_marker: str | None = None,
    ):
        self.tokenizer, self.kind_weights, self.response_marker = (
            tokenizer,
            kind_weights,
            response_marker,
        )
        self.tag_ids, self.tags = tag_ids(tokenizer), think_tags(tokenizer)
        self._encoder = Encoder(tokenizer)
        self._bos = (
            tokenizer.bos_token
            if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
            else ""
        )
        self.template = Template(tokenizer, self._encoder.control, self.tags)
        self.end_of_turn = self.template.end_of_turn

    @cached_property
    def end_id(self) -> int:
        """The id that the end of a turn ends in."""
        return self._encoder.encode([self.end_of_turn], [[]])[0].ids[-1]

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end a completion."""
        return sorted({self.end_id, self.tokenizer.eos_token_id} - {None})

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """The generation prompt for messages that end before the assistant's turn."""
        return self._encoder.encode([self._prompt(messages)], [[]])[0].ids

    def prompt_text(self, messages: list[Message]) -> str:
        """The same as text, in which a control token and text that spells one look alike."""
        return unmarked(self._prompt(messages))

    def opens(self, prompt: str) -> bool:
        """Whether a prompt begins the thought: it ends in the open tag, white space aside."""
        return prompt.rstrip().endswith(self.tags[0])

    def read(self, ids: list[int], stops: Collection[int]) -> tuple[str, int | None]:
        """A completion's text up to the first of `stops`, its tags as `<think>` and `</think>`; and where that is, None
        where it has none."""
        stop = next((at for at, token in enumerate(ids) if token in stops), None)
        text = self.tokenizer.decode(ids[:stop])
        for own, tag in zip(self.tags, THINK_TAGS, strict=True):
            text = text.replace(own, tag)
        return text, stop

    def examples(self, messages: list[Message], example_id: str) -> list[Example]:
        """One example, or one for each assistant turn where the template rewrites earlier turns (drops thoughts)."""
        return self.tokenize(self.drafts(messages, example_id))

    def drafts(self, messages: list[Message], example_id: str) -> list[Draft]:
        """As `examples`, before they are tokenized; to tokenize many at once is faster."""
        turns = list(
            self._formatted(messages[0])
            if messages[0].role == "text"
            else self._templated(messages)
        )
        whole: list[Span] = []
        for prompt, spans, _ in turns:
            before = "".join(span.text for span in whole)
            if not prompt.startswith(before):
                break
            whole += [Span(prompt[len(before) :], Kind.PROMPT, 0.0), *spans]
        else:
            return [Draft(example_id, whole, sorted(set().union(*(odd for *_, odd in turns))))]
        return [
            Draft(f"{example_id}/turn{i}", [Span(prompt, Kind.PROMPT, 0.0), *spans], sorted(odd))
            for i, (prompt, spans, odd) in enumerate(turns)
        ]

    def tokenize(self, drafts: list[Draft]) -> list[Example]:
        """Tokenizes each whole text once, and gives every token the kind and weight of its span."""
        texts = ["".join(span.text for span in draft.spans) for draft in drafts]
        ends = [_ends(draft.spans) for draft in drafts]
        encoded = self._encoder.encode(texts, ends)
        return [self._example(*found) for found in zip(drafts, ends, encoded, strict=True)]

    def _example(self, draft: Draft, ends: list[int], encoded: Encoded) -> Example:
        # a token that straddles a boundary belongs to the later span; but none straddles the end of a prompt, as white
        # space can: inference could not produce it, so prompt and completion are tokenized apart then
        cuts = zip(draft.spans, ends, encoded.places, strict=True)
        if any(start < end for span, end, (_, start) in cuts if span.kind == Kind.PROMPT):
            encoded = self._apart(draft.spans)
        ids = encoded.ids
        starts = [0, *(index for index, _ in encoded.places[:-1]), len(ids)]
        weights, kinds, tags, last = [], [], [], None
        for span, (start, stop) in zip(draft.spans, pairwise(starts), strict=True):
            weights += [span.weight * self.kind_weights[span.kind]] * (stop - start)
            kinds += [int(span.kind)] * (stop - start)
            if span.tag is None or start == stop:
                continue
            if last == (span.block, start):
                tags[-1]["stop"] = stop
            else:
                tags.append({"tag": span.tag, "start": start, "stop": stop})
            last = (span.block, stop)
        weights[0] = 0.0  # nothing predicts the first token
        return Example(draft.id, ids, weights, kinds, draft.flags, tags)

    def _apart(self, spans: list[Span]) -> Encoded:
        """Prompts and completions tokenized one by one."""
        ids, places = [], []
        for _, run in groupby(spans, lambda span: span.kind == Kind.PROMPT):
            run = list(run)
            part = self._encoder.encode(["".join(span.text for span in run)], [_ends(run)])[0]
            places += [(len(ids) + index, start) for index, start in part.places]
            ids += part.ids
        return Encoded(ids, places)

    def _templated(self, messages: list[Message]):
        """(prompt, spans, flags) of each assistant turn."""
        for i, message in enumerate(messages):
            if message.role == "assistant":
                prompt = self._prompt(messages[:i])
                yield prompt, *self._completion(message, prompt, i)

    def _formatted(self, message: Message):
        """(prompt, spans, flags) of each completion in a text that is formatted already, or of all of it."""
        text, stops = message.text, {self.end_of_turn, self.tokenizer.eos_token} - {None}
        if self.response_marker is None:
            spans, flags = self._completion(message, self._bos, 0)
            spans[-1].text = self.tokenizer.eos_token or self.end_of_turn
            yield self._bos, spans, flags
            return
        added = 0 if text.startswith(self._bos) else len(self._bos)
        text, at = self._bos[:added] + text, 0
        while (found := text.find(self.response_marker, at)) >= 0:
            start = found + len(self.response_marker)
            ends = [(end, stop) for stop in stops if (end := text.find(stop, start)) >= 0]
            at, stop = min(ends, default=(len(text), self.end_of_turn))
            if self.response_marker in text[start:at]:
                problem = (
                    f"two response markers {self.response_marker!r} and no end of turn in between"
                )
                raise RowError(f"{problem}: end each completion with one of {sorted(stops)}")
            blocks = _part(message.blocks, start - added, at - added)
            spans, flags = self._completion(Message("assistant", blocks), text[:start], 0)
            spans[-1].text = stop
            yield text[:start], spans, flags
        if not at:
            raise RowError(
                f"the response marker {self.response_marker!r} is not in the text {text[:60]!r}"
            )

    def _prompt(self, messages: list[Message]) -> str:
        return self.template(
            [self._turn(message) for message in messages], add_generation_prompt=True
        )

    def _turn(self, message: Message) -> dict[str, str]:
        if message.role != "assistant":
            return {"role": message.role, "content": self._encoder.protect(message.text)}
        spans, flags = self._parse(message, opened=False, turn=0)
        if not self.template.takes_thoughts_apart or flags & {"untagged", "unopened", "unclosed"}:
            return {"role": "assistant", "content": "".join(span.text for span in spans)}
        thought = "".join(span.text for span in spans if span.kind == Kind.THINK).strip()
        answer = "".join(span.text for span in spans if span.kind == Kind.ANSWER).strip()
        return {"role": "assistant", "content": answer, "reasoning_content": thought}

    def _completion(self, message: Message, prompt: str, turn: int) -> tuple[list[Span], set[str]]:
        """Spans of what the model would have to generate after `prompt`, end of turn included, and its flags."""
        opening, closing = self.tags
        opened = self.opens(prompt)
        spans, flags = self._parse(message, opened, turn)
        if prompt.rstrip().endswith(closing) and "untagged" not in flags:
            raise UnsuitableRow(
                "the chat template's prompt has a whole, empty thought: take its variant that thinks"
            )
        if opened:
            if flags & {"untagged", "text before the thought"}:
                but = (
                    "the assistant turn has none"
                    if "untagged" in flags
                    else "the turn has text before its own"
                )
                raise UnsuitableRow(f"the chat template opens a thought ({opening}) and {but}")
            if message.text.lstrip().startswith(OPEN):
                at = next(i for i, span in enumerate(spans) if span.kind == Kind.TAG)
                spans = spans[at + 1 :]
            spans[0].text = spans[0].text.removeprefix(
                prompt[prompt.rindex(opening) + len(opening) :]
            )
        elif message.role == "assistant" and not message.text[:1].isspace():
            lead = self.template.leads[spans[0].kind == Kind.TAG]
            spans[:0] = [Span(lead, Kind.ANSWER, spans[0].weight)] * bool(lead)
        trained = any(span.weight for span in spans)
        return [*spans, Span(self.end_of_turn, Kind.ANSWER, 1.0 if trained else 0.0)], flags

    def _parse(self, message: Message, opened: bool, turn: int) -> tuple[list[Span], set[str]]:
        """An assistant turn cut at its first pair of tags, and at its blocks; all other tags are plain text."""
        text = message.text
        start = text.find(OPEN)
        stop = text.find(CLOSE, max(start, 0))
        flags = {
            "unclosed": start >= 0 > stop,
            "untagged": start < 0 > stop,
            "unopened": start < 0 <= stop,
        }
        flags["unopened"] &= not opened
        thought = text[start + len(OPEN) if start >= 0 else 0 : stop if stop >= 0 else None]
        flags["empty thought"] = not flags["untagged"] and not thought.strip()
        flags["extra tags"] = text.count(OPEN) > (start >= 0) or text.count(CLOSE) > (stop >= 0)
        flags["text before the thought"] = start >= 0 and bool(text[:start].strip())
        first = Kind.THINK if start < 0 <= stop else Kind.ANSWER
        cuts = [(0, first)]
        if start >= 0:
            cuts += [(start, Kind.TAG), (start + len(OPEN), Kind.THINK)]
        if stop >= 0:
            cuts += [(stop, Kind.TAG), (stop + len(CLOSE), Kind.ANSWER)]
        return self._cut(message, cuts, turn), {name for name, is_so in flags.items() if is_so}

    def _cut(self, message: Message, cuts: list[tuple[int, Kind]], turn: int) -> list[Span]:
        text, spans = message.text, []
        ends = [*(at for at, _ in cuts[1:]), len(text)]
        parts = [(at, end) for (at, kind), end in zip(cuts, ends, strict=True) if kind != Kind.TAG]
        marks = [i for at, end in parts for i in self._encoder.marks(text, at, end)]
        edges = [0, *accumulate(len(block.text) for block in message.blocks)]
        places = [at for at, _ in cuts]
        for start, end in pairwise(sorted({*places, *edges})):
            at, kind = cuts[bisect_right(places, start) - 1]
            number = bisect_right(edges, start) - 1
            block = message.blocks[number]
            weight = 1.0 if block.weight is None else float(block.weight)
            if kind != Kind.TAG:
                piece = mark(text, marks, start, end)
            elif at == start:
                piece = self.tags[0] if text.startswith(OPEN, at) else self.tags[1]
            else:  # a tag is one token: a block boundary inside it is passed over
                continue
            spans.append(Span(piece, kind, weight, (turn, number), block.tag))
        return spans


def _part(blocks: list[Block], start: int, stop: int) -> list[Block]:
    """What of the blocks stands from one character of their text to another."""
    places = accumulate((len(block.text) for block in blocks), initial=0)
    return [
        replace(block, text=block.text[max(start - at, 0) : max(stop - at, 0)])
        for block, at in zip(blocks, places, strict=False)
    ]


def _ends(spans: list[Span]) -> list[int]:
    """Where each span ends in their text without marks."""
    return list(accumulate(len(unmarked(span.text)) for span in spans))


def stop_ids(model: PreTrainedModel, renderer: Renderer) -> list[int]:
    """The template's end of turn, the tokenizer's end token, and what the model says of itself."""
    own = model.generation_config.eos_token_id
    return sorted({*renderer.stop_ids, *(own if isinstance(own, list) else [own])} - {None})
