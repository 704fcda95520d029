"""The dials on the embedded reasoner: each run fine-tunes and measures it in seconds, and is a point of a chart."""

import contextlib
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path

import anywidget
import numpy as np
import torch
from peft import PeftModel
from traitlets import Any, Bool, Float, Unicode, validate
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.utils import logging

from . import tiny
from .checks import check_number
from .data.preparation import prepare
from .data.rows import load_rows
from .evaluation.metrics import is_correct, parse
from .evaluation.sampling import sample
from .evaluation.summary import evaluate
from .models.load import load_model
from .points import check, to_html
from .training.config import BTSFTConfig
from .training.trainer import BTSFTTrainer

DATA = ("tiny/teacher", "tiny/messy")
# fewer and longer steps than in the notebooks: the same picture in ten seconds
_TRAINING = tiny.TRAINING | {"max_steps": 40, "learning_rate": 1.5e-3, "optim": "adamw_torch"}


class Playground(anywidget.AnyWidget):
    """Dials, a button, and a chart of unique thoughts against accuracy and compliance, with 95 % intervals.

    `history` is the list of points, which json.dumps takes; the first is the model before fine-tuning. A point has
    `threshold`, `beta`, `anchor`, `data` (all None before fine-tuning), `seconds`, `metrics` and `ways` as `evaluate`
    has them (no thought at all is 0 unique thoughts), and `samples` of three problems: `question`, `text`, `correct`
    and `problem` (of its format, or None).

    Args:
        history: points of an earlier playground, to compare with.
        prompts: how many problems of tiny/test measure a point, 1 to 200. samples: of each problem.
        seed: of adapters, blur, order of the data, and samples. The global random states stay as they were.

    Raises ValueError for a malformed history, by point and key.
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
    history = Any().tag(sync=True)

    def __init__(
        self,
        history: list[dict] | None = None,
        *,
        prompts: int = 50,
        samples: int = 8,
        seed: int = 0,
    ):
        for name, value, most in (
            ("prompts", prompts, tiny.SIZES["test"]),
            ("samples", samples, 1000),
        ):
            check_number(name, value, 1, most, Integral)
        super().__init__(history=[] if history is None else history)
        self._problems, self._samples, self._seed = load_rows("tiny/test")[:prompts], samples, seed
        self._lock, self._cancelled = threading.Lock(), threading.Event()
        self.on_msg(self._on_message)

    @validate("history")
    def _checked(self, proposal: dict) -> list[dict]:
        check(proposal["value"])
        return proposal["value"]

    def run(
        self, threshold: float = 0.5, beta: float = 0.5, anchor: float = 1.0, data: str = DATA[0]
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
                points = self._points(
                    {"threshold": threshold, "beta": beta, "anchor": anchor}, data
                )
            self.history = sorted(
                [*self.history, *points], key=lambda point: point["data"] is not None
            )
            self.status = f"Point {len(self.history) - 1} took {points[-1]['seconds']:.1f} s."
            return points[-1]
        except _Cancelled:
            self.status = "Cancelled: no point was added."
        except BaseException as error:
            self.status = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.running = False

    def _on_message(self, _, content: dict, buffers: list) -> None:
        """From the page: {"do": "run", and the dials} or {"do": "cancel"}."""
        if content["do"] == "cancel":
            self._cancelled.set()
        elif not self.running:  # two pages can show one playground
            thread = getattr(
                sys.modules.get("marimo"), "Thread", threading.Thread
            )  # marimo's pages hear no other
            dials = {name: content[name] for name in ("threshold", "beta", "anchor", "data")}
            thread(target=self.run, kwargs=dials, daemon=True).start()

    def _tell(self, progress: float, status: str) -> None:
        if self._cancelled.is_set():
            raise _Cancelled
        self.progress, self.status = progress, status

    def _points(self, dials: dict[str, float], data: str) -> list[dict]:
        """The new point, and before it the model as it was, where the history lacks that."""
        if data not in DATA:
            raise ValueError(f"data={data!r}: {' or '.join(map(repr, DATA))} wanted")
        points = []
        with tempfile.TemporaryDirectory(prefix="btsft_") as folder:
            config = BTSFTConfig(folder, **dials, seed=self._seed, disable_tqdm=True, **_TRAINING)
            self._tell(0, "Loading the model.")
            start = time.monotonic()
            with contextlib.redirect_stdout(
                None
            ):  # what they say of hardware and rows is the same at each press
                model, tokenizer = load_model("tiny", qlora=True, seed=self._seed)
                examples = prepare(load_rows(data), tokenizer, cache=False)
            if not any(point["data"] is None for point in self.history):
                self._tell(0.02, "Measuring the model before fine-tuning.")
                points.append(
                    dict.fromkeys([*dials, "data"]) | self._measured(model, tokenizer, start)
                )
                start = time.monotonic()
            watch = [_Watch(self._tell)]
            trainer = BTSFTTrainer(
                model, config, examples, processing_class=tokenizer, callbacks=watch
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        self._tell(0.75, "Sampling and measuring.")
        point = {name: float(value) for name, value in dials.items()} | {"data": data}
        return [*points, point | self._measured(model, tokenizer, start)]

    def _measured(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, start: float) -> dict:
        """What the problems tell of a model: all of a point but its dials."""
        settings = {"max_new_tokens": 96, "batch_size": 400, "seed": self._seed}
        records = sample(model, tokenizer, self._problems, self._samples, **settings)
        self._tell(self.progress, self.status)  # unless it was cancelled meanwhile
        answers, kept = [row["answer"] for row in self._problems], []
        for record in records:
            if record["prompt"] < 3 and record["sample"] < 4:
                parsed = parse(
                    record["text"], prefilled=record["prefilled"], finished=record["finished"]
                )
                judged = {
                    "correct": is_correct(parsed.answer, answers[record["prompt"]]),
                    "problem": parsed.problem,
                }
                kept.append({name: record[name] for name in ("question", "text")} | judged)
        summary = evaluate(records, answers, tiny.way_of)
        none = {
            "unique thoughts": {"value": 0.0, "low": 0.0, "high": 0.0, "n": 0}
        }  # `evaluate` leaves it out
        measured = {"metrics": none | summary["metrics"], "ways": summary["ways"]}
        return {"seconds": time.monotonic() - start, **measured, "samples": kept}

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return data | {"text/html": to_html(self.history)}, metadata


class _Cancelled(Exception):
    """The button was pressed."""


class _Watch(TrainerCallback):
    """Tells after each step how far the training is; what that raises ends it."""

    def __init__(self, tell: Callable[[float, str], None]):
        self._tell = tell

    def on_step_end(self, args, state, control, **kwargs):
        self._tell(
            0.2 + 0.55 * state.global_step / state.max_steps, f"Training: {state.max_steps} steps."
        )


@contextmanager
def _unseen() -> Iterator[None]:
    """Within, no progress bars; afterwards they and the global random states are as they were."""
    python, numpy, bars = (
        random.getstate(),
        np.random.get_state(),
        logging.is_progress_bar_enabled(),
    )
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if bars:
            logging.enable_progress_bar()
