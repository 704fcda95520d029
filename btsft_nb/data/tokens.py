"""The tokenizer's side: its think tags, and text -> ids in which no text of a row becomes a control token."""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from .messages import THINK_TAGS, RowError

_MARK = "\ufdd0"  # a Unicode noncharacter: breaks up the spelling of a control token until after the template has run


class Encoded(NamedTuple):
    """Token ids; and for each place in the text that was asked for, the first token that reaches beyond it: its index,
    and the character that it starts at."""

    ids: list[int]
    places: list[tuple[int, int]]


def think_tags(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The open and the close think tag that `add_tags` gave a tokenizer; by default `<think>` and `</think>`."""
    return tuple(tokenizer.init_kwargs.get("think_tags", THINK_TAGS))


def add_tags(tokenizer: PreTrainedTokenizerBase, tags: tuple[str, str] | None = None) -> list[str]:
    """Makes `tags` the think tags of a tokenizer, and single tokens; it remembers them when it is saved.

    Args:
        tags: the open and the close tag; by default those that the tokenizer has already.

    Returns:
        The tags that were added to the tokenizer, by this call or an earlier one. The model needs rows for them:
        `model.resize_token_embeddings(len(tokenizer))`, and these rows have to be trained.
    """
    opening, closing = tags or think_tags(tokenizer)
    if not opening.strip() or not closing.strip() or opening == closing:
        raise ValueError(f"tags={tags!r}: two different texts wanted, as {THINK_TAGS}")
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    lacking = [tag for tag in (opening, closing) if tag not in known]
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in lacking])
    added = [*tokenizer.init_kwargs.get("added_think_tags", []), *lacking]
    tokenizer.init_kwargs.update(think_tags=[opening, closing], added_think_tags=added)
    return [tag for tag in added if tag in (opening, closing)]


def tag_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids of the open and the close think tag. Raises ValueError where the tokenizer splits one."""
    known = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    tags = think_tags(tokenizer)
    for tag in tags:
        if tag not in known:
            pieces = tokenizer.tokenize(tag)
            raise ValueError(
                f"{tokenizer.name_or_path}: the tokenizer splits {tag} into {len(pieces)} tokens {pieces}; the think "
                "tags must be single tokens: call btsft_nb.add_tags(tokenizer), and resize and train the model's "
                "embeddings, or take a model that has them"
            )
    ids = [known[tag] for tag in tags]
    if tokenizer.encode("".join(tags), add_special_tokens=False) != ids:
        raise ValueError(
            f"{tokenizer.name_or_path}: {tags[1]} after {tags[0]} is split, as tokens that are normalized are; add the "
            "tags with btsft_nb.add_tags(tokenizer)"
        )
    return ids[0], ids[1]


def mark(text: str, marks: list[int], start: int, end: int) -> str:
    """text[start:end] with a mark before each character that `marks` names."""
    if not marks:
        return text[start:end]
    edges = [start, *(at for at in marks if start <= at < end), end]
    return _MARK.join(text[a:b] for a, b in pairwise(edges))


def unmarked(text: str) -> str:
    """The text as it was before it was marked."""
    return text.replace(_MARK, "")


class Encoder:
    """Text -> token ids and offsets, where the spelling of a control token can be protected from becoming one.

    Raises ValueError where the tokenizer cannot map tokens to text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.is_fast:
            raise ValueError(
                f"{tokenizer.name_or_path}: token offsets need a fast tokenizer; load the folder with tokenizer.json"
            )
        self.tokenizer = tokenizer
        controls = [
            token for token in tokenizer.added_tokens_decoder.values() if _is_control(token.content)
        ]
        controls.sort(key=lambda token: -len(token.content))
        space = r"\s*"
        names = [re.escape(token.content) for token in controls]
        around = [
            space * t.lstrip + name + space * t.rstrip
            for t, name in zip(controls, names, strict=True)
        ]
        self.control, self._split = re.compile("|".join(names)), re.compile(f"({'|'.join(around)})")

    def marks(self, text: str, start: int, end: int) -> list[int]:
        """Where the spellings of control tokens in text[start:end] have to be broken up.

        Raises RowError where the text holds the mark itself.
        """
        if _MARK in text:
            raise RowError(
                f"the text holds U+FDD0, which is no character; remove it: {text[:60]!r}"
            )
        return [found.start() + 1 for found in self.control.finditer(text, start, end)]

    def protect(self, text: str) -> str:
        """The text with each spelling of a control token broken up."""
        return mark(text, self.marks(text, 0, len(text)), 0, len(text))

    def encode(self, texts: list[str], cuts: list[list[int]]) -> list[Encoded]:
        """Protected texts tokenized, no special token added; `cuts` are places in each text without its marks."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # which a tokenizer's file can carry
        backend.no_padding()
        backend.encode_special_tokens = False
        clean = iter(
            backend.encode_batch(
                [text for text in texts if _MARK not in text], add_special_tokens=False
            )
        )
        return [
            self._encode_marked(text, at) if _MARK in text else _located(next(clean), at, len(text))
            for text, at in zip(texts, cuts, strict=True)
        ]

    def _encode_marked(self, marked: str, cuts: list[int]) -> Encoded:
        ids, offsets, at = [], [], 0
        for i, piece in enumerate(self._split.split(marked)):
            text = unmarked(piece)
            if i % 2:
                ids.append(self.tokenizer.convert_tokens_to_ids(piece.strip()))
                offsets.append((at, at + len(text)))
            else:
                encoded = self._plain.encode(text, add_special_tokens=False)
                ids += encoded.ids
                offsets += [(at + start, at + end) for start, end in encoded.offsets]
            at += len(text)
        return Encoded(ids, [_place(offsets, cut) for cut in cuts])

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


def _located(encoding: Encoding, cuts: list[int], length: int) -> Encoded:
    places = []
    for cut in cuts:
        token = encoding.char_to_token(cut)
        if token is not None:
            places.append((token, encoding.token_to_chars(token)[0]))
        else:  # at the end, or in what the tokenizer leaves out
            places.append((len(encoding), cut) if cut == length else _place(encoding.offsets, cut))
    return Encoded(encoding.ids, places)


def _place(offsets: list[tuple[int, int]], cut: int) -> tuple[int, int]:
    index = bisect_right(offsets, cut, key=lambda place: place[1])
    return index, offsets[index][0] if index < len(offsets) else cut


def _is_control(content: str) -> bool:
    """Whether an added token is more than a run of spaces or a character that a tokenizer lacks."""
    return len(content) > 1 and not content.isspace()


def _decoded(tokenizer: PreTrainedTokenizerBase, pieces: list[list[int]]) -> list[str]:
    """Each run of tokens as text, behind another token: some tokenizers take the first space of a text away."""
    lead = tokenizer.encode("a", add_special_tokens=False)[-1:]
    cut, options = len(tokenizer.decode(lead)), {"clean_up_tokenization_spaces": False}
    return [
        text[cut:]
        for text in tokenizer.batch_decode([[*lead, *piece] for piece in pieces], **options)
    ]


def token_texts(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int]) -> list[str]:
    """The text of each token on its own."""
    known = dict.fromkeys(input_ids)
    known = dict(zip(known, _decoded(tokenizer, [[token] for token in known]), strict=True))
    return [known[token] for token in input_ids]
