"""Samples + references -> a summary: each metric with its interval over prompts; summaries -> a table."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby

import pandas as pd

from .answers import Parsed, extract, is_same, majority, parse, pass_at_k, right_answer
from .diversity import (
    copied_ngrams,
    copied_run,
    distinct_n,
    run_lengths,
    self_bleu,
    unique_share,
    way_entropy,
)
from .intervals import interval
from .text_scores import bleu, rouge


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
        answer: how answers are read and compared: "auto", "exact", "number", "boxed" or "choice", see
            `metrics.is_correct`.
        training: the texts of training thoughts, to tell what was copied from them.
        text_scores: also compare answers with references as texts.

    Returns:
        `metrics`: name -> `{"value", "low", "high", "n"}`, the mean over the n prompts that have a value and its 95 %
        bootstrap interval; a metric without any is left out. Each is a share of a prompt's samples, if nothing else
        is said:

        - `compliance` with the format; `cut off`, whatever else is wrong with them.
        - of the thoughts that are there, where there are any: `unique thoughts`; `distinct-2`, of their word pairs;
          with two samples or more `self-BLEU`, 0 to 1. A missing or empty thought counts in `compliance` alone.
        - with `way_of`: `ways of thinking`, their number, and `way entropy`, in bits.
        - with `references`: `accuracy`; `pass@n`; `majority`, whether the most frequent answer is right.
        - with `text_scores`: `bleu`, `rouge1`, `rouge2` and `rougeL` of the answers, see `metrics.bleu` and `.rouge`;
          they are in `metrics` alone.
        - with `training`: `copied run`, words of a thought's longest run that stands in a training thought too, over
          its words, and `training 4-grams`, the share of its word 4-grams that do; means over samples.

        `values`: name -> a value or None for each prompt; `problems`: what is wrong with the format -> completions;
        `ways`: way -> completions; `unparsed`: answers in which nothing of the kind was found, all counted as wrong,
        None without references; `prompts` and `samples`: how many.

    Raises ValueError where prompts and references do not match, prompts have unequal numbers of samples, a reference
    has no answer of the kind, or `text_scores` has no references.
    """
    if text_scores and references is None:
        raise ValueError("text_scores compares answers with references, and there are none")
    groups = _by_prompt(samples, references)
    parsed = [
        [parse(r["text"], prefilled=r["prefilled"], finished=r["finished"]) for r in group]
        for group in groups
    ]
    thoughts = [[p.thought for p in group] for group in parsed]
    ways = [[way_of(thought) for thought in group] for group in thoughts] if way_of else []
    rows = [_format(*pair) for pair in zip(groups, parsed, strict=True)]
    unparsed = None if references is None else 0
    for i, row in enumerate(rows):
        row |= _diversity(thoughts[i], ways[i] if ways else None)
        if references is not None:
            judged, lacking = _accuracy([p.answer for p in parsed[i]], references[i], answer)
            row |= judged
            unparsed += lacking
    if training is not None:
        rows = [row | copied for row, copied in zip(rows, _copied(thoughts, training), strict=True)]
    values = {name: [row[name] for row in rows] for name in rows[0]}
    metrics = {name: found for name, column in values.items() if (found := interval(column))}
    if text_scores:
        answers = [[p.answer for p in group] for group in parsed]
        metrics |= {"bleu": bleu(answers, references)} | rouge(answers, references)
    return {
        "metrics": metrics,
        "values": values,
        "problems": dict(
            Counter(p.problem for group in parsed for p in group if p.problem).most_common()
        ),
        "ways": dict(Counter(way or "other" for group in ways for way in group).most_common()),
        "unparsed": unparsed,
        "prompts": len(groups),
        "samples": len(samples),
    }


def _by_prompt(samples: list[dict], references: Sequence[str] | None) -> list[list[dict]]:
    """The samples of each prompt, in the order of prompts and of samples."""
    sizes = Counter(record["prompt"] for record in samples)
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"every prompt needs the same number of samples, got {sorted(set(sizes.values()))}"
        )
    if references is not None and sorted(sizes) != list(range(len(references))):
        raise ValueError(
            f"{len(references)} references for {len(sizes)} prompts up to number {max(sizes)}"
        )
    ordered = sorted(samples, key=lambda record: (record["prompt"], record["sample"]))
    return [list(group) for _, group in groupby(ordered, lambda record: record["prompt"])]


def _format(group: list[dict], parsed: list[Parsed]) -> dict[str, float]:
    """The metrics of a prompt's format."""
    return {
        "compliance": sum(p.problem is None for p in parsed) / len(group),
        "cut off": sum(not record["finished"] for record in group) / len(group),
    }


def _diversity(thoughts: list[str], ways: list[str | None] | None) -> dict[str, float | None]:
    """The metrics of how much a prompt's thoughts differ."""
    there = [thought for thought in thoughts if thought]
    row = {
        "unique thoughts": unique_share(there) if there else None,
        "distinct-2": distinct_n(there, 2),
    }
    if len(thoughts) > 1:
        row["self-BLEU"] = self_bleu(there)
    if ways:
        row |= {"ways of thinking": len(set(ways) - {None}), "way entropy": way_entropy(ways)}
    return row


def _accuracy(answers: list[str], reference: str, how: str) -> tuple[dict[str, float], int]:
    """The metrics of a prompt's answers, and how many could not be parsed."""
    how, wanted = right_answer(reference, how)
    given, n = [extract(answer, how) for answer in answers], len(answers)
    right = sum(is_same(found, wanted) for found in given)
    row = {"accuracy": right / n, f"pass@{n}": pass_at_k(n, right, n)}
    return row | {"majority": float(is_same(majority(given), wanted))}, given.count(None)


def _copied(thoughts: list[list[str]], training: Sequence[str]) -> list[dict[str, float | None]]:
    """The metrics of each prompt's overlap with the training thoughts."""
    runs = iter(run_lengths([thought for group in thoughts for thought in group], training))
    rows = []
    for group in thoughts:
        found, row = [next(runs) for _ in group], {}
        for name, measure in (("copied run", copied_run), ("training 4-grams", copied_ngrams)):
            known = [value for one in found if (value := measure(one)) is not None]
            row[name] = sum(known) / len(known) if known else None
        rows.append(row)
    return rows


def given_answer(row: dict | str) -> object:
    """The field `answer` of a row, or `Answer`; None without one."""
    return (
        next((row[key] for key in ("answer", "Answer") if key in row), None)
        if isinstance(row, dict)
        else None
    )


def references_of(rows: Sequence[dict | str], how: str) -> list[str] | None:
    """The field `answer` of each row, None where no row has one.

    Raises ValueError, by row, where only some rows have one, or one has no answer of the kind `how`.
    """
    answers, source = [given_answer(row) for row in rows], getattr(rows, "source", "rows")
    absent = [i for i, answer in enumerate(answers) if answer is None]
    if absent and len(absent) < len(rows):
        raise ValueError(
            f"{source}: {len(absent)} of {len(rows)} rows lack the field answer, first row {absent[0]}; fill it, "
            "or take it from all rows, and nothing that needs one is measured"
        )
    if absent:
        return None
    for i, answer in enumerate(answers):
        try:
            right_answer(str(answer), how)
        except ValueError as error:
            raise ValueError(f"{source}, row {i}: {error}") from None
    return [str(answer) for answer in answers]


def table(summaries: dict[str, dict]) -> pd.DataFrame:
    """Summaries by model -> a table of `value [low, high]`, a row for each model."""
    rows = {
        model: {
            name: "{value:.2f} [{low:.2f}, {high:.2f}]".format(**m)
            for name, m in summary["metrics"].items()
        }
        for model, summary in summaries.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
