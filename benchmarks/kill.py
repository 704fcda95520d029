"""Runs that are killed at random moments and resumed, against one left alone: the same adapter, bit for bit?

    python benchmarks/kill.py [N] [--quick] [--seed SEED]

A run trains the embedded model for 2.5 epochs: 4-bit QLoRA, dropout, a blur drawn anew each epoch, anchor and format
term, 8-bit Adam or torch's. Every second kill is aimed at the writing of a checkpoint, the others at any moment after
the first step. A new process then goes on with `train(resume_from_checkpoint=True)`, or starts anew where there is no
whole checkpoint yet. Equal means: the same bytes of adapter_model.safetensors and the same logs of all steps. Exits
with 1 where a run is not equal.
"""

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

ROWS, SAVE_STEPS = 64, 4  # 20 steps of 8 rows; checkpoints fall within epochs and on their ends
OPTIMISERS = ("adamw_torch", "adamw_8bit")
# forked from a process that has imported everything, but computed nothing: torch has no threads yet, which a fork loses
PROCESSES = multiprocessing.get_context("forkserver")


def work(folder: Path, optimiser: str, resume: bool, report: Connection) -> None:
    """A process that trains in a run folder; reports (what, step, when) as it goes."""
    os.setsid()
    with open(folder.with_suffix(".log"), "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    make_trainer(folder, optimiser, report).train(resume_from_checkpoint=resume)


def make_trainer(folder: Path, optimiser: str, report: Connection):
    """A trainer as a notebook makes it, which reports its steps and saves."""
    from peft import LoraConfig
    from transformers import TrainerCallback

    import btsft_nb as bt

    class Report(TrainerCallback):
        def send(self, what, step):
            report.send((what, step, time.monotonic()))

        def on_train_begin(self, args, state, control, **kwargs):
            self.send("begin", state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            self.send("step", state.global_step)

        def on_save(self, args, state, control, **kwargs):
            self.send("saved", state.global_step)

    # rank 64: the states of smaller matrices would be kept in 32 bits by adamw_8bit too
    lora = LoraConfig(
        r=64, lora_alpha=128, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model, tokenizer = bt.load_model("tiny", qlora=True, lora=lora)
    examples = bt.prepare(bt.load_rows("tiny/teacher")[:ROWS], tokenizer)
    config = bt.BTSFTConfig(
        str(folder),
        threshold=0.5,
        anchor=1.0,
        beta=0.5,
        optim=optimiser,
        learning_rate=1e-3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2.5,
        logging_steps=1,
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        disable_tqdm=True,
    )
    return bt.BTSFTTrainer(
        model, config, examples, processing_class=tokenizer, callbacks=[Report()]
    )


class Run:
    """A training process and what it has reported."""

    def __init__(self, folder: Path, optimiser: str, resume: bool = False):
        self.folder, self.events = folder, []
        self.reports, sender = PROCESSES.Pipe(duplex=False)
        self.process = PROCESSES.Process(target=work, args=(folder, optimiser, resume, sender))
        self.process.start()
        sender.close()  # the process has its own; when that is gone, reading ends

    def read_until(self, what: str | None = None) -> None:
        """Reads reports up to the first of a kind, or to the last of all."""
        try:
            while not self.events or self.events[-1][0] != what:
                self.events.append(self.reports.recv())
        except EOFError:
            self.process.join()

    def kill(self) -> bool:
        """Kills the process group; False where the run had ended before."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.read_until()
        return self.process.exitcode == -signal.SIGKILL

    def end(self) -> None:
        """Waits for the end of the run."""
        self.read_until()
        if self.process.exitcode:
            sys.exit(self.folder.with_suffix(".log").read_text()[-3000:])

    def times(self, what: str) -> dict[int, float]:
        """Step -> when it reported this."""
        return {step: moment for kind, step, moment in self.events if kind == what}


class Alone:
    """The run that nothing disturbs, its result and how long its parts take."""

    def __init__(self, folder: Path, optimiser: str):
        began = time.monotonic()
        run = Run(folder, optimiser)
        run.end()
        self.wall, self.result = time.monotonic() - began, result(folder)
        steps, saved = run.times("step"), run.times("saved")
        self.span = max(saved.values()) - steps[1]
        self.saving = max(moment - steps[step] for step, moment in saved.items())
        self.saves = list(saved)


def result(folder: Path) -> tuple[bytes, list[dict]]:
    """The bytes of a run's adapter and its logs, without what depends on the clock."""
    logs = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    logs = [
        {name: value for name, value in log.items() if name != "tokens_per_second"} for log in logs
    ]
    return (folder / "adapter_model.safetensors").read_bytes(), [
        log for log in logs if "loss" in log
    ]


def wait_for_moment(run: Run, save: int | None, delay: float) -> None:
    """Waits until a run has made a step, or begins to write a checkpoint where `save` names it, and then longer."""
    run.read_until("step")
    while save and run.process.is_alive() and not (run.folder / f"checkpoint-{save}").exists():
        time.sleep(0.0005)
    time.sleep(delay)


def whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's last file is there, to its end."""
    try:
        return bool(json.loads((checkpoint / "trainer_state.json").read_text()))
    except (OSError, ValueError):
        return False


def killed_and_resumed(
    folder: Path, optimiser: str, alone: Alone, rng: random.Random, aimed: bool
) -> dict:
    """Kills a run, resumes it and compares: a row of the table; an empty one where the run ended before the moment."""
    save = rng.choice(alone.saves) if aimed else None
    delay = rng.uniform(0, alone.saving if aimed else alone.span)
    run = Run(folder, optimiser)
    wait_for_moment(run, save, delay)
    if not run.kill():
        return {}
    checkpoints = list(folder.glob("checkpoint-*"))
    partial = [path.name for path in checkpoints if not whole(path)]
    again = Run(folder, optimiser, resume=len(partial) < len(checkpoints))
    again.end()
    (adapter, logs), (wanted_adapter, wanted_logs) = result(folder), alone.result
    return {
        "optimiser": optimiser,
        "moment": f"checkpoint-{save} + {delay:.3f} s" if save else f"first step + {delay:.3f} s",
        "last step": max(run.times("step")),
        "partial": ", ".join(partial) or "none",
        "resumed at": max(again.times("begin")),
        "adapter": "equal" if adapter == wanted_adapter else "DIFFERS",
        "logs": "equal" if logs == wanted_logs else "DIFFER",
    }


def print_alone(alone: Alone, optimiser: str) -> None:
    steps = ", ".join(map(str, alone.saves))
    print(
        f"alone, {optimiser}: {alone.wall:.1f} s, {alone.span:.1f} s of it from first step to last checkpoint;"
    )
    print(f"  checkpoints after steps {steps}, written in up to {alone.saving:.3f} s", flush=True)


def print_row(values) -> None:
    widths = (4, 12, 25, 10, 14, 11, 8, 7)
    print(
        " ".join(f"{value!s:<{width}}" for value, width in zip(values, widths, strict=True)),
        flush=True,
    )


def measure(kills: int, rng: random.Random, temporary: Path) -> list[dict]:
    """The rows of the table, printed as they come."""
    alone, rows = {name: Alone(temporary / name, name) for name in OPTIMISERS}, []
    for name, run in alone.items():
        print_alone(run, name)
    while len(rows) < kills:
        i, folder = len(rows), temporary / "killed"
        optimiser = OPTIMISERS[(i + i // 2) % 2]  # each with both kinds of moment
        row = killed_and_resumed(folder, optimiser, alone[optimiser], rng, aimed=i % 2 == 0)
        if row:
            rows.append({"kill": i + 1} | row)
            if i == 0:
                print_row(rows[0])
            print_row(rows[-1].values())
        shutil.rmtree(folder)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", nargs="?", type=int, default=20, metavar="N")
    parser.add_argument("--quick", action="store_true", help="2 kills, under a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    kills, began = 2 if arguments.quick else arguments.kills, time.monotonic()
    packages = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    print(
        f"python {platform.python_version()}, {', '.join(versions)}, {platform.machine()} CPU, {os.cpu_count()} cores"
    )
    os.environ["PYTHONWARNINGS"] = (
        "ignore:resource_tracker:UserWarning"  # of what those that are killed leave
    )
    PROCESSES.set_forkserver_preload(["btsft_nb"])
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(kills, random.Random(arguments.seed), Path(temporary))
    equal = sum((row["adapter"], row["logs"]) == ("equal", "equal") for row in rows)
    during_save = sum(row["partial"] != "none" for row in rows)
    print(f"seed={arguments.seed} seconds={time.monotonic() - began:.0f}")
    print(f"kills={kills} bit_equal={equal} during_save={during_save}")
    sys.exit(equal < kills)


if __name__ == "__main__":
    main()
