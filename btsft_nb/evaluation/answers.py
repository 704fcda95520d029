"""Completions -> thought and answer, and whether the answer is right."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from ..data import think
from .formulas import Formula, are_equal, read_formula

ANSWERS = ("exact", "word", "number", "choice", "math", "boxed")

_DECIMAL = (
    r"(?:(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"  # grouped thousands
    r"(?:[eE][-+]?\d{1,3}(?!\d))?"
)
# a sign counts where no digit or bracket stands before it: "7-9" holds 7 and 9
_NUMBER = re.compile(
    rf"((?<![\d)\]])[-+])?(?:(\d+) +(?=\d+/\d))?({_DECIMAL})(?: ?/ ?({_DECIMAL}))?"
)
# $...$, \\(...\\), \\[...\\], and what has LaTeX in it up to the next space
_FORMULA = re.compile(
    r"(?<!\\)\$(?:\\.|[^$\\\n])*\$|\\\(.*?\\\)|\\\[.*?\\\]|(?<!\S)[^\s\\^]*+(?:\\[A-Za-z]|\^)\S*",
    re.DOTALL,
)
# what holds numbers and is none: 9:30, 2024-03-05, H2O, x < 4, (1, 4)
_COMPOUND = re.compile(
    r"\d+(?::\d+)+|\d+(?:[-/]\d+){2,}|[^\W\d_]+\d\S*|[<>\u2264\u2265]=?\s*[-+]?\d\S*"
    r"|[(\[{][^()\[\]{}\n]{0,60}?\d\s*,(?!\d{3}\b)\s*[-+]?\d[^()\[\]{}\n]{0,60}[)\]}]"
)
_TOKEN = re.compile(f"({_FORMULA.pattern})|({_COMPOUND.pattern})|{_NUMBER.pattern}", re.DOTALL)

_BRACES = re.compile(
    r"\\boxed\s+([-+]?\d+(?:[.,/]\d+)*|[A-Z]\b)|(\\boxed\s*\{)|\\.|[{}]", re.DOTALL
)
_MARKUP = re.compile(r"\\(?:text|textbf|mbox|mathrm|mathbf)\s*\{([^{}]*)\}|\\[()\[\]]|[*$`]")
# what follows "answer is", up to the end of the sentence or its reason
_STATEMENT = re.compile(
    r"(?:####|(?i:\b(?:answer|choice|option)(?:\s+is\b|[*\s]*:|[ \t]*\n)|\bI\s+choose\b))"
    r"[:*\s]*(?:(?i:option|choice)\s)?(.+?)(?:\.\s|,?\s(?:because|since|as)\b|$)",
    re.MULTILINE,
)
_LETTER = re.compile(r"[\s(\[{\"'.:]*([A-Za-z])[\s)\]}\"'.:]*")
_LISTED = re.compile(r"^[ \t]*([A-Z])[).:]\s|[(\[]([A-Z])[)\]]", re.MULTILINE)


@dataclass(frozen=True)
class Parsed:
    """A completion cut into thought and answer, and the first thing wrong with its format, or None."""

    thought: str
    answer: str
    problem: str | None


def parse(text: str, *, prefilled: bool = False, finished: bool = True) -> Parsed:
    """Checks a completion against the strict think format.

    That is `<think>`, a thought that is not empty, `</think>`, an answer that is not empty, and no other tag.

    Args:
        prefilled: the prompt ended in the open tag, so the completion starts inside the thought.
        finished: False for a completion that was cut off by its length.

    >>> parse("<think>3 + 4</think>7")
    Parsed(thought='3 + 4', answer='7', problem=None)
    """
    parts = think.split(think.OPEN + text if prefilled else text)
    thought = parts.thought.strip()
    answer = parts.answer.strip()
    problems = {
        "no open tag": not parts.open_tag,
        "text before the thought": parts.before.strip(),
        "cut off": not finished,
        "no close tag": not parts.close_tag,
        "more than one open tag": parts.extra_opens,
        "more than one close tag": parts.extra_closes,
        "empty thought": not thought,
        "no answer": not answer,
    }
    problem = next((name for name, is_so in problems.items() if is_so), None)
    return Parsed(thought, answer, problem)


def parse_record(record: dict) -> Parsed:
    """`parse` of a record of `sample`."""
    return parse(record["text"], prefilled=record["prefilled"], finished=record["finished"])


# ---------------------------------------------------------------------------------------------- reading


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` whose braces are balanced, or `\boxed 5`; None without one.

    >>> boxed(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    open_braces = []  # where the content of each begins; -1 for a brace that opens no box
    start = -1
    content = None
    for match in _BRACES.finditer(text):
        if match[1]:
            start = match.start(1)
            content = match[1]
        elif match[2] or match[0] == "{":
            open_braces.append(match.end() if match[2] else -1)
        elif match[0] == "}" and open_braces:
            begin = open_braces.pop()
            if begin > start:
                start = begin
                content = text[begin : match.start()]
    return content


def extract(text: str, how: str) -> str | Fraction | Formula | None:
    """What a text answers, in the form in which answers are compared; None where nothing of the kind is found.

    Args:
        how: "exact", the text, white space folded; "word", its box, or what follows "answer is", or all of it, in any
            case; "number", that of its box, else the last; "choice", a letter; "math", its box or last formula;
            "boxed", only its last `\\boxed{...}`.

    >>> extract("The answer is (B).", "choice"), extract("It is 1,000.", "number")
    ('B', Fraction(1000, 1))
    """
    if how == "exact":
        return " ".join(text.split()) or None
    if how == "choice":
        return _letter(_final_part(text))
    if how == "word":
        return _words(_final_part(text))
    if how not in ANSWERS:
        raise ValueError(f"answer must be one of {('auto', *ANSWERS)}, got {how!r}")
    inside = boxed(text)
    if inside is not None:
        return _mathematics(inside)
    if how == "number":
        return _last_number(text)
    if how == "boxed":
        return None
    part = _final_part(text)
    formulas = _FORMULA.findall(part)
    return _mathematics(formulas[-1] if formulas else part)


def _final_part(text):
    """What a text gives as its answer: its box, else what follows "answer is" or "####", else all of it."""
    inside = boxed(text)
    if inside is not None:
        return inside
    statements = _STATEMENT.findall(text)
    return statements[-1] if statements else text


def _words(text):
    """A text without what sets it off: case, markup, white space, punctuation around it. None for nothing."""
    return " ".join(_MARKUP.sub(r"\1", text).casefold().split()).strip(" .,;:!\"'") or None


def _mathematics(text):
    """The number or formula that all of a text is, else its words."""
    text = _plain_signs(text)
    number = _NUMBER.fullmatch(text.strip("$* \n").removesuffix("."))
    value = _fraction(*number.groups()) if number else read_formula(text)
    return _words(text) if value is None else value


def _plain_signs(text):
    return text.replace("{,}", ",").replace("\u2212", "-")


def _last_number(text):
    """The number or formula that a text ends with; None where its last number is part of something else."""
    tokens = _TOKEN.findall(_plain_signs(text))
    if not tokens:
        return None
    formula, compound, *number = tokens[-1]
    if formula:
        return _mathematics(formula)
    return None if compound else _fraction(*number)


def _fraction(sign, whole, over, under):
    """The Fraction that the groups of `_NUMBER` stand for; None where that is none."""
    try:
        whole, over, under = (re.sub(r"[,\s]", "", part or "") for part in (whole, over, under))
        value = Fraction(whole or 0) + Fraction(over) / Fraction(under or 1)
    except (ValueError, ZeroDivisionError):  # more digits than Python reads, or 1/0
        return None
    return -value if sign == "-" else value


def _letter(text):
    """The only letter of a text (b, **B**), in brackets, or at the start of a line (B. Paris), as a capital."""
    text = _MARKUP.sub(r"\1", text)
    letter = _LETTER.fullmatch(text)
    if letter:
        return letter[1].upper()
    letters = {listed or bracketed for listed, bracketed in _LISTED.findall(text)}
    return letters.pop() if len(letters) == 1 else None


# ---------------------------------------------------------------------------------------------- judging


class RightAnswer(NamedTuple):
    """How answers are compared with a reference, one of ANSWERS, and the reference in that form."""

    how: str
    value: str | Fraction | Formula


def right_answer(reference, how="auto") -> RightAnswer:
    r"""Reads a reference.

    "auto" takes it (or what follows "####", or its box) for a "choice" where it is a lone letter, for a "number" where
    all of it is one, for "math" where math-verify reads it (`\sqrt{2}`, (1, 2), 5 cm, x < 3), else for a "word".

    Raises:
        ValueError: the reference has nothing of the kind.
    """
    part = _final_part(reference)
    if how == "auto" and _LETTER.fullmatch(_words(part) or ""):
        how = "choice"
    value = _mathematics(part) if how in ("auto", "boxed") else extract(reference, how)
    if value is None:
        raise ValueError(f"the reference {reference[:60]!r} has no answer of the kind {how!r}")
    if how == "auto":
        how = {Fraction: "number", Formula: "math", str: "word"}[type(value)]
    return RightAnswer(how, value)


def compare(given, wanted) -> bool | None:
    """Whether two extracted answers are the same; None where they cannot be compared.

    Whole numbers are compared exactly, others to nine significant digits, formulas by math-verify.
    """
    if given is None or (isinstance(given, str) and not isinstance(wanted, str)):
        return None
    if isinstance(wanted, str):
        return given == wanted
    if Formula in (type(given), type(wanted)):
        return are_equal(given, wanted)
    if given.denominator == wanted.denominator == 1:
        return given == wanted
    return abs(given - wanted) <= max(abs(given), abs(wanted)) / 10**9


def is_correct(answer: str, reference: str, how: str = "auto") -> bool:
    r"""Whether an answer equals the reference; one that cannot be compared with it does not.

    Args:
        how: as `extract`; "auto" as `right_answer` chooses.

    Raises:
        ValueError: the reference itself cannot be read so.

    >>> is_correct("6 * 7 = 42", "42"), is_correct("(3, 4)", "(1, 4)"), is_correct(r"\boxed{\sqrt{8}}", r"2\sqrt2")
    (True, False, True)
    """
    right = right_answer(reference, how)
    return bool(compare(extract(answer, right.how), right.value))


def majority(answers: Sequence) -> object:
    """The most frequent of the answers that are not None, of equally frequent ones the first; None without any.

    Self-consistency: Wang et al. 2022, https://arxiv.org/abs/2203.11171.

    >>> majority([7, 5, None, 5])
    5
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.get, default=None)
