"""The dials as a panel of ipywidgets: Run fine-tunes the notebook's own model, and a point joins a chart."""

import tempfile
import threading
from html import escape

import ipywidgets as widgets
from transformers import TrainerCallback

from . import tiny
from .cli.settings import Settings, read_settings
from .cli.stages import finetune
from .evaluation.sampling import sample
from .evaluation.summary import evaluate, references_of
from .text import visible
from .views.live import dials_chart, still_chart


class Dials(widgets.VBox):
    """Sliders for the dials, a button that trains and measures, a chart, and the samples behind each point.

    `settings` are those of the notebook that the panel stands in, with `test` for the prompts to measure on; by default
    the embedded reasoner and its problems. `points` are the runs, each a dictionary; the first is the model before,
    where it has adapters to switch off.

    >>> bt.Dials().values
    {'threshold': 0.5, 'anchor': 1.0, 'beta': 0.5}
    """

    _ipython_display_ = None  # that of ipywidgets 7 would hide _repr_mimebundle_

    def __init__(self, settings: Settings | None = None):
        self._settings = settings or read_settings(**tiny.DEMO)
        self._test = self._settings.evaluation
        if self._test.test is None:
            raise ValueError("Dials measures each run on test prompts: set test=ROWS")
        self._sliders = {}
        for name in ("threshold", "anchor", "beta"):
            value = getattr(self._settings.training, name)
            highest = 1 if name == "threshold" else max(2, value)
            self._sliders[name] = widgets.FloatSlider(
                value, max=highest, step=0.05, description=name
            )
        self._run = widgets.Button(description="Run", button_style="primary")
        self._cancel = widgets.Button(description="Cancel")
        self._progress = widgets.FloatProgress(max=1)
        self._status = widgets.Label()
        self._chart = widgets.Image()
        self._choice = widgets.Dropdown(description="samples of", layout={"width": "420px"})
        self._texts = widgets.HTML()
        self.points: list[dict] = []
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._cancel.on_click(lambda _: self._cancelled.set())
        self._run.on_click(lambda _: threading.Thread(target=self.run, daemon=True).start())
        self._choice.observe(self._show_samples, "value")
        controls = widgets.HBox([self._run, self._cancel, self._progress, self._status])
        dials = self._sliders.values()
        super().__init__([*dials, controls, self._chart, self._choice, self._texts])

    @property
    def values(self) -> dict[str, float]:
        """The dials as they stand: `BTSFTConfig("runs/mine", **dials.values)`."""
        return {name: slider.value for name, slider in self._sliders.items()}

    def run(self, **dials: float) -> dict | None:
        """Trains and measures, as the button does in a thread; dials left out are the sliders'. None: cancelled."""
        dials = self.values | dials
        with self._lock, tempfile.TemporaryDirectory(prefix="btsft_") as folder:
            self._cancelled.clear()
            self._run.disabled = True
            try:
                self._tell(0, "Loading model and data.")
                run = {"output_dir": folder, "disable_tqdm": True, "report_to": "none"}
                run |= {"save_strategy": "no", "resume_from_checkpoint": None}
                settings = self._settings.replace(**dials, **run)
                # what is printed in a thread would stand in some other cell
                trainer = finetune(settings, [_Progress(self._tell)], report=False)
                if not self.points and hasattr(trainer.model, "disable_adapter"):
                    self._add_point("before", {}, trainer)
                label = ", ".join(f"{name} {value:g}" for name, value in dials.items())
                self._add_point(label, dials, trainer)
                self._tell(1, "Done.")
                return self.points[-1]
            except InterruptedError:
                self._status.value = "Cancelled: no point was added."
            except Exception as error:
                self._status.value = visible(f"{type(error).__name__}: {error}", 300)
                raise
            finally:
                self._run.disabled = False

    def _add_point(self, label, dials, trainer):
        self._tell(0.8 if dials else 0.6, f"Measuring: {label}.")
        prompts = self._test.prompts()
        options = self._test.sampling() | {"adapters": bool(dials), "progress": False}
        samples = sample(trainer.model, trainer.processing_class, prompts, **options)
        references = references_of(prompts, self._test.answer)
        summary = evaluate(samples, references, answer=self._test.answer)
        point = {"label": f"{len(self.points)}: {label}", "dials": dials}
        self.points.append(point | {"summary": summary, "samples": samples})
        self._chart.value = dials_chart(self.points)
        self._choice.options = [(p["label"], i) for i, p in enumerate(self.points)]
        self._choice.value = len(self.points) - 1

    def _tell(self, progress, status):
        if self._cancelled.is_set():
            raise InterruptedError
        self._progress.value = progress
        self._status.value = status

    def _show_samples(self, change):
        samples = self.points[self._choice.value]["samples"][:12]
        texts = [visible(f"{s['question']}\n{s['text']}", 1000, keep="\n") for s in samples]
        self._texts.value = "<hr>".join(f"<pre>{escape(text)}</pre>" for text in texts)

    def _repr_mimebundle_(self, **kwargs):
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        html = still_chart(self.points)
        return {"application/vnd.jupyter.widget-view+json": view, "text/html": html}


class _Progress(TrainerCallback):
    shows_progress = True  # in place of the trainer's own lines

    def __init__(self, tell):
        self.tell = tell

    def attach(self, trainer):
        trainer.prints_end = False

    def on_step_end(self, args, state, control, **kwargs):
        self.tell(0.1 + 0.5 * state.global_step / state.max_steps, "Training.")
