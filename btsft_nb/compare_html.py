"""A comparison as one HTML page: it reads without script and without colour, asks for nothing, and is under 2 MB.

Names, questions, texts and settings come from data and models and are hostile: all of them go through `text`.
"""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from itertools import accumulate

from matplotlib.figure import Figure

from . import plots
from .compare_samples import side_by_side, text

LIMIT = 2_000_000  # bytes
_ROOM = LIMIT // 5  # bytes of each of the four tables; notes have a quarter of it, and pictures and samples the rest
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_DASH = "<td>\u2013</td>"
_DIALS = ("base_model", "qlora", "data", "examples", "threshold", "beta", "anchor")
# where a run lies and what it shows and sends while it trains: nothing that made the model another one
_SAYS_NOTHING = ("output_dir", "logging_", "log_", "run_name", "report_to", "disable_tqdm", "project", "trackio_",
                 "hub_", "push_to_hub", "adapter.peft_version", "adapter.inference_mode")  # fmt: skip
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #57606a; --line: #d5dae0; --card: #f6f7f9; --page: #fff;
  --blue: #0072b2; --red: #b34700; --tint: rgba(0, 114, 178, .09) }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7eb; --soft: #a0aab4; --line: #3b434c; --card: #1b2026;
  --page: #121519; --blue: #6cb8ea; --red: #f0965a; --tint: rgba(108, 184, 234, .14) } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1240px;
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--line) }
p { margin: .3rem 0 .7rem; max-width: 78ch } .soft, small { color: var(--soft) } small { font-size: .82em }
.wide { overflow-x: auto } figure { margin: 1rem 0 1.8rem }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 8px; padding: 6px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .9rem .4rem .4rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; min-width: 6.5rem; max-width: 26rem }
thead th { border-bottom-width: 2px } tbody th { font-weight: 500; min-width: 8.5rem } td b { font-size: 1.05em }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--page) } td i { font-weight: 600 }
td small { display: block; white-space: nowrap }  td.seen { background: var(--tint) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .8rem 0 }
dt { color: var(--soft) } dd { margin: 0 }
details { border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0 }
summary { cursor: pointer; padding: .6rem .9rem; background: var(--card); border-radius: 8px }
summary small { display: block } .models { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(17rem, 1fr);
  gap: 1rem; padding: .5rem .9rem .9rem; overflow-x: auto }
h3 { font-size: 1rem; margin: .4rem 0 } .asked { padding: .7rem .9rem 0 }
.same { border-left: 3px solid var(--line); padding: .1rem 0 .1rem .7rem; margin: 0 0 .9rem }
.part { white-space: pre-wrap; margin: .2rem 0; font-size: .93em } .part i { color: var(--soft); font-size: .85em }
.thought { background: var(--card); border-radius: 6px; padding: .3rem .55rem } .bad { color: var(--red) }
.good { color: var(--blue) } mark { background: var(--tint); color: inherit; text-decoration: underline 2px var(--blue);
  text-underline-offset: 3px; border-radius: 2px }
@media (max-width: 640px) { body { padding: 1rem .75rem 3rem } .models { grid-auto-flow: row; grid-auto-columns: auto }
  dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .4rem } h1 { font-size: 1.35rem } }
@media print { details > * { display: block } }
"""


def page(
    summaries: dict[str, dict],
    differences: Sequence[dict],
    configs: dict[str, dict],
    samples: dict[str, list[dict]],
    references: Sequence[str] | None,
    settings: dict,
) -> str:
    """The whole page, of less than LIMIT bytes: what there is no room for is left out and counted.

    Each table has so many bytes at most. What the tables leave is for the picture, and the rest of it for samples.

    Args: as the fields of `compare.Comparison`; differences: the rows of its `differences`, as dictionaries.
    """
    title = f"{len(summaries)} models on {settings['test']}"
    sections = [
        _heading(title, settings),
        _section("Measured", _measured(summaries, settings["prompts"])),
        _section("Differences", _differences(differences, next(iter(summaries)), settings["prompts"])),
        _section("What was wrong with the format", _problems(summaries)),
        _section("The configuration that differs", _configuration(configs)),
    ]
    start = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{text(title)}</title><style>{_STYLE}</style></head><body>'
    )
    room = LIMIT - len((start + "".join(sections)).encode()) - 5_000  # bytes, 5,000 of them for words around samples
    pictures = _pictures(summaries)
    if len(pictures.encode()) > room:
        pictures = "<p>The pictures are left out, for want of room.</p>"
    sections.insert(3, _section("Pictures", pictures))
    samples = side_by_side(samples, references, settings["answer"], room - len(pictures.encode()))
    return f"{start}{''.join(sections)}{_section('Samples side by side', samples)}</body></html>\n"


def metrics_table(summaries: dict[str, dict]) -> str:
    """An HTML table: a row for each metric, a column for each model, with interval and number of prompts."""
    rows = []
    for metric in dict.fromkeys(name for summary in summaries.values() for name in summary["metrics"]):
        found = [(summary["metrics"].get(metric), summary["prompts"]) for summary in summaries.values()]
        rows.append([text(metric), *(_DASH if m is None else _cell(m, prompts, ".2f") for m, prompts in found)])
    return _table(["", *map(text, summaries)], rows)


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{heading}</h2>{content}</section>\n" if content else ""


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; the first of a row is its heading, and the others bring their <td>."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = [f'<tr><th scope="row">{first}</th>{"".join(cells)}</tr>' for first, *cells in rows]
    shown, left = _fitting(body, _ROOM - len(head.encode()), "rows")
    if not shown:
        return left
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{shown}</tbody></table></div>{left}'


def _fitting(pieces: list[str], room: int, kind: str) -> tuple[str, str]:
    """As many of the pieces as fit into `room` bytes, and what is to be said of the others."""
    kept = sum(size <= room for size in accumulate(len(piece.encode()) for piece in pieces))
    left = len(pieces) - kept
    words = f"<p>{left:,} of {len(pieces):,} {kind} are left out, for want of room; evaluation.json has all.</p>"
    return "".join(pieces[:kept]), words if left else ""


def _cell(metric: dict, prompts: int, spec: str, word: str = "") -> str:
    """Value and interval, the word for a difference, and how many prompts have a value where not all have."""
    value, low, high = (format(metric[name], spec).replace("-", "\u2212") for name in ("value", "low", "high"))
    few = f"<small>{metric['n']:,} prompts</small>" if metric["n"] < prompts else ""
    kind, word = (' class="seen"', f" <i>{word}</i>") if word else ("", "")
    return f"<td{kind}><b>{value}</b>{word}<small>[{low}, {high}]</small>{few}</td>"


def _heading(title: str, settings: dict) -> str:
    asked = {
        "prompts": f"{settings['prompts']:,} of {settings['test']}",
        "samples": f"{settings['n']} a prompt, temperature {settings['temperature']:g}, up to "
        f"{settings['max_new_tokens']:,} new tokens, seed {settings['seed']}",
        "answers compared": settings["answer"],
        "date": settings["date"],
        "versions": ", ".join(f"{name} {number}" for name, number in settings["versions"].items()),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in asked.items())
    notes = _fitting([f"<p><b>Note.</b> {text(note, 600)}</p>" for note in settings["notes"]], _ROOM // 4, "notes")
    return f"<h1>{text(title)}</h1><dl>{listed}</dl>{''.join(notes)}"


def _measured(summaries: dict[str, dict], prompts: int) -> str:
    words = (
        f"The mean over prompts and its 95 % bootstrap interval over prompts: all {prompts:,}, unless a cell says that "
        "fewer have a value. A dash: not measured."
    )
    return f"<p>{words}</p>{metrics_table(summaries)}"


def _differences(differences: Sequence[dict], first: str, prompts: int) -> str:
    if not differences:
        return ""
    models, count = dict.fromkeys(row["model"] for row in differences), 0
    rows: dict[str, dict[str, str]] = {}
    for row in differences:
        word = "higher" if row["low"] > 0 else "lower" if row["high"] < 0 else ""
        rows.setdefault(row["metric"], {})[row["model"]] = _cell(row, prompts, "+.3f", word)
        count += bool(word)
    words = (
        f"Each model less <b><bdi>{text(first)}</bdi></b>, prompt by prompt, with 95 % intervals. <i>higher</i> or "
        f"<i>lower</i> stands where the interval leaves out 0: in {count} of {len(differences)} cells. Where nothing "
        "differs, it would in about one of twenty."
    )
    cells = [[text(metric), *(found.get(name, _DASH) for name in models)] for metric, found in rows.items()]
    return f"<p>{words}</p>{_table(['', *map(text, models)], cells)}"


def _pictures(summaries: dict[str, dict]) -> str:
    """What all models have in bars, the ways of thinking where they can be told, and diversity against accuracy."""
    wanted = ("unique thoughts", "accuracy", "compliance")
    shared = [metric for metric in wanted if all(metric in s["metrics"] for s in summaries.values())]
    html = _picture(plots.bars(summaries, shared, _axes(len(shared), 3.3)), _said(summaries, shared))
    if all(summary["ways"] for summary in summaries.values()):
        said = "; ".join(f"{name}: {summary['ways']}" for name, summary in summaries.items())
        html += _picture([plots.ways(summaries, _axes(1, 1 + 0.4 * len(summaries))[0])], said)
    if {"unique thoughts", "accuracy"} <= set(shared):
        points = {name: {name: summary} for name, summary in summaries.items()}
        html += _picture([plots.frontier(points, *shared[:2], _axes(1, 4.2)[0])], _said(summaries, shared[:2]))
    return html


def _axes(n: int, height: float) -> list:
    """Axes beside each other, in a figure that no notebook shows."""
    return list(Figure((9, height), layout="constrained").subplots(1, n, squeeze=False).flat)


def _said(summaries: dict[str, dict], metrics: Sequence[str]) -> str:
    return "; ".join(
        f"{metric}: " + ", ".join(f"{name} {s['metrics'][metric]['value']:.2f}" for name, s in summaries.items())
        for metric in metrics
    )


def _picture(axes: list, said: str) -> str:
    """`said` is what the picture shows, in words."""
    file = io.BytesIO()
    axes[0].figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<figure><img alt="{text(said, 2000)}" src="data:image/png;base64,{data}"></figure>'


def _problems(summaries: dict[str, dict]) -> str:
    problems = dict.fromkeys(name for summary in summaries.values() for name in summary["problems"])
    rows = [
        [
            text(problem),
            *(_share(summary["problems"].get(problem, 0), summary["samples"]) for summary in summaries.values()),
        ]
        for problem in problems
    ]
    if any(summary.get("unparsed") for summary in summaries.values()):
        rows.append(["no answer to compare", *(_share(s["unparsed"], s["samples"]) for s in summaries.values())])
    if not rows:
        return "<p>Nothing: every sample of every model fits the think format.</p>"
    return f"<p>Samples, by the first thing wrong with each.</p>{_table(['', *map(text, summaries)], rows)}"


def _share(count: int, samples: int) -> str:
    return f"<td><b>{count:,}</b><small>{count / samples:.1%} of {samples:,}</small></td>"


def _configuration(configs: dict[str, dict]) -> str:
    keys = dict.fromkeys([*_DIALS, *(key for config in configs.values() for key in config)])
    told = [key for key in keys if not key.startswith(_SAYS_NOTHING) and not key.endswith("_token")]
    rows, equal = [], 0
    for key in told:
        values = [_written(config, key) for config in configs.values()]
        absent = {"\u2013"} if key.startswith("adapter.") else set()  # of a run without one, which base and data tell
        differs = len(set(values) - absent) > 1
        equal += not differs and key not in _DIALS
        if differs or (key in _DIALS and set(values) != {"\u2013"}):
            mark = "" if differs or len(values) == 1 else " <small>(equal)</small>"
            rows.append([f"{text(key)}{mark}", *(f"<td>{text(value)}</td>" for value in values)])
    words = (
        f"The {equal} other settings are equal, those of adapters in all runs that have one; evaluation.json has them "
        "all, and where each run lies. A dash: the run does not say."
    )
    return _table(["", *map(text, configs)], rows) + f"<p class='soft'>{words}</p>"


def _written(config: dict, key: str) -> str:
    return json.dumps(config[key], ensure_ascii=False) if key in config else "\u2013"
