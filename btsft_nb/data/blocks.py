"""An example whose tokens were weighted by hand -> a data row that says so in blocks: the inverse of rendering."""

import re
from dataclasses import replace
from itertools import groupby, pairwise
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from .formats import Format, to_messages
from .kinds import Kind
from .render import Renderer
from .spans import Draft
from .think import OPEN, THINK_TAGS
from .tokens import unmarked

_CHARACTER = re.compile("\ufdd0?.", re.DOTALL)  # with the mark that `tokens.mark` puts before some


class _Piece(NamedTuple):
    """What a block can hold, a character or a whole think tag: its turn, text, and what its token weighs."""

    turn: int
    text: str
    weight: float = 1.0
    tag: str | None = None


def to_row(
    example: dict, row: dict, tokenizer: PreTrainedTokenizerBase, *, format: Format = None
) -> dict:
    """A row of chat messages in weighted blocks from which `prepare` makes this example, weights and tags included.

    Args:
        example: of `prepare`, its weights as they shall be; `TokenInspector.example`, say.
        row: that the example was prepared from, and its `format`.

    Returns:
        A row with the example's id. Prepare it without `weights`: what those said is in the blocks. A tagged stretch
        in which weights differ is in several.

    Raises:
        ValueError: the row is not the example's, or is text formatted already; or no block can say a weight: prompts
            weigh 0, the end of turn 1, and a block does not end inside a character.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> row = {"id": "a", "question": "2+3?", "answer": "<think>2+3=5</think>5"}
    >>> example = bt.prepare([row], tokenizer)[0]
    rows: 1 rows -> ...
    >>> weights = [w if kind != bt.Kind.THINK else 0.5 for w, kind in zip(example["weights"], example["kinds"])]
    >>> bt.to_row({**example, "weights": weights}, row, tokenizer)["messages"][1]["content"][1]
    {'type': 'text', 'text': '2+3=5', 'weight': 0.5}
    """
    name = example["id"]
    renderer = Renderer(tokenizer)
    messages = to_messages(row, format)
    if messages[0].role == "text":
        raise ValueError(f"{name}: its row is formatted text; blocks need a row of messages")
    ids = list(example["input_ids"])
    drafts = renderer.drafts(messages, name)
    # which of the row's examples it is: its tokens say so
    made = [draft_ids.input_ids for draft_ids in renderer.tokenize(drafts)]
    if ids not in made:
        raise ValueError(f"{name}: this row and tokenizer make other tokens")
    number = made.index(ids)
    # where each turn is an example of its own, the earlier turns are context
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    trained = turns if len(drafts) == 1 else [turns[number]]
    # turn -> its blocks
    contents = dict(zip(trained, _contents(example, drafts[number], renderer), strict=True))
    new = []
    # what follows the example's last turn is no part of it
    for i, message in enumerate(messages[: trained[-1] + 1]):
        turn = {"role": message.role, "content": contents.get(i, message.text)}
        if message.role == "assistant" and i not in trained:
            turn["weight"] = 0.0
        new.append(turn)
    new_row = {"id": name, "messages": new}
    _check(new_row, example, renderer)
    return new_row


def _contents(example: dict, draft: Draft, renderer: Renderer) -> list[list[dict]]:
    """The blocks of each assistant turn: stretches of characters whose tokens have one weight and one tag."""
    contents = []
    opened = renderer.opens(draft.spans[0].text)
    pieces = _weighted(example, draft, renderer)
    for _, of_turn in groupby(pieces, lambda piece: piece.turn):
        # what the prompt has opened is not in the completion, but a row has it
        blocks = [{"type": "text", "text": OPEN}] if opened else []
        for said, run in groupby(of_turn, lambda piece: (piece.weight, piece.tag)):
            weight, tag = said
            text = "".join(piece.text for piece in run)
            block = {"type": "text", "text": text, "weight": weight}
            blocks.append(block | ({"tag": tag} if tag else {}))
        contents.append(blocks)
    return contents


def _weighted(example: dict, draft: Draft, renderer: Renderer) -> list[_Piece]:
    """The characters of all completions, with the weight and the tag of the token that each is in.

    That is found by rendering every character as a span of its own, which weighs as much as there are up to it.
    """
    pieces = []
    spans = []
    turn = 0
    for span, following in pairwise([*draft.spans, None]):
        is_end_of_turn = following is None or following.kind == Kind.PROMPT
        # the template writes these
        if span.kind == Kind.PROMPT or is_end_of_turn:
            spans.append(replace(span, weight=0.0))
            turn += span.kind != Kind.PROMPT
        elif span.kind == Kind.TAG:
            # rows spell tags as <think>, whatever the tokenizer's own are
            pieces.append(_Piece(turn, THINK_TAGS[renderer.tags.index(span.text)]))
            spans.append(replace(span, weight=float(len(pieces))))
        else:
            for text in _CHARACTER.findall(span.text):
                pieces.append(_Piece(turn, unmarked(text)))
                spans.append(replace(span, text=text, weight=float(len(pieces))))
    tag_of = {i: tag["tag"] for tag in example["tags"] for i in range(tag["start"], tag["stop"])}
    # a token has all characters from those before it up to its own count
    done = 0
    for i, count in enumerate(renderer.tokenize([Draft("", spans, set())])[0].weights):
        for at in range(done, int(count)):
            weight = float(example["weights"][i])
            pieces[at] = pieces[at]._replace(weight=weight, tag=tag_of.get(i))
        done = max(done, int(count))
    return pieces


def _check(row: dict, example: dict, renderer: Renderer) -> None:
    """Raises ValueError, with the first token that differs, where the row does not make the example."""
    ids = list(example["input_ids"])
    made = renderer.examples(to_messages(row), row["id"])
    # a block edge inside what the tokenizer merges would change the tokens
    weights = next((again.weights for again in made if again.input_ids == ids), None)
    if weights is None:
        raise ValueError(f"{row['id']}: cut at these weights, its text makes other tokens")
    for i, pair in enumerate(zip(example["weights"], weights, strict=True)):
        if pair[0] != pair[1]:
            raise ValueError(
                f"{row['id']}: token {i} ({renderer.tokenizer.decode([ids[i]])!r}) shall weigh {pair[0]:g}, and in a "
                f"row it weighs {pair[1]:g}: prompts weigh 0, the end of turn 1 where its turn is trained, and the "
                "tokens of one character all the same"
            )
