"""Samples and references -> a summary, each metric with its interval over prompts; summaries -> a table."""

from collections import Counter
from collections.abc import Callable, Sequence

import pandas as pd

from ..data.errors import RowError
from ..data.formats import reference_of
from ..views.metric_names import present
from .answers import compare, extract, majority, parse_record, right_answer
from .diversity import copied_ngrams, distinct_n, self_bleu
from .intervals import interval
from .text_scores import bleu, rouge

_RIGHT = ("right",)  # the vote of every right answer, however it is written


def evaluate(
    samples: list[dict],
    references: Sequence[str] | None,
    way_of: Callable[[str], str | None] | None = None,
    *,
    answer: str = "auto",
    training: Sequence[str] | None = None,
    text_scores: bool = False,
) -> dict:
    """Measures samples, as `sample` returns them: their format, their diversity, and whether they are right.

    Args:
        references: the right answer of each prompt, in the order of the prompts; None where there are none.
        way_of: names the way of thinking that a thought follows, where that can be told.
        answer: how answers are read and compared: "auto", "exact", "word", "number", "choice", "math" or "boxed", see
            `metrics.extract`.
        training: the texts of training thoughts, to tell what was copied from them.
        text_scores: also compare answers with references as texts.

    Returns:
        `metrics`: name -> `{"value", "low", "high", "n"}`, the mean over the n prompts that have a value and its 95 %
        bootstrap interval; a metric without any is left out. Each is a share of a prompt's samples, if nothing else
        is said:

        - `compliance` with the format; `cut off`, whatever else is wrong with them.
        - `unique thoughts`: different thoughts over all samples. A sample that breaks the format adds none, so this
          cannot rise as compliance falls.
        - of the thoughts that are there, where there are any: `distinct-2`, of their word pairs; with two samples or
          more `self-BLEU`, 0 to 1.
        - with `way_of`: `ways of thinking`, their number.
        - with `references`: `accuracy`; `pass@n`; `majority`, whether the most frequent answer is right; `different
          right thoughts`, as `unique thoughts` among right samples, over all samples; with `way_of` also `right
          ways`, how many ways of thinking there are among right samples.
        - with `training`: `training 4-grams`, the share of a thought's word 4-grams that stand in a training thought
          too, the mean over samples.
        - with `text_scores`: `bleu`, `rouge1`, `rouge2` and `rougeL` of the answers, see `metrics.bleu` and `.rouge`;
          they are in `metrics` alone.

        `values`: name -> a value or None for each prompt; `problems`: what is wrong with the format -> completions;
        `ways`: way -> completions; `unparsed`: answers that could not be read or compared, all counted as wrong, None
        without references; `prompts` and `samples`: how many.

    Raises:
        ValueError: prompts and references do not match, prompts have unequal numbers of samples, a reference has no
            answer of the kind, or `text_scores` has no references.

    >>> texts = ["<think>3 + 4</think>7", "<think>4 + 3</think>7", "<think>3 * 4</think>12", "7"]
    >>> samples = [
    ...     {"prompt": 0, "sample": i, "text": text, "prefilled": False, "finished": True}
    ...     for i, text in enumerate(texts)
    ... ]
    >>> summary = bt.evaluate(samples, ["7"])
    >>> {name: summary["values"][name][0] for name in ("accuracy", "unique thoughts", "different right thoughts")}
    {'accuracy': 0.75, 'unique thoughts': 0.75, 'different right thoughts': 0.5}
    """
    if text_scores and references is None:
        raise ValueError("text_scores needs references, and there are none")
    counts = Counter(record["prompt"] for record in samples)
    sizes = sorted(set(counts.values()))
    if len(sizes) != 1:
        raise ValueError(f"every prompt needs the same number of samples, got {sizes}")
    if references is not None and sorted(counts) != list(range(len(references))):
        raise ValueError(f"{len(references)} references for prompts up to number {max(counts)}")
    frame = _judged(samples, references, way_of, answer)
    if training is not None:
        frame["copied"] = pd.Series(copied_ngrams(frame["thought"], training), frame.index, float)
    groups = frame.groupby("prompt")
    rows = [_prompt_values(group) for _, group in groups]
    values = {
        name: [None if pd.isna(row[name]) else float(row[name]) for row in rows] for name in rows[0]
    }
    intervals = {name: interval(column) for name, column in values.items()}
    metrics = {name: found for name, found in intervals.items() if found}
    if text_scores:
        answers = groups["answer"].agg(list)
        metrics |= {"bleu": bleu(answers, references)} | rouge(answers, references)
    return {
        "metrics": metrics,
        "values": values,
        "problems": frame["problem"].value_counts().to_dict(),
        "ways": {} if way_of is None else frame["way"].fillna("other").value_counts().to_dict(),
        "unparsed": None if references is None else int(frame["right"].isna().sum()),
        "prompts": len(groups),
        "samples": len(samples),
    }


def _judged(samples, references, way_of, how):
    """A row for each sample: its thought, answer, problem and way of thinking, and what is told of its answer."""
    if references is not None:
        rights = [right_answer(str(reference), how) for reference in references]
    rows = []
    for record in samples:
        parsed = parse_record(record)
        row = record | vars(parsed)
        # the thoughts that count as different: those of completions that keep the format
        row["kept thought"] = None if parsed.problem else " ".join(parsed.thought.split())
        if way_of is not None:
            row["way"] = way_of(parsed.thought)
        if references is not None:
            right = rights[record["prompt"]]
            value = extract(parsed.answer, right.how)
            row["right"] = compare(value, right.value)  # None where that cannot be told
            row["vote"] = _RIGHT if row["right"] else value
        rows.append(row)
    # as objects: pandas' own strings cannot hold half a character
    return pd.DataFrame(rows, dtype=object).sort_values(["prompt", "sample"])


def _prompt_values(group):
    """Name -> value, the metrics of one prompt's samples."""
    n = len(group)
    thoughts = [thought for thought in group["thought"] if thought]
    values = {
        "compliance": group["problem"].isna().mean(),
        "cut off": 1 - group["finished"].mean(),
        "unique thoughts": group["kept thought"].nunique() / n,
        "distinct-2": distinct_n(thoughts, 2),
    }
    if n > 1:
        values["self-BLEU"] = self_bleu(thoughts)
    if "way" in group:
        values["ways of thinking"] = group["way"].nunique()
    if "right" in group:
        right = group[group["right"].eq(True)]
        values["accuracy"] = len(right) / n
        values[f"pass@{n}"] = len(right) > 0
        values["majority"] = majority(group["vote"]) == _RIGHT
        values["different right thoughts"] = right["kept thought"].nunique() / n
        if "way" in group:
            values["right ways"] = right["way"].nunique()
    if "copied" in group:
        values["training 4-grams"] = group["copied"].mean()
    return values


def references_of(rows: Sequence[dict | str], how: str = "auto") -> list[str] | None:
    """The right answer of each row, from its column `answer`; None where no row has one.

    Raises:
        RowError: an answer is no text or number, or nothing of the kind `how`.
        ValueError: only some rows have one.
    """
    source = getattr(rows, "source", "rows")
    answers = []
    for i, row in enumerate(rows):
        try:
            answers.append(reference_of(row))
            if answers[-1] is not None:
                right_answer(answers[-1], how)
        except ValueError as error:
            raise RowError(str(error), source=source, row=i) from None
    n_absent = answers.count(None)
    if 0 < n_absent < len(answers):
        raise ValueError(
            f"{source}: {n_absent} of {len(answers)} rows have no answer, the first is row {answers.index(None)}"
        )
    return None if n_absent else answers


def table(summaries: dict[str, dict], *metrics: str) -> pd.DataFrame:
    """Summaries by model -> a table of `value [low, high]`, a row for each model, with a dash for what it has not.

    Args:
        metrics: by name, the columns; what no model has is left out. By default all.

    Raises ValueError for a name that is no metric's, with the nearest one.

    >>> accuracy = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    >>> bt.table({"before": {"metrics": {"accuracy": accuracy}}}, "accuracy", "ways of thinking")
                     accuracy
    before  0.50 [0.25, 0.75]
    """
    rows = {
        model: {
            name: "{value:.2f} [{low:.2f}, {high:.2f}]".format(**metric)
            for name, metric in summary["metrics"].items()
        }
        for model, summary in summaries.items()
    }
    frame = pd.DataFrame(rows).T.fillna("\u2013")
    return frame[present(metrics, summaries)] if metrics else frame
