"""The dials on the embedded reasoner: fine-tuned in seconds, measured, and a point of a chart."""

import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from html import escape
from pathlib import Path

import anywidget
import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from traitlets import Bool, Float, List, Unicode, validate
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.utils import logging

from . import tiny
from .config import BTSFTConfig
from .evaluate import evaluate
from .formats import to_messages
from .generation import sample
from .metrics import is_correct, parse
from .models import load_model
from .render import Renderer
from .rows import Rows, load_rows
from .trainer import BTSFTTrainer

DATA = ("tiny/teacher", "tiny/messy")
MEASURES = ("unique thoughts", "accuracy", "compliance")
# half the steps of the notebooks, which is where the figures stop changing, without adapters in 4 bits: twice as fast
_TRAINING = tiny.TRAINING | {"max_steps": 40, "optim": "adamw_torch"}
_AT_ONCE = 400  # completions
_QUESTIONS, _EACH = 3, 4  # that are kept with a point, and samples of each
_POINT = dict.fromkeys(("threshold", "beta", "anchor"), float | int | None) | {
    "data": str | None,
    "seconds": float | int,
    "metrics": dict.fromkeys(MEASURES, dict.fromkeys(("value", "low", "high"), float | int)),
    "ways": dict,
    "samples": [{"question": str, "text": str, "correct": bool, "problem": str | None}],
}
_CELL = "text-align:left;vertical-align:top;padding:2px 8px;border:1px solid rgba(128,128,128,0.4)"
_LINE = "white-space:pre-wrap;font-family:monospace;padding:3px 0"


class Playground(anywidget.AnyWidget):
    """Fine-tunes the embedded reasoner with the dials of the page, and draws each run into a chart.

    The chart has unique thoughts against accuracy and compliance, with 95 % intervals, and behind each point its
    samples. `history` is a list of points that json.dumps takes; the first is the model before fine-tuning:
    `threshold`, `beta`, `anchor` and `data` (None before fine-tuning), `seconds`, `metrics` and `ways` as `evaluate`
    has them, and `samples`: `question`, `text`, `correct`, and `problem` of the format (None: there is none).

    Args:
        history: points of an earlier playground, to compare with or go on from.
        prompts: how many problems of tiny/test measure a point, 1 to 200. samples: of each problem.
        seed: of adapters, blur, order of the data and samples. The global random states stay as they were.

    Raises ValueError for a history that is malformed, by point and key.
    """

    _esm = Path(__file__).parent / "playground.js"
    _ipython_display_ = None  # that of ipywidgets 7 would hide _repr_mimebundle_
    threshold = Float(0.5).tag(sync=True)
    beta = Float(0.5).tag(sync=True)
    anchor = Float(1.0).tag(sync=True)
    data = Unicode(DATA[0]).tag(sync=True)
    running = Bool(False).tag(sync=True)
    progress = Float(0.0).tag(sync=True)
    status = Unicode("").tag(sync=True)
    history = List().tag(sync=True)

    def __init__(self, history: list[dict] | None = None, *, prompts: int = 50, samples: int = 8, seed: int = 0):
        for name, value, most in (("prompts", prompts, tiny.SIZES["test"]), ("samples", samples, 1000)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name}={value!r}: a whole number from 1 to {most} wanted")
        super().__init__(history=[] if history is None else history)
        self._problems, self._samples, self._seed = load_rows("tiny/test")[:prompts], samples, seed
        self._lock, self._cancelled = threading.Lock(), threading.Event()
        self.on_msg(self._on_message)

    @validate("history")
    def _checked(self, proposal: dict) -> list[dict]:
        _check(proposal["value"], [_POINT], "history")
        json.dumps(proposal["value"], allow_nan=False)
        return proposal["value"]

    def run(
        self, threshold: float = 0.5, beta: float = 0.5, anchor: float = 1.0, data: str = "tiny/teacher"
    ) -> dict | None:
        """Fine-tunes and measures in this thread; the button does the same in another.

        Returns the new point, None where the run was cancelled.

        Raises ValueError for a dial out of its range, RuntimeError while another run is under way.
        """
        with self._lock:
            if self.running:
                raise RuntimeError("a run is under way: wait for its end, or press Cancel")
            self.running = True
        self._cancelled.clear()
        try:
            with _unseen():
                points = self._points(threshold, beta, anchor, data)
            self.history = sorted([*self.history, *points], key=lambda point: point["data"] is not None)
            self._tell(1, f"Point {len(self.history) - 1} took {points[-1]['seconds']:.1f} s.")
            return points[-1]
        except _Cancelled:
            self._tell(0, "Cancelled: no point was added.")
        except BaseException as error:
            self._tell(0, f"{type(error).__name__}: {error}")
            raise
        finally:
            self.running = False

    def _on_message(self, _, content: dict, buffers: list) -> None:
        """From the page, {"do": "run", and the dials} or {"do": "cancel"}."""
        if content.pop("do") == "cancel":
            self._cancelled.set()
        elif not self.running:  # two pages can show one playground
            # marimo's pages hear only threads of its own kind
            thread = getattr(sys.modules.get("marimo"), "Thread", threading.Thread)
            thread(target=self.run, kwargs=content, daemon=True).start()

    def _tell(self, progress: float, status: str) -> None:
        if self._cancelled.is_set() and progress:
            raise _Cancelled
        self.progress, self.status = progress, status

    def _points(self, threshold: float, beta: float, anchor: float, data: str) -> list[dict]:
        """The new point, and before it the model as it was where the history lacks that."""
        if data not in DATA:
            raise ValueError(f"data={data!r}: {' or '.join(map(repr, DATA))} wanted")
        dials, points = {"threshold": threshold, "beta": beta, "anchor": anchor}, []
        with tempfile.TemporaryDirectory(prefix="btsft_") as folder:
            config = BTSFTConfig(folder, **dials, seed=self._seed, disable_tqdm=True, **_TRAINING)
            lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            start = time.monotonic()
            model, tokenizer = load_model("tiny", lora=lora, seed=self._seed)
            if not any(point["data"] is None for point in self.history):
                self._tell(0.02, "Measuring the model before fine-tuning.")
                points.append(dict.fromkeys([*dials, "data"]) | self._measured(model, tokenizer, start))
                start = time.monotonic()
            watch = _Watch(self._tell, self._cancelled)
            examples = _examples(load_rows(data), tokenizer)
            trainer = BTSFTTrainer(model, config, examples, processing_class=tokenizer, callbacks=[watch])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            self._tell(0.75, "Sampling and measuring.")
            point = {name: float(value) for name, value in dials.items()} | {"data": data}
            return [*points, point | self._measured(model, tokenizer, start)]

    def _measured(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, start: float) -> dict:
        """What the problems tell of a model: the part of a point that does not come from the dials."""
        records, step = [], max(_AT_ONCE // self._samples, 1)
        for first in range(0, len(self._problems), step):
            self._tell(self.progress, self.status)
            found = sample(
                model,
                tokenizer,
                self._problems[first : first + step],
                self._samples,
                max_new_tokens=96,
                batch_size=_AT_ONCE,
                seed=self._seed + first,
            )
            records += [record | {"prompt": record["prompt"] + first} for record in found]
        answers = [row["answer"] for row in self._problems]
        summary = evaluate(records, answers, tiny.way_of)
        kept = [record for record in records if record["prompt"] < _QUESTIONS and record["sample"] < _EACH]
        return {
            "seconds": time.monotonic() - start,
            "metrics": summary["metrics"],
            "ways": summary["ways"],
            "samples": [_sample(record, answers[record["prompt"]]) for record in kept],
        }

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return data | {"text/html": _static(self.history)}, metadata


class _Cancelled(Exception):
    """The button was pressed."""


class _Watch(TrainerCallback):
    """Tells how far the training is, and ends it after the step that runs."""

    def __init__(self, tell: Callable[[float, str], None], cancelled: threading.Event):
        self._report, self._cancelled = tell, cancelled

    def on_step_end(self, args, state, control, **kwargs):
        if self._cancelled.is_set():
            control.should_training_stop = True
        else:
            share = state.global_step / state.max_steps
            self._report(0.2 + 0.5 * share, f"Training: step {state.global_step} of {state.max_steps}.")


@contextmanager
def _unseen() -> Iterator[None]:
    """Within, no progress bars; afterwards they and the global random states are as they were."""
    python, numpy, bars = random.getstate(), np.random.get_state(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if bars:
            logging.enable_progress_bar()


def _examples(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """As `prepare`, without a report: the embedded sets have been looked at."""
    renderer = Renderer(tokenizer)
    drafts = [draft for row in rows for draft in renderer.drafts(to_messages(row), row["id"])]
    return Dataset.from_list([asdict(example) for example in renderer.tokenize(drafts)])


def _sample(record: dict, answer: str) -> dict:
    parsed = parse(record["text"], prefilled=record["prefilled"], finished=record["finished"])
    shown = {"question": record["question"], "text": record["text"]}
    return shown | {"correct": is_correct(parsed.answer, answer), "problem": parsed.problem}


def _check(value: object, shape: object, where: str) -> None:
    """Raises ValueError for the first part of a value that has not the shape wanted."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r:.60}: a dict with {', '.join(shape)} wanted")
        for key, inner in shape.items():
            if key not in value:
                raise ValueError(f"{where} lacks {key!r}")
            _check(value[key], inner, f"{where}[{key!r}]")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r:.60}: a list wanted")
        for i, item in enumerate(value):
            _check(item, shape[0], f"{where}[{i}]")
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool) or value != value:
        raise ValueError(f"{where} is {value!r:.60}: {getattr(shape, '__name__', shape)} wanted")


def _static(history: list[dict]) -> str:
    """The points as a table without script or style sheet, each with its samples to unfold."""
    if not history:
        return "Playground: no points yet."
    head = ("point", "data", "threshold", "beta", "anchor", *MEASURES, "samples")
    rows = []
    for i, point in enumerate(history):
        dials = [point[name] for name in ("data", "threshold", "beta", "anchor")]
        numbers = ["{value:.2f} [{low:.2f}, {high:.2f}]".format(**point["metrics"][name]) for name in MEASURES]
        cells = [i, *("-" if dial is None else dial for dial in dials), *numbers]
        texts = [f"{s['question']} {s['text']} ({'right' if s['correct'] else 'wrong'})" for s in point["samples"]]
        lines = "".join(f"<div style='{_LINE}'>{escape(text, quote=True)}</div>" for text in texts)
        unfold = f"<details><summary>{len(texts)}</summary>{lines}</details>"
        rows.append([*(escape(str(cell), quote=True) for cell in cells), unfold])
    body = "".join(f"<tr>{''.join(f'<td style={_CELL!r}>{cell}</td>' for cell in row)}</tr>" for row in (head, *rows))
    return f"<table style='border-collapse:collapse;color:inherit;background:transparent'>{body}</table>"
