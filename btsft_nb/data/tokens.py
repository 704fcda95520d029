"""The tokenizer's side: its think tags, and text -> ids in which no text of a row becomes a control token.

Text of a row can spell a control token, `<|im_end|>` say. Tokenized as it stands, it would end the turn. A template
needs plain text, though, so that text cannot be tokenized before it is rendered. So each spelling is broken up by a
mark, a character that no text has, until the template has run; then what is between the true control tokens is
tokenized by a copy of the tokenizer that knows no control tokens.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from .errors import RowError
from .think import THINK_TAGS

_MARK = "\ufdd0"  # a Unicode noncharacter


def think_tags(tokenizer) -> tuple[str, str]:
    """The open and the close think tag that `add_tags` gave a tokenizer; by default `<think>` and `</think>`."""
    return tuple(tokenizer.init_kwargs.get("think_tags", THINK_TAGS))


def add_tags(tokenizer: PreTrainedTokenizerBase, tags: tuple[str, str] | None = None) -> list[str]:
    """Makes `tags` the think tags of a tokenizer, each a single token. It remembers them when it is saved.

    Args:
        tags: the open and the close tag; by default those that the tokenizer has already.

    Returns:
        The tags that were added to the tokenizer, by this call or an earlier one. The model needs rows for them:
        `model.resize_token_embeddings(len(tokenizer))`, and these rows have to be trained.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> bt.add_tags(tokenizer)  # it has them
    []
    >>> bt.add_tags(tokenizer, ("<thought>", "</thought>"))
    ['<thought>', '</thought>']
    """
    tags = list(tags or think_tags(tokenizer))
    # None of white space alone
    if len({tag.strip() for tag in tags} - {""}) != 2:
        raise ValueError(f"tags must be two different texts, as {THINK_TAGS}, got {tags}")
    missing = [tag for tag in tags if tag not in tokenizer.added_tokens_encoder]
    # A tag that is normalized would not be found behind another one (Phi-3).
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in missing])
    # What stands in init_kwargs is saved with the tokenizer.
    added = tokenizer.init_kwargs.get("added_think_tags", []) + missing
    tokenizer.init_kwargs.update(think_tags=tags, added_think_tags=added)
    tag_ids(tokenizer)  # raises where one is no token of its own even so
    return [tag for tag in added if tag in tags]


def tag_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids of the open and the close think tag. Raises ValueError where the tokenizer splits one.

    >>> bt.tag_ids(bt.load_tokenizer("tiny"))
    (449, 450)
    """
    tags = think_tags(tokenizer)
    # Not convert_tokens_to_ids, which gives the id of the unknown token for what it does not know.
    ids = [tokenizer.added_tokens_encoder.get(tag) for tag in tags]
    if tokenizer.encode("".join(tags), add_special_tokens=False) != ids:
        raise ValueError(
            f"{tokenizer.name_or_path} splits the think tags; call btsft_nb.add_tags, "
            "and resize and train the model's embeddings"
        )
    return tuple(ids)


def unmarked(text) -> str:
    """The text as it was before it was marked."""
    return text.replace(_MARK, "")


class Encoder:
    """Text -> token ids, where the spelling of a control token can be protected from becoming one.

    Attributes:
        control: matches the spelling of any control token.

    Raises ValueError where the tokenizer cannot map tokens to text.
    """

    def __init__(self, tokenizer):
        if not tokenizer.is_fast:
            raise ValueError(f"{tokenizer.name_or_path} is no fast tokenizer, which knows offsets")
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        tokens = [token for token in added if _is_control(token.content)]
        # Of two spellings that begin alike the longer one counts.
        tokens.sort(key=lambda token: len(token.content), reverse=True)
        # Think tags are control tokens here, too: only the first pair of a turn may become any.
        self.control = re.compile("|".join(re.escape(token.content) for token in tokens))
        self._split = re.compile(f"({'|'.join(map(_with_spaces, tokens))})")

    def protect(self, text, cuts=()) -> list[str]:
        """The text, cut there, with each spelling of a control token broken up by a mark behind its first character.

        Raises RowError where the text holds the mark itself.
        """
        if _MARK in text:
            raise RowError("the text holds U+FDD0, which is no character; remove it")
        marks = [match.start() + 1 for match in self.control.finditer(text)]
        pieces = []
        for start, stop in pairwise([0, *cuts, len(text)]):
            inside = [at for at in marks if start <= at < stop]
            edges = pairwise([start, *inside, stop])
            pieces.append(_MARK.join(text[first:last] for first, last in edges))
        return pieces

    def encode(self, texts):
        """Protected texts -> the ids of their tokens, and from where to where each goes in the text without marks."""
        backend = self.tokenizer.backend_tokenizer
        # A tokenizer's file can carry both.
        backend.no_truncation()
        backend.no_padding()
        # The template's own control tokens have to be found.
        backend.encode_special_tokens = False
        # Most texts spell no control token, and go through the tokenizer together, which is faster.
        clean = [text for text in texts if _MARK not in text]
        encodings = iter(backend.encode_batch(clean, add_special_tokens=False))
        for text in texts:
            if _MARK in text:
                yield self._encode_marked(text)
            else:
                encoding = next(encodings)
                yield encoding.ids, encoding.offsets

    def as_text(self, text) -> list[int]:
        """The ids of a text in which no spelling of a control token is one."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def _encode_marked(self, marked):
        ids = []
        offsets = []
        # The template's own control tokens are whole, those of a row are broken up.
        start = 0
        for i, piece in enumerate(self._split.split(marked)):
            text = unmarked(piece)
            # Every second piece is a control token, with the white space that it takes along.
            if i % 2 == 1:
                ids.append(self.tokenizer.convert_tokens_to_ids(piece.strip()))
                offsets.append((start, start + len(text)))
            else:
                encoding = self._plain.encode(text, add_special_tokens=False)
                ids += encoding.ids
                offsets += [(start + first, start + last) for first, last in encoding.offsets]
            start += len(text)
        return ids, offsets

    @cached_property
    def _plain(self):
        """The same tokenizer, to which the spelling of a control token is text like any other."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # `encode_special_tokens` makes text of special tokens alone, and think tags are none.
        for token in state["added_tokens"]:
            token["special"] = _is_control(token["content"])
        plain = Tokenizer.from_str(json.dumps(state))
        plain.encode_special_tokens = True
        return plain


def _is_control(content):
    """Whether an added token is more than a run of spaces, or a character that a tokenizer lacked."""
    return len(content) > 1 and not content.isspace()


def _with_spaces(token):
    """A pattern of a token and the white space that it takes along."""
    before = r"\s*" if token.lstrip else ""
    after = r"\s*" if token.rstrip else ""
    return before + re.escape(token.content) + after


def decoded(tokenizer, runs) -> list[str]:
    """The text of each run of tokens."""
    # Behind another token, since some tokenizers take the first space of a text away.
    lead = tokenizer.encode("a", add_special_tokens=False)[-1:]
    start = len(tokenizer.decode(lead))
    texts = tokenizer.batch_decode(
        [[*lead, *run] for run in runs], clean_up_tokenization_spaces=False
    )
    return [text[start:] for text in texts]


def token_texts(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int]) -> list[str]:
    """The text of each token on its own.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> bt.token_texts(tokenizer, tokenizer.encode("<think>3 + 4"))
    ['<think>', '3', ' ', '+', ' 4']
    """
    # Each different token is decoded once.
    different = list(set(input_ids))
    texts = decoded(tokenizer, [[token] for token in different])
    text_of = dict(zip(different, texts, strict=True))
    return [text_of[token] for token in input_ids]
