"""A harder family for evidence.py: problems of two steps, which the embedded reasoner cannot solve as it comes.

The sets are those of `btsft_nb.tiny`: `pretrain` (all four ways of thinking), `teacher` (one way), `messy` (all ways,
four rows in ten without tags) and `test`, whose numbers occur in no other. Sums have two digits, and the second step
starts from the result of the first.
"""

import random
import zlib

from btsft_nb.tiny.problems import OPERATIONS, TEACHER_WAY, WAYS, think

_STORIES = {
    ("add", "subtract"): "{name} has {a} {things}, gets {b} more and gives away {c}.",
    ("subtract", "add"): "{name} has {a} {things}, gives away {b} and gets {c} more.",
    ("add", "add"): "{name} has {a} {things}, gets {b} more and then {c} more.",
    ("multiply", "add"): "{name} has {a} bags with {b} {things} each and gets {c} more.",
    ("multiply", "subtract"): "{name} has {a} bags with {b} {things} each and gives away {c}.",
}
_NAMES = ("Ann", "Ben", "Eva", "Ivo", "Lea", "Max", "Mia", "Tom")
_THINGS = ("apples", "books", "cards", "coins")


def rows(name: str, n: int, seed: int = 0) -> list[dict]:
    """`n` rows of a set, as `btsft_nb.tiny.rows` gives them."""
    rng = random.Random(f"two steps/{name}/{seed}")
    return [_row(name, i, rng) for i in range(n)]


def _row(name: str, i: int, rng: random.Random) -> dict:
    (first, second), a, b, c = _problem(rng, name == "test")
    name_of_child = rng.choice(_NAMES)
    things = rng.choice(_THINGS)
    story = _STORIES[first, second].format(name=name_of_child, things=things, a=a, b=b, c=c)
    question = f"{story} How many {things} does {name_of_child} have now?"
    middle = OPERATIONS[first](a, b)
    result = OPERATIONS[second](middle, c)
    row = {
        "id": f"two steps/{name}/{i}",
        "messages": [{"role": "user", "content": question}],
        "answer": str(result),
    }
    if name == "test":
        return row
    way = TEACHER_WAY if name == "teacher" else rng.choice(WAYS)
    wording = rng.randrange(2)
    thought = f"{think(way, first, a, b, wording)} {think(way, second, middle, c, wording)}"
    if name != "messy" or i % 5 not in (1, 3):
        thought = f"<think>{thought}</think>"
    row["messages"].append(
        {"role": "assistant", "content": f"{thought}\n\nThe answer is {result}."}
    )
    return {**row, "way": way}


def _problem(rng: random.Random, held_out: bool) -> tuple[tuple[str, str], int, int, int]:
    while True:
        steps = rng.choice(tuple(_STORIES))
        if steps[0] == "multiply":
            a, b, c = rng.randint(3, 9), rng.randint(3, 9), rng.randint(2, 8)
        else:
            a, b, c = rng.randint(21, 59), rng.randint(3, 19), rng.randint(3, 19)
        if (zlib.crc32(f"{steps} {a} {b} {c}".encode()) % 10 == 0) is held_out:
            return steps, a, b, c
