"""Means of per-prompt values and ratios of per-prompt sums, each with its count and a bootstrap interval over prompts.

Intervals are 95 % percentile intervals: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
"""

from collections.abc import Callable, Sequence

import numpy as np

_DRAWS = 2000


def interval(values: Sequence[float | None]) -> dict | None:
    """The mean of per-prompt values: `{"value", "low", "high", "n"}`, n the prompts that have one; None without any."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not len(known):
        return None
    picks = np.random.default_rng(0).integers(len(known), size=(_DRAWS, len(known)))
    return _summary(known.mean(), known[picks].mean(axis=1), len(known))


def _summary(value: float, drawn: Sequence[float], n: int) -> dict:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high), "n": n}


def sums_interval(
    sums: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], float]
) -> dict:
    """A statistic of sums over prompts, as corpus BLEU and perplexity are.

    Args:
        sums: (P, K) what each prompt adds to each of K sums.
        statistic: (K,) sums over all prompts -> a number.

    Returns:
        `{"value", "low", "high", "n"}`, n = P.

    Raises ValueError where there are no prompts.
    """
    sums = np.asarray(sums, dtype=float)
    if not len(sums):
        raise ValueError("no sums to resample: a row for each of one or more prompts wanted")
    times = np.random.default_rng(0).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=_DRAWS
    )
    return _summary(statistic(sums.sum(0)), [statistic(drawn) for drawn in times @ sums], len(sums))


def paired_difference(values_a: Sequence[float | None], values_b: Sequence[float | None]) -> dict:
    """The mean of b - a over the prompts where both have a value, as `interval`: two models on the same prompts.

    What varies from prompt to prompt in both cancels, so this interval is narrower than those of a and b suggest.

    Args:
        values_a, values_b: a value or None for each prompt, as in `evaluate(...)["values"]`.

    Raises ValueError where the numbers of prompts differ, or no prompt has both.
    """
    if len(values_a) != len(values_b):
        raise ValueError(
            f"values of {len(values_a)} and of {len(values_b)} prompts: the same prompts wanted"
        )
    pairs = zip(values_a, values_b, strict=True)
    found = interval([None if a is None or b is None else b - a for a, b in pairs])
    if found is None:
        raise ValueError(f"none of {len(values_a)} prompts has both values")
    return found
