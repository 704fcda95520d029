"""What a set of completions is worth: pure functions of texts and numbers."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# a sign counts where no digit or bracket stands before it: "7-9" holds 7 and 9
_NUMBER = re.compile(r"(?:(?<![\d)\]])[-+\u2212])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class Parsed:
    """A completion cut into thought and answer. `problem` names the first thing wrong with its format, or is None."""

    thought: str
    answer: str
    problem: str | None


def parse(text: str, *, prefilled: bool = False, finished: bool = True) -> Parsed:
    """Checks a completion against the strict think format.

    That is: `<think>` first, a thought that is not empty, `</think>`, an answer that is not empty, and no other tag.
    Where the prompt already holds the open tag (`prefilled`), the completion starts inside the thought. A completion
    that was cut off by its length (`finished=False`) is told apart from one that broke the format.
    """
    text = "<think>" + text if prefilled else text
    before, opens, rest = text.partition("<think>")
    thought, closes, answer = rest.partition("</think>")
    problems = {
        "no open tag": not opens,
        "text before the thought": bool(before.strip()),
        "cut off": not finished,
        "no close tag": not closes,
        "more than one open tag": text.count("<think>") > 1,
        "more than one close tag": text.count("</think>") > 1,
        "empty thought": not thought.strip(),
        "no answer": not answer.strip(),
    }
    problem = next((name for name, is_so in problems.items() if is_so), None)
    if not opens:  # what stands before a lone close tag is taken for the thought, else all for the answer
        thought, closes, answer = text.partition("</think>")
        if not closes:
            thought, answer = "", text
    return Parsed(thought.strip(), answer.strip(), problem)


def last_number(text: str) -> float | None:
    """The last number in a text, thousands separators removed; None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def is_correct(answer: str, reference: str) -> bool:
    """Whether an answer equals the reference: by its last number where the reference has one, else by its words."""
    wanted = last_number(reference)
    if wanted is None:
        return answer.split() == reference.split()
    given = last_number(answer)
    return given is not None and math.isclose(given, wanted, rel_tol=1e-9, abs_tol=1e-9)


def unique_share(texts: Sequence[str]) -> float:
    """Distinct texts over all texts, white space folded: 1/n where all n are the same, 1 where none are."""
    return len({" ".join(text.split()) for text in texts}) / len(texts)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate of the chance that one of k samples is right, from n samples of which `correct` are.

    1 - C(n - c, k) / C(n, k); Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1.
    """
    if not 0 < k <= n:
        raise ValueError(f"k={k}: 1 to n={n} wanted")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def bootstrap(
    values: Sequence[float], statistic: Callable = np.mean, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of per-prompt values and its 95 % percentile interval over resampled prompts."""
    values = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(statistic(values[picks], axis=1), [2.5, 97.5])
    return float(statistic(values)), float(low), float(high)
