"""Runs + test prompts -> samples, summaries and a page: the same prompts and draws for every model."""

import gc
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pandas as pd
from peft import PeftModel

from ..checks import check_choice
from ..data.rows import Rows, load_rows
from ..files import versions, write
from ..models.load import load_model
from ..models.tokenizer import resolve
from ..training.run import Run
from .intervals import paired_difference
from .page import page
from .sampling import SamplingSettings, sample
from .summary import evaluate, references_of, table

BEFORE = "before"  # the row of the model under the adapters


@dataclass(frozen=True)
class Comparison:
    """Models measured on the same prompts.

    Attributes:
        summaries: name -> what `evaluate` returns.
        configs: run -> its base model, data, adapter and training arguments.
        samples: name -> records of `sample`.
        references: the right answer of each prompt; None where the test rows have none.
        settings: those of the call and of sampling, the date, and versions.
        folder: where all of it is, with the page, index.html.

    >>> comparison = bt.compare(["tests/none"], "tiny/test", "report")
    Traceback (most recent call last):
    FileNotFoundError: tests/none: neither a folder nor on the Hub; check spelling and network
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
        rows = []
        for metric in metrics or values[first]:
            check_choice("metric", metric, values[first])
            for name in others:
                with suppress(ValueError):  # no prompt has both values
                    both = values[first][metric], values[name][metric]
                    rows.append({"metric": metric, "model": name} | paired_difference(*both))
        keys = ["metric", "model"]
        return pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "n"]).set_index(keys)

    def _repr_html_(self):
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
    evaluation.json and index.html, one page that opens from disk. Each run is loaded alone, one after the other.

    Args:
        runs: run folders, named by their last part; or name -> folder. Whatever else `load_model` takes will do: a
            folder with a whole model, the id of a model on the Hub, "smollm2".
        test: what `load_rows` takes, or rows. The right answer is their field `answer`; without it, what needs one is
            not measured.
        prompts: how many of the test rows, from the first; None: all of them.
        answer, text_scores, way_of: as for `evaluate`.
        base: also sample the model under the adapters of the first run that has any, as the first row, "before".
        sampling: n, max_new_tokens, temperature, batch_size, seed and so on, as for `sample`.

    Raises:
        FileNotFoundError: a run, model or test set that is not there.
        RowError: a test row that is no prompt.
        ValueError: NAME.jsonl has samples of another model, prompts or settings, most likely of a run that was trained
            anew under its name: delete the file. Or no test rows, answers in some of them only, two runs of a name, or
            a name that is no file's, or "before".

    >>> comparison = bt.compare(["runs/a", "runs/b"], "tiny/test", "report", n=8)  # doctest: +SKIP
    >>> comparison.differences("accuracy")  # doctest: +SKIP
    """
    runs = _by_name(runs)
    folder = Path(folder)
    rows = load_rows(test) if isinstance(test, (str, Path)) else test
    rows = Rows(islice(rows, prompts), getattr(rows, "source", "rows"))
    if not len(rows):
        raise ValueError(f"{rows.source}: no rows to sample")
    references = references_of(rows, answer)
    sampling = asdict(SamplingSettings(**sampling))
    configs = {name: _config(path) for name, path in runs.items()}
    samples = {}
    for name, path in runs.items():
        wants_base = base and BEFORE not in samples
        samples |= _sample(name, path, rows, folder, wants_base, sampling)
    samples = {name: samples[name] for name in (BEFORE, *runs) if name in samples}
    summaries = {
        name: evaluate(records, references, way_of, answer=answer, text_scores=text_scores)
        for name, records in samples.items()
    }
    settings = {"test": rows.source, "prompts": len(rows), **sampling, "answer": answer}
    settings["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    settings["versions"] = versions(["btsft_nb", "torch", "transformers", "peft", "bitsandbytes"])
    comparison = Comparison(summaries, configs, samples, references, settings, folder)
    record = {"settings": settings, "configs": configs, "summaries": summaries}
    record["differences"] = comparison.differences().reset_index().to_dict("records")
    write(folder / "evaluation.json", json.dumps(record, indent=1) + "\n")
    write(folder / "index.html", page(comparison))
    return comparison


def _by_name(runs):
    """Name -> folder or model of each run. A name is that of a file in the report's folder as well."""
    pairs = runs.items() if isinstance(runs, dict) else [(Path(r).resolve().name, r) for r in runs]
    if not pairs:
        raise ValueError("no runs to compare")
    names = [BEFORE, *(name for name, _ in pairs)]
    for name, folder in pairs:
        resolve(folder)
        if names.count(name) > 1 or Path(name).name != name:
            raise ValueError(f"{name!r} cannot be the name of a run here; give name -> folder")
    return dict(pairs)


def _config(folder):
    """What is known of a run: base model, data, and every argument of adapter and training; its folder as given."""
    config = {}
    with suppress(FileNotFoundError):  # a model's folder is no run
        run = Run(folder)
        config = run.base | run.config
        if run.report:
            config |= {"data": run.report.source, "examples": run.report.kept}
    file = Path(folder, "adapter_config.json")
    if file.is_file():
        for key, value in json.loads(file.read_text(encoding="utf-8")).items():
            # sets were written in an order of chance
            config[f"adapter.{key}"] = sorted(value) if isinstance(value, list) else value
    return config | {"output_dir": str(folder)}


def _sample(name, path, rows, folder, wants_base, sampling):
    """Name -> the samples of a run; and of the model under its adapters, where that is wanted and it has any."""
    gc.collect()  # the model before
    model, tokenizer = load_model(path)
    samples = {}
    if wants_base and isinstance(model, PeftModel):
        file = folder / f"{BEFORE}.jsonl"
        samples[BEFORE] = sample(model, tokenizer, rows, adapters=False, path=file, **sampling)
    samples[name] = sample(model, tokenizer, rows, path=folder / f"{name}.jsonl", **sampling)
    return samples
