"""A run of one of several processes, as test_launch.py asks for it.

    python tests/launch_worker.py train|die|resume FOLDER

Leaves FOLDER/rank0 and so on: how many rows this process rendered, and how many examples it has.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from batching_worker import DROPOUT_LORA, SHORT_RUN
from transformers import TrainerCallback

import btsft_nb as bt
from btsft_nb.data import preparation as data


class Die(TrainerCallback):
    """The process kills itself in the middle of step 4."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def count_rendered() -> list[int]:
    """From now on, how many rows each chunk had that this process rendered."""
    call, counts = data._Maker.__call__, []

    def counting(self, batch, numbers):
        counts.append(len(numbers))
        return call(self, batch, numbers)

    data._Maker.__call__ = counting
    return counts


def train(folder: str, work: str = "train") -> None:
    """4 steps of 4 rows, checkpoints after 2 and 4."""
    torch.set_num_threads(1)
    state, rendered = PartialState(cpu=True), count_rendered()
    model, tokenizer = bt.load_model("tiny", qlora=True, lora=DROPOUT_LORA)
    with state.main_process_first():
        examples = bt.prepare(bt.load_rows("tiny/teacher")[:16], tokenizer)
    report = {"rendered": sum(rendered), "examples": len(examples)}
    Path(folder, f"rank{state.process_index}").write_text(json.dumps(report))
    config = bt.BTSFTConfig(
        folder,
        **(SHORT_RUN | {"max_steps": 4}),
        save_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        use_cpu=True,
    )
    callbacks = [Die()] if work == "die" and state.process_index == 1 else []
    trainer = bt.BTSFTTrainer(
        model, config, examples, processing_class=tokenizer, callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=work == "resume")


if __name__ == "__main__":
    train(sys.argv[2], sys.argv[1])
