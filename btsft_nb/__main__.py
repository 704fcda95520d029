"""The command line: `python -m btsft_nb evaluate RUN...`, or `btsft evaluate RUN...` where the package is installed."""

import argparse
import inspect
import sys
from collections.abc import Sequence

from . import tiny
from .answers import ANSWERS
from .compare import compare
from .evaluate import table

_ASKED = {  # parameters of `compare`, with the type of those whose default does not tell it
    "n": ("--samples", "N", "completions of each prompt", int),
    "prompts": ("--prompts", "N", "how many of the test rows, from the first; all where left out", int),
    "max_new_tokens": ("--max-new-tokens", "TOKENS", "cut a completion off after so many", int),
    "temperature": ("--temperature", "T", "of the draws; 0 takes the most likely token", float),
    "batch_size": ("--batch-size", "N", "completions drawn at once", int),
    "seed": ("--seed", "N", "of the draws", int),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the arguments are those of the process where none are given.

    Returns the exit status: 0, or 2 after an error, told in one line, that the one who called can mend.
    """
    asked = vars(_parser().parse_args(arguments))
    command = asked.pop("command")
    try:
        command(**asked)
    except (ValueError, OSError, ImportError) as error:
        print(f"btsft: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("btsft", description="Blurred-Thoughts SFT from the command line.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "sample the same prompts from runs, measure them, and write a report: a page, JSON and the samples"
    evaluate = commands.add_parser("evaluate", help=about, description=about)
    evaluate.set_defaults(command=_evaluate)
    evaluate.add_argument("runs", nargs="+", metavar="RUN", help="a run folder; its last part is the model's name")
    test = "rows with the field answer: tiny/test, a .json, .jsonl or .parquet file, or a data set on the Hub"
    evaluate.add_argument("--test", required=True, metavar="ROWS", help=test)
    evaluate.add_argument("--folder", required=True, help="where the report goes; one that was begun goes on")
    defaults = inspect.signature(compare).parameters
    for name, (flag, unit, words, kind) in _ASKED.items():
        default = defaults[name].default
        words += "" if default is None else f" (default: {default})"
        evaluate.add_argument(flag, dest=name, type=kind, default=default, metavar=unit, help=words)
    words = "how answers are compared; see btsft_nb.evaluate (default: auto)"
    evaluate.add_argument("--answer", choices=("auto", *ANSWERS), default="auto", help=words)
    words = "leave out the model under the adapters"
    evaluate.add_argument("--no-base", dest="base", action="store_false", help=words)
    return parser


def _evaluate(test: str, **asked) -> None:
    found = compare(test=test, way_of=tiny.way_of if test.startswith("tiny/") else None, **asked)
    print(table(found.summaries).T.to_string())
    if len(found.summaries) > 1:
        print(f"\nless {next(iter(found.summaries))}, with 95 % intervals:")
        print(found.differences().to_string(float_format="{:+.3f}".format))
    print(f"\n{found.folder / 'evaluation.json'}\n{found.folder / 'index.html'}")


if __name__ == "__main__":
    sys.exit(main())
