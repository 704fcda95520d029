"""A run folder: what a training leaves in it as it goes, and what `Run` makes of it, whole, cut off or foreign."""

import json
import os
import re
import shutil
import socket

import pytest
import torch
from payloads import PAYLOADS
from test_faults import At, interrupt, make_trainer
from transformers import TrainerCallback

import btsft_nb as bt


class Watch(TrainerCallback):
    """What can be read in mid-run, at the end of step 3."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.run = bt.Run(args.output_dir)
            self.card = (self.run.path / "README.md").read_text()


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The folder of a run of 6 steps, the trainer, and what was there after step 3."""
    folder, watch = tmp_path_factory.mktemp("runs") / "demo", Watch()
    tokenizer = bt.load_tokenizer("tiny")
    samples = bt.TrackSamples(["How many?"], tokenizer, every=3, n=1, max_new_tokens=2)
    trainer = make_trainer(folder, [watch, samples])
    trainer.train()
    return folder, trainer, watch


def test_a_finished_run_reads_back_as_it_was(watched):
    folder, trainer, _ = watched
    run = bt.Run(folder)
    assert run.config == json.loads(trainer.args.to_json_string()) and run.settings == {}
    assert run.report == trainer.train_dataset.report
    logs = [
        {name: value for name, value in log.items() if value == value}
        for log in run.history.to_dict("records")
    ]
    assert logs == trainer.state.log_history  # a log that lacks a value has NaN for it
    assert [path.name for path in run.checkpoints] == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    ]
    assert (run.step, run.max_steps, run.finished) == (6, 6, True)
    assert {"grad_norm", "learning_rate", "loss", "step"} <= set(run.history)
    last = trainer.state.log_history[-2]
    assert (
        run.summary["nll_think"] == last["nll_think"]
        and run.summary["blurred_share"] == last["blurred_share"]
    )
    assert (run.summary["base_model"], run.summary["data"], run.summary["threshold"]) == (
        "tiny",
        "tiny/teacher",
        0.5,
    )


def test_the_model_loads_from_its_run(watched):
    folder, trainer, _ = watched
    model, tokenizer = bt.load_model(folder)
    assert tokenizer.get_vocab() == trainer.processing_class.get_vocab()
    wanted = {
        name: value.tolist() for name, value in trainer.model.named_parameters() if "lora" in name
    }
    assert {
        name: value.tolist() for name, value in model.named_parameters() if "lora" in name
    } == wanted


def test_a_run_is_read_while_it_trains(watched):
    """After step 3 its two first logs at least are there; nothing says that it is finished, and its card says so."""
    run = watched[2].run
    assert 2 <= run.step <= 3 and run.max_steps == 6 and not run.finished
    assert [path.name for path in run.checkpoints] == ["checkpoint-2"]
    assert len(run.history) >= 2 and run.config["threshold"] == 0.5
    assert "Not complete" in watched[2].card and "2 of 6 steps" in watched[2].card


def test_the_environment_says_what_it_ran_on_and_not_who(watched):
    folder = watched[0]
    found = bt.Run(folder).environment
    assert (
        found["versions"]["torch"] == torch.__version__
        and found["processes"] == 1
        and found["examples"] == 16
    )
    text = (folder / "environment.json").read_text()
    assert socket.gethostname() not in text and os.getcwd() not in text and str(folder) not in text
    for name in ("PATH", "PWD", "HOME"):
        assert name not in found


def test_a_kill_leaves_at_most_a_cut_last_line(watched, tmp_path):
    """All whole lines of the history are read."""
    shutil.copytree(watched[0], tmp_path / "run")
    whole = bt.Run(tmp_path / "run")
    file = tmp_path / "run" / "history.jsonl"
    file.write_text(file.read_text()[:-5])
    cut = bt.Run(tmp_path / "run")
    assert cut.history.equals(whole.history.iloc[:-1][list(cut.history)])


def test_an_interrupted_run_says_at_which_step_and_has_no_log_twice(tmp_path):
    """The folder explains itself when it stops, and the resumed run goes on from the checkpoint's logs."""
    trainer = make_trainer(tmp_path, [At(3, interrupt)], logging_steps=1)
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        trainer.train()
    run = bt.Run(tmp_path)
    assert (run.step, run.finished) == (3, False)
    assert "Not complete: 3 of 6 steps" in (tmp_path / "README.md").read_text()
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"loss": 9, "step": 4}\n{"lo')  # as a killed run leaves it
    make_trainer(tmp_path).train(
        resume_from_checkpoint=str(tmp_path)
    )  # the folder names its last checkpoint
    steps = [
        entry["step"]
        for entry in bt.Run(tmp_path).history.to_dict("records")
        if entry["loss"] == entry["loss"]
    ]
    assert steps == [1, 2, 3, 4, 5, 6] and 9 not in set(bt.Run(tmp_path).history["loss"])
    assert (
        bt.Run(tmp_path).finished
        and "Complete: 6 of 6 steps" in (tmp_path / "README.md").read_text()
    )


def test_nothing_in_a_run_becomes_html(tmp_path):
    """A value can be any text; the table has the tags of its own cells and no other."""
    (tmp_path / "training_config.json").write_text("{}")
    tags = None
    for payload in ("tiny", *PAYLOADS.values()):
        (tmp_path / "environment.json").write_text(json.dumps({"base_model": payload}))
        found = re.findall(r"<[^>]*>", bt.Run(tmp_path)._repr_html_())
        tags = tags or found
        assert found == tags, payload


def test_settings_of_the_command_line_and_of_none(tmp_path):
    (tmp_path / "training_config.json").write_text("{}")
    (tmp_path / "settings.yaml").write_text("model: tiny\nlearning_rate: 0.001\n")
    run = bt.Run(tmp_path)
    assert run.settings == {"model": "tiny", "learning_rate": 0.001}
    assert (run.step, run.max_steps, run.finished, run.report, len(run.history)) == (
        0,
        None,
        False,
        None,
        0,
    )


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="is no run of btsft_nb: it has neither"):
            bt.Run(folder)
