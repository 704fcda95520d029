"""Completions -> thought and answer, and whether the answer is right."""

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

ANSWERS = ("exact", "number", "boxed", "choice")
# a sign counts where no digit or bracket stands before it: "7-9" holds 7 and 9
_NUMBER = re.compile(r"(?:(?<![\d)\]])[-+\u2212])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")

_BRACES = re.compile(r"(\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_WRAPPED = re.compile(r"\\(?:text|textbf|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"\\(?:text|mbox)\s*\{ [^{}]*\}\s*$")
_NOISE = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: $%]|\^\\circ|\^\{\\circ\}|[$%\s~]")
_BARE_FRACTION = re.compile(r"\\frac(?:(\d)(\d)|(\d)(\{[^{}]*\})|(\{[^{}]*\})(\d))")
_FRACTION = re.compile(r"([-+]?)(?:\\frac\{([-+]?\d+)\}\{(\d+)\}|(\d+)/(\d+))")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)")

_LETTER = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_STATED = re.compile(
    r"(?i:\b(?:answer|choice|option)(?:\s+is\b|\s*:)(?:\s+(?:option|choice)\b)?)[\s:*$\"'`]*"
    r"(?:[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Z])(?![\w']))"
)
_LISTED = re.compile(r"^[ \t*]*([A-Z])[).:]\s|[(\[]([A-Z])[)\]]", re.MULTILINE)


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
    """The last number in a text, thousands separators removed; None where there is none, or it is beyond a float."""
    found = _NUMBER.findall(text)
    number = float(found[-1].replace(",", "").replace("\u2212", "-")) if found else math.inf
    return number if math.isfinite(number) else None


def boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{...}` whose braces are balanced; None where there is none."""
    opened, last = [], (-1, None)  # where the content of each open brace starts, or -1 if it is no box
    for found in _BRACES.finditer(text):
        if found[1] or found[0] == "{":
            opened.append(found.end() if found[1] else -1)
        elif found[0] == "}" and opened:
            start = opened.pop()
            last = max(last, (start, text[start : found.start()]), key=lambda box: box[0])
    return last[1]


def normalise_latex(latex: str) -> str | float:
    """An answer in LaTeX in the one spelling that it is compared in; a number or a simple fraction as a float.

    In the style of `is_equiv` of Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874: white space, `\\left` and
    `\\right`, dollar, percent and degree signs, units in `\\text{ ...}`, a left side `x=` and a final full stop go;
    `\\dfrac` and `\\tfrac` become `\\frac`, `\\frac12` becomes `\\frac{1}{2}`, `\\sqrt2` becomes `\\sqrt{2}`.
    """
    latex = _WRAPPED.sub(r"\1", _UNIT.sub("", latex)).replace("{,}", ",").replace("\u2212", "-")
    latex = re.sub(r"\\[dt]frac", r"\\frac", _NOISE.sub("", latex)).rstrip(".")
    latex = _BARE_FRACTION.sub(_braced, re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", latex))
    left, equals, right = latex.partition("=")
    if equals and len(left) <= 2 and "=" not in right:
        latex = right
    value = math.inf
    if _PLAIN_NUMBER.fullmatch(latex):
        value = float(latex.replace(",", ""))
    elif found := _FRACTION.fullmatch(latex):
        over, under = (float(found[2] or found[4]), float(found[3] or found[5]))
        value = (-1 if found[1] == "-" else 1) * over / under if under else math.inf
    return value if math.isfinite(value) else latex


def _braced(fraction: re.Match) -> str:
    over, under = (part.strip("{}") for part in fraction.groups() if part is not None)
    return f"\\frac{{{over}}}{{{under}}}"


def choice(text: str) -> str | None:
    """The letter that a text chooses, as a capital; None where it names none, or several.

    In this order: the letter in its last box; in the last "answer is (B)", "Answer: B", "choice: (b)"; the whole text
    ("b", "**B**"); the only letter in brackets or at the start of a line ("(B)", "B) Paris").
    """
    whole = _LETTER.fullmatch(_WRAPPED.sub(r"\1", boxed(text) or ""))
    stated = [bracketed or bare for bracketed, bare in _STATED.findall(text)]
    if whole or stated:
        return (whole[1] if whole else stated[-1]).upper()
    if found := _LETTER.fullmatch(text):
        return found[1].upper()
    letters = {listed or bracketed for listed, bracketed in _LISTED.findall(text)}
    return letters.pop() if len(letters) == 1 else None


def extract(text: str, how: str) -> str | float | None:
    """What a text answers, in the form in which answers are compared; None where it cannot be parsed.

    Args:
        how: "exact", the text, white space folded; "number", the last number; "boxed", the last `\\boxed{...}`, as
            `normalise_latex` writes it; "choice", a letter.

    Raises ValueError for any other.
    """
    if how == "number":
        return last_number(text)
    if how == "boxed":
        found = boxed(text)
        return normalise_latex(found) if found and found.strip() else None
    if how == "choice":
        return choice(text)
    if how == "exact":
        return " ".join(text.split()) or None
    raise ValueError(f"answer={how!r}: one of {('auto', *ANSWERS)} wanted")


def right_answer(reference: str, how: str = "auto") -> tuple[str, str | float]:
    """How answers are compared with a reference, one of ANSWERS, and the reference in that form.

    "auto" is "number" where the reference has a number, else "exact". With "boxed" a reference without a box is taken
    whole, as the field `answer` of MATH.

    Raises ValueError where the reference has nothing of the kind.
    """
    if how == "auto":
        how = "exact" if last_number(reference) is None else "number"
    wanted = extract(reference, how)
    if how == "boxed" and wanted is None and reference.strip():
        wanted = normalise_latex(reference)
    if wanted is None:
        raise ValueError(f"the reference {reference[:60]!r} has no answer of the kind {how!r}: choose another kind")
    return how, wanted


def is_same(given: str | float | None, wanted: str | float) -> bool:
    """Whether two extracted answers are the same; numbers to nine digits."""
    if isinstance(given, float) and isinstance(wanted, float):
        return math.isclose(given, wanted, rel_tol=1e-9, abs_tol=1e-9)
    return given == wanted


def is_correct(answer: str, reference: str, how: str = "auto") -> bool:
    """Whether an answer equals the reference; one that cannot be parsed does not.

    Args:
        how: as `extract`; "auto" takes the last number where the reference has one, else the words.

    Raises ValueError where the reference itself cannot be parsed so.
    """
    how, wanted = right_answer(reference, how)
    return is_same(extract(answer, how), wanted)


def majority(answers: Sequence[Hashable | None]) -> Hashable | None:
    """The most frequent of the answers that are not None, of equally frequent ones the first; None without any.

    Self-consistency: Wang et al. 2022, https://arxiv.org/abs/2203.11171.
    """
    return next(iter(dict(Counter(a for a in answers if a is not None).most_common(1))), None)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate of the chance that one of k samples is right, from n samples of which `correct` are.

    1 - C(n - c, k) / C(n, k); Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1.
    """
    if not 0 < k <= n:
        raise ValueError(f"k={k}: 1 to n={n} wanted")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)
