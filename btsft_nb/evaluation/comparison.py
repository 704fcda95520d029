"""Runs + test prompts -> samples, summaries and a page: the same prompts and draws for every model."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pandas as pd

from ..data.errors import RowError
from ..data.formats import to_messages
from ..data.rows import Rows, load_rows
from ..files import versions, write
from ..models.adapters import without_old_torchao
from ..models.load import load_model, load_tokenizer
from ..training.run import Run
from .answers import parse
from .intervals import paired_difference
from .page import page
from .sampling import SamplingSettings, sample
from .summary import evaluate, references_of, table

BEFORE = "before"  # the row of the model under the adapters
# what tells loaded base models apart
_BASE = ("base_model", "qlora", "bits", "dtype", "attention", "embedding_rows")
_MOST_TRAINING = 30_000_000  # characters of training data, among which copies are looked for
_LIBRARIES = ("btsft_nb", "torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Comparison:
    """Models measured on the same prompts.

    Attributes:
        summaries: name -> what `evaluate` returns.
        configs: run -> its base model, data, adapter and training arguments.
        samples: name -> records of `sample`.
        references: the right answer of each prompt; None where the test rows have none.
        settings: those of the call and of sampling, versions, and `notes` on what was not measured.
        folder: where all of it is, with the page, index.html.

    >>> comparison = bt.compare(["tests/none"], "tiny/test", "report")
    Traceback (most recent call last):
    FileNotFoundError: tests/none: no such run folder
    """

    summaries: dict[str, dict]
    configs: dict[str, dict]
    samples: dict[str, list[dict]]
    references: list[str] | None
    settings: dict
    folder: Path

    def differences(self, *metrics: str) -> pd.DataFrame:
        """Paired differences of each model from the first one, over the prompts for which both have a value.

        Args:
            metrics: by name; by default all that the first model has.

        Returns:
            A row for each metric and model: `value` (model - first), its 95 % interval `low` to `high`, and `n`, the
            prompts. What has no prompt with both values is left out.

        Raises ValueError for a metric that no model has.
        """
        values = {name: summary["values"] for name, summary in self.summaries.items()}
        first, *others = values
        known = {metric for columns in values.values() for metric in columns}
        for metric in metrics:
            if metric not in known:
                raise ValueError(f"no metric {metric!r}; there are {', '.join(sorted(known))}")
        rows = []
        for metric in metrics or values[first]:
            for name in others:
                with suppress(ValueError):  # no prompt has both values
                    both = (values[model].get(metric, ()) for model in (first, name))
                    rows.append({"metric": metric, "model": name} | paired_difference(*both))
        columns = ["metric", "model", "value", "low", "high", "n"]
        return pd.DataFrame(rows, columns=columns).set_index(["metric", "model"])

    def _repr_html_(self) -> str:
        return table(self.summaries).T.to_html(na_rep="\u2013")


def compare(
    runs: Sequence[str | Path] | dict[str, str | Path],
    test: str | Path | Iterable[dict | str],
    folder: str | Path,
    *,
    prompts: int | None = None,
    answer: str = "auto",
    text_scores: bool = False,
    way_of: Callable[[str], str | None] | None = None,
    base: bool = True,
    **sampling,
) -> Comparison:
    """Samples the same prompts from each run, measures all of them, and writes a report.

    Into `folder` go NAME.jsonl (the samples of each model; a call that was stopped continues from them),
    evaluation.json and index.html, one page that opens from disk. Runs on the same base model share one copy of it.

    Args:
        runs: run folders, named by their last part; or name -> folder. A folder with a model in place of an adapter,
            from training all weights, is loaded whole.
        test: what `load_rows` takes, or rows. The right answer is their field `answer`; without it, what needs one is
            not measured.
        prompts: how many of the test rows, from the first; None: all of them.
        answer, text_scores, way_of: as for `evaluate`.
        base: also sample the model under the adapters of the first run that has any, as the first row, "before".
        sampling: n, max_new_tokens, temperature, batch_size, seed and so on, as for `sample`.

    Thoughts are held against those of the training data where a run names a generated set or a file that is still
    there, or its settings.yaml any set; `settings["notes"]` says where not. Those of "before" are held against the same
    data where it is that of all runs, else against none.

    Raises:
        FileNotFoundError: a folder that is no run, or a test set that is not there.
        RowError: a test row that is no prompt.
        ValueError: NAME.jsonl has samples of another model, prompts or settings, most likely of a run that was trained
            anew under its name: delete the file. Or two runs of a name, a name that is no file's, or answers in some
            test rows only.

    >>> comparison = bt.compare(["runs/a", "runs/b"], "tiny/test", "report", n=8)  # doctest: +SKIP
    >>> comparison.differences("accuracy")  # doctest: +SKIP
    """
    runs = _by_name(runs, base)
    folder = Path(folder)
    if prompts is not None and prompts < 1:
        raise ValueError(f"prompts must be at least 1, got {prompts}")
    rows = load_rows(test) if isinstance(test, (str, Path)) else test
    rows = Rows(islice(rows, prompts), getattr(rows, "source", "rows"))
    if not len(rows):
        raise ValueError(f"{rows.source}: no rows to sample")
    references = references_of(rows, answer)
    sampling = asdict(SamplingSettings(**sampling))
    configs = {name: _config(path) for name, path in runs.items()}
    notes = []
    training = _training(runs, configs, notes)
    folder.mkdir(parents=True, exist_ok=True)
    samples = _sample_all(runs, configs, rows, folder, base, sampling)
    if base and BEFORE not in samples:
        notes.append(f"No run has adapters, so there is no model {BEFORE!r} to sample.")
    options = {"answer": answer, "text_scores": text_scores}
    summaries = {
        name: evaluate(records, references, way_of, training=training.get(name), **options)
        for name, records in samples.items()
    }
    settings = {"test": rows.source, "prompts": len(rows), **sampling, "answer": answer}
    settings |= {"notes": notes, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    settings["versions"] = versions(_LIBRARIES)
    comparison = Comparison(summaries, configs, samples, references, settings, folder)
    _write(comparison)
    return comparison


def _write(comparison: Comparison) -> None:
    """Writes evaluation.json and index.html."""
    names = ("settings", "configs", "summaries")
    record = {name: getattr(comparison, name) for name in names}
    record["differences"] = comparison.differences().reset_index().to_dict("records")
    write(comparison.folder / "evaluation.json", json.dumps(record, indent=1) + "\n")
    write(comparison.folder / "index.html", page(comparison))


def _by_name(runs: Sequence[str | Path] | dict[str, str | Path], base: bool) -> dict[str, Path]:
    """Name -> folder of each run. A name is that of a file in the report's folder as well."""
    if not isinstance(runs, dict):
        folders = list(runs)
        runs = {Path(run).resolve().name: run for run in folders}
        if len(runs) < len(folders):
            raise ValueError(
                f"two runs are called the same, one of {list(runs)}; give name -> folder"
            )
    if not runs:
        raise ValueError("no runs to compare")
    for name, folder in runs.items():
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder}: no such run folder")
        if (base and name == BEFORE) or Path(f"{name}.jsonl").name != f"{name}.jsonl":
            raise ValueError(f"a run cannot be called {name!r}; give name -> folder")
    return {name: Path(folder) for name, folder in runs.items()}


def _config(folder: Path) -> dict:
    """What is known of a run: base model, data, and every argument of adapter and training; its folder as given."""
    config = {}
    with suppress(FileNotFoundError):  # a model's folder is no run
        run = Run(folder)
        config = run.base | run.config
        if run.report:
            config |= {"data": run.report.source, "examples": run.report.kept}
    file = folder / "adapter_config.json"
    if file.is_file():
        for key, value in json.loads(file.read_text(encoding="utf-8")).items():
            # sets were written in an order of chance
            config[f"adapter.{key}"] = sorted(value) if isinstance(value, list) else value
    return config | {"output_dir": str(folder)}


def _sample_all(
    runs: dict[str, Path], configs: dict, rows: Rows, folder: Path, base: bool, sampling: dict
) -> dict[str, list[dict]]:
    """Samples of each model by name; runs on the same base one after the other, so that it is loaded once."""
    groups = defaultdict(list)
    for name, path in runs.items():
        key = tuple(configs[name].get(field) for field in _BASE)
        groups[key if key[0] else path].append(name)
    samples = {}
    for key, names in groups.items():
        model = None  # before the next one is loaded
        for i, name in enumerate(names):
            if model is None:
                model, tokenizer = load_model(runs[name])
            else:
                with without_old_torchao():
                    model.load_adapter(runs[name], adapter_name=f"run{i}")
                model.set_adapter(f"run{i}")
                tokenizer = load_tokenizer(runs[name])
            if base and isinstance(key, tuple) and BEFORE not in samples:
                file = folder / f"{BEFORE}.jsonl"
                records = sample(model, tokenizer, rows, adapters=False, path=file, **sampling)
                samples[BEFORE] = records
            samples[name] = sample(
                model, tokenizer, rows, path=folder / f"{name}.jsonl", **sampling
            )
    return {name: samples[name] for name in (BEFORE, *runs) if name in samples}


def _training(runs: dict[str, Path], configs: dict, notes: list[str]) -> dict[str, list[str]]:
    """The training thoughts of each model, where they are at hand; adds to the notes where not."""
    training = {}
    for name, path in runs.items():
        try:
            training[name] = _training_thoughts(path)
        except (LookupError, ValueError, OSError) as error:
            notes.append(f"{name}: no thought is held against the training data: {error}.")
    if len({config.get("data") for config in configs.values()}) == 1:
        training[BEFORE] = training.get(next(iter(runs)))
    return training


def _training_thoughts(folder: Path) -> list[str]:
    """The thoughts in a run's training data. Raises LookupError where they are not at hand."""
    run = Run(folder)
    rows = _training_rows(run)
    marker = run.settings.get("response_marker")
    thoughts = []
    size = 0
    for row in islice(rows, run.settings.get("examples")):
        try:
            messages = to_messages(row, run.settings.get("format"))
        except RowError:
            continue  # it was not trained on either
        texts = [turn.text for turn in messages if turn.role == "assistant"]
        if marker:
            texts = messages[0].text.split(marker)[1:]
        thoughts += [thought for text in texts if (thought := parse(text).thought)]
        size += sum(map(len, texts))
        if size > _MOST_TRAINING:
            raise LookupError(f"{rows.source} has more than {_MOST_TRAINING:,} characters")
    if not thoughts:
        raise LookupError(f"{rows.source} has no thoughts")
    return thoughts


def _training_rows(run: Run) -> Rows:
    settings = run.settings
    if "data" in settings:
        options = {"split": settings.get("split", "train"), "config": settings.get("data_config")}
        return load_rows(settings["data"], stream=True, strict=False, **options)
    if run.report is None:
        raise LookupError("the run does not say what it was trained on")
    # NAME or NAME [SPLIT]
    name, _, split = run.report.source.removesuffix("]").partition(" [")
    if not name.startswith("tiny/") and not Path(name).is_file():
        raise LookupError(f"{run.report.source} is no file here")
    return load_rows(name, split or "train", stream=True, strict=False)
