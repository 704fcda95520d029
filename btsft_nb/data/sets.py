"""Prepared sets compared: which test questions were trained on."""

import numpy as np
from datasets import Dataset

from .kinds import Kind


def overlap(examples: Dataset, others: Dataset) -> list[tuple[str, str]]:
    """The examples whose prompt, token by token, is also in another set: pairs of the ids here and there.

    Test questions that are in the training set too measure memory, not skill.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> train = bt.prepare([{"question": "2+3?", "answer": "5", "id": "a"}], tokenizer)
    rows: ...
    >>> test = bt.prepare([{"question": "2+3?", "answer": "five", "id": "x"}], tokenizer)
    rows: ...
    >>> bt.overlap(test, train)
    [('x', 'a')]
    """
    id_of = {_prompt(other): other["id"] for other in others}
    # one prompt can stand in several examples
    pairs = [(example["id"], id_of.get(_prompt(example))) for example in examples]
    return [pair for pair in pairs if pair[1]]


def _prompt(example):
    is_prompt = np.equal(example["kinds"], Kind.PROMPT)
    return np.array(example["input_ids"])[is_prompt].tobytes()
