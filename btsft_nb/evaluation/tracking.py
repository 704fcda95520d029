"""What a model makes of held-out text while it trains: log-probabilities, samples, multiple choice."""

import json
import math
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from numbers import Integral
from operator import itemgetter
from pathlib import Path
from statistics import fmean

import pandas as pd
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase, TrainerCallback

from ..checks import check_number
from ..data.render import Renderer
from ..files import read_lines, write
from ..objective.forward import eval_mode
from .multiple_choice import answer_questions, render_questions
from .sampling import SamplingSettings, drawn, sampling_jobs
from .scoring import tagged_log_probs
from .summary import evaluate, references_of


class Probe(TrainerCallback):
    """Measures the model before the first step, at chosen steps and after the last one; the base of the trackers.

    The records of a measurement, each with its `step`, are added to `records` and to a file of the run folder, one
    JSON a line. Its means are logged as `eval_<file>/<name>`: they stand in `trainer.state.log_history` and
    history.jsonl, and trackers show them as `eval/<file>/<name>`. The training is as it would be without, and its
    `tokens_per_second` leaves out the time that a measurement takes.

    A new run starts the file anew; one that is resumed first drops the records of steps after its checkpoint. A run
    that is stopped before its last step ends with what was measured at the chosen ones.

    Args:
        every: measure every so many steps.

    Of several processes each measures a share, or all where the model is sharded over them; the main one writes.

    A subclass has `file`, `items`, `_measure(trainer, model, items)`, which returns their records without the step, and
    `_means(records)`.

    Raises ValueError for two of a kind in one trainer, or a trainer that is not a BTSFTTrainer.
    """

    file: str
    _trainer = None

    def __init__(self, every: int):
        check_number("every", every, 1, math.inf, Integral)
        self.every = every
        self.records = []

    def attach(self, trainer):
        """Called by the trainer. Who keeps the records does not thereby keep the trainer, and its model, in memory."""
        self._trainer = weakref.ref(trainer)
        files = [getattr(callback, "file", None) for callback in trainer.callback_handler.callbacks]
        if files.count(self.file) > 1:
            raise ValueError(f"two callbacks write {self.file}; let one of them measure it all")

    def on_train_begin(self, args, state, control, model, **kwargs):
        if self._trainer is None:
            raise ValueError(f"{type(self).__name__} needs a BTSFTTrainer to log to")
        before = read_lines(Path(args.output_dir, self.file)) if state.global_step else []
        self.records = [record for record in before if record["step"] <= state.global_step]
        if not state.global_step:
            self._record(args, state, control, model)

    def on_step_end(self, args, state, control, model, **kwargs):
        step = state.global_step
        if step % self.every == 0 or step >= state.max_steps:
            self._record(args, state, control, model)

    def _record(self, args, state, control, model):
        start = time.perf_counter()
        trainer = self._trainer()
        with eval_mode(model):
            records = self._shared(trainer, model)
        self.records += [{"step": state.global_step, **record} for record in records]
        path = Path(args.output_dir, self.file)
        if state.is_world_process_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            # whole: it may hold records of steps that are trained anew
            write(path, "".join(json.dumps(record) + "\n" for record in self.records))
        # Trainer takes any log for the one that was due at this step
        was_due = control.should_log
        trainer.log(
            {f"eval_{path.stem}/{name}": value for name, value in self._means(records).items()}
        )
        control.should_log = was_due
        if trainer.throughput:  # its clock runs
            trainer.throughput.pause(time.perf_counter() - start)

    def _shared(self, trainer, model):
        """The records of all items, of which each process measures its share; or all, where the model is sharded."""
        n = trainer.args.world_size
        if n == 1 or trainer.is_fsdp_enabled:
            return self._measure(trainer, model, self.items)
        edges = [len(self.items) * (trainer.args.process_index + k) // n for k in (0, 1)]
        return gather_object(self._measure(trainer, model, self.items[slice(*edges)]))


class TrackLogProbs(Probe):
    """Follows how likely the model finds the tagged stretches of some examples while it trains on whatever it does.

    When, and what becomes of the records: see `Probe`. The file is log_probs.jsonl, with a record for each stretch:
    `step`, `id` of the example, `tag`, `log_prob` (the sum over its tokens, in nats) and `tokens` (how many, without
    the first of an example). The log has, under each tag, the mean over all its tokens, as `log_prob_by_tag`.

    Args:
        examples: as `prepare` returns them, with `tags`: a list of {"tag": str, "start": int, "stop": int} in tokens.
        tokenizer: the one that prepared them.

    Raises ValueError where there is nothing to follow.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> text = [{"text": "<think>so</think>"}, {"text": "Yes.", "tag": "answer"}]
    >>> turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": text}]
    >>> examples = bt.prepare([{"messages": turns}], tokenizer)
    rows: 1 rows -> 1 examples...
    >>> track = bt.TrackLogProbs(examples, tokenizer, every=10)
    >>> trainer = bt.BTSFTTrainer(..., callbacks=[track])  # doctest: +SKIP
    """

    file = "log_probs.jsonl"

    def __init__(
        self, examples: Sequence[dict], tokenizer: PreTrainedTokenizerBase, every: int = 10
    ):
        super().__init__(every)
        self.items = [example for example in examples if example["tags"]]
        if not self.items:
            raise ValueError("no example has a tagged stretch; give blocks or spans a tag")
        self.pad_token_id = tokenizer.pad_token_id

    def _measure(self, trainer, model, items):
        records = []
        for example in items:
            values = tagged_log_probs(trainer.head_forward, model, self.pad_token_id, [example])[0]
            for span in example["tags"]:
                log_probs = values[max(span["start"], 1) : span["stop"]].tolist()
                record = {"id": example["id"], "tag": span["tag"], "log_prob": sum(log_probs)}
                records.append(record | {"tokens": len(log_probs)})
        return records

    def _means(self, records):
        sums = pd.DataFrame(records).groupby("tag")[["log_prob", "tokens"]].sum()
        sums = sums[sums["tokens"] > 0]
        return (sums["log_prob"] / sums["tokens"]).to_dict()


class TrackSamples(Probe):
    """Samples completions of held-out prompts while a model trains, with the same draws each time.

    When, and what becomes of the records: see `Probe`. The file is samples.jsonl, with the records of `sample`. The
    log has all metrics of `evaluate`: compliance, unique thoughts, accuracy and so on. Any can choose the best
    checkpoint: `BTSFTConfig(metric_for_best_model="eval_samples/rougeL", eval_strategy="steps", eval_steps=50, ...)`
    with `every=50`, or a divisor of it.

    Args:
        prompts: as for `sample`. The right answer is their field `answer`; where none has one, what needs no answer
            is logged.
        way_of, answer, text_scores: as for `evaluate`.
        sampling: n (4 by default), max_new_tokens, temperature and so on, as for `sample`.

    Raises:
        RowError: a malformed prompt or answer.
        ValueError: no prompts, answers for some of them only, or a setting out of its range; at the first measurement,
            `text_scores` without answers.

    >>> prompts = bt.load_rows("tiny/test")[:20]
    >>> track = bt.TrackSamples(prompts, bt.load_tokenizer("tiny"), every=50, max_new_tokens=96)
    >>> trainer = bt.BTSFTTrainer(..., callbacks=[track])  # doctest: +SKIP
    """

    file = "samples.jsonl"

    def __init__(
        self,
        prompts: Sequence[dict | str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        every: int = 50,
        way_of: Callable[[str], str | None] | None = None,
        answer: str = "auto",
        text_scores: bool = False,
        **sampling,
    ):
        super().__init__(every)
        if not prompts:
            raise ValueError("no prompts to sample")
        self.references = references_of(prompts, answer)
        self.options = {"way_of": way_of, "answer": answer, "text_scores": text_scores}
        self.settings = SamplingSettings(**{"n": 4, **sampling})
        self.renderer = Renderer(tokenizer)
        self.items = sampling_jobs(self.renderer, prompts, self.settings)

    def _measure(self, trainer, model, items):
        batches = drawn(model, self.renderer, items, self.settings)
        return sorted(chain(*batches), key=itemgetter("prompt", "sample"))

    def _means(self, records):
        metrics = evaluate(records, self.references, **self.options)["metrics"]
        return {name: metric["value"] for name, metric in metrics.items()}


class TrackChoices(Probe):
    """Follows how a model answers multiple-choice questions by likelihood while it trains.

    When, and what becomes of the records: see `Probe`. The file is choices.jsonl, with the records of `choices`. The
    log has `accuracy` (by the log-probability of an option) and `accuracy_normalised` (by that per byte). Of a model
    that has diverged there are no records, and both are NaN.

    Args:
        questions: as for `choices`.

    Raises RowError for a malformed question, and ValueError where there is none.

    >>> question = {"question": "What is ice?", "choices": ["water", "stone"], "answer": "A"}
    >>> track = bt.TrackChoices([question], bt.load_tokenizer("tiny"), every=50)
    >>> trainer = bt.BTSFTTrainer(..., callbacks=[track])  # doctest: +SKIP
    """

    file = "choices.jsonl"

    def __init__(
        self, questions: Sequence[dict], tokenizer: PreTrainedTokenizerBase, every: int = 50
    ):
        super().__init__(every)
        self.items = render_questions(tokenizer, questions)
        if not self.items:
            raise ValueError("no questions to ask")
        self.pad_token_id = tokenizer.pad_token_id

    def _measure(self, trainer, model, items):
        with suppress(FloatingPointError):
            return answer_questions(trainer.head_forward, model, self.pad_token_id, items)
        return []

    def _means(self, records):
        fields = {"accuracy": "correct_raw", "accuracy_normalised": "correct_normalised"}
        if len(records) < len(self.items):
            return dict.fromkeys(fields, math.nan)
        return {name: fmean(record[field] for record in records) for name, field in fields.items()}
