"""Samples + references -> a summary: each metric with its interval over prompts; summaries -> a table."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import pandas as pd

from .metrics import bootstrap, is_correct, parse, pass_at_k, unique_share


def evaluate(samples: list[dict], references: Sequence[str], way_of: Callable[[str], str | None] | None = None) -> dict:
    """Measures samples, as `sample` returns them, against the right answer of each prompt.

    Args:
        references: the right answer of each prompt, in the order of the prompts.
        way_of: names the way of thinking that a thought follows, where that can be told.

    Returns:
        `metrics`: name -> `{"value", "low", "high"}`, the mean over prompts and its 95 % bootstrap interval, for
        `compliance`, `unique thoughts`, `ways of thinking` (the number of ways among a prompt's samples), `accuracy`
        and `pass@n`; `problems`: what is wrong with the format -> completions; `ways`: way -> completions;
        `prompts` and `samples`: how many.

    Raises ValueError where prompts and references do not match, or prompts have unequal numbers of samples.
    """
    by_prompt = defaultdict(list)
    for record in samples:
        by_prompt[record["prompt"]].append(record)
    prompts, sizes = list(by_prompt.values()), {len(group) for group in by_prompt.values()}
    if len(sizes) != 1:
        raise ValueError(f"every prompt needs the same number of samples, got {sorted(sizes)}")
    if sorted(by_prompt) != list(range(len(references))):
        raise ValueError(f"{len(references)} references for {len(prompts)} prompts up to number {max(by_prompt)}")
    n = sizes.pop()
    values, problems, ways = {}, Counter(), Counter()
    for group in prompts:
        parsed = [parse(r["text"], prefilled=r["prefilled"], finished=r["finished"]) for r in group]
        right = [is_correct(p.answer, references[group[0]["prompt"]]) for p in parsed]
        row = {
            "compliance": sum(p.problem is None for p in parsed) / n,
            "unique thoughts": unique_share([p.thought for p in parsed]),
            "accuracy": sum(right) / n,
            f"pass@{n}": pass_at_k(n, sum(right), n),
        }
        if way_of:
            followed = [way_of(p.thought) for p in parsed]
            row["ways of thinking"] = len(set(followed) - {None})
            ways.update(way or "other" for way in followed)
        problems.update(p.problem for p in parsed if p.problem)
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    metrics = {name: dict(zip(("value", "low", "high"), bootstrap(v), strict=True)) for name, v in values.items()}
    return {
        "metrics": metrics,
        "problems": dict(problems.most_common()),
        "ways": dict(ways.most_common()),
        "prompts": len(prompts),
        "samples": len(samples),
    }


def table(summaries: dict[str, dict]) -> pd.DataFrame:
    """Summaries by model -> a table of `value [low, high]`, a row for each model."""
    rows = {
        model: {name: "{value:.2f} [{low:.2f}, {high:.2f}]".format(**m) for name, m in summary["metrics"].items()}
        for model, summary in summaries.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
