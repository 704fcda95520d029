"""What goes wrong while a model trains: kills, interrupts and full disks; each run ends as if nothing had been.

benchmarks/kill.py kills at random moments; here are the moments that chance may miss.
"""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from batching_worker import DROPOUT_LORA, SHORT_RUN
from jupyter_client.manager import start_new_kernel
from safetensors import SafetensorError
from transformers import TrainerCallback

import btsft_nb as bt
from btsft_nb.training.checkpoints import is_whole, last_checkpoint, writing

ADAPTER, STATE = "adapter_model.safetensors", "trainer_state.json"


def make_trainer(folder, callbacks=(), **settings):
    """A run of 6 steps, 4 to the epoch, with all that is drawn by chance; checkpoints after steps 2, 4 and 6."""
    model, tokenizer = bt.load_model("tiny", qlora=True, lora=DROPOUT_LORA)
    examples = bt.prepare(bt.load_rows("tiny/teacher")[:16], tokenizer)
    batches = dict(save_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    config = bt.BTSFTConfig(str(folder), **(SHORT_RUN | batches | settings))
    return bt.BTSFTTrainer(
        model,
        config,
        examples,
        examples.select(range(4)),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


class At(TrainerCallback):
    """Does something in the middle of a step, once."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1 and self.action:
            action, self.action = self.action, None
            action()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def checkpoints(folder) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in Path(folder).glob("checkpoint-*"))


def result(folder) -> tuple[bytes, list[dict]]:
    """A run's adapter, byte for byte, and its logs without what the clock says."""
    logs = [json.loads(line) for line in Path(folder, "history.jsonl").read_text().splitlines()]
    clock = (
        "tokens_per_second",
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
    )
    logs = [{name: value for name, value in log.items() if name not in clock} for log in logs]
    return Path(folder, ADAPTER).read_bytes(), [log for log in logs if "train_runtime" not in log]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nothing disturbs, to copy."""
    folder = tmp_path_factory.mktemp("alone")
    make_trainer(folder).train()
    assert checkpoints(folder) == [2, 4, 6]
    return folder


@pytest.fixture(scope="module")
def alone(undisturbed):
    return result(undisturbed)


def train_and_die(folder, threads: int, fatal: int) -> None:
    """In a process of its own: SIGKILL in the middle of a call of torch.save, the fatal one; a checkpoint has four."""
    torch.set_num_threads(threads)
    save, calls = torch.save, []

    def dying(value, file):
        calls.append(file)
        save(value, file)
        if len(calls) == fatal:
            os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = dying
    make_trainer(folder).train()


def test_a_kill_while_a_checkpoint_is_written(tmp_path, alone):
    """In the middle of optimizer.pt after step 4: a new process goes on from step 2."""
    arguments = (tmp_path, torch.get_num_threads(), 6)
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert checkpoints(tmp_path) == [2, 4]
    assert (tmp_path / "checkpoint-4" / ADAPTER).is_file() and not is_whole(
        tmp_path / "checkpoint-4"
    )
    trainer, resumed_at = make_trainer(tmp_path), []
    trainer.add_callback(At(3, lambda: resumed_at.append(trainer.state.global_step)))
    trainer.train(resume_from_checkpoint=True)
    assert resumed_at == [2]
    assert result(tmp_path) == alone


def train_until_told(folder, threads: int, stepped) -> None:
    """In a process of its own: says when step 3 has begun."""
    torch.set_num_threads(threads)
    make_trainer(folder, [At(3, stepped.set), At(3, lambda: time.sleep(2))]).train()


def test_a_scheduler_stops_a_run_by_sigterm(tmp_path, alone):
    """As Slurm and spot machines do (bug 21), twice where torchrun passes it on: the step ends, with a checkpoint."""
    context = multiprocessing.get_context("spawn")
    stepped = context.Event()
    arguments = (tmp_path, torch.get_num_threads(), stepped)
    process = context.Process(target=train_until_told, args=arguments)
    process.start()
    assert stepped.wait(60)
    for _ in range(2):
        process.terminate()
        time.sleep(0.3)
    process.join(60)
    # the traceback of a KeyboardInterrupt, not the death by signal that SIGTERM is
    assert process.exitcode == 1
    assert checkpoints(tmp_path) == [2, 3] and is_whole(tmp_path / "checkpoint-3")
    assert not bt.Run(tmp_path).finished
    make_trainer(tmp_path).train(resume_from_checkpoint=True)
    assert result(tmp_path) == alone


def test_a_kill_after_the_last_checkpoint(tmp_path, undisturbed, alone):
    """Only the final adapter was missing: resuming makes no further step, although the epoch is not over."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    (tmp_path / ADAPTER).unlink()
    trainer = make_trainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert result(tmp_path) == alone


def checkpoint(
    folder: Path, step: int, state: str | None = '{"global_step": 1}', when: int = 0
) -> Path:
    """A folder like a checkpoint."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / ADAPTER).write_text("weights")
    if state is not None:
        (path / STATE).write_text(state)
        os.utime(path / STATE, (when, when))
    return path


@pytest.mark.parametrize(
    "state", [None, "", '{"global_step": 1, "log_history": [{"lo'], ids=["absent", "empty", "torn"]
)
def test_a_part_of_a_checkpoint_is_passed_over_and_removed(tmp_path, state):
    """Back to the one before it; a folder of the user's is left alone."""
    for step in (2, 10):
        checkpoint(tmp_path, step, when=step)
    checkpoint(tmp_path, 12, state)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-2",
        "checkpoint-10",
        "checkpoint-best",
    }


def test_the_last_checkpoint_is_the_newest(tmp_path):
    """Not the highest step; where the file system keeps no times, the highest."""
    checkpoint(tmp_path / "rerun", 100, when=1)
    newer = checkpoint(tmp_path / "rerun", 5, when=2)
    assert last_checkpoint(tmp_path / "rerun") == newer
    checkpoint(tmp_path / "timeless", 5)
    higher = checkpoint(tmp_path / "timeless", 100)
    assert last_checkpoint(tmp_path / "timeless") == higher


def test_nothing_to_resume(tmp_path):
    """The message says what is missing and what would do, also where there is no folder yet."""
    with pytest.raises(ValueError, match=r"none has no whole checkpoint.*train\(\) starts anew"):
        make_trainer(tmp_path / "none").train(resume_from_checkpoint=True)


def test_a_checkpoint_that_fails_is_removed_unless_it_is_whole(tmp_path):
    """Written over an earlier run's, too: its state and new weights must not go together."""
    old = checkpoint(tmp_path, 2)
    with pytest.raises(OSError, match="full") as caught, writing(old, main=True):
        assert not is_whole(old)
        raise OSError("full")
    assert not old.exists()
    assert "checkpoint-2 is removed, unfinished; its disk had" in caught.value.__notes__[0]
    with pytest.raises(OSError), writing(tmp_path / "checkpoint-4", main=True):
        checkpoint(tmp_path, 4)
        raise OSError
    assert is_whole(tmp_path / "checkpoint-4")


@pytest.mark.parametrize(
    ("room", "unfinished", "error"),
    [(100_000, ADAPTER, SafetensorError), (200_000, "optimizer.pt", RuntimeError)],
)
def test_no_room_while_saving(tmp_path, alone, room, unfinished, error):
    """The error says what became of it, the earlier checkpoint is whole, and with room again the trainer goes on.

    A limit on the size of files takes the way of a full disk, and needs no disk to fill.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    no_room = At(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1])))
    trainer = make_trainer(tmp_path, [no_room])
    try:
        with pytest.raises(error) as caught:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "checkpoint-2" / unfinished).stat().st_size > room
    assert any(
        "checkpoint-4 is removed, unfinished; its disk had" in note
        for note in caught.value.__notes__
    )
    assert checkpoints(tmp_path) == [2] and is_whole(tmp_path / "checkpoint-2")
    bt.load_model(tmp_path / "checkpoint-2")
    trainer.train(resume_from_checkpoint=True)
    assert result(tmp_path) == alone


def test_an_interrupted_rerun_goes_on_from_its_own_checkpoint(tmp_path, alone):
    """Not from the higher one that an earlier run left in the folder."""
    make_trainer(tmp_path, seed=1, max_steps=4).train()
    assert checkpoints(tmp_path) == [2, 4]
    trainer = make_trainer(tmp_path, [At(3, interrupt)])
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is handler
    trainer.train(resume_from_checkpoint=True)
    assert result(tmp_path) == alone
    for log in alone[1]:
        parts = sum(log[part] for part in ("loss_nll", "loss_anchor", "loss_format"))
        assert parts == pytest.approx(log["loss"], rel=1e-4)


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_an_interrupt_keeps_its_checkpoint_and_no_best_model_is_chosen(tmp_path, strategy):
    """With load_best_model_at_end too: the same evaluations, and in the end the same best model."""
    settings = dict(
        eval_strategy=strategy,
        save_strategy=strategy,
        eval_steps=2,
        max_steps=-1,
        num_train_epochs=2,
    )
    settings |= dict(load_best_model_at_end=True, save_total_limit=1, learning_rate=1e-2)
    make_trainer(tmp_path / "alone", **settings).train()
    trainer = make_trainer(tmp_path / "stopped", [At(5, interrupt)], **settings)
    with pytest.raises(KeyboardInterrupt, match="after step 5"):
        trainer.train()
    assert 5 in checkpoints(tmp_path / "stopped")
    assert "eval_loss" not in trainer.state.log_history[-2]  # the last is the summary
    trainer.train(resume_from_checkpoint=True)
    assert result(tmp_path / "stopped") == result(tmp_path / "alone")


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
def test_an_interrupt_in_the_last_step_of_an_epoch_saves_once(tmp_path, alone, strategy):
    """After the evaluation that belongs to it. A second save would risk the only checkpoint there is."""
    saved = []

    class Count(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            saved.append(state.global_step)

    settings = dict(save_strategy=strategy, save_total_limit=1, eval_strategy="epoch")
    trainer = make_trainer(tmp_path, [At(4, interrupt), Count()], **settings)
    with pytest.raises(KeyboardInterrupt, match="after step 4"):
        trainer.train()
    assert saved == ([2, 4] if strategy == "steps" else [4])
    assert checkpoints(tmp_path) == [4]
    trainer.train(resume_from_checkpoint=True)
    adapter, logs = result(tmp_path)
    assert adapter == alone[0]  # which was never evaluated
    assert [log["step"] for log in logs if "eval_loss" in log] == [4, 6]


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_an_interrupt_leaves_a_checkpoint_where_only_the_best_are_saved(
    tmp_path, alone, greater_is_better
):
    """Also in the step at the end of an epoch whose evaluation finds it better or worse than the one before."""
    settings = dict(
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="best",
        metric_for_best_model="expected_reward",
        greater_is_better=greater_is_better,
    )
    saved = []

    class Count(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            saved.append(state.global_step)

    trainer = make_trainer(tmp_path, [At(4, interrupt), Count()], **settings)
    with pytest.raises(KeyboardInterrupt, match="after step 4"):
        trainer.train()
    assert 4 in checkpoints(tmp_path) and saved.count(4) == 1
    trainer.train(resume_from_checkpoint=True)
    assert result(tmp_path)[0] == alone[0]


def test_an_interrupt_after_the_last_step(tmp_path, alone):
    """It is passed on when all is saved, and claims no checkpoint."""

    class Late(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            interrupt()

    with pytest.raises(KeyboardInterrupt, match="complete and saved"):
        make_trainer(tmp_path, [Late()], save_strategy="no").train()
    assert result(tmp_path) == alone and checkpoints(tmp_path) == []


def test_a_resume_with_other_settings_says_what_differs(tmp_path, undisturbed, alone):
    """By name, then and now, before anything is written; what leaves the steps as they are may differ."""
    shutil.copytree(undisturbed / "checkpoint-4", tmp_path / "checkpoint-4")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changed = dict(
        threshold=0.4,
        learning_rate=2e-3,
        per_device_train_batch_size=4,
        max_steps=8,
        optim="adamw_torch",
    )
    with pytest.raises(ValueError, match="checkpoint-4 was begun with other settings") as caught:
        make_trainer(tmp_path, **changed).train(resume_from_checkpoint=True)
    told = str(caught.value)
    differences = (
        "examples_per_step was 4 and is 8; max_steps was 6 and is 8; threshold was 0.5 and is 0.4; "
        "learning_rate was 0.001 and is 0.002; optim was 'adamw_torch_fused' and is 'adamw_torch'. "
    )
    assert f"other settings: {differences}Set them back" in told
    other = make_trainer(tmp_path)
    other.train_dataset = other.train_dataset.select(range(12))
    with pytest.raises(ValueError, match="examples was 16 and is 12"):
        other.train(resume_from_checkpoint=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    same = dict(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        save_steps=5,
        dataloader_num_workers=2,
    )
    same |= dict(
        logging_steps=1, gradient_checkpointing=True, per_device_eval_batch_size=1, run_name="other"
    )
    make_trainer(tmp_path, **same).train(resume_from_checkpoint=True)
    _, logs = result(tmp_path)
    assert [log["step"] for log in logs] == [log["step"] for log in alone[1]]
    assert logs[-1]["loss"] == pytest.approx(alone[1][-1]["loss"], rel=0.05)


def test_a_constant_schedule_goes_on_for_longer(tmp_path):
    """2 steps and then 2 more end bit-equal to 4; a threshold that moves to the last step is a schedule as well."""
    constant = dict(lr_scheduler_type="constant", save_steps=2)
    make_trainer(tmp_path / "whole", max_steps=4, **constant).train()
    make_trainer(tmp_path / "more", max_steps=2, **constant).train()
    trainer = make_trainer(tmp_path / "more", max_steps=4, **constant)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4 and result(tmp_path / "more") == result(
        tmp_path / "whole"
    )
    moving = make_trainer(tmp_path / "more", max_steps=6, threshold_end=0.9, **constant)
    with pytest.raises(ValueError, match=r"threshold_end was None and is 0\.9"):
        moving.train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path, undisturbed):
    """It does not say how it was made."""
    shutil.copytree(undisturbed / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "environment.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"checkpoint-2/environment\.json"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


def test_out_of_memory_says_what_to_change(tmp_path):
    """A note to the error of torch, and the folder can go on."""

    def exhausted():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer = make_trainer(tmp_path, [At(3, exhausted)])
    with pytest.raises(
        torch.OutOfMemoryError, match=r"^CUDA out of memory\. Tried to allocate 2\.00 GiB\."
    ) as caught:
        trainer.train()
    assert "halve per_device_train_batch_size" in caught.value.__notes__[0]
    halved = dict(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    make_trainer(tmp_path, **halved).train(resume_from_checkpoint=True)
    assert bt.Run(tmp_path).finished


def received(trainer) -> list:
    """Of each micro-batch that a trainer gets from now on: its examples, and which tokens are blurred."""
    seen, blur = [], trainer.blur

    def keep(batch):
        blurred = blur(batch)
        seen.append((batch["keys"].tolist(), blurred.tolist()))
        return blurred

    trainer.blur = keep
    return seen


def test_a_resumed_run_gets_the_same_batches_with_and_without_workers(tmp_path, undisturbed, alone):
    """The four steps after step 2, over the end of an epoch, in this process and from two workers."""
    shutil.copytree(undisturbed, tmp_path / "0")
    shutil.copytree(undisturbed, tmp_path / "2")
    whole = make_trainer(tmp_path / "whole", dataloader_num_workers=2)
    wanted = received(whole)
    whole.train()
    assert len(wanted) == 12
    for workers in (0, 2):
        trainer = make_trainer(tmp_path / str(workers), dataloader_num_workers=workers)
        found = received(trainer)
        trainer.train(resume_from_checkpoint=str(tmp_path / str(workers) / "checkpoint-2"))
        assert found == wanted[4:]
        assert result(tmp_path / str(workers)) == alone


SETUP = """
import sys
sys.path.insert(0, {tests!r})
import time
from test_faults import At, bt, make_trainer, torch
torch.set_num_threads({threads})
"""


class Notebook:
    """A real kernel, as Jupyter starts it."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(kernel_name="python3")
        self.run(SETUP.format(tests=str(Path(__file__).parent), threads=torch.get_num_threads()))

    def run(self, cell: str, interrupt_at: tuple[str, ...] = ()) -> tuple[dict, str]:
        """The reply to a cell and what it printed; interrupts the kernel as each of the texts shows, in turn."""
        waiting, printed, state = list(interrupt_at), "", None
        cell = self.client.execute(cell)
        while state != "idle":
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") == cell:
                printed += message["content"].get("text", "")
                state = message["content"].get("execution_state")
            if waiting and waiting[0] in printed:
                self.manager.interrupt_kernel()
                waiting.pop(0)
        while (reply := self.client.get_shell_msg(timeout=10))["parent_header"].get(
            "msg_id"
        ) != cell:
            pass  # an answer to start_new_kernel, which asks more than once where the machine is busy
        return reply["content"], printed


@pytest.fixture(scope="module")
def notebook():
    kernel = Notebook()
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def test_an_interrupted_cell_in_a_notebook(notebook, tmp_path):
    """The cell ends with KeyboardInterrupt and a checkpoint; in the next one the same trainer goes on to the end."""
    cell = (
        f"trainer = make_trainer({str(tmp_path)!r}, max_steps=30, save_steps=1000)\ntrainer.train()"
    )
    reply, printed = notebook.run(cell, interrupt_at=("'loss'",))
    assert reply["status"] == "error", printed
    (step,) = checkpoints(tmp_path)
    assert (reply["ename"], reply["evalue"]) == (
        "KeyboardInterrupt",
        f"stopped after step {step}, with a checkpoint",
    )
    assert step < 30 and is_whole(tmp_path / f"checkpoint-{step}")
    reply, _ = notebook.run(
        "trainer.train(resume_from_checkpoint=True)\nassert trainer.evaluate()['eval_loss'] > 0"
    )
    assert reply["status"] == "ok", reply
    assert [log["step"] for log in result(tmp_path)[1] if "loss" in log] == list(range(1, 31))
    reply, printed = notebook.run(
        "print(bt.sample(trainer.model, trainer.processing_class, ['How many?'], n=1))"
    )
    assert reply["status"] == "ok" and "'text'" in printed, reply


def test_a_second_interrupt_stops_at_once(notebook, tmp_path, alone):
    """Within a step that would take minutes; the same trainer goes on from the last checkpoint."""
    cell = f"trainer = make_trainer({str(tmp_path)!r}, [At(3, lambda: (print('slow'), time.sleep(300)))])"
    reply, printed = notebook.run(
        cell + "\ntrainer.train()", interrupt_at=("slow", "Stopping after this step")
    )
    assert (reply["status"], reply.get("ename"), reply.get("evalue")) == (
        "error",
        "KeyboardInterrupt",
        "",
    ), printed
    assert checkpoints(tmp_path) == [2]
    reply, _ = notebook.run("trainer.train(resume_from_checkpoint=True)")
    assert reply["status"] == "ok", reply
    assert result(tmp_path) == alone
