"""Trackers: their figures and steps, where they are written and logged, and no trace of them in the training."""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from batching_worker import DROPOUT_LORA, SHORT_RUN, adapted_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils.logging import is_progress_bar_enabled

import btsft_nb as bt
from btsft_nb import TrackLogProbs

TAGS = {-1.0: "unwanted", 1.0: "wanted"}


def tagged(example: dict) -> dict:
    """Stretches of equal weight, where that is 1 or -1."""
    tags, at = [], 0
    for weight, run in groupby(example["weights"]):
        start, at = at, at + len(list(run))
        if weight in TAGS:
            tags.append({"tag": TAGS[weight], "start": start, "stop": at})
    return {"tags": tags}


@pytest.fixture(scope="module")
def examples(tiny_tokenizer):
    return tagged_examples(tiny_tokenizer)


def tagged_examples(tokenizer):
    """16 problems whose thoughts begin with an unwanted sentence, and whose answers end in one that is wanted."""
    rows = bt.load_rows("tiny/teacher")[:16]
    for row in rows:
        before, stop, after = row["messages"][1]["content"].partition(". ")
        texts = {before + stop: -1, after: 0.5, " I took my time.": 1}
        blocks = [{"text": text, "weight": weight} for text, weight in texts.items()]
        row["messages"][1] = {"role": "assistant", "content": blocks}
    return bt.prepare(rows, tokenizer).map(tagged)


def train(folder, examples, tokenizer, callbacks, **settings):
    """A run without blur, anchor and format term."""
    defaults = dict(
        threshold=0, beta=0, max_steps=10, per_device_train_batch_size=8, learning_rate=1e-2
    )
    defaults |= dict(
        negative="unlikelihood",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    config = bt.BTSFTConfig(str(folder), **(defaults | settings))
    model, _ = adapted_model(noise=0)
    trainer = bt.BTSFTTrainer(
        model, config, examples, processing_class=tokenizer, callbacks=callbacks
    )
    trainer.train()
    return trainer


def sums(track: TrackLogProbs) -> dict[str, list[float]]:
    """Of each tag, the log-probability of all its text at each recorded step."""
    steps = sorted({record["step"] for record in track.records})
    return {
        tag: [
            sum(r["log_prob"] for r in track.records if (r["tag"], r["step"]) == (tag, step))
            for step in steps
        ]
        for tag in TAGS.values()
    }


def test_minus_one_makes_text_less_likely_and_plus_one_more(tmp_path, examples, tiny_tokenizer):
    """And the records are what `score` says before and after, of every stretch."""
    track = TrackLogProbs(examples, tiny_tokenizer, every=4)
    before = bt.score(adapted_model(noise=0)[0], tiny_tokenizer, examples)
    trainer = train(tmp_path, examples, tiny_tokenizer, [track])
    found = sums(track)
    assert (
        found["unwanted"][-1] < found["unwanted"][0] - 10
        and found["wanted"][-1] > found["wanted"][0] + 10
    )
    after = bt.score(trainer.model, tiny_tokenizer, examples)
    assert sorted({record["step"] for record in track.records}) == [0, 4, 8, 10]
    for step, scores in ((0, before), (10, after)):
        expected = [
            (example["id"], t["tag"], one["log_probs"][t["start"] : t["stop"]])
            for example, one in zip(examples, scores, strict=True)
            for t in example["tags"]
        ]
        records = [r for r in track.records if r["step"] == step]
        assert [(r["id"], r["tag"], r["tokens"]) for r in records] == [
            (i, tag, len(x)) for i, tag, x in expected
        ]
        assert np.allclose(
            [r["log_prob"] for r in records], [x.sum() for *_, x in expected], atol=1e-4
        )


PROBLEMS = bt.load_rows("tiny/test")[:3]
QUESTIONS = [  # the model finds the first option of the last one likelier, and the second likelier per byte
    {
        "question": "Ann has 2 pens. How many pens?",
        "choices": ["The answer is 2.", "The answer is 80."],
        "answer": "A",
    },
    {
        "question": "Ann has 2 pens. How many pens?",
        "choices": ["The answer is 2.", "The answer is 80."],
        "answer": "B",
    },
    {"question": "Say it.", "choices": ["The", "The answer is 57."], "answer": "B"},
]


def trackers(examples, tokenizer, every=2) -> list:
    """One of each kind."""
    samples = bt.TrackSamples(
        PROBLEMS, tokenizer, every=every, n=2, max_new_tokens=24, way_of=bt.tiny.way_of
    )
    choices = bt.TrackChoices(QUESTIONS, tokenizer, every=every)
    return [TrackLogProbs(examples.select(range(2)), tokenizer, every=every), samples, choices]


def make_trainer(folder, examples, tokenizer, callbacks, eval_dataset=None, **settings):
    """A run of 6 steps, 4 to the epoch, with all that is drawn by chance; checkpoints after steps 3 and 6."""
    model, _ = bt.load_model("tiny", lora=DROPOUT_LORA)
    batches = dict(save_steps=3, per_device_train_batch_size=4, use_cpu=True)
    config = bt.BTSFTConfig(str(folder), **(SHORT_RUN | batches | settings))
    callbacks = list(callbacks)
    return bt.BTSFTTrainer(
        model, config, examples, eval_dataset, processing_class=tokenizer, callbacks=callbacks
    )


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def logs(folder: Path) -> tuple[list[dict], list[dict]]:
    """The run's own logs, without what the clock says, and those of trackers."""
    found = [log for log in lines(folder / "history.jsonl") if "train_runtime" not in log]
    own = [
        {k: v for k, v in log.items() if k != "tokens_per_second"} for log in found if "loss" in log
    ]
    return own, [log for log in found if "loss" not in log]


def written(folder: Path) -> dict[str, bytes]:
    """What a run leaves of its training and its trackers."""
    names = ("adapter_model.safetensors", "log_probs.jsonl", "samples.jsonl", "choices.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


class Chance(TrainerCallback):
    """Keeps the state of every global generator at the beginning of each step."""

    def __init__(self):
        self.states = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.states.append(
            (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
        )


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, examples, tiny_tokenizer):
    """A run with all trackers that nothing disturbs: its folder, its trackers, and the states of chance."""
    folder, found, chance = (
        tmp_path_factory.mktemp("tracked"),
        trackers(examples, tiny_tokenizer),
        Chance(),
    )
    trainer = make_trainer(folder, examples, tiny_tokenizer, [*found, chance])
    trainer.train()
    return folder, found, chance.states


def test_the_training_is_the_same_without_them(tmp_path, tracked, examples, tiny_tokenizer):
    """Adapter, logs and random states, bit for bit, with dropout, anchor, and batches shuffled anew each epoch."""
    chance = Chance()
    make_trainer(tmp_path, examples, tiny_tokenizer, [chance]).train()
    folder, _, states = tracked
    alone = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert alone == (folder / "adapter_model.safetensors").read_bytes()
    assert logs(tmp_path)[0] == logs(folder)[0] and len(logs(folder)[0]) == 6
    assert states == chance.states and len(states) == 6


def test_records_stand_in_the_run_folder(tracked):
    """The same as in `records`: a step each that was chosen, no step twice."""
    folder, found, _ = tracked
    for tracker, wanted in zip(found, (2 * 2, 3 * 2, 3), strict=True):
        assert lines(folder / tracker.file) == tracker.records
        assert [record["step"] for record in tracker.records] == [
            s for s in (0, 2, 4, 6) for _ in range(wanted)
        ]


def test_samples_and_choices_are_those_of_the_model(tracked, examples, tiny_tokenizer):
    """Of step 0 those of the model as it was loaded, and of step 6 those of the trained one."""
    folder, (_, samples, choices), _ = tracked
    fresh, _ = bt.load_model("tiny", lora=DROPOUT_LORA)
    for step, model in ((0, fresh), (6, bt.load_model(folder)[0])):
        wanted = bt.sample(model, tiny_tokenizer, PROBLEMS, n=2, max_new_tokens=24)
        assert [r for r in samples.records if r["step"] == step] == [
            {"step": step} | r for r in wanted
        ]
        scored = bt.choices(model, tiny_tokenizer, QUESTIONS)
        for found, one in zip(
            [r for r in choices.records if r["step"] == step], scored, strict=True
        ):
            assert found["log_probs"] == pytest.approx(one["log_probs"], abs=1e-4)


def test_summaries_stand_in_the_history(tracked):
    """Each by its file's name; the logs of the training keep their place."""
    folder, (probs, samples, choices), _ = tracked
    own, found = logs(folder)
    assert [log["step"] for log in own] == [1, 2, 3, 4, 5, 6]
    assert [log["step"] for log in found] == [step for step in (0, 2, 4, 6) for _ in range(3)]
    for step in (0, 2, 4, 6):
        log = {name: value for one in found if one["step"] == step for name, value in one.items()}
        stretches = [r for r in probs.records if (r["step"], r["tag"]) == (step, "wanted")]
        mean = sum(r["log_prob"] for r in stretches) / sum(r["tokens"] for r in stretches)
        assert log["eval_log_probs/wanted"] == pytest.approx(mean)
        drawn = [r for r in samples.records if r["step"] == step]
        summary = bt.evaluate(drawn, [row["answer"] for row in PROBLEMS], bt.tiny.way_of)["metrics"]
        for name in ("compliance", "unique thoughts", "ways of thinking", "accuracy"):
            assert log[f"eval_samples/{name}"] == summary[name]["value"], name
        scored = [r for r in choices.records if r["step"] == step]
        assert log["eval_choices/accuracy"] != log["eval_choices/accuracy_normalised"]
        assert log["eval_choices/accuracy"] == sum(r["correct_raw"] for r in scored) / 3
        assert (
            log["eval_choices/accuracy_normalised"]
            == sum(r["correct_normalised"] for r in scored) / 3
        )


def test_curves_reach_every_tracker(tmp_path, monkeypatch, examples, tiny_tokenizer):
    """TensorBoard's event files, read back, and wandb's summary, offline; the last step as well."""
    wandb = pytest.importorskip("wandb")
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    settings = dict(report_to=["tensorboard", "wandb"], max_steps=3, save_strategy="no")
    trainer = make_trainer(
        tmp_path / "run", examples, tiny_tokenizer, trackers(examples, tiny_tokenizer), **settings
    )
    trainer.train()
    board = tensorboard.EventAccumulator(str(tmp_path / "board")).Reload()
    assert len(list((tmp_path / "board").iterdir())) == 1
    measured = logs(tmp_path / "run")[1]
    names = {name for log in measured for name in log if name.startswith("eval_")}
    assert {
        "eval_log_probs/wanted",
        "eval_samples/compliance",
        "eval_choices/accuracy_normalised",
    } < names
    for name in names:
        wanted = [(log["step"], log[name]) for log in measured if name in log]
        shown = name.replace("eval_", "eval/", 1)
        curve = board.Scalars(shown)
        assert [(event.step, event.value) for event in curve] == [
            (s, pytest.approx(v, rel=1e-6)) for s, v in wanted
        ]
        assert [step for step, _ in wanted] == [0, 2, 3]
        assert wandb.run.summary[shown] == pytest.approx(wanted[-1][1])


class Slow(TrackLogProbs):
    """A measurement that takes half a second more."""

    def _measure(self, trainer, model, items):
        time.sleep(0.5)
        return super()._measure(trainer, model, items)


def test_the_speed_of_training_leaves_out_measurements(tmp_path, examples, tiny_tokenizer):
    """Four of them, one before the clock starts, and what the clock shows fit into the time of the run."""
    track, start = Slow(examples.select(range(1)), tiny_tokenizer, every=1), time.monotonic()
    trainer = train(tmp_path, examples, tiny_tokenizer, [track], max_steps=3, logging_steps=3)
    spent = time.monotonic() - start
    (log,) = [log for log in trainer.state.log_history if "loss" in log]
    assert 0 < log["tokens_seen"] / log["tokens_per_second"] < spent - 2


def test_the_first_token_of_an_example_is_not_counted(tmp_path, examples, tiny_tokenizer):
    """Nothing predicts it; the log is what `log_prob_by_tag` says."""
    own = [dict(examples[0], tags=[{"tag": "all", "start": 0, "stop": 5}])]
    track = TrackLogProbs(own, tiny_tokenizer)
    trainer = train(tmp_path, examples, tiny_tokenizer, [track], max_steps=1)
    wanted = bt.metrics.log_prob_by_tag(own, bt.score(trainer.model, tiny_tokenizer, own))["all"]
    logged = [
        log["eval_log_probs/all"]
        for log in trainer.state.log_history
        if "eval_log_probs/all" in log
    ]
    assert logged[-1] == pytest.approx(wanted["per_token"]["value"], rel=1e-4)
    assert [record["tokens"] for record in track.records] == [4, 4] and wanted["tokens"] == 4


def test_answers_are_read_as_asked(tmp_path, examples, tiny_tokenizer):
    """As whole texts none is right; as numbers some would be."""
    track = bt.TrackSamples(PROBLEMS, tiny_tokenizer, n=2, max_new_tokens=96, answer="exact")
    settings = dict(max_steps=1, save_strategy="no")
    trainer = make_trainer(tmp_path, examples, tiny_tokenizer, [track], **settings)
    trainer.train()
    logged = next(log for log in trainer.state.log_history if "eval_samples/accuracy" in log)
    assert logged["eval_samples/accuracy"] == 0
    drawn = [record for record in track.records if record["step"] == 0]
    references = [row["answer"] for row in PROBLEMS]
    assert bt.evaluate(drawn, references, answer="number")["metrics"]["accuracy"]["value"] > 0


def test_a_model_that_has_diverged_is_measured_and_stopped(tmp_path, examples, tiny_tokenizer):
    """The log says NaN where there is nothing to choose by; the first step ends the run."""
    found = trackers(examples, tiny_tokenizer)
    trainer = make_trainer(
        tmp_path, examples, tiny_tokenizer, found, max_steps=2, save_strategy="no"
    )
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="step 1: the loss is infinite or NaN"):
        trainer.train()
    logged = [
        log["eval_choices/accuracy"]
        for log in trainer.state.log_history
        if "eval_choices/accuracy" in log
    ]
    assert len(logged) == 1 and np.isnan(logged).all() and found[2].records == []


def test_sampling_draws_no_bar(tmp_path, capsys, examples, tiny_tokenizer):
    """Those of others are shown as before."""
    track = bt.TrackSamples(PROBLEMS[:1], tiny_tokenizer, n=1, max_new_tokens=4)
    make_trainer(
        tmp_path, examples, tiny_tokenizer, [track], max_steps=1, save_strategy="no"
    ).train()
    assert "sampling" not in capsys.readouterr().err and is_progress_bar_enabled()


# ------------------------------------------------------------------------------------------------ steps


@pytest.mark.parametrize(
    ("every", "max_steps", "steps"),
    [
        (2, 4, [0, 2, 4]),
        (9, 2, [0, 2]),
    ],
)
def test_every_so_many_steps_are_measured(
    tmp_path, examples, tiny_tokenizer, every, max_steps, steps
):
    """And the last one once, also where it is one of every so many."""
    track = TrackLogProbs(examples.select(range(1)), tiny_tokenizer, every=every)
    train(
        tmp_path,
        examples,
        tiny_tokenizer,
        [track],
        max_steps=max_steps,
        per_device_train_batch_size=1,
    )
    assert [record["step"] for record in track.records if record["tag"] == "wanted"] == steps


# ------------------------------------------------------------------------------------------------ new runs and resumed


class Stop(TrainerCallback):
    """Ends a run in the middle of a step, as a kill would."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("killed")


def test_a_killed_run_goes_on_without_gap_or_double(tmp_path, tracked, examples, tiny_tokenizer):
    """Killed after step 4, one file in mid-line: resumed from step 3, the files end as if it had not been."""
    with pytest.raises(RuntimeError, match="killed"):
        callbacks = [*trackers(examples, tiny_tokenizer), Stop(4)]
        make_trainer(tmp_path, examples, tiny_tokenizer, callbacks).train()
    assert {record["step"] for record in lines(tmp_path / "samples.jsonl")} == {0, 2, 4}
    text = (tmp_path / "choices.jsonl").read_text()
    (tmp_path / "choices.jsonl").write_text(text[: text.index('{"step": 4') + 20])
    found = trackers(examples, tiny_tokenizer)
    make_trainer(tmp_path, examples, tiny_tokenizer, found).train(resume_from_checkpoint=True)
    assert written(tmp_path) == written(tracked[0]) and logs(tmp_path) == logs(tracked[0])
    assert [tracker.records for tracker in found] == [tracker.records for tracker in tracked[1]]


def test_a_new_run_starts_its_files_anew(tmp_path, examples, tiny_tokenizer):
    """Also with the same trackers, and where the run before was longer."""
    found = trackers(examples, tiny_tokenizer)
    for max_steps in (4, 2):
        make_trainer(
            tmp_path, examples, tiny_tokenizer, found, max_steps=max_steps, save_strategy="no"
        ).train()
        assert [
            sorted({r["step"] for r in lines(tmp_path / tracker.file)})[-1] for tracker in found
        ] == [max_steps] * 3
    for tracker in found:
        steps = [record["step"] for record in tracker.records]
        assert (
            lines(tmp_path / tracker.file) == tracker.records
            and steps.count(0) == steps.count(2) == len(steps) / 2
        )


class Interrupted(TrackLogProbs):
    """An interrupt comes in the middle of the measurement after step 4."""

    done = False

    def _measure(self, trainer, model, items):
        if trainer.state.global_step == 4 and not self.done:
            self.done = True
            os.kill(os.getpid(), signal.SIGINT)
        return super()._measure(trainer, model, items)


def test_an_interrupt_while_it_measures_loses_nothing(tmp_path, tracked, examples, tiny_tokenizer):
    """The measurement and the step are finished; the run that goes on has what one left alone has."""
    others = trackers(examples, tiny_tokenizer)[1:]
    track = Interrupted(examples.select(range(2)), tiny_tokenizer, every=2)
    trainer = make_trainer(tmp_path, examples, tiny_tokenizer, [track, *others])
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4, with a checkpoint"):
        trainer.train()
    assert [[r["step"] for r in lines(tmp_path / t.file)][-1] for t in (track, *others)] == [
        4,
        4,
        4,
    ]
    trainer.train(resume_from_checkpoint=True)
    assert written(tmp_path) == written(tracked[0]) and logs(tmp_path) == logs(tracked[0])


PROCESS = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import torch
from batching_worker import Trainer, adapted_model
import btsft_nb as bt
from test_tracking import tagged_examples, trackers
torch.set_num_threads(1)
model, tokenizer = adapted_model()
settings = dict(anchor=0, max_steps=2, per_device_train_batch_size=4, logging_steps=1, save_strategy="no", use_cpu=True)
config = bt.BTSFTConfig(sys.argv[2], disable_tqdm=True, **settings, **json.loads(sys.argv[3]))
examples = tagged_examples(tokenizer)
found = trackers(examples, tokenizer)
trainer = Trainer(model, config, examples, processing_class=tokenizer, callbacks=found)
trainer.blurred = {}
sizes = []
for tracker in found:
    def measure(trainer, model, items, measure=tracker._measure):
        sizes.append(len(items))
        return measure(trainer, model, items)
    tracker._measure = measure
trainer.train()
out = [sizes, [tracker.records for tracker in found], [log for log in trainer.state.log_history if "loss" not in log]]
open(os.path.join(sys.argv[2], "rank%s.json" % os.environ["RANK"]), "w").write(json.dumps(out))
"""
FSDP = dict(fsdp=True, fsdp_config={"transformer_layer_cls_to_wrap": "Qwen3DecoderLayer"})


@pytest.mark.parametrize("settings", [{}, FSDP], ids=["each a share", "sharded"])
def test_two_processes_measure_once(tmp_path, examples, tiny_tokenizer, settings):
    """Both have the records of the whole model, and the files hold them once; where it is sharded over them, both run
    it on all, else each on a part."""
    script = tmp_path / "run.py"
    script.write_text(PROCESS)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        script,
    ]
    command += [Path(__file__).parent, tmp_path, json.dumps(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    one, other = (rank[1] for rank in ranks)
    assert one == other
    whole = [len(tracker.items) for tracker in trackers(examples, tiny_tokenizer)] * 2
    measured = [sum(sizes) for sizes in zip(*(rank[0] for rank in ranks), strict=True)]
    assert measured == ([2 * n for n in whole] if settings else whole)
    for records, tracker in zip(one, trackers(examples, tiny_tokenizer), strict=True):
        assert lines(tmp_path / tracker.file) == records
        steps = [record["step"] for record in records]
        assert set(steps) == {0, 2} and steps.count(0) == steps.count(2)
    before = bt.choices(adapted_model()[0], tiny_tokenizer, QUESTIONS)
    for found, wanted in zip(one[2], before, strict=False):
        assert found["log_probs"] == pytest.approx(wanted["log_probs"], rel=1e-4)


# ------------------------------------------------------------------------------------------------ what is refused


def test_nothing_to_follow_is_said(examples, tiny_tokenizer):
    with pytest.raises(ValueError, match="no example has a tagged stretch"):
        TrackLogProbs([dict(examples[0], tags=[])], tiny_tokenizer)
    with pytest.raises(ValueError, match="no prompts to sample"):
        bt.TrackSamples([], tiny_tokenizer)
    with pytest.raises(ValueError, match="no questions to ask"):
        bt.TrackChoices([], tiny_tokenizer)


@pytest.mark.parametrize("every", [0, 1.5, True, "log", None])
def test_a_wrong_number_of_steps_is_refused(examples, tiny_tokenizer, every):
    for make in (
        lambda: TrackLogProbs(examples, tiny_tokenizer, every=every),
        lambda: trackers(examples, None, every),
    ):
        with pytest.raises(ValueError, match=rf"every.*{every!r}"):
            make()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (
            ["How many?", {"messages": [{"role": "narrator", "content": "x"}]}],
            {},
            r"prompts, row 1: .*narrator",
        ),
        (["How many?", "\ufdd0"], {}, r"prompts, row 1: .*U\+FDD0"),
        (
            [{"question": "How many?", "answer": [1]}],
            {},
            r"rows, row 0: field answer: expected text, got",
        ),
        (
            [{"question": "How many?", "answer": "many"}],
            {"answer": "number"},
            r"'many' has no answer of the kind 'number'",
        ),
        (PROBLEMS, {"answer": "numeric"}, r"tiny/test, row 0: .*'numeric'"),
        (["How many?", PROBLEMS[0]], {}, r"1 of 2 rows have no answer, the first is row 0"),
        (PROBLEMS, {"n": 0}, r"n.*0"),
        (PROBLEMS, {"max_new_tokens": True}, r"max_new_tokens.*True"),
        (
            PROBLEMS,
            {"max_prompt_length": 8},
            r"tiny/test, row 0: max_prompt_length=8 leaves nothing",
        ),
    ],
)
def test_what_cannot_be_sampled_stops_before_the_run(tiny_tokenizer, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        bt.TrackSamples(prompts, tiny_tokenizer, **options)


def test_a_misspelt_setting_stops_before_the_run(tiny_tokenizer):
    with pytest.raises(TypeError, match="'top_q'"):
        bt.TrackSamples(PROBLEMS, tiny_tokenizer, top_q=0.9)


def test_references_are_read_in_any_case_and_as_numbers(tiny_tokenizer):
    """As `compare` reads them: bug 10."""
    rows = [{"messages": [{"role": "user", "content": "3 + 4?"}], "ANSWER": 7}]
    assert bt.TrackSamples(rows, tiny_tokenizer).references == ["7"]


def test_a_malformed_question_stops_before_the_run(tiny_tokenizer):
    with pytest.raises(bt.RowError, match=r"questions, row 1: field answer"):
        bt.TrackChoices([QUESTIONS[0], QUESTIONS[0] | {"answer": "Z"}], tiny_tokenizer)


def test_without_references_format_and_diversity_are_measured(tmp_path, examples, tiny_tokenizer):
    prompts = [row["messages"][0]["content"] for row in PROBLEMS]
    track = bt.TrackSamples(prompts, tiny_tokenizer, n=2, max_new_tokens=8)
    trainer = make_trainer(
        tmp_path, examples, tiny_tokenizer, [track], max_steps=1, save_strategy="no"
    )
    trainer.train()
    found = {name for log in trainer.state.log_history for name in log if name.startswith("eval_")}
    assert found == {f"eval_samples/{name}" for name in bt.evaluate(track.records, None)["metrics"]}
    assert "eval_samples/compliance" in found and "eval_samples/accuracy" not in found


def test_two_of_a_kind_or_another_trainer_are_refused(tmp_path, examples, tiny_tokenizer):
    """They would share a file, or have nowhere to log; a subclass with a file of its own stands beside."""
    one, two = (TrackLogProbs(examples, tiny_tokenizer) for _ in range(2))
    with pytest.raises(ValueError, match=r"two callbacks write log_probs\.jsonl"):
        make_trainer(tmp_path, examples, tiny_tokenizer, [one, two]).train()
    model, _ = adapted_model()
    other = Trainer(
        model,
        TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"),
        train_dataset=examples,
        callbacks=[TrackLogProbs(examples, tiny_tokenizer)],
    )
    with pytest.raises(ValueError, match="TrackLogProbs needs a BTSFTTrainer"):
        other.train()


def test_who_keeps_a_tracker_does_not_keep_the_model(tmp_path, examples, tiny_tokenizer):
    """A notebook keeps the records of several runs, and a GPU has room for one."""
    track = TrackLogProbs(examples.select(range(1)), tiny_tokenizer)
    trainer = make_trainer(tmp_path, examples, tiny_tokenizer, [track], max_steps=1)
    trainer.train()
    model = weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert model() is None and track.records


# ------------------------------------------------------------------------------------------------ questions and answers


# "There are 69 coins in a box. Lea takes 12. How many ...", "69-12, that is 57."
JUST = [
    row
    for row in bt.tiny.rows("pretrain", 200)
    if row["messages"][1]["content"].startswith("<think>Just ")
][:8]
QA_ROWS = [
    {
        "Question": question["content"],
        "Answer": answer["content"].partition("Just ")[2].partition("</think>")[0],
    }
    for question, answer in (row["messages"] for row in JUST)
]


@pytest.fixture(scope="module")
def qa():
    """The embedded model as a base model: tokenizer in the question form, rows prepared, and texts to sample."""
    tokenizer = bt.load_tokenizer("tiny")
    bt.use_template(tokenizer, "qa")
    return tokenizer, bt.prepare(QA_ROWS, tokenizer), [row["Answer"] for row in QA_ROWS]


SCORED = dict(text_scores=True, n=1, temperature=0, max_new_tokens=24, answer="exact")


def test_one_batch_is_learned_by_heart(tmp_path, qa):
    """The check before a long run: the loss falls to nearly 0, and the model says the answers, and no more."""
    tokenizer, examples, answers = qa
    track = bt.TrackSamples(QA_ROWS, tokenizer, every=40, **SCORED)
    settings = dict(
        threshold=0,
        anchor=0,
        beta=0,
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
    )
    trainer = make_trainer(tmp_path, examples, tokenizer, [track], **settings, save_strategy="no")
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[0] > 1 and losses[-1] < 0.02
    assert [record["text"].strip() for record in track.records if record["step"] == 40] == answers
    before, after = [log for log in trainer.state.log_history if "eval_samples/bleu" in log]
    assert before["eval_samples/bleu"] < 50 and after["eval_samples/bleu"] == pytest.approx(100)
    assert (
        before["eval_samples/rougeL"] < 0.7
        and after["eval_samples/rougeL"] == after["eval_samples/accuracy"] == 1
    )


def test_texts_are_scored_and_sampled_as_asked(tmp_path, qa):
    """Samples are those of `sample` with the same settings, scores those of `metrics`."""
    tokenizer, examples, answers = qa
    how = dict(
        n=2, temperature=0.8, top_k=20, top_p=0.9, no_repeat_ngram_size=3, max_new_tokens=12, seed=4
    )
    how |= dict(max_prompt_length=25, batch_size=3)
    track = bt.TrackSamples(QA_ROWS, tokenizer, text_scores=True, **how)
    trainer = make_trainer(tmp_path, examples, tokenizer, [track], max_steps=1, save_strategy="no")
    wanted = bt.sample(trainer.model, tokenizer, QA_ROWS, **how)
    trainer.train()
    records = [record for record in track.records if record["step"] == 0]
    assert records == [{"step": 0} | record for record in wanted] and any(
        r["prompt_cut"] for r in records
    )
    texts = [
        [bt.metrics.parse(r["text"]).answer for r in records if r["prompt"] == i]
        for i in range(len(answers))
    ]
    logged = next(log for log in trainer.state.log_history if "eval_samples/bleu" in log)
    assert logged["eval_samples/bleu"] == bt.metrics.bleu(texts, answers)["value"]
    for name, found in bt.metrics.rouge(texts, answers).items():
        assert logged[f"eval_samples/{name}"] == found["value"]
    assert logged["eval_samples/rouge1"] > 0


@pytest.mark.parametrize("strategy", ["steps", "best"])
def test_a_tracked_metric_chooses_the_checkpoint(tmp_path, tiny_tokenizer, strategy):
    """A good model learns to refuse: what is loaded at the end, and saved, is what answered best."""
    refusals = [
        {"question": row["messages"][0]["content"], "answer": "I will not say."} for row in PROBLEMS
    ] * 3
    examples = bt.prepare(refusals, tiny_tokenizer)
    asked = [row | {"answer": f"The answer is {row['answer']}."} for row in PROBLEMS]
    track = bt.TrackSamples(asked, tiny_tokenizer, every=4, **SCORED | {"max_new_tokens": 96})
    settings = dict(
        max_steps=20, eval_strategy="steps", eval_steps=4, save_strategy=strategy, save_steps=4
    )
    settings |= dict(
        metric_for_best_model="eval_samples/rougeL", load_best_model_at_end=True, eval_on_start=True
    )
    settings |= dict(learning_rate=3e-3, threshold=0, anchor=0, beta=0)
    trainer = make_trainer(tmp_path, examples, tiny_tokenizer, [track], examples, **settings)
    trainer.train()
    found = {
        log["step"]: log["eval_samples/rougeL"]
        for log in trainer.state.log_history
        if "eval_samples/rougeL" in log
    }
    at = max((step for step in found if step), key=lambda step: (found[step], -step))
    assert found[20] < found[at], "or the last is the best, and nothing is tested"
    assert trainer.state.best_metric == found[at] and trainer.state.best_model_checkpoint.endswith(
        f"checkpoint-{at}"
    )
    best, saved = (
        folder / "adapter_model.safetensors" for folder in (tmp_path / f"checkpoint-{at}", tmp_path)
    )
    assert best.read_bytes() == saved.read_bytes()
    evaluated = [log["step"] for log in trainer.state.log_history if "eval_loss" in log]
    assert evaluated == [0, 4, 8, 12, 16, 20]


def test_a_metric_that_is_not_there_is_named(tmp_path, qa):
    """At the first evaluation: it comes between two measurements."""
    tokenizer, examples, _ = qa
    track = bt.TrackSamples(QA_ROWS[:1], tokenizer, every=2, **SCORED)
    settings = dict(
        eval_strategy="steps", eval_steps=1, metric_for_best_model="eval_samples/rougeL"
    )
    trainer = make_trainer(
        tmp_path,
        examples,
        tokenizer,
        [track],
        examples,
        max_steps=2,
        save_strategy="no",
        **settings,
    )
    with pytest.raises(KeyError, match=r"eval_samples/rougeL'?,? which is not found.*eval_loss"):
        trainer.train()


def test_a_look_before_training_changes_nothing(tmp_path, qa):
    """eval_on_start: what is wrong with evaluation shows at once; blur, draws and weights are as without."""
    tokenizer, examples, _ = qa
    for name, on in (("with", True), ("without", False)):
        settings = dict(max_steps=2, save_strategy="no", eval_on_start=on)
        trainer = make_trainer(tmp_path / name, examples, tokenizer, [], examples, **settings)
        trainer.train()
        assert [log["step"] for log in trainer.state.log_history if "eval_loss" in log] == [0] * on
    weights = [
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("with", "without")
    ]
    assert weights[0] == weights[1]
