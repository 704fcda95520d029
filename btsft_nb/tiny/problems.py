"""Word problems with + - x and four ways of thinking about each: the data of the embedded reasoner.

Every set is generated from a seed, so nothing is stored:

- `pretrain`: all four ways, in equal parts; what the model grew up with.
- `teacher`: one way only; fine-tuning on it is what costs a model its diversity.
- `messy`: all four ways, but four rows in ten lack the think tags; fine-tuning on it costs the format.
- `test`: 200 problems that occur in no training set, with their answers. Sums and differences have numbers of their
  own; products, of which there are only 49, a question of their own.

The hash of those numbers, or of that question, decides whether a problem belongs to `test`.
"""

import operator
import random
import zlib

TEACHER_WAY = "split"
SIZES = {"pretrain": 64_000, "teacher": 1_000, "messy": 1_000, "test": 200}
OPERATIONS = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul}
_SYMBOLS = {"add": "+", "subtract": "-", "multiply": "*"}
_INVERSE = {"+": "-", "-": "+", "*": "/"}
_NAMES = ("Ann", "Ben", "Eva", "Ivo", "Lea", "Max", "Mia", "Tom")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
# Smallest and largest first number, largest second one, and two stories
_PROBLEMS = {
    "add": (
        (11, 59, 19),
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} adds {b}. How many {things} are in the box?",
    ),
    "subtract": (
        (21, 79, 19),
        "{name} has {a} {things} and gives away {b}. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} takes {b}. How many {things} are in the box?",
    ),
    "multiply": (
        (3, 9, 9),
        "{name} has {a} bags with {b} {things} each. How many {things} does {name} have?",
        "There are {a} boxes with {b} {things} each. {name} counts all. How many {things} are there?",
    ),
}
_WORDINGS = {  # two of each way of thinking; no two ways share a first word
    "direct": ("Write {sum}={c}.", "Just {sum}, that is {c}."),
    "split": (
        "Split {b} into {first} and {second}. {steps}.",
        "Take {b} apart: {first} and {second}. So {steps}.",
    ),
    "count": ("Count: {stops}.", "Step by step: {stops}."),
    "check": ("Guess {c}. Back: {back}. Yes.", "Maybe {c}? Then {back}, it fits."),
}
WAYS = tuple(_WORDINGS)


def way_of(thought: str) -> str | None:
    """The way of thinking that a thought follows, told by its first word; None where it follows none.

    >>> bt.tiny.way_of("Count: 3, 4, 5.")
    'count'
    """
    for way, wordings in _WORDINGS.items():
        words = tuple(wording.split()[0].rstrip(":") for wording in wordings)
        if thought.lstrip().startswith(words):
            return way


def think(way, operation, a, b, wording) -> str:
    """The thought of one of WAYS on one of OPERATIONS, in wording 0 or 1."""
    calculate = OPERATIONS[operation]
    symbol = _SYMBOLS[operation]
    c = calculate(a, b)
    tens = b // 10 * 10
    if operation == "multiply":
        first = 2
        counted = range(1, b + 1)
        rest = f"{a}*{b - first}={a * (b - first)}, {a * first}+{a * (b - first)}={c}"
    else:
        # the tens, if ones are left beside them
        first = tens if 0 < tens < b else b - 1
        counted = [*range(0, b + 1, 10), *range(tens + 1, b + 1)]
        rest = f"{calculate(a, first)}{symbol}{b - first}={c}"
    steps = f"{a}{symbol}{first}={calculate(a, first)}, {rest}"
    return _WORDINGS[way][wording].format(
        b=b,
        c=c,
        sum=f"{a}{symbol}{b}",
        first=first,
        second=b - first,
        steps=steps if wording else steps.replace(",", "."),
        stops=", ".join(str(calculate(a, k)) for k in counted),
        back=f"{c}{_INVERSE[symbol]}{b}={a}",
    )


def rows(name: str, n: int | None = None, seed: int = 0) -> list[dict]:
    """The first `n` rows of a set: `{"id", "messages", "answer", "way"}`, the assistant's text with its thought.

    `test` has no assistant turn. Raises KeyError for an unknown set.

    >>> row = bt.tiny.rows("teacher", 1)[0]
    >>> row["answer"], row["way"]
    ('57', 'split')
    """
    rng = random.Random(f"{name}/{seed}")  # a str seeds by its bytes: the same on every machine
    rows = []
    questions = set()
    for i in range(SIZES[name] if n is None else n):
        operation, a, b, question = _problem(rng, name == "test", questions)
        answer = str(OPERATIONS[operation](a, b))
        messages = [{"role": "user", "content": question}]
        rows.append({"id": f"tiny/{name}/{i}", "messages": messages, "answer": answer})
        if name == "test":
            questions.add(question)
            continue
        way = TEACHER_WAY if name == "teacher" else rng.choice(WAYS)
        text = think(way, operation, a, b, rng.randrange(2))
        if name != "messy" or i % 5 not in (1, 3):
            text = f"<think>{text}</think>"
        text += f"\n\nThe answer is {answer}."
        messages.append({"role": "assistant", "content": text})
        rows[i]["way"] = way
    return rows


def _problem(rng, is_test, others):
    """Operation, both numbers and the question of a problem that no other set has, nor one of the others."""
    while True:
        operation = rng.choice(tuple(OPERATIONS))
        (low, high, most), *stories = _PROBLEMS[operation]
        a = rng.randint(low, high)
        b = rng.randint(3, most)
        story = rng.choice(stories)
        question = story.format(name=rng.choice(_NAMES), things=rng.choice(_THINGS), a=a, b=b)
        key = question if operation == "multiply" else f"{operation} {a} {b}"
        if (zlib.crc32(key.encode()) % 10 == 0) is is_test and question not in others:
            return operation, a, b, question
