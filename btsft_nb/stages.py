"""The stages of a run, each in one call."""

from transformers import TrainerCallback

from .config import BTSFTConfig
from .data import prepare
from .models import load_model
from .rows import load_rows
from .trainer import BTSFTTrainer


def finetune(
    name: str,
    data: str,
    config: BTSFTConfig,
    *,
    qlora: bool = True,
    max_length: int = 1024,
    callbacks: list[TrainerCallback] | None = None,
) -> BTSFTTrainer:
    """The main job in one call: load model and rows, prepare, train, save to `config.output_dir`.

    Args:
        name: as for `load_model`. data: as for `load_rows`. qlora: as for `load_model`. max_length: as for `prepare`.

    Returns the trainer, with its model and history.
    """
    model, tokenizer = load_model(name, qlora=qlora)
    examples = prepare(load_rows(data), tokenizer, max_length)
    trainer = BTSFTTrainer(model, config, examples, processing_class=tokenizer, callbacks=callbacks)
    trainer.train()
    return trainer
