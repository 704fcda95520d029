"""An example whose tokens were weighted by hand -> a data row that says so in blocks."""

import re
from dataclasses import replace
from itertools import groupby, pairwise

from transformers import PreTrainedTokenizerBase

from .formats import Format, to_messages
from .kinds import Kind
from .messages import THINK_TAGS, Message
from .render import Draft, Renderer
from .tokens import unmarked

_CHARACTER = re.compile("\ufdd0?.", re.DOTALL)  # with the mark that `tokens.mark` puts before some


def to_row(
    example: dict, row: dict, tokenizer: PreTrainedTokenizerBase, *, format: Format = None
) -> dict:
    """A row of chat messages in weighted blocks from which `prepare` makes this example, weights and tags included.

    Args:
        example: of `prepare`, its weights as they shall be; `TokenInspector.example`, say.
        row: that the example was prepared from, and its `format`.

    Returns a row with the example's id. Prepare it without `weights`: what those said is in the blocks. A tagged
    stretch in which weights differ is in several.

    Raises ValueError where the row is not the example's, where it is text formatted already, and where no block can say
    a weight: prompts weigh 0, the end of turn 1, and a block does not end inside a character.
    """
    renderer, messages = Renderer(tokenizer), to_messages(row, format)
    if messages[0].role == "text":
        raise ValueError(
            f"{example['id']}: its row is formatted text; blocks need a row of messages"
        )
    ids, drafts = list(example["input_ids"]), renderer.drafts(messages, example["id"])
    number = next(
        (i for i, made in enumerate(renderer.tokenize(drafts)) if made.input_ids == ids), None
    )
    if number is None:
        raise ValueError(
            f"{example['id']}: this row and tokenizer make other tokens; give those that it is of"
        )
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    own = turns if len(drafts) == 1 else [turns[number]]
    contents = dict(zip(own, _contents(example, drafts[number], renderer), strict=True))
    turns = [_turn(message, contents.get(i)) for i, message in enumerate(messages[: own[-1] + 1])]
    new = {"id": example["id"], "messages": turns}
    _check(new, renderer, ids, [float(weight) for weight in example["weights"]])
    return new


def _contents(example: dict, draft: Draft, renderer: Renderer) -> list[list[dict]]:
    """The blocks of each assistant turn: stretches of characters whose tokens have one weight and one tag.

    Which token a character is in comes from rendering every character as a span of its own, numbered by its weight.
    """
    characters, spans = [], []  # (turn, text) of what a block can hold: a character, or a whole tag
    turn = 0
    for span, following in pairwise([*draft.spans, None]):
        last = following is None or following.kind == Kind.PROMPT
        if span.kind == Kind.PROMPT or last:  # the end of turn is the template's
            spans.append(replace(span, weight=0.0))
            turn += span.kind != Kind.PROMPT
            continue
        for piece in [span.text] if span.kind == Kind.TAG else _CHARACTER.findall(span.text):
            text = (
                THINK_TAGS[renderer.tags.index(piece)] if span.kind == Kind.TAG else unmarked(piece)
            )
            characters.append((turn, text))
            spans.append(replace(span, text=piece, weight=float(len(characters))))
    tag_of = {i: tag["tag"] for tag in example["tags"] for i in range(tag["start"], tag["stop"])}
    said = []  # (weight, tag) of each character
    for i, number in enumerate(renderer.tokenize([Draft("", spans, [])])[0].weights):
        said += [(float(example["weights"][i]), tag_of.get(i))] * (int(number) - len(said))
    opened = draft.spans[0].text.rstrip().endswith(renderer.tags[0])
    contents = [[{"type": "text", "text": THINK_TAGS[0]}] * opened for _ in range(turn)]
    for (turn, weight, tag), run in groupby(
        zip(characters, said, strict=True), lambda pair: (pair[0][0], *pair[1])
    ):
        text = "".join(character for (_, character), _ in run)
        contents[turn].append(
            {"type": "text", "text": text, "weight": weight} | ({"tag": tag} if tag else {})
        )
    return contents


def _turn(message: Message, blocks: list[dict] | None) -> dict:
    if blocks is not None:
        return {"role": "assistant", "content": blocks}
    untrained = {"weight": 0.0} if message.role == "assistant" else {}  # another example's turn
    return {"role": message.role, "content": message.text} | untrained


def _check(row: dict, renderer: Renderer, ids: list[int], weights: list[float]) -> None:
    """Raises ValueError, with the first token that differs, where the row does not make these ids and weights."""
    found = [
        made for made in renderer.examples(to_messages(row), row["id"]) if made.input_ids == ids
    ]
    if not found:
        raise ValueError(
            f"{row['id']}: cut at these weights, its text makes other tokens: move an edge by one token"
        )
    differ = (
        i
        for i, pair in enumerate(zip(found[0].weights, weights, strict=True))
        if len(set(pair)) > 1
    )
    if (at := next(differ, None)) is not None:
        raise ValueError(
            f"{row['id']}: token {at} ({renderer.tokenizer.decode([ids[at]])!r}) shall weigh {weights[at]:g}, and in a "
            f"row it weighs {found[0].weights[at]:g}: prompts weigh 0, the end of turn 1 where its turn is trained, "
            "and the tokens of one character all the same"
        )
