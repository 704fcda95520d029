"""What a model makes of held-out text while it trains: log-probabilities, samples, multiple choice."""

import json
import math
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.utils import logging

from ..data.messages import as_text
from ..data.render import Renderer
from ..files import read_lines, write
from .answers import right_answer
from .likelihood import log_prob_by_tag
from .multiple_choice import choices, render_questions
from .sampling import sample, sample_jobs
from .scoring import score
from .summary import evaluate, given_answer


class Probe(TrainerCallback, ABC):
    """Measures the model before the first step, at chosen steps and after the last one; the base of the trackers.

    The records of a measurement, each with its `step`, are added to `records` and to a file of the run folder, one
    JSON a line. Its means are logged as `eval_<file>/<name>`: they stand in `trainer.state.log_history` and
    history.jsonl, and trackers show them as `eval/<file>/<name>`. The training is as it would be without, and its
    `tokens_per_second` leaves out the time that a measurement takes.

    A new run starts the file anew; one that is resumed first drops the records of steps after its checkpoint. A run
    that is stopped before its last step ends with what was measured at the chosen ones.

    Args:
        every: measure every so many steps; or "log", after steps 1, 2, 4, 8 and so on.

    Every process runs the model, since it may be sharded over them, and only the main one writes. Raises ValueError
    where the trainer is not a BTSFTTrainer that was given it as one of its `callbacks`, or was given two of a kind.
    """

    file: str

    def __init__(self, every: int | str):
        if every != "log" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(
                f"every={every!r}: a number of steps from 1 wanted, or 'log' for steps 1, 2, 4, 8, ..."
            )
        self.every, self.records = every, []

    def attach(self, trainer: Trainer) -> None:
        """Whom to log to. Who keeps the records does not thereby keep the trainer, and its model, in memory."""
        self._trainer = weakref.ref(trainer)

    def on_train_begin(self, args, state, control, model, **kwargs):
        name, path = type(self).__name__, Path(args.output_dir, self.file)
        if not hasattr(self, "_trainer"):
            raise ValueError(
                f"{name} logs to a BTSFTTrainer: give it to one as one of its callbacks=[...]"
            )
        if (
            sum(
                type(callback) is type(self)
                for callback in self._trainer().callback_handler.callbacks
            )
            > 1
        ):
            raise ValueError(
                f"two of {name}, which would share {self.file}: give one of them all there is to measure"
            )
        step = state.global_step
        self.records = (
            [record for record in read_lines(path) if record["step"] <= step] if step else []
        )
        if state.is_world_process_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, _lines(self.records))  # whole: other processes may be reading it
        if not state.global_step:
            self._record(path, state, control, model)

    def on_step_end(self, args, state, control, model, **kwargs):
        step = state.global_step
        chosen = step & (step - 1) == 0 if self.every == "log" else step % self.every == 0
        if chosen or step >= state.max_steps:
            self._record(Path(args.output_dir, self.file), state, control, model)

    def _record(self, path: Path, state, control, model) -> None:
        trainer, start = self._trainer(), time.monotonic()
        found, means = self._measure(model)
        records = [{"step": state.global_step} | record for record in found]
        if state.is_world_process_zero:
            with path.open("a", encoding="utf-8") as file:
                file.write(_lines(records))
        self.records += records
        due = control.should_log
        trainer.log({f"eval_{path.stem}/{name}": float(value) for name, value in means.items()})
        control.should_log = due  # Trainer takes any log for the one that was due at this step
        if trainer._mark:  # its clock runs
            trainer._mark = *trainer._mark[:2], trainer._mark[2] + time.monotonic() - start

    @abstractmethod
    def _measure(self, model) -> tuple[list[dict], dict[str, float]]:
        """The records, without their step, and the means to log."""


class TrackLogProbs(Probe):
    """Follows how likely the model finds the tagged stretches of some examples while it trains on whatever it does.

    When, and what becomes of the records: see `Probe`. The file is log_probs.jsonl, with a record for each stretch:
    `step`, `id` of the example, `tag`, `log_prob` (the sum over its tokens, in nats) and `tokens` (how many, without
    the first of an example). The log has, under each tag, the mean over all its tokens, as `log_prob_by_tag`.

    Args:
        examples: as `prepare` returns them, with `tags`: a list of {"tag": str, "start": int, "stop": int} in tokens.
        tokenizer: the one that prepared them.

    Raises ValueError where there is nothing to follow.
    """

    file = "log_probs.jsonl"

    def __init__(
        self, examples: Sequence[dict], tokenizer: PreTrainedTokenizerBase, every: int | str = 10
    ):
        super().__init__(every)
        self.examples = [example for example in examples if example["tags"]]
        if not self.examples:
            raise ValueError(
                "none of the examples has a tagged stretch to follow; give their blocks or spans a tag"
            )
        self.tokenizer = tokenizer

    def _measure(self, model) -> tuple[list[dict], dict[str, float]]:
        records, scores = [], score(model, self.tokenizer, self.examples)
        for example, scored in zip(self.examples, scores, strict=True):
            for stretch in example["tags"]:
                log_probs = scored["log_probs"][max(stretch["start"], 1) : stretch["stop"]]
                found = {"log_prob": float(log_probs.sum()), "tokens": len(log_probs)}
                records.append({"id": example["id"], "tag": stretch["tag"]} | found)
        by_tag = log_prob_by_tag(self.examples, scores)
        return records, {tag: found["per_token"]["value"] for tag, found in by_tag.items()}


class TrackSamples(Probe):
    """Samples completions of held-out prompts while a model trains, with the same draws each time.

    When, and what becomes of the records: see `Probe`. The file is samples.jsonl, with the records of `sample`. The
    log has all metrics of `evaluate`: compliance, unique thoughts, accuracy and so on. Any can choose the best
    checkpoint: `BTSFTConfig(metric_for_best_model="eval_samples/rougeL", eval_strategy="steps", eval_steps=50, ...)`
    with `every=50`, or a divisor of it.

    Args:
        prompts: as for `sample`.
        references: the right answer of each prompt; by default the field `answer` of the rows. Where no prompt has
            one, what needs no reference is logged.
        way_of, answer, text_scores: as for `evaluate`.
        sampling: n, max_new_tokens, temperature and so on, as for `sample`, but n is 4 unless given.

    Raises RowError for a malformed prompt or reference, and ValueError where there is no prompt, some have a reference
    and others have none, a reference has no answer of the kind, or a setting is unknown or out of its range.
    """

    file = "samples.jsonl"

    def __init__(
        self,
        prompts: Sequence[dict | str],
        tokenizer: PreTrainedTokenizerBase,
        references: Sequence[str] | None = None,
        *,
        every: int | str = 50,
        way_of: Callable[[str], str | None] | None = None,
        answer: str = "auto",
        text_scores: bool = False,
        **sampling: float,
    ):
        super().__init__(every)
        self.prompts, self.tokenizer, self.sampling = prompts, tokenizer, {"n": 4} | sampling
        self.how = {"way_of": way_of, "answer": answer, "text_scores": text_scores}
        self.references = _references(self.prompts, references)
        for reference in self.references or ():
            right_answer(reference, answer)
        if text_scores and self.references is None:
            raise ValueError("text_scores compares answers with references, and no prompt has one")
        sample_jobs(
            Renderer(tokenizer), prompts, self.sampling
        )  # what it would stumble over in mid-run

    def _measure(self, model) -> tuple[list[dict], dict[str, float]]:
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # one for each measurement would pile up under the trainer's
        try:
            records = sample(model, self.tokenizer, self.prompts, **self.sampling)
        finally:
            if bars:
                logging.enable_progress_bar()
        metrics = evaluate(records, self.references, **self.how)["metrics"]
        return records, {name: metric["value"] for name, metric in metrics.items()}


class TrackChoices(Probe):
    """Follows how a model answers multiple-choice questions by likelihood while it trains.

    When, and what becomes of the records: see `Probe`. The file is choices.jsonl, with the records of `choices`. The
    log has `accuracy` (by the log-probability of an option) and `accuracy_normalised` (by that per byte). Of a model
    that has diverged there are no records, and both are NaN.

    Args:
        questions: as for `choices`.

    Raises RowError for a malformed question, and ValueError where there is none.
    """

    file = "choices.jsonl"

    def __init__(
        self, questions: Sequence[dict], tokenizer: PreTrainedTokenizerBase, every: int | str = 50
    ):
        super().__init__(every)
        if not render_questions(tokenizer, questions):  # which also finds what is malformed
            raise ValueError("no question to ask; give at least one")
        self.questions, self.tokenizer = questions, tokenizer

    def _measure(self, model) -> tuple[list[dict], dict[str, float]]:
        names = {"accuracy": "correct_raw", "accuracy_normalised": "correct_normalised"}
        try:
            records = choices(model, self.tokenizer, self.questions)
        except FloatingPointError:
            return [], dict.fromkeys(names, math.nan)
        return records, {
            name: sum(r[field] for r in records) / len(records) for name, field in names.items()
        }


def _references(prompts: list[dict | str], given: Sequence[str] | None) -> list[str] | None:
    """The reference of each prompt, or None where no prompt has one. Raises ValueError where only some have."""
    if not prompts:
        raise ValueError("no prompt to sample; give at least one")
    if given is None:
        given = [answer for answer in map(given_answer, prompts) if answer is not None] or None
    if given is not None and len(given) != len(prompts):
        raise ValueError(
            f"{len(given)} references for {len(prompts)} prompts: one for each wanted, or references=None"
        )
    return (
        None
        if given is None
        else [as_text(answer, f"references[{i}]") for i, answer in enumerate(given)]
    )


def _lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
