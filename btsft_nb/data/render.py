"""Messages + tokenizer -> examples: exactly the tokens that the model would have to generate, each with its kind.

A completion is what stands between the generation prompt and the end of turn. The prompt comes from the template with
`add_generation_prompt=True`, the end of turn from a probe of the template; no model is known by name. Text from a row
never becomes a control token: only the template, the think tags and the end of turn do. Text that comes formatted
already is cut at a marker instead.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from operator import itemgetter

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .chat_templates import Template
from .errors import RowError, UnsuitableRow
from .kinds import Kind
from .messages import Message, with_pieces
from .spans import Draft, Span, joined, named_blocks, oddities, text_of, turn_spans
from .think import CLOSE, OPEN
from .tokens import Encoder, think_tags, unmarked


@dataclass
class Example:
    """One training sequence; `input_ids`, `weights` and `kinds` have its length T.

    Attributes:
        id: keys the draws of the blur.
        weights: 0 for the prompt and for whatever is not trained.
        kinds: the `Kind` of each token.
        flags: what is odd about its think tags.
        tags: the named blocks: dicts of `tag`, `start` and `stop` (in tokens).

    >>> example = bt.Example("7", [5, 8, 9], weights=[0.0, 1.0, 1.0], kinds=[0, 3, 3])
    >>> [bt.Kind(kind).name for kind in example.kinds]
    ['PROMPT', 'ANSWER', 'ANSWER']
    """

    id: str
    input_ids: list[int]
    weights: list[float]
    kinds: list[int]
    flags: list[str] = field(default_factory=list)
    tags: list[dict] = field(default_factory=list)


class Renderer:
    """Renders conversations for one tokenizer.

    Args:
        kind_weights: (4,) by `Kind`, factors on the weight of each token.
        response_marker: for texts that are formatted already: what stands before each completion.

    Raises:
        ValueError: the tokenizer cannot map tokens to text, or has no end of turn.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> messages = bt.to_messages({"question": "2+3?", "answer": "<think>2+3=5</think>5"})
    >>> (example,) = bt.Renderer(tokenizer).examples(messages, "7")
    >>> tokenizer.decode([i for i, kind in zip(example.input_ids, example.kinds) if kind])
    '<think>2+3=5</think>5<|im_end|>'
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        kind_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        response_marker: str | None = None,
    ):
        self.tokenizer = tokenizer
        self.kind_weights = kind_weights
        self.response_marker = response_marker
        self.tags = think_tags(tokenizer)
        self._encoder = Encoder(tokenizer)
        self.template = Template(tokenizer, self._encoder.control, self.tags)
        # found by a probe of the template
        self.end_of_turn = self.template.end_of_turn
        self.end_id = self._ids(self.end_of_turn)[-1]
        # Formatted text gets the start token that the tokenizer itself would write.
        adds_bos = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._bos = tokenizer.bos_token if adds_bos else ""

    def stop_ids(self, model: PreTrainedModel | None = None) -> list[int]:
        """The tokens that end a completion: the template's, the tokenizer's, and those of a model's settings."""
        of_model = model and model.generation_config.eos_token_id
        # one token, several, or none
        if not isinstance(of_model, list):
            of_model = [of_model]
        return sorted({self.end_id, self.tokenizer.eos_token_id, *of_model} - {None})

    def _ids(self, text):
        return next(self._encoder.encode([text]))[0]

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """The tokens of the generation prompt for messages that end before the assistant's turn."""
        return self._ids(self._prompt(messages))

    def prompt_text(self, messages: list[Message]) -> str:
        """The generation prompt as text, in which a control token and text that spells one look alike."""
        return unmarked(self._prompt(messages))

    def opens(self, prompt: str) -> bool:
        """Whether a prompt begins the thought: it ends in the open tag, white space aside."""
        return prompt.rstrip().endswith(self.tags[0])

    def read(self, ids: list[int], stops: list[int]) -> tuple[str, int | None]:
        """The text of a completion before the first of `stops`, with `<think>` and `</think>` as its tags.

        Returns:
            The text, and the index of that stop; None where there is none.
        """
        stop = next((at for at, token in enumerate(ids) if token in stops), None)
        text = self.tokenizer.decode(ids[:stop])
        return text.replace(self.tags[0], OPEN).replace(self.tags[1], CLOSE), stop

    def examples(self, messages: list[Message], example_id: str) -> list[Example]:
        """One example; or one for each assistant turn, where the template rewrites earlier turns (drops thoughts)."""
        return self.tokenize(self.drafts(messages, example_id))

    def drafts(self, messages: list[Message], example_id: str) -> list[Draft]:
        """As `examples`, before they are tokenized: many at once are faster."""
        if messages[0].role == "text":
            turns = list(self._formatted(messages[0]))
        else:
            # each assistant turn of a conversation, with all before it as its prompt
            turns = [
                self._turn(message, self._prompt(messages[:i]), self.end_of_turn)
                for i, message in enumerate(messages)
                if message.role == "assistant"
            ]
        # one text for all turns, if each prompt repeats what was before it
        whole = joined(turns, example_id)
        if whole:
            return [whole]
        for i, turn in enumerate(turns):
            turn.id = f"{example_id}/turn{i}"
        return turns

    def tokenize(self, drafts: list[Draft]) -> list[Example]:
        """Tokenizes each whole text once, and gives every token the kind and weight of its span."""
        encoded = self._encoder.encode([text_of(draft.spans) for draft in drafts])
        return [self._example(*parts) for parts in zip(drafts, encoded, strict=True)]

    def _example(self, draft, encoded):
        spans = draft.spans
        ids, offsets = encoded
        # A token that straddles two spans belongs to the later one. But none may straddle the end of a prompt, as
        # white space can: inference could not produce it. Prompt and completion are tokenized apart then.
        edges = _edges(spans, offsets)
        if edges is None:
            ids = []
            edges = []
            for _, group in groupby(spans, lambda span: span.kind == Kind.PROMPT):
                run = list(group)
                ((part, offsets),) = self._encoder.encode([text_of(run)])
                edges += [len(ids) + edge for edge in _edges(run, offsets)]
                ids += part
        # the tokens between which the spans lie
        edges = [0, *edges[:-1], len(ids)]
        weights = []
        kinds = []
        for span, (start, stop) in zip(spans, pairwise(edges), strict=True):
            weights += [span.weight * self.kind_weights[span.kind]] * (stop - start)
            kinds += [int(span.kind)] * (stop - start)
        weights[0] = 0.0  # nothing predicts the first token
        flags = sorted(draft.flags)
        return Example(draft.id, ids, weights, kinds, flags, named_blocks(spans, edges))

    def _formatted(self, message):
        """Each completion in a text that is formatted already; without a marker all of it is one."""
        end_of_text = self.tokenizer.eos_token or self.end_of_turn
        marker = self.response_marker
        # text without a marker is trained from its first token
        if marker is None:
            yield self._turn(message, self._bos, end_of_text)
            return
        text = message.text
        ends = "|".join(map(re.escape, [self.end_of_turn, end_of_text]))
        # a completion goes up to an end of turn, which may be the beginning of the next marker, or of the text
        pattern = f"{re.escape(marker)}(.*?)(?=({ends})|\\Z)"
        parts = list(re.finditer(pattern, text, re.DOTALL))
        if not parts or any(marker in part[1] or not part[1].strip() for part in parts):
            raise RowError(f"no text and end of turn after each response marker {marker!r}")
        for part in parts:
            # a completion of formatted text is a turn like any other
            start = part.start(1)
            turn = Message("assistant", with_pieces(message.blocks, [""] * start + list(part[1])))
            # the start token may stand in the text already
            prompt = self._bos + text[:start].removeprefix(self._bos)
            yield self._turn(turn, prompt, part[2] or self.end_of_turn)

    def _prompt(self, messages):
        return self.template([*map(self._history, messages)], add_generation_prompt=True)

    def _history(self, message):
        """A turn as the template takes it: a dictionary of texts."""
        if message.role != "assistant":
            return {"role": message.role, "content": self._encoder.protect(message.text)[0]}
        spans = turn_spans(message, self._encoder, self.tags)
        # some templates take the thought by itself, and write an empty one if they get none
        turn = {"role": "assistant", "content": text_of(spans)}
        is_odd = oddities(message.text) & {"untagged", "unopened", "unclosed"}
        if self.template.takes_thoughts_apart and not is_odd:
            thought = text_of(span for span in spans if span.kind == Kind.THINK)
            answer = text_of(span for span in spans if span.kind == Kind.ANSWER)
            turn |= {"content": answer.strip(), "reasoning_content": thought.strip()}
        return turn

    def _turn(self, message, prompt, end_of_turn):
        """The draft of a prompt, and of what the model would have to generate after it, end of turn included."""
        opened = self.opens(prompt)
        flags = oddities(message.text, opened)
        spans = turn_spans(message, self._encoder, self.tags)
        # a thought that is over before the turn begins has no place for the turn's own
        if prompt.rstrip().endswith(self.tags[1]) and "untagged" not in flags:
            raise UnsuitableRow("the chat template writes a whole, empty thought; take another one")
        if opened:
            spans = self._continued(spans, flags, prompt)
        elif message.role == "assistant" and not message.text[0].isspace():
            # what the template itself writes between its prompt and a turn
            is_thought = spans[0].kind == Kind.TAG
            lead = self.template.thought_lead if is_thought else self.template.answer_lead
            if lead.isspace():
                spans.insert(0, Span(lead, Kind.ANSWER, spans[0].weight))
        # a turn without any weight is context, and so is its end
        end = Span(end_of_turn, Kind.ANSWER, float(any(span.weight for span in spans)))
        return Draft("", [Span(prompt, Kind.PROMPT, 0.0), *spans, end], flags)

    def _continued(self, spans, flags, prompt):
        """The spans of a turn after a prompt that opens the thought: without the tag and white space that it holds."""
        opening = self.tags[0]
        if flags & {"untagged", "text before the thought"}:
            raise UnsuitableRow("the chat template opens a thought, and the turn begins with none")
        # the turn's own tag stands in the prompt already, and so does the white space after it
        texts = [span.text for span in spans]
        if opening in texts:
            spans = spans[texts.index(opening) + 1 :]
        # else only the end of the turn would be trained, in the middle of a thought
        if not text_of(spans).strip():
            raise UnsuitableRow(f"nothing follows {opening}, which the chat template writes itself")
        spans[0].text = spans[0].text.removeprefix(prompt.rpartition(opening)[2])
        return spans


def _edges(spans, offsets):
    """For each span the first token that reaches beyond it; None where a token straddles the end of a prompt."""
    edges = []
    end = 0
    for span in spans:
        end += len(unmarked(span.text))
        # Several tokens can share a character, as those of an emoji do: the first one counts.
        edge = bisect_right(offsets, end, key=itemgetter(1))
        if span.kind == Kind.PROMPT and edge < len(offsets) and offsets[edge][0] < end:
            return None
        edges.append(edge)
    return edges
