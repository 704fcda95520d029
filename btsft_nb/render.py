"""Messages + tokenizer -> examples: exactly the tokens that the model would have to generate, each with its kind.

A completion is what stands between the generation prompt and the end of turn. The prompt comes from the template with
`add_generation_prompt=True`, the end of turn from a probe of the template; no model is known by name. Text from a row
never becomes a control token: only the template, the think tags and the end of turn do.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby, pairwise

import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from .blur import Kind
from .formats import THINK_TAGS, Message, RowError, UnsuitableRow

OPEN, CLOSE = THINK_TAGS
_MARK = "\ufdd0"  # a Unicode noncharacter: breaks up the spelling of a control token until after the template has run
_PROBE = "probe of the end of turn"


@dataclass
class Example:
    """One training sequence; all four lists have its length T.

    `weights` is 0 for the prompt and whatever is not trained. `flags` says what is odd about its think tags.
    """

    id: str
    input_ids: list[int]
    weights: list[float]
    kinds: list[int]
    flags: list[str] = field(default_factory=list)


@dataclass
class _Span:
    """A stretch of text of one kind and one weight."""

    text: str
    kind: Kind
    weight: float


def tag_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids of the open and the close think tag. Raises ValueError where the tokenizer splits one."""
    known = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    for tag in THINK_TAGS:
        if tag not in known:
            pieces = tokenizer.tokenize(tag)
            raise ValueError(
                f"{tokenizer.name_or_path}: the tokenizer splits {tag} into {len(pieces)} tokens {pieces}; the think "
                f"tags must be single tokens: call tokenizer.add_tokens({list(THINK_TAGS)}) and resize and train the "
                "model's embeddings, or take a model that has them"
            )
    return known[OPEN], known[CLOSE]


def _mark(text: str, marks: list[int], start: int, end: int) -> str:
    """text[start:end] with a mark before each character that `marks` names."""
    edges = [start, *marks, end]
    return _MARK.join(text[a:b] for a, b in pairwise(edges))


def _is_control(content: str) -> bool:
    """Whether an added token is more than a run of spaces or a character that a tokenizer lacks."""
    return len(content) > 1 and not content.isspace()


class Renderer:
    """Renders conversations for one tokenizer.

    Raises ValueError where the tokenizer has no chat template, splits a think tag, or cannot map tokens to text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        name = tokenizer.name_or_path
        if not tokenizer.is_fast:
            raise ValueError(f"{name}: token offsets need a fast tokenizer; load the folder that has tokenizer.json")
        if not tokenizer.chat_template:
            raise ValueError(
                f"{name}: the tokenizer has no chat template; take the instruction-tuned model, or set "
                "tokenizer.chat_template to a Jinja template"
            )
        self.tokenizer = tokenizer
        self.tag_ids = tag_ids(tokenizer)
        controls = [token for token in tokenizer.added_tokens_decoder.values() if _is_control(token.content)]
        controls.sort(key=lambda token: -len(token.content))
        space = r"\s*"
        names = [re.escape(token.content) for token in controls]
        around = [space * t.lstrip + name + space * t.rstrip for t, name in zip(controls, names, strict=True)]
        self._control, self._split = re.compile("|".join(names)), re.compile(f"({'|'.join(around)})")
        self.end_of_turn = self._find_end_of_turn()

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end a completion."""
        return sorted({self._encode(self.end_of_turn)[0][-1], self.tokenizer.eos_token_id} - {None})

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """The generation prompt for messages that end before the assistant's turn."""
        return self._encode(self._prompt(messages))[0]

    def examples(self, messages: list[Message], example_id: str) -> list[Example]:
        """One example, or one for each assistant turn where the template rewrites earlier turns (drops thoughts)."""
        prompts, turns, flags = [], [], []
        for i, message in enumerate(messages):
            if message.role == "assistant":
                prompts.append(self._prompt(messages[:i]))
                spans, odd = self._completion(message, prompts[-1])
                turns.append(spans)
                flags.append(odd)
        whole: list[_Span] | None = []
        for prompt, spans in zip(prompts, turns, strict=True):
            before = "".join(span.text for span in whole)
            if not prompt.startswith(before):
                whole = None
                break
            whole += [_Span(prompt[len(before) :], Kind.PROMPT, 0.0), *spans]
        if whole is not None:
            return [self._example(whole, example_id, sorted(set().union(*flags)))]
        return [
            self._example([_Span(prompt, Kind.PROMPT, 0.0), *spans], f"{example_id}/turn{i}", sorted(odd))
            for i, (prompt, spans, odd) in enumerate(zip(prompts, turns, flags, strict=True))
        ]

    def _example(self, spans: list[_Span], example_id: str, flags: list[str]) -> Example:
        ids, offsets = self._encode_spans(spans)
        ends = np.cumsum([len(span.text.replace(_MARK, "")) for span in spans])
        # the span of a token's last character: a token that straddles a boundary belongs to the later span
        owner = np.searchsorted(ends, [max(start, end - 1) for start, end in offsets], side="right")
        owner = owner.clip(max=len(spans) - 1)
        weights = [spans[i].weight for i in owner]
        weights[0] = 0.0  # nothing predicts the first token
        return Example(example_id, ids, weights, [int(spans[i].kind) for i in owner], flags)

    def _encode_spans(self, spans: list[_Span]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of the whole text, tokenized once.

        Where a token would straddle the end of a prompt, as white space can, inference could not produce it: then
        prompts and completions are tokenized apart.
        """
        texts = ["".join(s.text for s in run) for _, run in groupby(spans, lambda span: span.kind == Kind.PROMPT)]
        ids, offsets = self._encode("".join(texts))
        starts = list(accumulate(len(text.replace(_MARK, "")) for text in texts))[::2]
        if not any(start < cut < end for start, end in offsets for cut in starts):
            return ids, offsets
        ids, offsets, at = [], [], 0
        for text in texts:
            more, places = self._encode(text)
            ids += more
            offsets += [(at + start, at + end) for start, end in places]
            at += len(text.replace(_MARK, ""))
        return ids, offsets

    def _prompt(self, messages: list[Message]) -> str:
        turns = []
        for message in messages:
            text = message.text
            if message.role == "assistant":
                text = "".join(span.text for span in self._parse(message, opened=False)[0])
            else:
                text = self._protect(text)
            turns.append({"role": message.role, "content": text})
        return self._template(turns, add_generation_prompt=True)

    def _template(self, turns: list[dict], **options) -> str:
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except (TemplateError, TypeError) as error:
            roles = [turn["role"] for turn in turns]
            raise RowError(f"the chat template refuses a conversation with the roles {roles}: {error}") from error

    def _find_end_of_turn(self) -> str:
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE}]
        after = self._template(turns).rpartition(_PROBE)[2]
        found = self._control.search(after)
        if found:
            return after[: found.end()]
        if not self.tokenizer.eos_token:
            raise ValueError(f"{self.tokenizer.name_or_path}: neither template nor tokenizer has an end of turn")
        return self.tokenizer.eos_token

    def _completion(self, message: Message, prompt: str) -> tuple[list[_Span], set[str]]:
        """Spans of what the model would have to generate after `prompt`, end of turn included, and its flags."""
        opened = prompt.rstrip().endswith(OPEN)
        spans, flags = self._parse(message, opened)
        if opened:
            if "untagged" in flags:
                raise UnsuitableRow(f"the chat template opens a thought ({OPEN}) and the assistant turn has none")
            if "text before the thought" in flags:
                raise UnsuitableRow(f"the chat template opens a thought ({OPEN}) and the turn has text before its own")
            if message.text.lstrip().startswith(OPEN):
                at = next(i for i, span in enumerate(spans) if span.kind == Kind.TAG)
                spans = spans[at + 1 :]
            spans[0].text = spans[0].text.removeprefix(prompt[prompt.rindex(OPEN) + len(OPEN) :])
        trained = any(span.weight for span in spans)
        return [*spans, _Span(self.end_of_turn, Kind.ANSWER, 1.0 if trained else 0.0)], flags

    def _parse(self, message: Message, opened: bool) -> tuple[list[_Span], set[str]]:
        """An assistant turn cut at its first pair of tags, and at its blocks; all other tags are plain text."""
        text = message.text
        start = text.find(OPEN)
        stop = text.find(CLOSE, max(start, 0))
        flags = {"unclosed": start >= 0 > stop, "untagged": start < 0 > stop, "unopened": start < 0 <= stop}
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
        spans = self._cut(message, cuts)
        return spans, {name for name, is_so in flags.items() if is_so}

    def _cut(self, message: Message, cuts: list[tuple[int, Kind]]) -> list[_Span]:
        text, spans = message.text, []
        protected = self._marks(text, cuts)
        edges = np.cumsum([0, *(len(block.text) for block in message.blocks)]).tolist()
        points = sorted({at for at, _ in cuts} | set(edges))
        for start, end in pairwise(points):
            at, kind = [cut for cut in cuts if cut[0] <= start][-1]
            block = message.blocks[int(np.searchsorted(edges, start, side="right")) - 1]
            weight = 1.0 if block.weight is None else float(block.weight)
            tag = kind == Kind.TAG
            if tag and at != start:  # a tag is one token: a block boundary inside it is passed over
                continue
            marks = [i for i in protected if start <= i < end]
            piece = (OPEN if text.startswith(OPEN, at) else CLOSE) if tag else _mark(text, marks, start, end)
            spans.append(_Span(piece, kind, weight))
        return spans

    def _marks(self, text: str, cuts: list[tuple[int, Kind]]) -> list[int]:
        """Where the spelling of a control token has to be broken up: all but the tags that `cuts` names."""
        if _MARK in text:
            raise RowError(f"the text holds U+FDD0, which is no character; remove it: {text[:60]!r}")
        ends = [*(at for at, _ in cuts[1:]), len(text)]
        return [
            found.start() + 1
            for (at, kind), end in zip(cuts, ends, strict=True)
            if kind != Kind.TAG
            for found in self._control.finditer(text, at, end)
        ]

    def _protect(self, text: str) -> str:
        return _mark(text, self._marks(text, [(0, Kind.PROMPT)]), 0, len(text))

    def _encode(self, marked: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and their character spans in the text without marks."""
        if _MARK not in marked:
            encoded = self.tokenizer(marked, add_special_tokens=False, return_offsets_mapping=True)
            return encoded["input_ids"], encoded["offset_mapping"]
        ids, offsets, at = [], [], 0
        for i, piece in enumerate(self._split.split(marked)):
            text = piece.replace(_MARK, "")
            if i % 2:
                ids.append(self.tokenizer.convert_tokens_to_ids(piece.strip()))
                offsets.append((at, at + len(text)))
            else:
                encoded = self._plain.encode(text, add_special_tokens=False)
                ids += encoded.ids
                offsets += [(at + start, at + end) for start, end in encoded.offsets]
            at += len(text)
        return ids, offsets

    @cached_property
    def _plain(self) -> Tokenizer:
        """The same tokenizer, to which the spelling of a control token is text like any other."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in state["added_tokens"]:
            token["special"] = _is_control(token["content"])
        plain = Tokenizer.from_str(json.dumps(state))
        plain.encode_special_tokens = True
        plain.no_truncation()
        plain.no_padding()
        return plain
