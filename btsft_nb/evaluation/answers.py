"""Completions -> thought and answer, and whether the answer is right."""

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

ANSWERS = ("exact", "number", "boxed", "choice")
_DECIMAL = (
    r"(?:(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"  # thousands by comma or narrow space
    r"(?:[eE][-+]?\d+)?"
)
# a sign counts where no digit or bracket stands before it: "7-9" holds 7 and 9
_NUMBER = re.compile(
    rf"((?<![\d)\]])[-+])?(?:(\d+) +(?=\d+/\d))?({_DECIMAL})(?: ?/ ?({_DECIMAL}))?"
)
_POWER = re.compile(
    r"(?:(\d)\s*(?:\\times|\\cdot|[x*\u00d7\u00b7])\s*|(?<![\d.,]))10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+))"
)
_FRACTION = re.compile(
    r"(?:(\d) *)?\\[dt]?frac\s*(?:\{\s*([-+]?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"
)

_BRACES = re.compile(
    r"\\boxed\s+([-+]?\d+(?:[.,/]\d+)*|[A-Z]\b)|(\\boxed\s*\{)|\\.|[{}]", re.DOTALL
)
_WRAPPED = re.compile(r"\\(?:text|textbf|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[\d}])\s*\\(?:text|mbox)\s*\{[^{}]*\}\s*$")
_NOISE = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;:$%]|\^\\circ|\^\{\\circ\}|[$%]")
_BARE_FRACTION = re.compile(r"\\frac(?:(\d)(\d)|(\d)(\{[^{}]*\})|(\{[^{}]*\})(\d))")
_EXPRESSION = re.compile(r"[\\^]|[^\d\s.]\s*/\s*\d|\d\s*/\s*[^\d\s.]")

_LETTER = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_MARKUP = re.compile(r"\\[()\[\]]|[*$`]")
_STATED = re.compile(
    r"(?i:\b(?:(?:answer|choice|option)(?:\s+is\b|\s*:|[ \t]*\n)|I\s+choose\b)(?:\s+(?:option|choice)\b)?)[\s:\"']*"
    r"(?:[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Z])(?![\w'\u2019]|[ \t]+(?!(?:or|and|because|since|as)\b)[A-Za-z]))"
    r"(\s*(?:or\b|and\b|[,/&])\s*[(\[]?[A-HJ-Z](?![\w'\u2019]))?"  # a second letter, where none is chosen
)
_LISTED = re.compile(r"^[ \t]*([A-Z])[).:]\s|[(\[]([A-Z])[)\]]", re.MULTILINE)


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
    if (
        not opens
    ):  # what stands before a lone close tag is taken for the thought, else all for the answer
        thought, closes, answer = text.partition("</think>")
        if not closes:
            thought, answer = "", text
    return Parsed(thought.strip(), answer.strip(), problem)


def last_number(text: str) -> float | None:
    """The last number in a text; None where there is none, or it is beyond a float.

    Fractions (1/2, 2 1/2, `\\frac{1}{2}`) and powers of ten (1e5, 10^5, `3 \\times 10^5`) are one number, and so are
    thousands in groups.
    """
    found = list(_NUMBER.finditer(_plain(text)))
    return _value(found[-1]) if found else None


def _plain(text: str) -> str:
    """The text with fractions as 1/2, powers of ten as 1e5, and without TeX's spaces in numbers."""
    text = re.sub(r"\\[,!]", "", text.replace("{,}", ",").replace("\u2212", "-"))
    text = _POWER.sub(lambda m: f"{m[1] or 1}e{m[2] or m[3]}", text)
    return _FRACTION.sub(
        lambda m: f"{m[1] + ' ' if m[1] else ''}{m[2] or m[3]}/{m[4] or m[5]}", text
    )


def _value(number: re.Match) -> float | None:
    sign, whole, over, under = (re.sub(r"[,\s]", "", part or "") for part in number.groups())
    value = (
        float(whole or 0) + float(over) / divisor if (divisor := float(under or 1)) else math.inf
    )
    return float(sign + "1") * value if math.isfinite(value) else None


def boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{...}` whose braces are balanced, or `\\boxed 5`; None where there is none."""
    opened, last = (
        [],
        (-1, None),
    )  # where the content of each open brace starts, or -1 if it is no box
    for found in _BRACES.finditer(text):
        if found[1]:
            last = found.start(1), found[1]
        elif found[2] or found[0] == "{":
            opened.append(found.end() if found[2] else -1)
        elif found[0] == "}" and opened:
            start = opened.pop()
            last = max(last, (start, text[start : found.start()]), key=lambda box: box[0])
    return last[1]


def normalise_latex(latex: str) -> str | float:
    """An answer in LaTeX in the one spelling that it is compared in; a number or a simple fraction as a float.

    In the style of `is_equiv` of Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874: white space, `\\left` and
    `\\right`, dollar, percent and degree signs, a unit in `\\text{...}` behind a number or brace, braces around all,
    a left side `x=` and a final full stop go; `\\dfrac` and `\\tfrac` become `\\frac`, `\\frac12` becomes
    `\\frac{1}{2}`, `\\sqrt2` becomes `\\sqrt{2}`.
    """
    latex = _NOISE.sub("", re.sub(r"~|\\ ", " ", latex).replace("{,}", ",").replace("\u2212", "-"))
    latex = _WRAPPED.sub(r"\1", _UNIT.sub("", latex))
    if latex.startswith("{") and boxed("\\boxed" + latex) == latex[1:-1]:
        latex = latex[1:-1]
    # white space is kept where it parts numbers: 2 1/2 is not 21/2, and 1, 234 is not 1234
    latex = re.sub(r"(?<![\d,])\s|\s(?![\d,])", "", re.sub(r"\s{2,}", " ", latex)).rstrip(".")
    latex = re.sub(r"\\[dt]frac", r"\\frac", latex)
    latex = _BARE_FRACTION.sub(_braced, re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", latex))
    left, equals, right = latex.partition("=")
    if equals and re.fullmatch(r"[A-Za-z]'?", left) and "=" not in right:
        latex = right
    number = _NUMBER.fullmatch(_plain(latex))
    value = number and _value(number)
    return re.sub(r"\s", "", latex) if value is None else value


def _braced(fraction: re.Match) -> str:
    over, under = (part.strip("{}") for part in fraction.groups() if part is not None)
    return f"\\frac{{{over}}}{{{under}}}"


def choice(text: str) -> str | None:
    """The letter that a text chooses, as a capital; None where it names none, or several.

    In this order: the letter of its last box ("B", "B. Paris"); the last "answer is (B)", "Answer: B", "I choose B",
    "choice: (b)"; the whole text ("b", "**B**"); the only letter in brackets or at the start of a line ("(B)",
    "B) Paris").
    """
    bare, inside = (
        _MARKUP.sub("", _WRAPPED.sub(r"\1", part)) for part in (text, boxed(text) or "")
    )
    if letter := _only_letter(inside):
        return letter
    if stated := _STATED.findall(bare):
        bracketed, alone, second = stated[-1]
        return None if second else (bracketed or alone).upper()
    return _only_letter(bare)


def _only_letter(text: str) -> str | None:
    if found := _LETTER.fullmatch(text):
        return found[1].upper()
    letters = {listed or bracketed for listed, bracketed in _LISTED.findall(text)}
    return letters.pop() if len(letters) == 1 else None


def extract(text: str, how: str) -> str | float | None:
    """What a text answers, in the form in which answers are compared; None where it cannot be parsed.

    Args:
        how: "exact", the text, white space folded; "number", the last in its box, else in the text; "boxed", the last
            `\\boxed{...}`, as `normalise_latex` writes it; "choice", a letter.

    Raises ValueError for any other.
    """
    if how == "number":
        inside = last_number(boxed(text) or "")
        return last_number(text) if inside is None else inside
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

    "auto" is "boxed" where the reference, or its last line, is LaTeX or a formula and no number (`\\sqrt{2}`, `x/2`);
    else "number" where it has a number (`\\frac{1}{2}`, "#### 72"); else "exact". With "boxed" a reference without a
    box is taken whole, as the field `answer` of MATH.

    Raises ValueError where the reference has nothing of the kind.
    """
    if how == "auto":
        inside = boxed(reference)
        whole = normalise_latex(inside or reference)
        if isinstance(whole, float):
            return "number", whole
        is_formula = inside or _EXPRESSION.search(reference.strip().rpartition("\n")[2])
        how = "boxed" if is_formula else "exact" if last_number(reference) is None else "number"
    wanted = extract(reference, how)
    if how == "boxed" and wanted is None and reference.strip():
        wanted = normalise_latex(reference)
    if wanted is None:
        raise ValueError(
            f"the reference {reference[:60]!r} has no answer of the kind {how!r}: choose another kind"
        )
    return how, wanted


def is_same(given: str | float | None, wanted: str | float) -> bool:
    """Whether two extracted answers are the same; numbers to nine digits."""
    if isinstance(given, float) and isinstance(wanted, float):
        return math.isclose(given, wanted, rel_tol=1e-9, abs_tol=1e-9)
    return given == wanted


def is_correct(answer: str, reference: str, how: str = "auto") -> bool:
    """Whether an answer equals the reference; one that cannot be parsed does not.

    Args:
        how: as `extract`; "auto" as `right_answer` chooses.

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
