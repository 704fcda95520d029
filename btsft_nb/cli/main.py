"""The command line: `btsft --config run.yaml threshold=0.5`, or `python -m btsft_nb train ...`; `--help` lists all."""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
import yaml

from ..data.rows import load_rows
from ..evaluation.comparison import compare
from ..evaluation.scoring import score
from ..evaluation.summary import table
from ..models.keys import load_secrets
from ..models.load import load_model, load_tokenizer
from ..tiny import way_of
from ..training.card import model_card
from ..training.checkpoints import CONFIG, checkpoints, is_whole
from ..training.export import merge
from ..training.run import Run
from ..views.inspector import TokenInspector
from .settings import FILE, describe, read_settings
from .stages import finetune, plan, prepare_data

_HELP = """Blurred-Thoughts SFT from the command line.

  btsft [train] --config FILE [key=value ...]   fine-tune; with --dry-run say what it would take, and stop
  btsft train --resume RUN                      go on from the last checkpoint of a run folder
  btsft prepare --config FILE [key=value ...]   rows -> examples, and a report of what became of each row
  btsft evaluate RUN... test=ROWS               sample the test prompts from runs, measure, and write a report
  btsft merge RUN [FOLDER]                      the adapter merged into its model, by default as RUN/merged
  btsft inspect [RUN] [--config FILE]           a page of the examples' tokens: weights, blur, and the run's losses

FILE is YAML or JSON, one setting a line; a run folder stands for its settings.yaml. key=value overrules it. `python -m
btsft_nb` is the same, and what torchrun and accelerate launch start (-m btsft_nb). Settings:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the arguments are those of the process where none are given.

    Returns the exit status: 0; 2 after an error that the one who called can mend, told without a traceback; 130 after
    an interrupt.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_HELP + describe())
        return 0
    command = _COMMANDS[arguments.pop(0)] if arguments[0] in _COMMANDS else _train
    try:
        load_secrets()
        command(_asked(arguments, train=command is _train))
    except (ValueError, OSError, ImportError, torch.OutOfMemoryError) as error:
        print("\n".join([f"btsft: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"btsft: interrupted {error}", file=sys.stderr)
        return 130
    return 0


def _asked(arguments: list[str], train: bool) -> argparse.Namespace:
    """What the command line says: `settings`, `runs`, and what only one command has."""
    parser = argparse.ArgumentParser(
        "btsft", add_help=False, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config")
    parser.add_argument("--resume", metavar="RUN")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("words", nargs="*")
    try:
        found, unknown = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; btsft --help says what there is") from error
    if not train and (found.resume or found.dry_run or found.overwrite):
        raise ValueError(
            "--resume, --dry-run and --overwrite are for train; btsft --help says what there is"
        )
    if unknown:
        raise ValueError(f"unknown option {unknown[0]}; btsft --help says what there is")
    given, runs = {}, []
    for word in found.words:
        key, equals, text = word.partition("=")
        if not (equals and key.isidentifier()):
            runs.append(word)
            continue
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{word}: no YAML after the equals sign: {said}") from error
    if found.resume:
        run = (
            Path(found.resume).parent
            if Path(found.resume, "trainer_state.json").is_file()
            else Path(found.resume)
        )
        given |= {"output_dir": str(run), "resume_from_checkpoint": found.resume}
    file = found.config or (found.resume and run)
    if file is None and len(runs) == 1 and Path(runs[0], FILE).is_file():
        file = runs[0]
    found.settings, found.runs = read_settings(file, "command line", **given), runs
    return found


def _no_runs(asked: argparse.Namespace) -> None:
    if asked.runs:
        raise ValueError(
            f"{asked.runs[0]}: neither key=value nor one of the commands {', '.join(_COMMANDS)}"
        )


def _train(asked: argparse.Namespace) -> None:
    _no_runs(asked)
    settings = asked.settings
    if asked.dry_run:
        print(plan(settings).to_string(header=False))
        return
    folder, first = Path(settings.training.output_dir), settings.training.process_index == 0
    there = [file for file in (FILE, CONFIG) if (folder / file).is_file()]
    if first and there and not (asked.overwrite or settings.training.resume_from_checkpoint):
        whole = any(
            map(is_whole, checkpoints(folder))
        )  # of several processes the first one writes, and ends all
        go_on = f"go on with it (btsft train --resume {folder}), " if whole else ""
        raise ValueError(
            f"{folder} holds a run: {go_on}name another output_dir, or lose it with --overwrite"
        )
    finetune(settings, show_plan=True)
    if first:
        print(f"saved in {folder}")


def _prepare(asked: argparse.Namespace) -> None:
    _no_runs(asked)
    model = asked.settings.model
    prepare_data(asked.settings, load_tokenizer(model.tokenizer or model.model))


def _evaluate(asked: argparse.Namespace) -> None:
    how, runs = asked.settings.evaluation, asked.runs or [asked.settings.training.output_dir]
    if how.test is None or (how.report is None and len(runs) > 1):
        raise ValueError(
            "evaluate needs test=ROWS, with the field answer; and report=FOLDER where runs are several"
        )
    found = compare(
        runs,
        load_rows(how.test, how.test_split, how.test_config),
        how.report or Path(runs[0], "evaluation"),
        prompts=how.test_prompts,
        answer=how.answer,
        text_scores=how.text_scores,
        way_of=way_of if how.test.startswith("tiny/") else None,
        base=how.evaluate_base,
        **how.sampling(),
    )
    print(table(found.summaries).T.to_string())
    if len(found.summaries) > 1:
        print(f"\nless {next(iter(found.summaries))}, with 95 % intervals:")
        print(found.differences().to_string(float_format="{:+.3f}".format))
    if how.report is None:
        model_card(Run(runs[0])).save(Path(runs[0], "README.md"))
    print(f"\n{found.folder / 'evaluation.json'}\n{found.folder / 'index.html'}")


def _merge(asked: argparse.Namespace) -> None:
    if len(asked.runs) not in (1, 2):
        raise ValueError(
            "merge needs a run folder, and where the merged model goes, if not to RUN/merged"
        )
    folder = asked.runs[1] if len(asked.runs) == 2 else Path(asked.runs[0], "merged")
    print(merge(asked.runs[0], folder, dtype=asked.settings.values.get("dtype", "auto")))


def _inspect(asked: argparse.Namespace) -> None:
    settings, training = asked.settings, asked.settings.training
    if len(asked.runs) > 1:
        raise ValueError(
            f"inspect shows one run, not {len(asked.runs)}; name the others in calls of their own"
        )
    if asked.runs:
        model, tokenizer = load_model(asked.runs[0])
    else:
        tokenizer = load_tokenizer(settings.model.tokenizer or settings.model.model)
    examples = list(islice(prepare_data(settings, tokenizer)[0], 20))
    dials = {
        name: getattr(training, name)
        for name in ("threshold", "beta", "unit", "keep_first", "seed")
    }
    scores = score(model, tokenizer, examples) if asked.runs else None
    path = Path(asked.runs[0] if asked.runs else training.output_dir, "inspector.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    TokenInspector(examples, tokenizer, score=scores, **dials).to_html(path)
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
