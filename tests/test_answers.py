"""Completions parsed and answers judged; the majority; other format checks on what they get wrong."""

import re
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import math_verify.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import think_format_reward

from btsft_nb.evaluation.answers import compare, right_answer
from btsft_nb.evaluation.metrics import (
    Parsed,
    boxed,
    extract,
    is_correct,
    majority,
    parse,
)

PARSED = {
    "fits": ("<think>a</think>b", {}, Parsed("a", "b", None)),
    "fits on lines": ("\n<think>\na\n</think>\n\nb\n", {}, Parsed("a", "b", None)),
    "empty": ("", {}, Parsed("", "", "no open tag")),
    "no tags": ("just b", {}, Parsed("", "just b", "no open tag")),
    "lone close": ("a</think>b", {}, Parsed("a", "b", "no open tag")),
    "no close": ("<think>a and b", {}, Parsed("a and b", "", "no close tag")),
    "empty thought": ("<think></think>b", {}, Parsed("", "b", "empty thought")),
    "blank thought": ("<think> \n\t</think>b", {}, Parsed("", "b", "empty thought")),
    "no answer": ("<think>a</think>", {}, Parsed("a", "", "no answer")),
    "blank answer": ("<think>a</think> \n", {}, Parsed("a", "", "no answer")),
    "text before": ("Sure. <think>a</think>b", {}, Parsed("a", "b", "text before the thought")),
    "close first": ("</think><think>a</think>b", {}, Parsed("a", "b", "text before the thought")),
    "second close": ("<think>a</think>b</think>c", {}, Parsed("a", "b</think>c", "more than one close tag")),
    "second open": ("<think>a</think>b<think>c", {}, Parsed("a", "b<think>c", "more than one open tag")),
    "second thought": (
        "<think>a</think><think>b</think>c", {}, Parsed("a", "<think>b</think>c", "more than one open tag")
    ),
    "nested": ("<think>a<think>b</think>c</think>d", {}, Parsed("a<think>b", "c</think>d", "more than one open tag")),
    "other case": ("<THINK>a</THINK>b", {}, Parsed("", "<THINK>a</THINK>b", "no open tag")),
    "prefilled": ("a</think>b", {"prefilled": True}, Parsed("a", "b", None)),
    "prefilled, opened again": (
        "<think>a</think>b", {"prefilled": True}, Parsed("<think>a", "b", "more than one open tag")
    ),
    "prefilled, empty thought": ("</think>b", {"prefilled": True}, Parsed("", "b", "empty thought")),
    "prefilled, no close": ("a and b", {"prefilled": True}, Parsed("a and b", "", "no close tag")),
    "cut off in the thought": ("<think>a", {"finished": False}, Parsed("a", "", "cut off")),
    "cut off in the answer": ("<think>a</think>b", {"finished": False}, Parsed("a", "b", "cut off")),
    "prefilled, cut off": ("a", {"prefilled": True, "finished": False}, Parsed("a", "", "cut off")),
}  # fmt: skip


@pytest.mark.parametrize(("text", "options", "parsed"), PARSED.values(), ids=PARSED)
def test_parse(text, options, parsed):
    """The strict grammar, thought and answer, and the first thing that is wrong."""
    assert parse(text, **options) == parsed


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " "]), max_size=8).map("".join),
    st.booleans(),
)
def test_a_text_complies_exactly_where_the_grammar_says_so(text, prefilled):
    """Against the grammar written another way."""
    whole = "<think>" + text if prefilled else text
    tags = [
        tag
        for tag in whole.replace("<think>", "|(|").replace("</think>", "|)|").split("|")
        if tag in ("(", ")")
    ]
    fits = tags == ["(", ")"] and whole.lstrip().startswith("<think>")
    fits = fits and all(part.strip() for part in whole.lstrip()[len("<think>") :].split("</think>"))
    assert (parse(text, prefilled=prefilled).problem is None) == fits


@given(st.text(max_size=30), st.booleans(), st.booleans())
def test_parse_takes_any_text(text, prefilled, finished):
    """Thought and answer are pieces of it."""
    parsed = parse(text, prefilled=prefilled, finished=finished)
    assert parsed.thought in text and parsed.answer in text


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The answer is 42.", "42", True),
        ("42 is what 6*7 gives, so 42", "42", True),
        ("first 42, then 41", "42", False),
        ("It costs $1,234.50 in all", "1234.5", True),
        ("1234567", "1,234,567", True),
        ("1,000", "1000.0", True),
        ("-5", "5", False),
        ("it is -5 degrees", "-5", True),
        ("+5", "5", True),
        ("0.1", "0.10", True),
        ("0.1000001", "0.1", False),
        ("100000001", "100000002", False),
        ("five", "5", False),
        ("", "5", False),
        ("0", "0", True),
        ("-0.0", "0", True),
        ("yes", "yes", True),
        (" north   pole ", "north\npole", True),
        ("the north pole", "north pole", False),
        ("", "yes", False),
        ("2", "1/2", False),
        ("0.5", "1/2", True),
        ("1/2", "1/2", True),
        ("The answer is 1/2.", "1/2", True),
        ("It is 2 1/2.", "2.5", True),
        ("1/2", "2 1/2", False),
        ("2", r"\frac{1}{2}", False),
        (r"so $\dfrac{1}{2}$", r"\frac{1}{2}", True),
        (r"so $-\frac12$", "-0.5", True),
        (r"\boxed{\frac{1}{2}}, checked 3 times", r"\frac{1}{2}", True),
        ("2", r"\frac{\sqrt{3}}{2}", False),
        (r"\boxed{\frac{\sqrt3}{2}}", r"\frac{\sqrt{3}}{2}", True),
        ("3", "x/3", False),
        ("2", "x^2", False),
        (r"\boxed{x^2}", r"We get $\boxed{x^2}$ of 7.", True),
        ("6", "10^6", False),
        ("a million, 10^6", "1000000", True),
        ("The answer is 1 or 1/0", "0", False),
    ],
)
def test_is_correct(answer, reference, right):
    """By number where the reference is one or ends in one, as LaTeX where it is a formula, else by the words."""
    assert is_correct(answer, reference) is right


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("a 1,000 and 2.50.", "2.5"),
        ("none", None),
        ("x-7", "-7"),
        ("3, 4", "4"),
        ("10-3", "3"),
        ("7 to 9, 7-9", "9"),
        (".5", "0.5"),
        ("\u22125", "-5"),
        ("1e5", "100000"),
        ("1.5E-3.", "0.0015"),
        ("10^6", "1000000"),
        (r"$3 \times 10^{-2}$", "0.03"),
        ("1,2,3", "3"),
        ("5\u00a0000", "5000"),
        ("1\u202f234\u202f567.5", "1234567.5"),
        (r"\$1{,}234", "1234"),
        ("1e9999", None),
        ("in 2024,500", "500"),
        ("$5 + $6 = $11", "11"),
        ("2 1/2", "2.5"),
        ("7*6=42", "42"),
        ("at 9:30", None),
        ("on 2024-03-05", None),
        ("it is H2O", None),
        ("so x > 4", None),
        ("the pair (1, 4)", None),
        (r"that is \frac{1}{2}.", "0.5"),
        (r"we get \frac12 of 10, which is 5.", "5"),
        ("9" * 5000, None),
    ],
)
def test_the_number_that_a_text_ends_with(text, number):
    """Ranges, exponents, grouped thousands, LaTeX; a part of a time, a date, a formula or a pair is none."""
    for wanted in ("5", "4", "2", "30", "9999", "0.5", "2.5", "42", number):
        if wanted is not None:
            assert is_correct(text, wanted) is (
                number is not None and Fraction(wanted) == Fraction(number)
            )


# ---------------------------------------------------------------------------------------------- other format checks

# https://github.com/mkurman/blurred-thoughts-SFT, btsft/func/format_reward.py: re.search, reward 1 where it matches
REFERENCE = re.compile(r"<think>([^<]*(?:<(?!/?think>)[^<]*)*)</think>([\s\S]*?)$", re.DOTALL)
ADVERSARIAL = {  # text, options, what is wrong with it, and what the reference and TRL's think_format_reward say
    "fits": ("<think>a</think>b", {}, None, 1, 1),
    "empty thought": ("<think></think>b", {}, "empty thought", 1, 1),
    "blank thought": ("<think> \n</think>b", {}, "empty thought", 1, 1),
    "no answer": ("<think>a</think>", {}, "no answer", 1, 1),
    "blank answer": ("<think>a</think>\n\n", {}, "no answer", 1, 1),
    "second close": ("<think>a</think>b</think>c", {}, "more than one close tag", 1, 1),
    "second thought": ("<think>a</think><think>b</think>c", {}, "more than one open tag", 1, 0),
    "nested": ("<think>a<think>b</think>c", {}, "more than one open tag", 1, 0),
    "opened again": ("<think>a</think>b<think>", {}, "more than one open tag", 1, 0),
    "text before": ("Sure. <think>a</think>b", {}, "text before the thought", 1, 0),
    "close first": ("</think><think>a</think>b", {}, "text before the thought", 1, 0),
    "line break first": ("\n<think>a</think>b", {}, None, 1, 0),
    "prefilled": ("a</think>b", {"prefilled": True}, None, 0, 0),
    "prefilled, opened again": ("<think>a</think>b", {"prefilled": True}, "more than one open tag", 1, 1),
    "prefilled, empty thought": ("</think>b", {"prefilled": True}, "empty thought", 0, 0),
    "cut off in the answer": ("<think>a</think>The answer is 1", {"finished": False}, "cut off", 1, 1),
    "cut off in the thought": ("<think>a", {"finished": False}, "cut off", 0, 0),
    "a tag in angle brackets": ("<think>a < b, <i>c</i></think>d", {}, None, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "options", "problem", "reference", "trl"), ADVERSARIAL.values(), ids=ADVERSARIAL
)
def test_where_other_format_checks_are_wrong(text, options, problem, reference, trl):
    """Right is what `problem` says; the reference's regular expression and TRL's reward are wrong where they differ."""
    assert parse(text, **options).problem == problem
    assert bool(REFERENCE.search(text)) == reference
    assert think_format_reward([[{"content": text}]]) == [trl]


# ---------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{2", "1"),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {4}", "4"),
        (r"} \boxed{4} {", "4"),
        (r"$\boxed 4$, or", "4"),
        (r"\boxed{3}, no, \boxed -4.5.", "-4.5"),
        (r"\boxed around it", None),
        (r"\boxed{{5}}", "{5}"),
        ("4", None),
        (r"\boxed{" * 20_000, None),
    ],
)
def test_the_last_whole_box(text, content):
    """Braces balanced, escaped ones left alone; in time linear in the text."""
    assert boxed(text) == content


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac12", "1/2"),
        (r"\dfrac{1}{2}", "0.5"),
        (r"\tfrac{3}{4}", ".75"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"-\frac{1}{2}", r"\frac{-1}{2}"),
        (r"1{,}000", "1,000.0"),
        (r"\$5.00", "5"),
        (r"50\%", "50"),
        (r"90^\circ", "90^{\\circ}"),
        (r"5\text{ cm}", "5"),
        ("x=5", "5."),
        (r"\text{Even}", "Even"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        ("\u22125", "-5"),
        (r"5 \text{cm}", "5"),
        (r"5\,\text{ cm}", "5"),
        ("{5}", "5"),
        ("{ -5 }", "-5"),
        (r"2\frac{1}{2}", "2 1/2"),
        (r"3 \times 10^{2}", "300"),
        ("x = - 5", "-5"),
        ("( 1, 2 )", "(1,2)"),
        ("f'=5", "5"),
    ],
)
def test_spellings_of_one_latex_answer(one, other):
    """Each other spelling is the same answer; none is that of 7."""
    assert is_correct(rf"it is \boxed{{{one}}}", other, "boxed") and is_correct(
        rf"\boxed{{{other}}}", one, "boxed"
    )
    assert not is_correct(one, other, "boxed") and not is_correct(r"\boxed{7}", other, "boxed")
    assert is_correct(rf"it is \boxed{{{one}}}", other) and not is_correct(r"\boxed{7}", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(1,2)", "(2,1)"),
        ("1,2", "12"),
        ("x+1", "x-1"),
        ("9" * 5000, "8" * 5000),
        ("x>=5", "x<=5"),
        (r"\text{ Yes}", r"\text{ No}"),
        ("2 1/2", "21/2"),
        ("1, 234", "1,234"),
        ("{1}{2}", "2"),
    ],
)
def test_other_latex_answers_differ(one, other):
    """Commas of tuples are kept, nothing is divided by zero, and numbers of any length are told apart."""
    for answer, reference in ((one, other), (other, one)):
        assert not is_correct(rf"\boxed{{{answer}}}", reference, "boxed")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("B", "B"),
        ("b", "B"),
        ("**B**", "B"),
        (r"\boxed{C}", "C"),
        (r"so $\boxed{\text{(C)}}$", "C"),
        ("Answer: D", "D"),
        ("The correct option is **E**", "E"),
        ("The answer is option C.", "C"),
        ("The correct answer is C, since option A is odd", "C"),
        ("First I thought the answer is A. But the answer is B", "B"),
        ("B) Paris", "B"),
        ("I take (C)", "C"),
        ("(A) is wrong, (C) right", None),
        ("A) no\nB) yes", None),
        ("**Answer**: B", "B"),
        ("**Answer:** B", "B"),
        (r"The answer is \(B\)", "B"),
        (r"Answer: $\text{B}$", "B"),
        ("### Answer\nB", "B"),
        ("I choose option B.", "B"),
        (r"\boxed{B. Paris}", "B"),
        (r"\boxed{\text{B) Paris}}", "B"),
        ("The answer is B because A is odd", "B"),
        ("The answer is A or B", None),
        ("The answer is A. No, the answer is (B) or (C)", None),
        ("Answer: A, B", None),
        ("Final answer: I don't know", None),
        ("The answer is A cat", None),
        ("the answer is a cat", None),
        ("The answer is I'm not sure", None),
        ("", None),
    ],
)
def test_the_letter_that_a_text_chooses(text, letter):
    """Articles and lists of options are no choice."""
    assert extract(text, "choice") == letter
    if letter:
        assert is_correct(text, letter, "choice") and not is_correct(text, "Z", "choice")


def test_a_solution_of_gsm8k_is_a_reference():
    """It ends in #### and the number."""
    solution = "She sold 48/2 = <<48/2=24>>24 clips in May, 72 altogether.\n#### 1,072"
    assert is_correct("It is 1072.", solution) and not is_correct("It is 72.", solution)


def test_what_cannot_be_compared_is_named():
    with pytest.raises(
        ValueError, match=r"answer must be one of \('auto', 'exact', .*, got 'latex'"
    ):
        is_correct("1", "1", "latex")
    with pytest.raises(ValueError, match="the reference 'five' has no answer of the kind 'number'"):
        is_correct("5", "five", "number")


UNEQUAL = [
    (r"\boxed{\begin{pmatrix}1\\3\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", "7"),
    ("(5,4)", "(3,4)"),
    (r"\boxed{(5,2,-1)}", "(6,31,-1)"),
    ("[7, 1]", "[0, 1]"),
    ("x = 5 or 2", "x = 1 or 2"),
    ("9:30", "10:30"),
    ("1999-12-05", "2024-01-05"),
    ("CO2", "H2O"),
    ("Gemini 11", "Apollo 11"),
    ("2,5", "1,5"),
    ("6.6e-34", "1.6e-19"),
    ("(3,2)", "(1,2)"),
    ("[1,2]", "(1,2)"),
    ("(2,1)", "(1,2)"),
    ("2x+3", "5x+3"),
    ("4:30", "3:30"),
    ("2023-04-05", "2024-03-05"),
    ("2023-04-05", "2023-05-04"),
    ("x<2", "x>2"),
    ("3+4i", "1+4i"),
    ("5:4", "3:4"),
    ("5 cm", "5 m"),
    ("5 am", "5 pm"),
    ("1e-12", "0"),
    ("1234567890", "1234567891"),
    ("12345678901234567890", "12345678901234567891"),
    ("(0.000000001,1)", "(0.000000002,1)"),
    (r"\boxed{1.0000001x}", "1.0000002x"),
    (r"\boxed{x^2+4}", "4"),
    (r"\boxed{(1,4)}", "4"),
    (r"\boxed{\frac{\sqrt3}{4}}", "4"),
    (r"$\frac{\sqrt{3}}{2}$", "2"),
    (r"The answer is \frac{1}{2}.", "2"),
    ("-x", "x"),
    ("No, Paris", "No, London"),
    ("It is not Paris", "Paris"),
    ("Tom", "Mot"),
    ("The answer is A or B", "B"),
]
EQUAL = [
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("The answer is (B).", "B"),
    (r"\boxed{B}", "B"),
    ("b", "B"),
    (r"\boxed{\text{Yes}}", "Yes"),
    ("The answer is yes, because 7 is prime.", "Yes"),
    ("The answer is **Paris**. It is big.", "paris"),
    ("The answer is (3, 4).", "(3,4)"),
    (r"so $[1, 2]$", "[1,2]"),
    (r"\boxed{\{1,2\}}", r"\{2,1\}"),
    (r"\boxed{2>x}", "x<2"),
    (r"\boxed{(-\infty, 2)}", "x<2"),
    ("3+2x", "2x+3"),
    ("4i+3", "3+4i"),
    ("The answer is 9:30.", "9:30"),
    ("CO2", "CO2"),
    (r"\boxed{5\text{ cm}}", "5 cm"),
    (r"\boxed{5\text{ cm}}", "5"),
    (r"\boxed{50\%}", "50%"),
    (r"\boxed{x=5}", "5"),
    ("5", "x=5"),
    (r"\boxed{\sqrt{8}}", r"$2\sqrt2$"),
    (r"so \boxed{\frac{\sqrt{4}}{4}}", "1/2"),
    ("0.3333333333", "1/3"),
    ("6.6e-34", "6.6e-34"),
    ("12345678901234567891", "12345678901234567891"),
    ("9" * 5000, "9" * 5000),
    (r"\boxed{0}", "0"),
    (r"\boxed{\frac{0}{2}}", "0"),
]


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [(*pair, False) for pair in UNEQUAL] + [(*pair, True) for pair in EQUAL],
)
def test_a_reference_is_compared_whole(answer, reference, right):
    """Tuples, times, formulas, tiny numbers: by what all of the reference says (DESIGN.md, trap 20; CASES.md)."""
    assert is_correct(answer, reference) is right
    if not right:
        assert not is_correct(reference, answer)
    assert is_correct(reference, reference)


def test_answers_are_judged_outside_the_main_thread():
    """Where math-verify's alarm cannot be set."""
    with ThreadPoolExecutor() as pool:
        assert pool.submit(is_correct, r"\boxed{\sqrt{18}}", r"3\sqrt2").result()


def test_what_takes_too_long_is_no_right_answer(monkeypatch):
    """It cannot be compared."""

    def verify(*_, **__):
        raise math_verify.errors.TimeoutException

    monkeypatch.setattr("math_verify.verify", verify)
    wanted = right_answer(r"\sqrt{2}")
    assert compare(extract(r"\boxed{\sqrt{2}}", wanted.how), wanted.value) is None
    assert not is_correct(r"\boxed{\sqrt{2}}", r"\sqrt{2}")


@pytest.mark.parametrize("how", ["exact", "word", "number", "choice", "math", "boxed"])
@given(text=st.text(alphabet=r"\boxed{}()12.,/-$ AB" + "\n", max_size=40))
def test_any_text_is_read_and_equals_itself(how, text):
    """What was extracted is found again as reference."""
    if extract(text, how) is not None:
        assert is_correct(text, text, how)


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ([1, 2, 2], 2),
        ([1, 2], 1),
        ([2, 1, 1, 2], 2),
        ([None, None, 3], 3),
        ([None], None),
        ([], None),
    ],
)
def test_majority(answers, wanted):
    """The most frequent, of equal ones the first; what was not parsed has no vote."""
    assert majority(answers) == wanted
