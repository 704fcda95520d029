"""Run folders + test prompts -> samples, summaries and a report: the same prompts and draws for every model."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pandas as pd

from ..data.formats import to_messages
from ..data.rows import Rows, load_rows
from ..files import versions
from ..models.adapters import without_old_torchao
from ..models.load import load_model, load_tokenizer
from ..training.run import Run
from .metrics import paired_difference, parse
from .page import page
from .sampling import sample
from .summary import evaluate, references_of, table

_BASE = (
    "base_model",
    "qlora",
    "bits",
    "dtype",
    "attention",
    "embedding_rows",
)  # what tells loaded base models apart
BEFORE = "before"  # the row of the model under the adapters
_MOST_TRAINING = 30_000_000  # characters of a data set, among which what was copied is looked for
_LIBRARIES = ("btsft_nb", "torch", "transformers", "peft", "bitsandbytes")
_NO_FILE_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f]|^\.*$')


@dataclass(frozen=True)
class Comparison:
    """Models measured on the same prompts; those of `summaries`, in its order.

    `summaries`: name -> what `evaluate` returns. `configs`: run -> its base model, data, adapter and training
    arguments. `samples`: name -> records of `sample`. `references`: the right answer of each prompt, None where the
    test rows have none. `settings`: what was asked, of what, with which versions, and `notes` on what was not measured.
    `folder`: where all of it is, with the page, index.html.
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
        known = {metric for found in values.values() for metric in found}
        if unknown := [metric for metric in metrics if metric not in known]:
            raise ValueError(
                f"{unknown[0]!r}: no metric of this comparison; there are {', '.join(sorted(known))}"
            )
        first, *others = values
        rows = [
            {"metric": metric, "model": name, **paired_difference(*pair)}
            for metric in metrics or values[first]
            for name in others
            for pair in [[values[model].get(metric, ()) for model in (first, name)]]
            if any(None not in both for both in zip(*pair, strict=False))
        ]
        columns = ["metric", "model", "value", "low", "high", "n"]
        return pd.DataFrame(rows, columns=columns).set_index(["metric", "model"])

    def _repr_html_(self) -> str:
        return table(self.summaries).T.to_html(na_rep="\u2013")


def compare(
    runs: Sequence[str | Path] | dict[str, str | Path],
    test: str | Path | Iterable[dict | str],
    folder: str | Path,
    *,
    n: int = 8,
    prompts: int | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    top_k: int | None = None,
    top_p: float | None = None,
    no_repeat_ngram_size: int | None = None,
    max_prompt_length: int | None = None,
    answer: str = "auto",
    text_scores: bool = False,
    way_of: Callable[[str], str | None] | None = None,
    base: bool = True,
) -> Comparison:
    """Samples the same prompts from each run, measures all of them, and writes a report.

    Into `folder` go NAME.jsonl (the samples of each model; a call that was stopped goes on from them),
    evaluation.json and index.html, one page that opens from disk. Runs on the same base model share one copy of it.

    Args:
        runs: run folders, named by their last part; or name -> folder. A folder with a model in place of an adapter,
            from training all weights, is loaded whole.
        test: what `load_rows` takes, or rows. The right answer is their field `answer`; without it, what needs one is
            not measured.
        prompts: how many of the test rows, from the first; None: all of them.
        n, max_new_tokens, temperature, batch_size, seed, top_k, top_p, no_repeat_ngram_size,
            max_prompt_length: as for `sample`.
        answer, text_scores, way_of: as for `evaluate`.
        base: also sample the model under the adapters of the first run that has any, as the first row, "before".

    Thoughts are held against those of the training data where a run's `data_report.json` names a generated set or a
    file that is still there; `settings["notes"]` says where not. Those of "before" are held against the same data where
    it is that of all runs, else against none.

    Raises:
        FileNotFoundError: a folder that is no run, or a test set that is not there.
        RowError: a test row that is no prompt.
        ValueError: NAME.jsonl has samples of another model, prompts or settings, most likely of a run that was trained
            anew under its name: delete the file. Or two runs of a name, a name that is no file's, or answers in some
            test rows only.
    """
    runs, folder = _named(runs, base), Path(folder)
    rows = _test_rows(test, prompts)
    references = references_of(rows, answer)
    asked = dict(
        n=n,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
    )
    asked |= dict(top_k=top_k, top_p=top_p, no_repeat_ngram_size=no_repeat_ngram_size)
    asked["max_prompt_length"] = max_prompt_length
    configs = {name: _config(path) for name, path in runs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    training, notes = _training(configs)
    settings = {
        "test": rows.source,
        "prompts": len(rows),
        **asked,
        "answer": answer,
        "notes": notes,
    }
    settings |= {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(_LIBRARIES),
    }
    samples = _sampled(runs, configs, rows, folder, base, **asked)
    if base and BEFORE not in samples:
        notes.append(f"No run has adapters, so there is no model {BEFORE!r} to sample.")
    summaries = {
        name: evaluate(
            records,
            references,
            way_of,
            answer=answer,
            text_scores=text_scores,
            training=training.get(name),
        )
        for name, records in samples.items()
    }
    return _written(Comparison(summaries, configs, samples, references, settings, folder))


def _training(configs: dict[str, dict]) -> tuple[dict[str, list[str] | None], list[str]]:
    """The thoughts that each model was trained on, as far as they are at hand, and notes where they are not."""
    known, notes = (
        {
            source: _thoughts(source)
            for source in {config.get("data") for config in configs.values()}
        },
        [],
    )
    training = {BEFORE: next(iter(known.values()))[0]} if len(known) == 1 else {}
    for name, config in configs.items():
        training[name], why = known[config.get("data")]
        notes += [f"{name}: no thought is held against the training data: {why}."] if why else []
    return training, notes


def _written(found: Comparison) -> Comparison:
    """The same, with evaluation.json and index.html in its folder."""
    differences = found.differences().reset_index().to_dict("records")
    record = {"settings": found.settings, "configs": found.configs, "summaries": found.summaries}
    record = json.dumps(record | {"differences": differences}, indent=1) + "\n"
    (found.folder / "evaluation.json").write_text(record, encoding="utf-8")
    html = page(
        found.summaries, differences, found.configs, found.samples, found.references, found.settings
    )
    (found.folder / "index.html").write_text(html, encoding="utf-8")
    return found


def _named(runs: Sequence[str | Path] | dict[str, str | Path], base: bool) -> dict[str, Path]:
    """Name -> folder of each run, in their order; checked, since names are files in the report's folder as well."""
    pairs = (
        list(runs.items())
        if isinstance(runs, dict)
        else [(Path(run).resolve().name, run) for run in runs]
    )
    if not pairs:
        raise ValueError("no runs to compare: give at least one run folder")
    taken = {BEFORE} if base else set()
    for name, run in pairs:
        if not Path(run).is_dir():
            raise FileNotFoundError(f"{run}: no such run folder, seen from {Path.cwd()}")
        if _NO_FILE_NAME.search(name):
            raise ValueError(
                f"{name!r}: a run's name is a file's as well; leave out < > : \" / \\ | ? *"
            )
        if name.casefold() in taken:
            raise ValueError(
                f"two models are called {name!r}; give name -> folder, with names of their own"
            )
        taken.add(name.casefold())
    return {name: Path(run) for name, run in pairs}


def _test_rows(test: str | Path | Iterable[dict | str], prompts: int | None) -> Rows:
    if prompts is not None and prompts < 1:
        raise ValueError(f"prompts={prompts}: 1 or more wanted, or None for all")
    rows = load_rows(test) if isinstance(test, (str, Path)) else test
    return Rows(islice(rows, prompts), getattr(rows, "source", "rows"))


def _config(run: Path) -> dict:
    """What is known of a run: base model, data, and every argument of adapter and training; its folder as given."""
    file, config = run / "adapter_config.json", {}
    adapter = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    with suppress(FileNotFoundError):  # a model's folder
        found = Run(run)
        config = found.base | found.config
        config |= (
            {"data": found.report.source, "examples": found.report.kept} if found.report else {}
        )
    for key, value in adapter.items():  # sets, written in an order of chance
        config[f"adapter.{key}"] = sorted(value) if isinstance(value, list) else value
    return config | {"output_dir": str(run)}


def _sampled(
    runs: dict[str, Path], configs: dict, rows: Rows, folder: Path, base: bool, **asked
) -> dict:
    """Samples of each model by name; runs on the same base one after the other, so that it is loaded once."""
    groups = defaultdict(dict)
    for name, path in runs.items():
        loaded = tuple(configs[name].get(key) for key in _BASE)
        groups[loaded if loaded[0] else path][name] = path
    samples = {}
    for key, group in groups.items():
        model = None  # before the next one is loaded
        for i, (name, path) in enumerate(group.items()):
            if model is None:
                model, tokenizer = load_model(path)
            else:
                with without_old_torchao():
                    model.load_adapter(path, adapter_name=f"run{i}")
                model.set_adapter(f"run{i}")
                tokenizer = load_tokenizer(path)
            if base and isinstance(key, tuple) and BEFORE not in samples:
                file = folder / f"{BEFORE}.jsonl"
                samples[BEFORE] = sample(model, tokenizer, rows, **asked, adapters=False, path=file)
            samples[name] = sample(model, tokenizer, rows, **asked, path=folder / f"{name}.jsonl")
    return {name: samples[name] for name in (BEFORE, *runs) if name in samples}


def _thoughts(source: str | None) -> tuple[list[str] | None, str]:
    """The thoughts in training data; None, and why, where they are not at hand."""
    if source is None:
        return None, "the run does not say what it was trained on"
    name, split = re.fullmatch(r"(.*?)(?: \[([^\[\]]*)\])?", source, re.DOTALL).groups()
    if not name.startswith("tiny/") and not Path(name).is_file():
        return None, f"{source} is no file here"
    thoughts, size = [], 0
    try:
        for row in load_rows(name, split or "train", stream=True):
            texts = [turn.text for turn in to_messages(row) if turn.role == "assistant"]
            thoughts += [thought for text in texts if (thought := parse(text).thought)]
            size += sum(map(len, texts))
            if size > _MOST_TRAINING:
                return None, f"{source} has more than {_MOST_TRAINING:,} characters of completions"
    except (ValueError, OSError) as error:
        return None, f"{source} cannot be read: {error}"
    return (thoughts, "") if thoughts else (None, f"{source} has no thoughts")
