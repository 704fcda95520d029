"""Blurred-Thoughts SFT from the command line.

  btsft [train] --config FILE [key=value ...]   fine-tune; --dry-run measures what it would take, and stops
  btsft train --resume RUN                      go on from the last checkpoint of a run folder
  btsft prepare --config FILE [key=value ...]   rows -> examples, and a report of what became of each row
  btsft evaluate RUN... test=ROWS               sample the test prompts from runs, measure, and write a report
  btsft merge RUN [FOLDER] [dtype=float16]      the adapter merged into its model, by default as RUN/merged
  btsft inspect [RUN] [--config FILE]           a page of the examples' tokens: weights, blur, and the run's losses

FILE is YAML or JSON, one setting a line; a run folder stands for its settings.yaml. key=value, or --key value,
overrules it. `python -m btsft_nb` is the same, and what torchrun and accelerate launch start (-m btsft_nb).
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from ..models.keys import load_secrets
from .settings import SETTINGS_FILE, Settings, read_settings
from .settings_help import describe

# What a command needs is imported when it runs, so that help and a misspelt setting answer without torch.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, by default with the arguments of the process.

    Returns:
        The exit status: 0; 2 after an error of the user's, told without a traceback; 130 after an interrupt.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"-h", "--help"} & set(words):
        print(f"{__doc__}\nSettings:\n{describe()}")
        return 0
    if words[0] not in _COMMANDS:
        words.insert(0, "train")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("btsft_nb").setLevel(logging.INFO)
    try:
        load_secrets()
        options, rest = _parser().parse_known_args(words)
        options.changes, options.runs = _split(rest)
        _COMMANDS[options.command](options)
    except KeyboardInterrupt as error:
        print(f"btsft: interrupted {error}", file=sys.stderr)
        return 130
    except Exception as error:
        # by its name, since torch may not be imported
        is_memory = type(error).__name__ == "OutOfMemoryError"
        if not isinstance(error, (ValueError, OSError, ImportError)) and not is_memory:
            raise
        print("\n".join([f"btsft: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    """The commands and their own options; settings and runs are what the parser leaves over."""
    parser = argparse.ArgumentParser("btsft", add_help=False)
    commands = parser.add_subparsers(dest="command")
    for name in _COMMANDS:
        command = commands.add_parser(name, add_help=False, allow_abbrev=False)
        command.error = _refuse
        command.add_argument("--config")
        if name == "train":
            command.add_argument("--resume")
            command.add_argument("--dry-run", action="store_true")
            command.add_argument("--overwrite", action="store_true")
    return parser


def _refuse(message: str) -> None:
    raise ValueError(message)


def _split(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings, as `key=value`, `--key=value` or `--key value`; and the words that are none."""
    settings = {}
    others = []
    remaining = iter(words)
    for word in remaining:
        key, equals, text = word.removeprefix("--").partition("=")
        if word.startswith("--") and not equals:
            text = next(remaining, "true")
        elif not equals or not key.isidentifier():
            others.append(word)
            continue
        try:
            settings[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"{word}: not YAML after the equals sign") from None
    return settings, others


def _settings(options: argparse.Namespace) -> Settings:
    """Those of --config, else of the run if one is named."""
    file = options.config
    if not file and len(options.runs) == 1 and Path(options.runs[0], SETTINGS_FILE).is_file():
        file = options.runs[0]
    return read_settings(file, **options.changes)


def _check_runs(options: argparse.Namespace, most: int) -> None:
    if len(options.runs) > most:
        raise ValueError(
            f"{options.runs[most]}: neither key=value nor one of the commands {', '.join(_COMMANDS)}"
        )


def _train(options: argparse.Namespace) -> None:
    _check_runs(options, 0)
    if options.resume:
        resumed = Path(options.resume)
        is_checkpoint = (resumed / "trainer_state.json").is_file()
        options.changes["output_dir"] = resumed.parent if is_checkpoint else resumed
        options.changes["resume_from_checkpoint"] = resumed
        options.config = options.config or options.changes["output_dir"]
    settings = _settings(options)

    from ..training.checkpoints import CONFIG_FILE
    from . import planning, stages

    if options.dry_run:
        print(planning.plan(settings).to_string(header=False))
        return
    training = settings.training
    folder = Path(training.output_dir)
    # of several processes the first one writes, and ends all
    is_first = training.process_index == 0
    is_run = any((folder / file).is_file() for file in (SETTINGS_FILE, CONFIG_FILE))
    if is_first and is_run and not (options.overwrite or training.resume_from_checkpoint):
        raise ValueError(
            f"{folder} holds a run: go on with it (btsft train --resume {folder}), name another "
            "output_dir, or lose it with --overwrite"
        )
    stages.finetune(settings)
    if is_first:
        print(f"saved in {folder}")


def _prepare(options: argparse.Namespace) -> None:
    _check_runs(options, 0)
    settings = _settings(options)

    from . import stages

    stages.prepare_data(settings, stages.tokenizer_of(settings))


def _evaluate(options: argparse.Namespace) -> None:
    settings = _settings(options)
    evaluation = settings.evaluation
    runs = options.runs or [settings.values["output_dir"]]
    if evaluation.test is None or (evaluation.report is None and len(runs) > 1):
        raise ValueError(
            "evaluate needs test=ROWS, with the field answer, and report=FOLDER for several runs"
        )

    from .. import tiny
    from ..data.rows import load_rows
    from ..evaluation import comparison, summary
    from ..training.card import model_card
    from ..training.run import Run

    rows = load_rows(evaluation.test, evaluation.test_split, evaluation.test_config)
    compared = comparison.compare(
        runs,
        rows,
        evaluation.report or Path(runs[0], "evaluation"),
        prompts=evaluation.test_prompts,
        answer=evaluation.answer,
        text_scores=evaluation.text_scores,
        way_of=tiny.ways_in(rows.source),
        base=evaluation.evaluate_base,
        **evaluation.sampling(),
    )
    print(summary.table(compared.summaries).T.to_string())
    if len(compared.summaries) > 1:
        print(f"\nless {next(iter(compared.summaries))}, with 95 % intervals:")
        print(compared.differences().to_string(float_format="{:+.3f}".format))
    if evaluation.report is None:
        model_card(Run(runs[0])).save(Path(runs[0], "README.md"))
    print(f"\n{compared.folder / 'evaluation.json'}\n{compared.folder / 'index.html'}")


def _merge(options: argparse.Namespace) -> None:
    _check_runs(options, 2)
    if not options.runs or options.config or set(options.changes) - {"dtype"}:
        raise ValueError("merge needs a run folder, and takes another folder and dtype=")

    from ..training.export import merge

    folder = options.runs[1] if len(options.runs) == 2 else Path(options.runs[0], "merged")
    print(merge(options.runs[0], folder, **options.changes))


def _inspect(options: argparse.Namespace) -> None:
    _check_runs(options, 1)
    settings = _settings(options)

    from ..evaluation.scoring import score
    from ..models.load import load_model
    from ..views.inspector import TokenInspector
    from . import stages

    training = settings.training
    model = None
    if options.runs:
        model, tokenizer = load_model(options.runs[0])
    else:
        tokenizer = stages.tokenizer_of(settings)
    examples = list(islice(stages.prepare_data(settings, tokenizer)[0], 20))
    inspector = TokenInspector(
        examples,
        tokenizer,
        score=score(model, tokenizer, examples) if model else None,
        threshold=training.threshold,
        beta=training.beta,
        unit=training.unit,
        keep_first=training.keep_first,
        seed=training.seed,
    )
    path = Path(options.runs[0] if options.runs else training.output_dir, "inspector.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    inspector.to_html(path)
    print(path)


_COMMANDS = {
    "train": _train,
    "prepare": _prepare,
    "evaluate": _evaluate,
    "merge": _merge,
    "inspect": _inspect,
}

if __name__ == "__main__":
    sys.exit(main())
