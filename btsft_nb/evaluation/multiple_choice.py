"""Multiple-choice questions by likelihood: which option a model finds most likely as the assistant's answer."""

import inspect
import math
from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.messages import Block, Message, RowError, as_text, has_tags, shown, tagged
from ..data.render import Example, Renderer
from .likelihood import choose


class Question(NamedTuple):
    """A multiple-choice question; `answer` is the index of the right option, `thought` what is thought before it."""

    text: str
    options: list[str]
    answer: int
    thought: str | None


@torch.no_grad()
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

    Raises RowError for a malformed question, with its row and field; FloatingPointError where a model gives NaN.
    """
    read = render_questions(tokenizer, questions)
    options = [example for _, examples in read for example in examples]
    log_probs = iter(_log_probs(model, tokenizer, options, batch_size))
    return [_record(question, [next(log_probs) for _ in examples]) for question, examples in read]


def render_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[dict]
) -> list[tuple[Question, list[Example]]]:
    """Each question with an example for each option, whose one tag is the option. Raises as `choices`."""
    renderer, found = Renderer(tokenizer), []
    for i, row in enumerate(questions):
        try:
            question = _read(row)
            turns = [_turns(question, option) for option in question.options]
            drafts = [draft for turn in turns for draft in renderer.drafts(turn, "")]
            found.append((question, renderer.tokenize(drafts)))
        except RowError as error:
            raise error.at(getattr(questions, "source", "questions"), i) from None
    return found


def _turns(question: Question, option: str) -> list[Message]:
    thought = [] if question.thought is None else [Block(tagged(question.thought))]
    asked = Message("user", [Block(question.text)])
    return [asked, Message("assistant", [*thought, Block(option, tag="option")])]


def _log_probs(model, tokenizer, options: list[Example], batch_size: int) -> list[float]:
    """The log-probability of each option, in their order."""
    places = [(place["start"], place["stop"]) for option in options for place in option.tags]
    order = sorted(
        range(len(options)), key=places.__getitem__
    )  # so that options of a batch share their positions
    sums, was_training = [0.0] * len(options), model.training
    model.eval()
    try:
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            ids = {"input_ids": [options[i].input_ids for i in batch]}
            padded = tokenizer.pad(ids, padding_side="right", return_tensors="pt").to(model.device)
            before = sorted(
                {at - 1 for i in batch for at in range(*places[i])}
            )  # what predicts the options
            logits = _logits(model, padded, before)
            for row, i in enumerate(batch):
                start, stop = places[i]
                at = before.index(start - 1)
                log_p = logits[row, at : at + stop - start].float().log_softmax(-1)
                sums[i] = log_p.gather(-1, padded["input_ids"][row, start:stop, None]).sum().item()
    finally:
        model.train(was_training)
    return sums


def _logits(model, padded: dict[str, torch.Tensor], positions: list[int]) -> torch.Tensor:
    """(B, len(positions), V); all are made first only by a model whose forward does not take `logits_to_keep`."""
    keep = (
        torch.tensor(positions) - padded["input_ids"].shape[1]
    )  # from the end: PEFT may put virtual tokens first
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if "logits_to_keep" in inspect.signature(type(base).forward).parameters:
        return model(**padded, logits_to_keep=keep).logits
    return model(**padded).logits[:, keep]


def _record(question: Question, log_probs: list[float]) -> dict:
    if any(map(math.isnan, log_probs)):
        raise FloatingPointError(
            f"question {shown(question.text)}: log-probabilities {log_probs}: it has diverged"
        )
    n_bytes = [len(option.encode()) for option in question.options]
    chosen = choose(log_probs, n_bytes)
    right = {f"correct_{way}": index == question.answer for way, index in chosen.items()}
    record = {"question": question.text, "choices": question.options, "answer": question.answer}
    return record | {"log_probs": log_probs, "bytes": n_bytes} | chosen | right


def _read(row: object) -> Question:
    """The question in a row. Raises RowError with the field."""
    if not isinstance(row, dict):
        raise RowError(
            f"a row with question, choices and answer wanted, got {type(row).__name__}: {shown(row)}"
        )
    text, given, thought = (
        as_text(row.get("question"), "question"),
        row.get("choices"),
        row.get("thought"),
    )
    if not text.strip():
        raise RowError("empty; a question wanted", field="question")
    if thought is not None and has_tags(as_text(thought, "thought")):
        raise RowError(
            "a think tag in the thought; leave the tags out, they are put around it",
            field="thought",
        )
    if isinstance(given, dict):
        options = _options(given.get("text"), "choices.text")
        labels, key = given.get("label"), "answerKey"
        if not isinstance(labels, list) or len(labels) != len(options):
            problem = f"a label for each of {len(options)} options wanted, got {shown(labels)}"
            raise RowError(problem, field="choices.label")
        names, wanted = [(label,) for label in labels], "one of the labels"
    else:
        options, key = _options(given, "choices"), "answer"
        names = [*zip(range(len(options)), ascii_uppercase, options, strict=False)]
        wanted = "an index from 0, a letter or the text of an option"
    answer = row.get(key)
    known = isinstance(answer, (int, str)) and not isinstance(answer, bool)
    right = [i for i, own in enumerate(names) if known and answer in own]
    if len(right) != 1:
        problem = f"{wanted} wanted, got {shown(answer)}, which names {'none' if not right else 'several'}"
        raise RowError(problem, field=key)
    return Question(text, options, right[0], thought)


def _options(given: object, where: str) -> list[str]:
    """The texts of the options. Raises RowError with the field, which is `where` or begins with it."""
    if not isinstance(given, list) or not 2 <= len(given) <= len(ascii_uppercase):
        raise RowError(
            f"a list of 2 to {len(ascii_uppercase)} options wanted, got {shown(given)}", field=where
        )
    options = [as_text(option, f"{where}[{i}]") for i, option in enumerate(given)]
    for i, option in enumerate(options):
        if not option.strip():
            raise RowError("an option without text", field=f"{where}[{i}]")
        if has_tags(option):
            raise RowError(
                "a think tag in an option; a thought stands in the field thought",
                field=f"{where}[{i}]",
            )
        if option in options[:i]:
            raise RowError(f"the same option again: {shown(option)}", field=f"{where}[{i}]")
    return options
