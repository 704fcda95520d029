"""BTSFTTrainer: transformers' Trainer with the blur drawn for each batch and an objective that needs no logits."""

from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, PrinterCallback

from ..data.tokens import tag_ids, token_texts
from ..models.load import record_base
from ..objective.blur import draws, unit_ids
from ..objective.format_reward import find_completions
from ..objective.forward import HeadForward
from ..objective.objective import PARTS, objective
from .checkpoints import check_resume, last_checkpoint, writing
from .collator import Collator
from .config import BTSFTConfig
from .guard import GuardedTrainer
from .interrupt import StopOnInterrupt
from .recording import Record
from .step_logs import StepSums, Throughput, evaluation_means, means
from .tag_rows import start_tag_rows


class BTSFTTrainer(GuardedTrainer):
    """Fine-tunes on prepared examples with blurred thoughts and a format reward.

    Args:
        model: a causal language model, with or without adapters.
        config: the dials and all training arguments.
        train_dataset, eval_dataset: as `prepare` returns them. Evaluation is never blurred.
        processing_class: the tokenizer that prepared them.
        ref_model: the reference of the anchor; by default `model` with its adapters switched off.
        callbacks: as for Trainer; also `LiveCurves` and trackers, such as `TrackSamples`.

    Raises:
        ValueError: the anchor has no reference, a data set lacks a column, or `HeadForward` does not support the model.

    >>> model, tokenizer = bt.load_model("tiny", qlora=True)
    >>> examples = bt.prepare(bt.load_rows("tiny/teacher")[:8], tokenizer)
    tiny/teacher: 8 rows -> 8 examples...
    >>> config = bt.BTSFTConfig("runs/demo", threshold=0.5, max_steps=2, disable_tqdm=True)
    >>> trainer = bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer)
    """

    # The objective divides by what the whole accumulation window holds. transformers 5.23 reads this attribute; 5.15
    # reads model_accepts_loss_kwargs, set below.
    loss_is_scaled_for_ga = True
    prints_end = True  # a line that names the run folder

    def __init__(
        self,
        model: PreTrainedModel,
        config: BTSFTConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        ref_model: PreTrainedModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.tag_ids = tag_ids(processing_class)
        data = (train_dataset, eval_dataset)
        config.check_fits(model, ref_model, self.tag_ids, data)
        self._train_sums = StepSums()
        self._eval_sums = StepSums()
        self._record = Record()
        self._interrupt = StopOnInterrupt()
        collator = Collator(processing_class.pad_token_id, config.padding_free)
        callbacks = [*(callbacks or []), self._interrupt]
        super().__init__(model, config, collator, *data, processing_class, callbacks=callbacks)
        if self.is_world_process_zero():
            # before all that logs at the start
            self.callback_handler.callbacks.insert(0, self._record)
        for callback in callbacks:
            if hasattr(callback, "attach"):  # a tracker
                callback.attach(self)
            if getattr(callback, "shows_progress", False):
                self.remove_callback(PrinterCallback)
                self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
        self.model_accepts_loss_kwargs = True
        self.head_forward = HeadForward(model, self.tag_ids, config.padding_free)
        self.ref_model = ref_model
        if ref_model is not None:
            self._ref_forward = HeadForward(ref_model.eval(), self.tag_ids, config.padding_free)
            self.ref_model = self.accelerator.prepare_model(ref_model, evaluation_mode=True)

    # ------------------------------------------------------------------ a run and its folder

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As Trainer.train, in a run folder that explains itself: `Run` reads it, README.md in it is a model card.

        An interrupt or SIGTERM lets the step end, leaves a checkpoint and raises KeyboardInterrupt;
        `train(resume_from_checkpoint=True)` then goes on as if nothing had been. A second interrupt stops at once.

        Args:
            resume_from_checkpoint: a checkpoint, or a run folder for the last one in it; True for this run's folder.

        Raises:
            ValueError: a resume with another configuration, data or model, see `check_resume`.
        """
        self._train_sums.clear()
        self.throughput = None
        self._record.describe(self.model, self.args, self.train_dataset)
        folder = self.args.output_dir if resume_from_checkpoint is True else resume_from_checkpoint
        if folder:
            with self.accelerator.main_process_first():
                folder = str(last_checkpoint(folder))
            check_resume(folder, self._record.files)
        else:
            start_tag_rows(self)
        try:
            with self._interrupt.listening(self.accelerator):
                output = super().train(folder, **kwargs)
        except torch.OutOfMemoryError as error:
            error.add_note(
                "halve per_device_train_batch_size and double gradient_accumulation_steps; bt.plan lists more"
            )
            raise
        if self._interrupt.stopped:
            raise KeyboardInterrupt(f"stopped after step {output.global_step}, with a checkpoint")
        self.save_model()
        if self.is_world_process_zero():
            run = self._record.update(finished=True)
            if self.prints_end:
                facts = {"loss": output.training_loss} | run.summary
                spent = f"{run.step} steps, {facts['train_runtime']:.0f} s"
                print(f"{run.path.name}: {spent}, loss {facts['loss']:.3g} -> {run.path}")
        if self._interrupt.requested:
            raise KeyboardInterrupt("it came after the last step; the run is complete and saved")
        return output

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save and isinstance(self.model, PeftModel):
            record_base(output_dir or self.args.output_dir, self.model)

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        # Trainer leaves a part of a checkpoint behind, on a full disk for example
        with writing(folder, main=self.args.should_save):
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                self._record.save(folder)
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        # next comes trainer_state.json, which says that all is there
        self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------------ the blur

    def threshold(self, step: int) -> float:
        """The share of thought tokens to blur at a step, which counts from 0."""
        start = self.args.threshold
        if self.args.threshold_end is None:
            return start
        last_step = max(self.state.max_steps - 1, 1)
        return start + (self.args.threshold_end - start) * step / last_step

    def blur(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T) bool: the tokens of a batch to blur in the current epoch. Only supervised tokens can be."""
        args = self.args
        epoch = int(self.state.epoch or 0) if args.resample == "epoch" else 0
        threshold = self.threshold(self.state.global_step)
        sequence = batch["sequence"].cpu()
        all_kinds = batch["kinds"].cpu()
        blurred = torch.zeros_like(sequence, dtype=torch.bool)
        for i, key in enumerate(batch["keys"].tolist()):
            place = sequence == i
            kinds = all_kinds[place].numpy()
            units = None
            if args.unit != "token":
                ids = batch["input_ids"].cpu()[place].tolist()
                units = unit_ids(kinds, token_texts(self.processing_class, ids), args.unit)
            u = draws(kinds, key, args.seed, epoch, args.keep_first, units)
            blurred[place] = torch.from_numpy(u < threshold)
        return blurred.to(batch["weights"].device) & (batch["weights"] != 0)

    def _prepare_inputs(self, inputs):
        batch = super()._prepare_inputs(inputs)
        nothing = torch.zeros_like(batch["kinds"], dtype=torch.bool)
        batch["blurred"] = self.blur(batch) if self.model.training else nothing
        return batch

    # ------------------------------------------------------------------ the objective

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As Trainer's: the micro-batches of an optimiser step and their counts."""
        if self.state.global_step >= self.state.max_steps:
            # resumed after its last step; Trainer would make one more
            num_batches = 0
            self.control.should_training_stop = True
        samples, counts = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.throughput = self.throughput or Throughput(self.state)
        self.state.num_input_tokens_seen += int(counts[2])
        return samples, counts

    def _get_num_items_in_batch(self, batch_samples, device):
        """(3,): N and B of the objective, and tokens without padding, of a step's micro-batches on all processes."""
        totals = torch.zeros(3)
        for batch in batch_samples:
            supervised = (batch["weights"] != 0).sum()
            tokens = batch.get("attention_mask", torch.ones_like(batch["kinds"])).sum()
            totals += torch.tensor([supervised, len(batch["keys"]), tokens])
        return self.accelerator.reduce(totals.to(device), "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective of one micro-batch; the sums behind it are kept until the next log.

        The outputs are `log_probs` (B, T), 0 where the objective needs none.
        """
        # evaluation_loop divides when it has seen all
        n_tokens = n_sequences = 1
        anchor = 0.0
        if model.training:
            if num_items_in_batch is None:
                num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
            n_tokens, n_sequences, _ = num_items_in_batch.clamp(min=1)
            anchor = self.args.anchor if self.threshold(self.state.global_step) else 0.0
        # the head is asked only for what the objective needs
        completions = find_completions(inputs, self.tag_ids)
        positions = inputs["weights"] != 0
        for completion in completions:
            positions[completion.row, completion.start : completion.end] = True
        with self.accelerator.autocast():
            reference = self._reference(model, inputs) if anchor else {}
            values = self.head_forward.token_values(model, inputs, positions, **reference)
        loss, sums = objective(
            values,
            inputs,
            completions,
            tag_ids=self.tag_ids,
            n_tokens=n_tokens,
            n_sequences=n_sequences,
            beta=self.args.beta,
            anchor=anchor,
            negative=self.args.negative,
            floor=self.args.negative_floor,
        )
        kept = self._train_sums if model.training else self._eval_sums
        kept.update({name: value.double() for name, value in sums.items()})
        # every process averages its gradients with the others, so each contributes its share of the sum
        loss = loss * self.accelerator.num_processes
        return (loss, {"log_probs": values.log_probs}) if return_outputs else loss

    def _reference(self, model, inputs):
        """The reference's hidden states before blurred tokens, without dropout, and the head that they go to.

        It runs in every micro-batch, blurred tokens or not: FSDP's processes have to take the same turns.
        """
        if self.ref_model is not None:
            hidden = self._ref_forward.hidden(self.ref_model, inputs, inputs["blurred"])
            return {"ref_hidden": hidden, "ref_head": self._ref_forward.head}
        reference = self.accelerator.unwrap_model(model)
        reference.eval()
        with reference.disable_adapter():
            hidden = self.head_forward.hidden(reference, inputs, inputs["blurred"])
        reference.train()
        return {"ref_hidden": hidden}

    # ------------------------------------------------------------------ logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means over the steps since the last log, see `step_logs.means`, and the tokens seen."""
        if "loss" in logs and self._train_sums:
            sums = self._train_sums.take(self.accelerator)
            step = self.state.global_step
            for part in PARTS:
                logs[part] = sums[part] / (step - self.throughput.step)
            logs |= means(sums)
            logs["threshold"] = self.threshold(step - 1)
            logs["tokens_seen"] = self.state.num_input_tokens_seen
            logs["tokens_per_second"] = self.throughput.tokens_per_second(self.state)
            self.throughput = Throughput(self.state)
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """As Trainer's, with the loss and its parts over the whole set in place of the mean of batch means."""
        self._eval_sums.clear()
        # a data loader draws a seed; training goes on as without evaluation
        with torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        for name, mean in evaluation_means(self._eval_sums.take(self.accelerator)).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = mean
        return output

    def _determine_best_metric(self, metrics, trial):
        """As Trainer's, of all that was logged at this step: what trackers measured, too."""
        logged = {}
        for log in self.state.log_history:
            if log["step"] == self.state.global_step:
                logged |= log
        is_best = super()._determine_best_metric(logged | metrics, trial)
        # where only the best are saved, an interrupt saves, too
        return is_best or self._interrupt.stopped
