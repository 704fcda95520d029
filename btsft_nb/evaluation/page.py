"""A comparison as one HTML page: it reads without script and without colour, asks for nothing, and is under 2 MB.

`compare.html` is its template. Names, questions, texts and settings come from data and models and are hostile: Jinja
escapes all that is put into it.
"""

import base64
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from ..views import plots
from .answers import extract, is_same, parse, right_answer

LIMIT = 2_000_000  # bytes
# characters of a text, prompts, rows of a table, and whether there are pictures: the first that stay within LIMIT
_ROOM = (
    (3000, 20, 1000, True),
    (800, 20, 1000, True),
    (150, 20, 100, True),
    (150, 5, 20, True),
    (50, 0, 0, False),
)
_TEXTS = 8  # different texts of a model shown for a prompt
_WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
_DASH = ("\u2013", "", ())
_DIALS = ("base_model", "qlora", "data", "examples", "threshold", "beta", "anchor")
# where a run lies and what it shows and sends while it trains: nothing that made the model another one
_SAYS_NOTHING = ("output_dir", "logging_", "log_", "run_name", "report_to", "disable_tqdm", "project", "trackio_",
                 "hub_", "push_to_hub", "adapter.peft_version", "adapter.inference_mode")  # fmt: skip
# what has no glyph, or is none: control characters as their pictures, halves of characters as U+FFFD
_UNSEEN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_UNSEEN |= dict.fromkeys((*range(0x7F, 0xA0), *range(0xD800, 0xE000)), 0xFFFD)


def cut(value: object, limit: int = 300) -> str:
    """The first `limit` characters of a text, of which all can be seen; it says how many there are more."""
    whole = str(value)
    more = f"\u2026 ({len(whole) - limit:,} more characters)" if len(whole) > limit else ""
    return whole[:limit].translate(_UNSEEN) + more


def marked(part: str, other: str | None, limit: int) -> Markup:
    """A text as HTML, cut as `cut` does, with the words marked that `other` has not, and where words of it lack."""
    if other is None:
        return Markup("{}").format(cut(part, limit))
    mine, its, html = _WORD.findall(part[:limit]), _WORD.findall(other[:limit]), Markup()
    words = ([word.strip() for word in some] for some in (its, mine))
    for what, _, _, start, stop in SequenceMatcher(None, *words).get_opcodes():
        shape = {"equal": "{}", "delete": "<mark>[\u2026]</mark> "}.get(what, "<mark>{}</mark>")
        html += Markup(shape).format(cut("".join(mine[start:stop]), limit))
    return html + cut(part, limit)[len(part[:limit]) :]


_ENVIRONMENT = Environment(autoescape=True)
_ENVIRONMENT.filters["cut"] = cut
_ENVIRONMENT.globals["marked"] = marked
_TEMPLATE = _ENVIRONMENT.from_string(
    Path(__file__).with_name("page.html").read_text(encoding="utf-8")
)


def page(
    summaries: dict[str, dict],
    differences: Sequence[dict],
    configs: dict[str, dict],
    samples: dict[str, list[dict]],
    references: Sequence[str] | None,
    settings: dict,
) -> str:
    """The whole page, of less than LIMIT bytes: what there is no room for is cut, or left out and counted.

    Args: as the fields of `compare.Comparison`; differences: the rows of its `differences`, as dictionaries.
    """
    prompts = sorted({record["prompt"] for records in samples.values() for record in records})
    configuration, equal = _configuration(configs)
    content = {
        "title": f"{len(summaries)} models on {settings['test']}",
        "settings": settings,
        "models": list(summaries),
        "runs": list(configs),
        "measured": _measured(summaries),
        "differences": _differences(differences, settings["prompts"]),
        "seen": sum(bool(_word(row)) for row in differences),
        "compared": len(differences),
        "pictures": _pictures(summaries),
        "problems": _problems(summaries),
        "configuration": configuration,
        "equal": equal,
        "dials": _DIALS,
        "count": len(prompts),
        "prompts": [
            _prompt(i, samples, references, settings["answer"]) for i in prompts[: _ROOM[0][1]]
        ],
    }
    for limit, shown, most, with_pictures in _ROOM:
        room = {"limit": limit, "shown": shown, "most": most, "with_pictures": with_pictures}
        html = _TEMPLATE.render(content, **room)
        if len(html.encode()) < LIMIT:
            break
    return html


def _cell(metric: dict, prompts: int, spec: str, word: str = "") -> tuple:
    """Value, word for a difference, interval, and how many prompts have a value where not all have."""
    value, low, high = (
        format(metric[name], spec).replace("-", "\u2212") for name in ("value", "low", "high")
    )
    few = [f"{metric['n']:,} prompts"] if metric["n"] < prompts else []
    return value, word, [f"[{low}, {high}]", *few]


def _measured(summaries: dict[str, dict]) -> dict[str, list[tuple]]:
    """A row for each metric, a cell for each model."""
    rows = {name: [] for summary in summaries.values() for name in summary["metrics"]}
    for name, cells in rows.items():
        for summary in summaries.values():
            metric = summary["metrics"].get(name)
            cells.append(_cell(metric, summary["prompts"], ".2f") if metric else _DASH)
    return rows


def _word(difference: dict) -> str:
    return "higher" if difference["low"] > 0 else "lower" if difference["high"] < 0 else ""


def _differences(differences: Sequence[dict], prompts: int) -> dict[str, list[tuple]]:
    """A row for each metric, a cell for each model but the first."""
    models = dict.fromkeys(row["model"] for row in differences)
    rows = defaultdict(lambda: dict.fromkeys(models, _DASH))
    for row in differences:
        rows[row["metric"]][row["model"]] = _cell(row, prompts, "+.3f", _word(row))
    return {metric: list(cells.values()) for metric, cells in rows.items()}


def _problems(summaries: dict[str, dict]) -> dict[str, list[tuple]]:
    """A row for each problem of the format, and one for answers that could not be read."""
    rows = defaultdict(list)
    counts = [
        Counter(s["problems"]) + Counter({"no answer to compare": s["unparsed"] or 0})
        for s in summaries.values()
    ]
    for problem in sum(counts, Counter()):
        for summary, found in zip(summaries.values(), counts, strict=True):
            share = f"{found[problem] / summary['samples']:.1%} of {summary['samples']:,}"
            rows[problem].append((f"{found[problem]:,}", "", [share]))
    return rows


def _configuration(configs: dict[str, dict]) -> tuple[dict[str, list[tuple]], set[str]]:
    """A row for each dial, and for each setting that differs; and the names of what is equal in all."""
    rows, equal = {}, set()
    for key in dict.fromkeys([*_DIALS, *(key for config in configs.values() for key in config)]):
        values = [
            json.dumps(c[key], ensure_ascii=False) if key in c else _DASH[0]
            for c in configs.values()
        ]
        absent = (
            {_DASH[0]} if key.startswith("adapter.") else set()
        )  # of a run without one, which base and data tell
        if key.startswith(_SAYS_NOTHING) or key.endswith("_token") or set(values) == {_DASH[0]}:
            continue
        if len(set(values) - absent) <= 1:
            equal.add(key)
        if key in _DIALS or key not in equal:
            rows[key] = [(value, "", ()) for value in values]
    return rows, equal


def _pictures(summaries: dict[str, dict]) -> list[tuple[str, str]]:
    """In words and as PNG: what all models have in bars, their ways of thinking, and diversity against accuracy."""
    wanted = ("unique thoughts", "accuracy", "compliance")
    shared = [
        metric for metric in wanted if all(metric in s["metrics"] for s in summaries.values())
    ]
    said = [
        f"{metric}: "
        + ", ".join(f"{name} {s['metrics'][metric]['value']:.2f}" for name, s in summaries.items())
        for metric in shared
    ]
    pictures = [
        ("; ".join(said), _png(len(shared), 3.3, lambda axes: plots.bars(summaries, shared, axes)))
    ]
    if all(summary["ways"] for summary in summaries.values()):
        ways = "; ".join(f"{name}: {summary['ways']}" for name, summary in summaries.items())
        pictures.append(
            (ways, _png(1, 1 + 0.4 * len(summaries), lambda ax: plots.ways(summaries, ax)))
        )
    if shared[:2] == ["unique thoughts", "accuracy"]:
        points = {name: {name: summary} for name, summary in summaries.items()}
        pictures.append(
            ("; ".join(said[:2]), _png(1, 4.2, lambda ax: plots.frontier(points, *shared[:2], ax)))
        )
    return pictures


def _png(n: int, height: float, draw: Callable[[object], object]) -> str:
    """What is drawn into the Axes, or the n beside each other, of a figure that no notebook shows, in base 64."""
    figure, file = Figure((9, height), layout="constrained"), io.BytesIO()
    draw(figure.subplots(1, n))
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return base64.b64encode(file.getvalue()).decode()


@dataclass
class _Said:
    """Equal samples of a model: their numbers, text and parts, what is to be said of them."""

    numbers: list[int]
    text: str
    parts: dict[str, str]
    right: bool | None
    problem: str | None
    words: Counter
    closest: "_Said | None" = None  # of what the first model said

    def is_like(self, other: "_Said") -> tuple[bool, float]:
        """Whether the texts are equal, and the share of their words that are."""
        return self.text == other.text, (self.words & other.words).total() / max(
            (self.words | other.words).total(), 1
        )


def _prompt(
    number: int, samples: dict[str, list[dict]], references: Sequence[str] | None, how: str
) -> dict:
    """A prompt with, by model, how many samples are right and differ, and its texts, the most frequent first."""
    reference, models, first = None if references is None else references[number], {}, []
    how, wanted = (how, None) if reference is None else right_answer(reference, how)
    for name, records in samples.items():
        same = defaultdict(list)
        for record in records:
            if record["prompt"] == number:
                question = record["question"]
                same[record["text"], record["finished"], record["prefilled"]].append(record)
        texts = [_said(equal, how, wanted) for equal in same.values()]
        texts.sort(key=lambda said: -len(said.numbers))
        for said in texts[:_TEXTS] if first else []:
            said.closest = max(first, key=said.is_like)
        first = first or texts[:_TEXTS]
        models[name] = _told(texts), texts[:_TEXTS], _more(texts[_TEXTS:])
    return {"number": number, "question": question, "reference": reference, "models": models}


def _said(equal: list[dict], how: str, wanted: str | float | None) -> _Said:
    text, numbers = equal[0]["text"], [record["sample"] for record in equal]
    parsed = parse(text, prefilled=equal[0]["prefilled"], finished=equal[0]["finished"])
    right = None if wanted is None else is_same(extract(parsed.answer, how), wanted)
    # taken apart only where it fits the format: else something of it would be out of sight
    parts = (
        {"text": text} if parsed.problem else {"thought": parsed.thought, "answer": parsed.answer}
    )
    return _Said(
        numbers, text, parts, right, parsed.problem, Counter(_WORD.findall(text[: _ROOM[0][0]]))
    )


def _told(texts: list[_Said]) -> str:
    """How many are right, and how many differ."""
    n = sum(len(said.numbers) for said in texts)
    if texts[0].right is None:
        return f"{len(texts)} different texts of {n}"
    return f"{sum(len(said.numbers) for said in texts if said.right)} of {n} right, {len(texts)} different texts"


def _more(texts: list[_Said]) -> str:
    n = sum(len(said.numbers) for said in texts)
    return f"{len(texts):,} more texts, of {n:,} samples" if texts else ""
