"""Blurred-Thoughts SFT from the command line.

  btsft [train] --config FILE [key=value ...]   fine-tune; --dry-run measures what it would take, and stops
  btsft train --resume RUN                      go on from the last checkpoint of a run folder
  btsft prepare --config FILE [key=value ...]   rows -> examples, and a report of what became of each row
  btsft evaluate RUN... test=ROWS               sample the test prompts from runs, measure, and write a report
  btsft merge RUN [FOLDER] [dtype=float16]      the adapter merged into its model, by default as RUN/merged
  btsft inspect [RUN] [--config FILE]           a page of the examples' tokens: weights, blur, and the run's losses

FILE is YAML or JSON, one setting a line; a run folder stands for its settings.yaml, and tiny, smollm2-cpu,
qwen3-0.6b-t4 and qwen3-1.7b-l4 are recipes of this package. key=value, or --key value, overrules it.
`python -m btsft_nb` is the same, and what torchrun and accelerate launch start (-m btsft_nb).
"""

import logging
import sys
from itertools import islice
from pathlib import Path

import yaml

from ..models.keys import load_secrets
from .settings import SETTINGS_FILE, read_settings
from .settings_help import describe

# What a command needs is imported when it runs, so that help and a misspelt setting answer without torch.


def main(arguments: list[str] | None = None) -> int:
    """Runs a command, by default with the arguments of the process.

    Returns:
        The exit status: 0; 2 after an error of the user's, told without a traceback; 130 after an interrupt.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"-h", "--help"} & set(words):
        print(f"{__doc__}\nSettings:\n{describe()}")
        return 0
    name = words.pop(0) if words[0] in _COMMANDS else "train"
    command, most_runs = _COMMANDS[name]
    logging.basicConfig(format="%(message)s")
    logging.getLogger("btsft_nb").setLevel(logging.INFO)
    try:
        load_secrets()
        given, runs = _parsed(words)
        if len(runs) > most_runs:
            raise ValueError(f"{runs[most_runs]}: neither key=value nor a command")
        command(given, runs)
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


def _parsed(words):
    """Options and settings by name, given as `key=value`, `--key=value` or `--key value`; and the runs."""
    given = {}
    runs = []
    remaining = iter(words)
    for word in remaining:
        key, equals, text = word.removeprefix("--").partition("=")
        is_option = word.startswith("--")
        if not is_option and not (equals and key.isidentifier()):
            runs.append(word)
            continue
        try:
            if not equals:
                text = "true" if key in ("dry-run", "overwrite") else next(remaining)
            # a path stays as it is, whatever it says to YAML
            given[key] = text if key in ("config", "resume") else yaml.safe_load(text)
        except (StopIteration, yaml.YAMLError):
            raise ValueError(f"{word}: its value is missing, or no YAML") from None
    return given, runs


def _settings(given, runs):
    """Those of --config, else of the run if one is named."""
    file = given.pop("config", None)
    if not file and len(runs) == 1 and Path(runs[0], SETTINGS_FILE).is_file():
        file = runs[0]
    return read_settings(file, **given)


def _train(given, runs):
    is_dry_run = given.pop("dry-run", False)
    may_overwrite = given.pop("overwrite", False)
    resumed = given.pop("resume", None)
    if resumed:
        folder = Path(resumed)
        if (folder / "trainer_state.json").is_file():  # a checkpoint
            folder = folder.parent
        given = {"config": folder} | given
        given |= {"output_dir": folder, "resume_from_checkpoint": resumed}
    settings = _settings(given, runs)

    from ..training.checkpoints import CONFIG_FILE
    from . import planning, stages

    if is_dry_run:
        print(planning.plan(settings).to_string(header=False))
        return
    training = settings.training
    folder = Path(training.output_dir)
    # of several processes the first one writes, and ends all
    is_first = training.process_index == 0
    is_kept = not (may_overwrite or training.resume_from_checkpoint)
    if is_first and is_kept and (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{folder} holds a run: train --resume {folder}, set another output_dir, or --overwrite"
        )
    if is_first and may_overwrite:
        (folder / SETTINGS_FILE).unlink(missing_ok=True)
    stages.finetune(settings)


def _prepare(given, runs):
    settings = _settings(given, runs)

    from . import stages

    stages.prepare_data(settings, stages.tokenizer_of(settings))


def _evaluate(given, runs):
    settings = _settings(given, runs)
    evaluation = settings.evaluation
    runs = runs or [settings.values["output_dir"]]
    if evaluation.test is None or (evaluation.report is None and len(runs) > 1):
        raise ValueError("evaluate needs test=ROWS, and report=FOLDER for several runs")

    from ..evaluation import comparison, summary

    compared = comparison.compare(
        runs,
        evaluation.prompts(),
        evaluation.report or Path(runs[0], "evaluation"),
        **evaluation.comparing(),
    )
    print(summary.table(compared.summaries).T.to_string())
    if len(compared.summaries) > 1:
        print(f"\nless {next(iter(compared.summaries))}, with 95 % intervals:")
        print(compared.differences().to_string(float_format="{:+.3f}".format))
    print(f"\n{compared.folder / 'evaluation.json'}\n{compared.folder / 'index.html'}")


def _merge(given, runs):
    if not runs or set(given) - {"dtype"}:
        raise ValueError("merge needs a run folder, and takes another folder and dtype=")

    from ..training.export import merge

    folder = runs[1] if len(runs) == 2 else Path(runs[0], "merged")
    print(merge(runs[0], folder, **given))


def _inspect(given, runs):
    settings = _settings(given, runs)

    from ..evaluation.scoring import score
    from ..models.load import load_model
    from ..views.inspector import TokenInspector
    from . import stages

    if runs:
        model, tokenizer = load_model(runs[0])
    else:
        tokenizer = stages.tokenizer_of(settings)
    examples = list(islice(stages.prepare_data(settings, tokenizer)[0], 20))
    training = settings.training
    inspector = TokenInspector(
        examples,
        tokenizer,
        score=score(model, tokenizer, examples) if runs else None,
        threshold=training.threshold,
        beta=training.beta,
        unit=training.unit,
        keep_first=training.keep_first,
        seed=training.seed,
    )
    folder = Path(runs[0] if runs else training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    inspector.to_html(folder / "inspector.html")
    print(folder / "inspector.html")


# Each command, and how many runs it takes at most.
_COMMANDS = {
    "train": (_train, 0),
    "prepare": (_prepare, 0),
    "evaluate": (_evaluate, 100),
    "merge": (_merge, 2),
    "inspect": (_inspect, 1),
}
