"""Means over prompts and ratios of sums over prompts, each with its count and a bootstrap interval over prompts.

Intervals are 95 % percentile intervals: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
"""

from collections.abc import Callable, Sequence

import numpy as np


def interval(values: Sequence[float | None]) -> dict | None:
    """The mean of per-prompt values: `{"value", "low", "high", "n"}`, n the prompts that have one; None without any.

    >>> interval([1, 1, None, 1])
    {'value': 1.0, 'low': 1.0, 'high': 1.0, 'n': 3}
    """
    present = [value for value in values if value is not None]
    if not present:
        return None
    return sums_interval([[value] for value in present], lambda sums: sums[0] / len(present))


def sums_interval(
    sums: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], float]
) -> dict:
    """A statistic of sums over prompts, as corpus BLEU and perplexity are.

    Args:
        sums: (P, K) what each prompt adds to each of K sums.
        statistic: (K,) sums over all prompts -> a number.

    Returns:
        `{"value", "low", "high", "n"}`, n = P.

    Raises:
        ValueError: there are no prompts.

    >>> right_and_all = [[4, 8], [4, 8]]
    >>> sums_interval(right_and_all, lambda sums: sums[0] / sums[1])
    {'value': 0.5, 'low': 0.5, 'high': 0.5, 'n': 2}
    """
    sums = np.asarray(sums, dtype=float)
    n = len(sums)
    if not n:
        raise ValueError("an interval needs at least one prompt, got none")
    rng = np.random.default_rng(0)
    drawn = []
    # 2,000 in parts, since those of many prompts would fill the memory
    for _ in range(40):
        picks = rng.integers(n, size=(50, n))
        drawn += [statistic(total) for total in sums[picks].sum(axis=1)]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return {"value": float(statistic(sums.sum(0))), "low": low, "high": high, "n": n}


def paired_difference(values_a: Sequence[float | None], values_b: Sequence[float | None]) -> dict:
    """The mean of b - a over the prompts where both have a value, as `interval`: two models on the same prompts.

    What varies from prompt to prompt in both cancels, so this interval is narrower than those of a and b suggest.

    Args:
        values_a, values_b: a value or None for each prompt, as in `evaluate(...)["values"]`.

    Raises:
        ValueError: the numbers of prompts differ, or no prompt has both values.

    >>> paired_difference([0.25, 0.5, None], [0.5, 0.75, 1.0])
    {'value': 0.25, 'low': 0.25, 'high': 0.25, 'n': 2}
    """
    pairs = zip(values_a, values_b, strict=True)
    difference = interval([None if a is None or b is None else b - a for a, b in pairs])
    if difference is None:
        raise ValueError(f"none of the {len(values_a)} prompts has both values")
    return difference
