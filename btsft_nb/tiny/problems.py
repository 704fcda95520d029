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
import re
import zlib

WAYS = ("direct", "split", "count", "check")
TEACHER_WAY = "split"
SIZES = {"pretrain": 64_000, "teacher": 1_000, "messy": 1_000, "test": 200}
SYMBOLS = {"add": "+", "subtract": "-", "multiply": "*"}
_LIMITS = {"add": (11, 59, 19), "subtract": (21, 79, 19), "multiply": (3, 9, 9)}
_INVERSE = {"add": "-", "subtract": "+", "multiply": "/"}
OPERATIONS = dict(zip(SYMBOLS, (operator.add, operator.sub, operator.mul), strict=True))

_NAMES = ("Ann", "Ben", "Eva", "Ivo", "Lea", "Max", "Mia", "Tom")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
_STORIES = {
    "add": (
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} adds {b}. How many {things} are in the box?",
    ),
    "subtract": (
        "{name} has {a} {things} and gives away {b}. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} takes {b}. How many {things} are in the box?",
    ),
    "multiply": (
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
_OPENINGS = {
    way: tuple(re.match(r"\w+", text)[0] for text in texts) for way, texts in _WORDINGS.items()
}


def way_of(thought: str) -> str | None:
    """The way of thinking that a thought follows, told by its first word; None where it follows none.

    >>> bt.tiny.way_of("Count: 3, 4, 5.")
    'count'
    """
    for way, openings in _OPENINGS.items():
        if thought.lstrip().startswith(openings):
            return way
    return None


def think(way: str, operation: str, a: int, b: int, wording: int) -> str:
    """The thought of one of WAYS on one of OPERATIONS, in wording 0 or 1."""
    result = OPERATIONS[operation](a, b)
    first, second, steps = _split(operation, a, b, result)
    between_steps = (". ", ", ")[wording]
    return _WORDINGS[way][wording].format(
        b=b,
        c=result,
        sum=f"{a}{SYMBOLS[operation]}{b}",
        first=first,
        second=second,
        steps=between_steps.join(steps),
        stops=", ".join(map(str, _count(operation, a, b))),
        back=f"{result}{_INVERSE[operation]}{b}={a}",
    )


def rows(name: str, n: int | None = None, seed: int = 0) -> list[dict]:
    """The first `n` rows of a set: `{"id", "messages", "answer", "way"}`, the assistant's text with its thought.

    `test` has no assistant turn. Raises KeyError for an unknown set.

    >>> row = bt.tiny.rows("teacher", 1)[0]
    >>> row["answer"], row["way"]
    ('57', 'split')
    """
    rng = random.Random(f"{name}/{seed}")  # a str seeds by its bytes: the same on every machine
    test_questions: set[str] | None = set() if name == "test" else None
    size = SIZES[name] if n is None else n
    return [_row(name, i, rng, test_questions) for i in range(size)]


def _row(name: str, i: int, rng: random.Random, test_questions: set[str] | None) -> dict:
    operation, a, b, question = _problem(rng, test_questions)
    result = OPERATIONS[operation](a, b)
    row = {
        "id": f"tiny/{name}/{i}",
        "messages": [{"role": "user", "content": question}],
        "answer": str(result),
    }
    if name == "test":
        return row
    way = TEACHER_WAY if name == "teacher" else rng.choice(WAYS)
    thought = think(way, operation, a, b, rng.randrange(2))
    tagged = name != "messy" or i % 5 not in (1, 3)
    thought = f"<think>{thought}</think>" if tagged else thought
    row["messages"].append(
        {"role": "assistant", "content": f"{thought}\n\nThe answer is {result}."}
    )
    return {**row, "way": way}


def _problem(rng: random.Random, test_questions: set[str] | None) -> tuple[str, int, int, str]:
    """A training problem, or, where `test_questions` collects those of the test set, a new one of these."""
    while True:
        operation = rng.choice(tuple(SYMBOLS))
        low, high, most = _LIMITS[operation]
        a = rng.randint(low, high)
        b = rng.randint(3, most)
        story = rng.choice(_STORIES[operation])
        question = story.format(name=rng.choice(_NAMES), things=rng.choice(_THINGS), a=a, b=b)
        told_apart_by = question if operation == "multiply" else f"{operation} {a} {b}"
        is_test_problem = zlib.crc32(told_apart_by.encode()) % 10 == 0
        if test_questions is None:
            if not is_test_problem:
                return operation, a, b, question
        elif is_test_problem and question not in test_questions:
            test_questions.add(question)
            return operation, a, b, question


def _split(operation: str, a: int, b: int, c: int) -> tuple[int, int, tuple[str, ...]]:
    """The two parts of b, and the steps that they make."""
    if operation == "multiply":
        first = 2
        second = b - 2
        steps = (
            f"{a}*{first}={a * first}",
            f"{a}*{second}={a * second}",
            f"{a * first}+{a * second}={c}",
        )
    else:
        first = (
            b // 10 * 10 if b > 10 and b % 10 else b - 1
        )  # the tens, if ones are left beside them
        second = b - first
        middle = OPERATIONS[operation](a, first)
        symbol = SYMBOLS[operation]
        steps = (f"{a}{symbol}{first}={middle}", f"{middle}{symbol}{second}={c}")
    return first, second, steps


def _count(operation: str, a: int, b: int) -> list[int]:
    """The numbers on the way to the result, by tens and ones."""
    if operation == "multiply":
        return [a * k for k in range(1, b + 1)]
    tens = [OPERATIONS[operation](a, 10 * k) for k in range(b // 10 + 1)]
    return tens + [OPERATIONS[operation](tens[-1], k) for k in range(1, b % 10 + 1)]
