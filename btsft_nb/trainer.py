"""BTSFTTrainer: transformers' Trainer with the blur drawn per batch and the objective of `losses`."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from .blur import draws
from .callbacks import LiveCurves
from .config import BTSFTConfig
from .data import Collator, load_rows, prepare
from .losses import objective
from .models import load_model, record_base
from .render import tag_ids


class BTSFTTrainer(Trainer):
    """Fine-tunes on prepared examples with blurred thoughts and a format reward.

    Args:
        model: a causal language model; a PEFT model where `config.anchor` is not 0, whose adapters are switched off
            to get the reference distribution.
        config: the dials and all training arguments.
        train_dataset, eval_dataset: as `prepare` returns them. Evaluation is never blurred.
        processing_class: the tokenizer that prepared them.

    Raises ValueError where the anchor has no reference, or a data set lacks a column.
    """

    # The objective divides by what the whole accumulation window holds. transformers 5.23 reads this attribute; 5.15
    # reads model_accepts_loss_kwargs, set below.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        config: BTSFTConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback] | None = None,
    ):
        if config.anchor and not isinstance(model, PeftModel):
            raise ValueError(
                f"anchor={config.anchor} needs a reference: a model with adapters, which are switched off to get it; "
                "load the model with qlora=True or lora=LoraConfig(...), or set anchor=0"
            )
        for data in filter(None, (train_dataset, eval_dataset)):
            missing = {"id", "input_ids", "weights", "kinds"} - set(data.column_names)
            if missing:
                raise ValueError(f"the data set lacks the columns {sorted(missing)}; make it with btsft_nb.prepare")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                "nothing to train: the model has no trainable parameter; load it with qlora=True or lora=..."
            )
        self.tag_ids = tag_ids(processing_class)
        self._sums, self._sums_since = Counter(), 0
        super().__init__(
            model,
            config,
            data_collator=Collator(processing_class.pad_token_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        if any(isinstance(callback, LiveCurves) for callback in callbacks or []):
            self.remove_callback(PrinterCallback)
            self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
        self.model_accepts_loss_kwargs = True  # the objective takes the counts that _get_num_items_in_batch makes

    def train(self, *args, **kwargs):
        """As Trainer.train, and then saves model, tokenizer, settings, history and data report to the run folder.

        An interrupt leaves a checkpoint from which `train(resume_from_checkpoint=True)` goes on, and is passed on.
        """
        self._sums.clear()
        try:
            with self.args.wandb_mode():
                output = super().train(*args, **kwargs)
        except KeyboardInterrupt:
            self._save_checkpoint(self.model, trial=None)
            raise
        self.save_model()
        if self.is_world_process_zero():
            self._save_records(Path(self.args.output_dir))
        return output

    def _save_records(self, folder: Path) -> None:
        (folder / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in self.state.log_history))
        (folder / "training_config.json").write_text(self.args.to_json_string() + "\n")
        report = getattr(self.train_dataset, "report", None)
        if report:
            (folder / "data_report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if isinstance(self.model, PeftModel) and self.args.should_save:
            record_base(output_dir or self.args.output_dir, self.model)

    def blur(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T) bool: which tokens of a batch are blurred in the current epoch. Only supervised tokens can be."""
        epoch = int(self.state.epoch or 0) if self.args.resample == "epoch" else 0
        blurred = torch.zeros_like(batch["kinds"], dtype=torch.bool)
        for row, (kinds, key) in enumerate(zip(batch["kinds"].cpu(), batch["keys"].tolist(), strict=True)):
            u = torch.from_numpy(draws(kinds.numpy(), key, self.args.seed, epoch, self.args.keep_first))
            blurred[row] = (u < self.args.threshold).to(blurred.device)
        return blurred & (batch["weights"] != 0)

    def _prepare_inputs(self, inputs: dict) -> dict:
        batch = super()._prepare_inputs(inputs)
        training = self.model.training
        return batch | {"blurred": self.blur(batch) if training else torch.zeros_like(batch["kinds"], dtype=torch.bool)}

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> Tensor:
        """(2,): N and B of the objective, over the micro-batches of an optimiser step and over all processes."""
        counts = [[(batch["weights"] != 0).sum().item(), len(batch["weights"])] for batch in batch_samples]
        total = torch.tensor(counts, dtype=torch.float64).reshape(-1, 2).sum(0).float().to(device)
        return self.accelerator.reduce(total, "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective of one micro-batch; the sums behind it are kept until the next log."""
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        n_tokens, n_sequences = num_items_in_batch.clamp(min=1).tolist()
        forward = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        ref_logits = self._reference_logits(model, forward) if self.args.anchor and inputs["blurred"].any() else None
        outputs = model(**forward)
        loss, sums = objective(
            outputs.logits,
            inputs,
            tag_ids=self.tag_ids,
            n_tokens=n_tokens,
            n_sequences=n_sequences,
            beta=self.args.beta,
            anchor=self.args.anchor if ref_logits is not None else 0.0,
            ref_logits=ref_logits,
        )
        if model.training:
            if not self._sums:
                self._sums_since = self.state.global_step
            self._sums.update({name: value.item() for name, value in sums.items()})
        # every process averages its gradients with the others, so each contributes its share of the sum
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _reference_logits(self, model, forward: dict[str, Tensor]) -> Tensor:
        """Logits of the model with its adapters switched off, and without dropout."""
        reference = self.accelerator.unwrap_model(model)
        was_training = reference.training
        with torch.no_grad(), reference.disable_adapter():
            logits = reference.eval()(**forward).logits
        reference.train(was_training)
        return logits

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last log: the loss in its three parts, nll by kind, blur and rewards."""
        if self._sums and "loss" in logs:
            logs |= self._means(self.state.global_step - self._sums_since)
            self._sums.clear()
        super().log(logs, start_time)

    def _means(self, steps: int) -> dict[str, float]:
        names = sorted(self._sums)
        values = torch.tensor([self._sums[name] for name in names], dtype=torch.float32, device=self.args.device)
        sums = Counter(dict(zip(names, self.accelerator.reduce(values, "sum").tolist(), strict=True)))
        means = {name: sums[name] / steps for name in names if name.startswith("loss_")}
        for kind in ("tag", "think", "answer"):
            if sums[f"tokens_{kind}"]:
                means[f"nll_{kind}"] = sums[f"nll_{kind}"] / sums[f"tokens_{kind}"]
        means["blurred_share"] = sums["blurred"] / max(sums["tokens_think"], 1)
        if sums["sequences"]:
            means |= {name: sums[name] / sums["sequences"] for name in ("expected_reward", "format_reward")}
        return means


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
