"""Multiple-choice questions by likelihood: which option a model finds most likely as the assistant's answer."""

import math
import reprlib
from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.errors import RowError
from ..data.messages import Block, Message, as_text
from ..data.render import Example, Renderer
from ..data.think import has_tags, tagged
from ..data.tokens import tag_ids
from ..objective.forward import HeadForward
from .likelihood import choose
from .scoring import eval_mode, tagged_log_probs


class Question(NamedTuple):
    """A multiple-choice question."""

    text: str
    options: list[str]
    answer: int  # the index of the right option
    examples: list[Example]  # one for each option, whose one tag is the option


def choices(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[dict],
    *,
    batch_size: int = 16,
) -> list[dict]:
    """Scores each option of each question as the assistant's turn, and chooses the most likely one.

    Args:
        questions: rows {"question": str, "choices": [str, ...], "answer": index from 0, letter or text of the right
            one}, or as ARC has them: {"question", "choices": {"text": [...], "label": [...]}, "answerKey": label}. A
            field "thought" is put between think tags before each option; a template whose prompt opens a thought
            needs one.
        batch_size: options scored at once; logits are made only where an option of the batch has a token.

    Returns:
        A record for each question: `question`, `choices`, `answer` (index), `log_probs` (of each option, the sum over
        its own tokens in nats; neither thought nor end of turn counts), `bytes` (of each option in UTF-8), `raw` and
        `normalised` (the chosen index, by the sum and by the sum per byte), `correct_raw` and `correct_normalised`.

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
        return answer_questions(forward, model, tokenizer.pad_token_id, rendered, batch_size)


def answer_questions(
    forward: HeadForward,
    model: PreTrainedModel | PeftModel,
    pad_token_id: int,
    questions: list[Question],
    batch_size: int = 16,
) -> list[dict]:
    """The records of `choices`."""
    examples = [vars(example) for question in questions for example in question.examples]
    # options of similar length go together, so that there is little padding
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))
    sums = [0.0] * len(examples)
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        tokens = tagged_log_probs(forward, model, pad_token_id, [examples[i] for i in batch])
        for i, log_probs in zip(batch, tokens, strict=True):
            sums[i] = log_probs.sum().item()
    if any(map(math.isnan, sums)):
        raise FloatingPointError("log-probabilities are NaN: the model has diverged")
    sums = iter(sums)
    records = []
    for question in questions:
        log_probs = [next(sums) for _ in question.options]
        n_bytes = [len(option.encode()) for option in question.options]
        record = {"question": question.text, "choices": question.options}
        record |= {"answer": question.answer, "log_probs": log_probs, "bytes": n_bytes}
        for name, index in choose(log_probs, n_bytes).items():
            record |= {name: index, f"correct_{name}": index == question.answer}
        records.append(record)
    return records


def render_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[dict]
) -> list[Question]:
    """Reads the questions and tokenizes their options. Raises RowError as `choices` does."""
    renderer = Renderer(tokenizer)
    rendered = []
    for i, row in enumerate(questions):
        try:
            rendered.append(_render(renderer, row))
        except RowError as error:
            raise error.at(getattr(questions, "source", "questions"), i) from None
    return rendered


def _render(renderer: Renderer, row: object) -> Question:
    if not isinstance(row, dict):
        raise RowError(f"expected question, choices and answer, got {reprlib.repr(row)}")
    text = _plain(row.get("question"), "question")
    options = row.get("choices")
    answer = row.get("answer")
    labels = None
    if isinstance(options, dict):  # as ARC has them
        labels = options.get("label")
        options = options.get("text")
    if not isinstance(options, list) or not 2 <= len(options) <= len(ascii_uppercase):
        raise RowError(f"expected 2 to 26 options, got {reprlib.repr(options)}", field="choices")
    for i, option in enumerate(options):
        if _plain(option, f"choices[{i}]") in options[:i]:
            raise RowError("the same as an earlier one", field=f"choices[{i}]")
    if isinstance(labels, list):
        if len(labels) != len(options) or labels.count(row.get("answerKey")) != 1:
            raise RowError(f"expected one of {len(options)} labels {labels}", field="answerKey")
        answer = labels.index(row["answerKey"])
    before = []
    if row.get("thought") is not None:
        before = [Block(tagged(row["thought"] and _plain(row["thought"], "thought")))]
    drafts = []
    for option in options:
        reply = Message("assistant", [*before, Block(option, tag="option")])
        drafts += renderer.drafts([Message("user", [Block(text)]), reply], "")
    return Question(text, options, _index(answer, options), renderer.tokenize(drafts))


def _plain(value: object, field: str) -> str:
    if not as_text(value, field).strip() or has_tags(value):
        raise RowError("expected some text, and no think tags in it", field=field)
    return value


def _index(answer: object, options: list[str]) -> int:
    """The index of the right option."""
    names = [(i, ascii_uppercase[i], option) for i, option in enumerate(options)]
    # True and 1.0 equal 1, too
    right = [i for i, own in enumerate(names) if type(answer) in (int, str) and answer in own]
    if len(right) != 1:
        problem = (
            f"expected the index, letter or text of one choice, {reprlib.repr(answer)} is that of "
        )
        raise RowError(f"{problem}{len(right)}", field="answer")
    return right[0]
