"""The metrics of a summary: what `evaluate` calls them, and the unit of each."""

import difflib

_OF = {  # unit -> metrics
    "share of samples": "compliance, cut off, unique thoughts, accuracy, different right thoughts",
    "ways per prompt": "ways of thinking, right ways",
    "share of prompts": "pass, majority",
    "0 to 1": "self-BLEU, rouge1, rouge2, rougeL",
    "0 to 100": "bleu",
    "share of word pairs": "distinct-2",
    "share of 4-grams": "training 4-grams",
}
_UNITS = {name: unit for unit, names in _OF.items() for name in names.split(", ")}


def unit(metric: str) -> str:
    """What a metric's numbers are.

    >>> unit("pass@8")
    'share of prompts'
    """
    return _UNITS.get(metric.split("@")[0], "share of samples")


def present(metrics, summaries):
    """The metrics that at least one summary has.

    Raises ValueError if there are none, or for a name that is no metric's, with the nearest one.
    """
    there = {name: 1 for summary in summaries.values() for name in summary["metrics"]}
    for metric in metrics:
        if metric.split("@")[0] not in there | _UNITS:
            (nearest,) = difflib.get_close_matches(metric, there | _UNITS, 1, 0)
            raise ValueError(f"unknown metric {metric!r}, did you mean {nearest!r}?")
    if there.keys().isdisjoint(metrics):
        raise ValueError(f"none of {', '.join(metrics)}: these have {', '.join(there)}")
    return [metric for metric in metrics if metric in there]
