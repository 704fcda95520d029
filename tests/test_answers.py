"""Completions parsed and answers judged; pass@k and the majority; other format checks on what they get wrong."""

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import think_format_reward

from btsft_nb.evaluation.metrics import (
    Parsed,
    boxed,
    extract,
    is_correct,
    last_number,
    majority,
    normalise_latex,
    parse,
    pass_at_k,
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
    ("text", "number"), [("a 1,000 and 2.50.", 2.5), ("none", None), ("x-7", -7.0), ("3, 4", 4.0)]
)
def test_last_number(text, number):
    """Punctuation that follows is no part of it."""
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10-3", 3.0),
        ("7 to 9, 7-9", 9.0),
        (".5", 0.5),
        ("\u22125", -5.0),
        ("1e5", 1e5),
        ("1.5E-3.", 1.5e-3),
        ("10^6", 1e6),
        (r"$3 \times 10^{-2}$", 0.03),
        ("1,2,3", 3.0),
        ("5\u00a0000", 5000.0),
        ("1\u202f234\u202f567.5", 1234567.5),
        (r"\$1{,}234", 1234.0),
        ("1e999", None),
        ("in 2024,500", 500.0),
    ],
)
def test_last_number_as_people_write_them(text, number):
    """Ranges and differences, no leading zero, the typographic minus, exponents, grouped thousands."""
    assert last_number(text) == number


@pytest.mark.parametrize(("n", "correct"), [(n, c) for n in range(1, 7) for c in range(n + 1)])
def test_pass_at_k_counts_the_subsets_with_a_right_one(n, correct):
    """Against all subsets of size k, for every k."""
    samples = [1] * correct + [0] * (n - correct)
    for k in range(1, n + 1):
        subsets = list(combinations(samples, k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_stays_exact_for_many_samples():
    """No overflow, no cancellation."""
    assert pass_at_k(1000, 1, 500) == pytest.approx(0.5)
    assert pass_at_k(1000, 500, 1) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_pass_at_k_refuses_a_k_out_of_range(k):
    """With the range."""
    with pytest.raises(ValueError, match=f"k={k}: 1 to n=3"):
        pass_at_k(3, 1, k)


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
    assert normalise_latex(one) == normalise_latex(other) != 7
    assert is_correct(rf"it is \boxed{{{one}}}", other, "boxed") and is_correct(
        rf"\boxed{{{other}}}", one, "boxed"
    )
    assert not is_correct(one, other, "boxed") and not is_correct(r"\boxed{7}", other, "boxed")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(1,2)", "(2,1)"),
        ("1,2", "12"),
        (r"\frac{1}{0}", "1/0"),
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
    """Commas of tuples are kept, nothing is divided by zero, and numbers beyond a float are compared as text."""
    assert normalise_latex(one) != normalise_latex(other)


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
        ValueError, match=r"answer='latex': one of \('auto', 'exact', 'number', 'boxed', 'choice'\)"
    ):
        is_correct("1", "1", "latex")
    with pytest.raises(ValueError, match="the reference 'five' has no answer of the kind 'number'"):
        is_correct("5", "five", "number")


@pytest.mark.parametrize("how", ["exact", "number", "boxed", "choice"])
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
