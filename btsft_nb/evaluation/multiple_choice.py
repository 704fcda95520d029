"""Multiple-choice questions by likelihood: which option a model finds most likely as the assistant's answer."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.errors import RowError, unexpected
from ..data.messages import Block, Message, as_text
from ..data.render import Renderer
from ..data.think import has_tags, tagged
from ..data.tokens import tag_ids
from ..objective.forward import HeadForward, eval_mode
from .scoring import tagged_log_probs


class Question(NamedTuple):
    """What a record of `choices` says of the question, and an example for each option, whose one tag is the option."""

    record: dict
    examples: list


def choices(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[dict]
) -> list[dict]:
    """Scores each option of each question as the assistant's turn, and chooses the most likely one.

    The options of a question are scored at once; logits are made only where one of them has a token.

    Args:
        questions: rows {"question": str, "choices": [str, ...], "answer": index from 0, letter or text of the right
            one}. A field "thought" is put between think tags before each option; a template whose prompt opens a
            thought needs one.

    Returns:
        A record for each question: `question`, `choices`, `answer` (index), `log_probs` (of each option, the sum over
        its own tokens in nats; neither thought nor end of turn counts), `bytes` (of each option in UTF-8), `raw` and
        `normalised` (the chosen index, by the sum and by the sum per byte: `acc` and `acc_bytes` of
        lm-evaluation-harness, https://blog.eleuther.ai/multiple-choice-normalization), `correct_raw` and
        `correct_normalised`.

    Raises:
        RowError: a malformed question, with its row and field.
        FloatingPointError: the model gives NaN.

    >>> model, tokenizer = bt.load_model("tiny")
    >>> question = {"question": "Say it.", "choices": ["The answer is 4.", "Pens!"], "answer": "A"}
    >>> record, = bt.choices(model, tokenizer, [question])
    >>> record["raw"], record["correct_raw"], record["bytes"]
    (0, True, [16, 5])
    """
    rendered = render_questions(tokenizer, questions)
    with eval_mode(model):
        forward = HeadForward(model, tag_ids(tokenizer))
        return answer_questions(forward, model, tokenizer.pad_token_id, rendered)


def answer_questions(forward, model, pad_token_id: int, questions: list[Question]) -> list[dict]:
    """The records of `choices`; of equally likely options the first is chosen."""
    records = []
    for question in questions:
        log_probs = tagged_log_probs(forward, model, pad_token_id, question.examples).sum(1)
        if log_probs.isnan().any():
            raise FloatingPointError("log-probabilities are NaN: the model has diverged")
        record = question.record | {"log_probs": log_probs.tolist()}
        per_byte = np.divide(record["log_probs"], record["bytes"])
        for name, values in {"raw": record["log_probs"], "normalised": per_byte}.items():
            chosen = int(np.argmax(values))
            record |= {name: chosen, f"correct_{name}": chosen == record["answer"]}
        records.append(record)
    return records


def render_questions(tokenizer, questions: Sequence[dict]) -> list[Question]:
    """Reads the questions and tokenizes their options. Raises RowError as `choices` does."""
    renderer = Renderer(tokenizer)
    rendered = []
    for i, row in enumerate(questions):
        try:
            rendered.append(_render(renderer, row))
        except RowError as error:
            raise error.at(getattr(questions, "source", "questions"), i) from None
    return rendered


def _render(renderer, row):
    """The Question of a row."""
    if not isinstance(row, dict):
        raise unexpected(row, "question, choices and answer")
    options = row.get("choices")
    if not isinstance(options, list) or not 2 <= len(options) <= len(ascii_uppercase):
        raise unexpected(options, "2 to 26 options", "choices")
    texts = {"question": row.get("question"), "thought": row.get("thought") or "none"}
    texts |= {f"choices[{i}]": option for i, option in enumerate(options)}
    for field, text in texts.items():
        if not as_text(text, field).strip() or has_tags(text):
            raise RowError("expected some text, and no think tags in it", field=field)
    if len(set(options)) < len(options):
        raise RowError("two of them are the same", field="choices")
    answer = row.get("answer")
    right = [i for i, option in enumerate(options) if answer in (i, ascii_uppercase[i], option)]
    # True and 1.0 equal 1, too
    if len(right) != 1 or type(answer) not in (int, str):
        raise unexpected(answer, "the index, letter or text of one choice", "answer")

    thought = row.get("thought")
    before = [] if thought is None else [Block(tagged(as_text(thought, "thought")))]
    examples = []
    for option in options:
        reply = Message("assistant", [*before, Block(option, tag="option")])
        turns = [Message("user", [Block(row["question"])]), reply]
        examples += map(vars, renderer.examples(turns, ""))
    sizes = [len(option.encode()) for option in options]
    record = {"question": row["question"], "choices": options, "answer": right[0], "bytes": sizes}
    return Question(record, examples)
