"""Samples of several models side by side, as HTML: equal ones together, and what differs from the first model's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from html import escape

from .metrics import is_correct, parse

_PROMPTS = 20  # shown at most
_TEXTS = 8  # different texts of a model shown for a prompt
_MANY = 600  # words, from which on a comparison has to be quick
_CUTS = (3000, 800, 150)  # characters of a text, as many as the room allows
_GOOD, _WRONG = '<span class="good">\u2713 right</span>', '<span class="bad">\u2717 wrong</span>'
_WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
# what has no glyph, or is none: control characters as their pictures, halves of characters as U+FFFD
_UNSEEN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_UNSEEN |= dict.fromkeys((*range(0x7F, 0xA0), *range(0xD800, 0xE000)), 0xFFFD)


def text(value: object, limit: int = 300) -> str:
    """A text as HTML, for content and attributes: escaped, and cut after `limit` characters, which it says."""
    whole = str(value)
    return escape(whole[:limit].translate(_UNSEEN), quote=True) + _more(whole, limit)


def _more(whole: str, limit: int) -> str:
    return f"\u2026 ({len(whole) - limit:,} more characters)" if len(whole) > limit else ""


@dataclass
class _Same:
    """Samples of a model that are equal: their text, its parts by name, and what is to be said of it."""

    text: str
    parts: dict[str, str]
    verdict: str
    right: bool | None
    numbers: list[int] = field(default_factory=list)


def side_by_side(samples: dict[str, list[dict]], references: Sequence[str] | None, how: str, room: int) -> str:
    """The first prompts, in no more than `room` bytes: a column for each model. Says how many prompts are left out.

    Args:
        samples: name -> records of `sample`. references: the right answer of each prompt, where they are known.
        how: answers are compared, as `metrics.is_correct` takes it.
    """
    prompts = sorted({record["prompt"] for records in samples.values() for record in records})
    share, blocks = room // min(len(prompts), _PROMPTS), []
    for prompt in prompts[:_PROMPTS]:
        question = next(r["question"] for records in samples.values() for r in records if r["prompt"] == prompt)
        reference = None if references is None else references[prompt]
        groups = {name: _grouped(records, prompt, reference, how) for name, records in samples.items()}
        blocks += _block(prompt, question, reference, groups, share, not blocks)
    first = text(next(iter(samples)))
    words = (
        f"{len(blocks):,} of {len(prompts):,} prompts, the first of the test set; the .jsonl files beside this page "
        "have all. Equal samples stand together. <mark>Underlined</mark>: words that the closest sample of "
        f"<b><bdi>{first}</bdi></b> has not; <mark>[\u2026]</mark>: words of it that are left out; <small>as there"
        "</small>: a sample that it gave too."
    )
    return f"<p>{words}</p>{''.join(blocks)}"


def _block(prompt: int, question: str, reference: str | None, groups: dict, share: int, opened: bool) -> list[str]:
    """One prompt, its texts cut as far as it takes to stay within `share` bytes; none where that is not enough."""
    for cut in _CUTS:
        counts = "; ".join(f"<bdi>{text(name, 60)}</bdi> {_told(same)}" for name, same in groups.items())
        wanted = "" if reference is None else f" <small>right answer: <bdi>{text(reference, cut)}</bdi></small>"
        first = next(iter(groups.values()))
        columns = "".join(
            f"<div><h3>{text(name, 60)}</h3>{_column(same, first if i else None, cut)}</div>"
            for i, (name, same) in enumerate(groups.items())
        )
        html = (
            f"<details{' open' * opened}><summary><b>Prompt {prompt}.</b> <bdi>{text(question, min(cut, 600))}</bdi>"
            f'{wanted}<small>{counts}</small></summary><div class="models">{columns}</div></details>\n'
        )
        if len(html.encode()) <= share:
            return [html]
    return []


def _told(groups: list[_Same]) -> str:
    """How many are right, and how many differ."""
    n = sum(len(same.numbers) for same in groups)
    right = sum(len(same.numbers) for same in groups if same.right)
    known = groups[0].right is not None
    return f"{right} of {n} right, {len(groups)} different texts" if known else f"{len(groups)} different texts of {n}"


def _grouped(records: list[dict], prompt: int, reference: str | None, how: str) -> list[_Same]:
    """The samples of a prompt by equal text, the most frequent first."""
    groups: dict[tuple, _Same] = {}
    for record in records:
        if record["prompt"] == prompt:
            key = record["text"], record["finished"], record["prefilled"]
            if key not in groups:
                groups[key] = _same(record, reference, how)
            groups[key].numbers.append(record["sample"])
    return sorted(groups.values(), key=lambda same: -len(same.numbers))


def _same(record: dict, reference: str | None, how: str) -> _Same:
    parsed = parse(record["text"], prefilled=record["prefilled"], finished=record["finished"])
    right = None if reference is None else is_correct(parsed.answer, reference, how)
    words = [] if right is None else [_GOOD if right else _WRONG]
    words += [f'<span class="bad">format: {parsed.problem}</span>'] if parsed.problem else []
    # taken apart only where it fits the format: else something of it would be out of sight
    parts = {"text": record["text"]} if parsed.problem else {"thought": parsed.thought, "answer": parsed.answer}
    return _Same(record["text"], parts, ", ".join(words), right)


def _column(groups: list[_Same], first: list[_Same] | None, cut: int) -> str:
    """What a model said; `first` is what the first model said, None for itself."""
    html = ""
    for same in groups[:_TEXTS]:
        closest = _closest(same, first, cut) if first else None
        parts = ""
        for name, part in same.parts.items():
            other = None if closest is None else closest.parts.get(name, closest.text)
            shown = text(part, cut) if other is None else _marked(part, other, cut)
            parts += f'<div class="part {name}" dir="auto"><i>{name}</i> {shown}</div>'
        numbers = ", ".join(map(str, same.numbers[:12])) + ", \u2026" * (len(same.numbers) > 12)
        again = ", as there" if closest and closest.text == same.text else ""
        count = f"<b>\u00d7{len(same.numbers)}</b> {same.verdict} <small>sample {numbers}{again}</small>"
        html += f'<div class="same"><div>{count}</div>{parts}</div>'
    left = groups[_TEXTS:]
    more = sum(len(same.numbers) for same in left)
    return html + (f'<p class="soft">and {len(left):,} more texts, of {more:,} samples</p>' if left else "")


def _words(part: str) -> list[str]:
    return [word.strip() for word in _WORD.findall(part)]


def _closest(same: _Same, first: list[_Same], cut: int) -> _Same:
    """Of what the first model said, the same, or else what shares most words."""
    matcher = SequenceMatcher(b=_words(same.text[:cut]))

    def likeness(other: _Same) -> float:
        matcher.set_seq1(_words(other.text[:cut]))
        return matcher.quick_ratio()

    return next((other for other in first if other.text == same.text), None) or max(first[:_TEXTS], key=likeness)


def _marked(part: str, other: str, cut: int) -> str:
    """A part with the words marked that `other` has not, cut as `text` cuts."""
    words, mine, its, html = _WORD.findall(part[:cut]), _words(part[:cut]), _words(other[:cut]), ""
    # what is said over and over takes quadratic time, but where the most frequent words are no place to begin at
    matcher = SequenceMatcher(None, its, mine, autojunk=max(len(its), len(mine)) > _MANY)
    for what, _, _, start, stop in [] if mine == its else matcher.get_opcodes():
        piece = "".join(words[start:stop])
        if what == "equal":
            html += text(piece, cut)
        elif what == "delete":
            html += "<mark>[\u2026]</mark> "
        else:
            kept = piece.rstrip()
            html += f"<mark>{text(kept, cut)}</mark>{text(piece[len(kept) :], cut)}"
    return (html or text(part[:cut], cut)) + _more(part, cut)
