"""Prepared sets: mixed, and compared."""

from collections import Counter

import pandas as pd
from datasets import Dataset, concatenate_datasets

from .kinds import Kind
from .report import attach, figures, make_report, report_of


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
    id_of = _id_by_prompt(others)
    here = _id_by_prompt(examples)
    return [(name, id_of[prompt]) for prompt, name in here.items() if prompt in id_of]


def _id_by_prompt(examples: Dataset) -> dict[bytes, str]:
    ids = {}
    for example in examples.select_columns(["id", "input_ids", "kinds"]).with_format("numpy"):
        prompt = example["input_ids"][example["kinds"] == Kind.PROMPT]
        ids[prompt.tobytes()] = str(example["id"])
    return ids


def mix(sets: list[Dataset], proportions: list[float], *, seed: int = 0) -> Dataset:
    """Prepared sets, shuffled into one that holds them in the given proportions.

    Each example is in it once at most: the set that runs out first limits the size. Ids stay, and so does the blur.
    The report counts what is in the mixture, and numbers its rows.

    Raises:
        ValueError: there is not one positive proportion for each set, or two examples share an id.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> teacher = bt.prepare(bt.load_rows("tiny/teacher"), tokenizer)
    tiny/teacher: 1,000 rows -> ...
    >>> messy = bt.prepare(bt.load_rows("tiny/messy"), tokenizer)
    tiny/messy: 1,000 rows -> ...
    >>> mixed = bt.mix([teacher, messy], [1, 3])
    >>> len(mixed), bt.report_of(mixed).source
    (1333, 'tiny/teacher + tiny/messy')
    """
    if len(sets) != len(proportions) or not sets or not all(share > 0 for share in proportions):
        raise ValueError(
            f"proportions must be a positive number for each of {len(sets)} sets, got {proportions}"
        )
    # of a set with the share 1
    size = min(len(data) / share for data, share in zip(sets, proportions, strict=True))
    parts = []
    for data, share in zip(sets, proportions, strict=True):
        # 0.1 * 30 is a little less than 3 in floating point
        count = max(int(size * share + 1e-9), 1)
        parts.append(data.shuffle(seed=seed).select(range(count)))
    mixed = concatenate_datasets(parts).shuffle(seed=seed)
    # the id keys the draws of the blur
    name, count = Counter(mixed["id"]).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"the id {name!r} stands for several examples; give the rows ids of their own"
        )
    # counted anew, since the parts' own reports speak of rows that are not here
    tables = mixed.with_format("arrow").iter(1000)
    frame = pd.concat(
        (table.select(["id", "flags"]).to_pandas().assign(**figures(table)) for table in tables),
        ignore_index=True,
    )
    frame = frame.assign(row=frame.index, dropped=None, changed=None)
    sources = [report.source for report in map(report_of, sets) if report]
    attach(mixed, make_report(frame, " + ".join(sources)))
    return mixed
