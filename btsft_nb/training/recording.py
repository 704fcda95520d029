"""What happens while a model trains: curves that grow in the notebook, a stop between steps."""

import json
from pathlib import Path

from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from ..files import write
from .card import model_card
from .checkpoints import ENVIRONMENT, check_room
from .run import HISTORY, Run


class Record(TrainerCallback):
    """Lets the run folder explain itself at any time: how it was begun, each log as it comes, a model card.

    A kill leaves at most a cut last line in history.jsonl; a resumed run has the logs of its checkpoint. `files`: what
    goes into the folder and each checkpoint as JSON, by file name.
    """

    files: dict[str, dict]
    folder = None  # of the main process, once training has begun

    def on_train_begin(self, args, state, control, model, **kwargs):
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        check_room(args, state, model)
        self.files[ENVIRONMENT]["max_steps"] = state.max_steps
        if state.is_world_process_zero:
            self.folder = Path(args.output_dir)
            write(
                self.folder / HISTORY,
                "".join(json.dumps(entry) + "\n" for entry in state.log_history),
            )
            self.update()

    def on_log(self, args, state, control, **kwargs):
        if self.folder:
            with (self.folder / HISTORY).open("a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")

    def on_save(self, args, state, control, **kwargs):
        self.update()

    def save(self, folder: Path) -> None:
        """The files, into the folder of the run or of a checkpoint."""
        folder.mkdir(exist_ok=True)
        for name, record in self.files.items():
            write(folder / name, json.dumps(record, indent=2) + "\n")

    def update(self, finished: str | None = None) -> None:
        """Files and card as they are now; `finished` is the time at which all was saved."""
        self.files[ENVIRONMENT]["finished"] = finished
        if self.folder:
            self.save(self.folder)
            model_card(Run(self.folder)).save(self.folder / "README.md")


def less_memory(args: TrainingArguments, model: PreTrainedModel, longest: int | None) -> str:
    """What to change after a GPU ran out of memory, in order, with the values in use; `longest` example in tokens."""
    quantised = getattr(model, "is_loaded_in_4bit", False)
    return (
        f"What to change, in this order: per_device_train_batch_size (now {args.per_device_train_batch_size}) down "
        f"and gradient_accumulation_steps (now {args.gradient_accumulation_steps}) up as much, for the same steps; "
        f"gradient_checkpointing=True (now {args.gradient_checkpointing}); a smaller max_length in prepare (the "
        f"longest example has {longest or 'an unknown number of'} tokens); 4-bit weights, by load_model(..., "
        f"qlora=True) (now {'so' if quantised else 'not so'}); a smaller model."
    )
