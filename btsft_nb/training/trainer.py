"""BTSFTTrainer: transformers' Trainer with the blur drawn per batch and the objective of `losses`, without logits."""

import time
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from ..data.tokens import tag_ids, token_texts
from ..models.load import record_base
from ..objective.blur import draws, unit_ids
from ..objective.format_reward import find_completions
from ..objective.forward import HeadForward
from ..objective.objective import PARTS, objective
from .checkpoints import CONFIG, ENVIRONMENT, REPORT, check_same, is_whole, last_checkpoint, writing
from .collator import Collator
from .config import BTSFTConfig
from .interrupt import StopOnInterrupt
from .recording import Record, less_memory
from .run import Run, environment
from .step_logs import means, reduced


class BTSFTTrainer(Trainer):
    """Fine-tunes on prepared examples with blurred thoughts and a format reward.

    Args:
        model: a causal language model, with or without adapters.
        config: the dials and all training arguments.
        train_dataset, eval_dataset: as `prepare` returns them. Evaluation is never blurred.
        processing_class: the tokenizer that prepared them.
        ref_model: the reference of the anchor; by default `model` with its adapters switched off.

    Raises ValueError where the anchor has no reference, a data set lacks a column, or the model is of a kind that
    `HeadForward` does not support.
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
        ref_model: PreTrainedModel | PeftModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.tag_ids = tag_ids(processing_class)
        _check(model, config, ref_model, train_dataset, eval_dataset, self.tag_ids)
        self._sums, self._eval_sums, self._interrupt = Counter(), Counter(), StopOnInterrupt()
        self._text = lru_cache(maxsize=None)(
            lambda token: token_texts(processing_class, [token])[0]
        )
        super().__init__(
            model,
            config,
            data_collator=Collator(processing_class.pad_token_id, config.padding_free),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[*(callbacks or []), self._interrupt],
        )
        self._record = Record()
        self.callback_handler.callbacks.insert(0, self._record)  # before what logs at the start
        if any(getattr(callback, "shows_progress", False) for callback in callbacks or []):
            self.remove_callback(PrinterCallback)
            self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
        for callback in callbacks or []:
            if hasattr(callback, "attach"):  # a tracker, which logs to the trainer
                callback.attach(self)
        self.model_accepts_loss_kwargs = (
            True  # the objective takes the counts that _get_num_items_in_batch makes
        )
        self._forward = HeadForward(model, self.tag_ids, padding_free=config.padding_free)
        self.ref_model = ref_model
        if ref_model is not None:
            self._ref_forward = HeadForward(
                ref_model.eval(), self.tag_ids, padding_free=config.padding_free
            )
            self.ref_model = self.accelerator.prepare_model(ref_model, evaluation_mode=True)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As Trainer.train, in a run folder that explains itself: `Run` reads it, README.md in it is a model card.

        Args:
            resume_from_checkpoint: True, a run folder or a checkpoint: go on from there, from the last checkpoint.

        An interrupt lets the step end and leaves a checkpoint, from which `train(resume_from_checkpoint=True)` goes
        on as if nothing had been; then it is passed on. A second one stops at once. What a killed run left of a
        checkpoint that it was writing is removed.

        Raises ValueError for a resume with another configuration, data or model, see `check_same`; OSError for a disk
        without room for the checkpoints; and torch.OutOfMemoryError with what to change, in order.
        """
        self._sums.clear()
        self._mark = None
        report = getattr(self.train_dataset, "report", None)
        self._record.files = {
            CONFIG: self.args.to_dict(),
            **({REPORT: asdict(report)} if report else {}),
        }
        self._record.files[ENVIRONMENT] = environment(
            self.model, self.args.world_size, len(self.train_dataset)
        )
        if resume_from_checkpoint:
            given = Path(
                self.args.output_dir if resume_from_checkpoint is True else resume_from_checkpoint
            )
            with self.accelerator.main_process_first():
                given = given if is_whole(given) else last_checkpoint(given)
            check_same(given, self._record.files)
            resume_from_checkpoint = str(given)
        try:
            self.args.start_wandb()
            with self._interrupt.listening(self.accelerator):
                output = super().train(resume_from_checkpoint, **kwargs)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"{error}\n{less_memory(self.args, self.model, report and report.lengths['sequence']['longest'])}"
            ) from error
        if self._interrupt.stopped:
            self._record.update()
            raise KeyboardInterrupt(
                f"stopped after step {self.state.global_step}, with a checkpoint"
            )
        self.save_model()
        self._record.update(datetime.now(UTC).isoformat(timespec="seconds"))
        if self.is_world_process_zero() and not self.args.disable_tqdm:
            print(Run(self.args.output_dir))
        if self._interrupt.requested:
            raise KeyboardInterrupt("it came after the last step; the run is complete and saved")
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if isinstance(self.model, PeftModel) and self.args.should_save:
            Path(output_dir or self.args.output_dir, "README.md").unlink(
                missing_ok=True
            )  # peft's: a form to fill in
            record_base(output_dir or self.args.output_dir, self.model)

    def _save_checkpoint(self, model, trial) -> None:
        """As Trainer's, which leaves a part of a checkpoint where it fails, on a full disk, say."""
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        with writing(folder, main=self.args.should_save):
            if self.args.should_save:
                self._record.save(folder)
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # trainer_state.json comes next, and says that all is there

    def threshold(self, step: int) -> float:
        """The share of thought tokens that is blurred at a step, which counts from 0."""
        start, end = self.args.threshold, self.args.threshold_end
        return (
            start
            if end is None
            else start + (end - start) * step / max(self.state.max_steps - 1, 1)
        )

    def blur(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T) bool: which tokens of a batch are blurred in the current epoch. Only supervised tokens can be."""
        args, epoch = self.args, int(self.state.epoch or 0) if self.args.resample == "epoch" else 0
        ids, kinds, sequence = (batch[name].cpu() for name in ("input_ids", "kinds", "sequence"))
        blurred, threshold = (
            torch.zeros_like(kinds, dtype=torch.bool),
            self.threshold(self.state.global_step),
        )
        for i, key in enumerate(batch["keys"].tolist()):
            place = sequence == i
            own, units = kinds[place].numpy(), None
            if args.unit != "token":
                units = unit_ids(own, list(map(self._text, ids[place].tolist())), args.unit)
            u = draws(own, key, args.seed, epoch, args.keep_first, units)
            blurred[place] = torch.from_numpy(u < threshold)
        return blurred.to(batch["kinds"].device) & (batch["weights"] != 0)

    def _prepare_inputs(self, inputs: dict) -> dict:
        batch = super()._prepare_inputs(inputs)
        training = self.model.training
        return batch | {
            "blurred": self.blur(batch)
            if training
            else torch.zeros_like(batch["kinds"], dtype=torch.bool)
        }

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """As Trainer's: the micro-batches of an optimiser step and their counts. Counts the tokens seen."""
        if (
            self.state.global_step >= self.state.max_steps
        ):  # resumed after its last step; Trainer would make one more
            num_batches, self.control.should_training_stop = 0, True
        samples, counts = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._mark is None:  # the clock starts with the first step, also of a resumed run
            self._mark = self.state.global_step, self.state.num_input_tokens_seen, time.monotonic()
        self.state.num_input_tokens_seen += int(counts[2])
        return samples, counts

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> Tensor:
        """(3,): N and B of the objective and the tokens, padding aside, of a step's micro-batches on all processes."""
        total = torch.zeros(3, dtype=torch.float64)
        for batch in batch_samples:
            tokens = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum().item()
            total += torch.tensor(
                [(batch["weights"] != 0).sum().item(), len(batch["keys"]), tokens]
            )
        return self.accelerator.reduce(total.float().to(device), "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective of one micro-batch; the sums behind it are kept until the next log.

        The outputs are `log_probs` (B, T), 0 where the objective needs none.
        """
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        if not model.training:
            num_items_in_batch = torch.ones_like(
                num_items_in_batch
            )  # evaluation_loop divides, when it has seen all
        n_tokens, n_sequences = num_items_in_batch[:2].clamp(min=1)
        completions, positions = find_completions(inputs, self.tag_ids), inputs["weights"] != 0
        for c in completions:
            positions[c.row, c.start : c.end] = True
        anchor = (
            self.args.anchor if model.training and self.threshold(self.state.global_step) else 0.0
        )
        with self.accelerator.autocast():
            reference = self._reference(model, inputs) if anchor else {}
            values = self._forward.token_values(model, inputs, positions, **reference)
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
        sums = {
            name: value.double() for name, value in sums.items()
        }  # they stay on their device until a log
        (self._sums if model.training else self._eval_sums).update(sums)
        # every process averages its gradients with the others, so each contributes its share of the sum
        loss = loss * self.accelerator.num_processes
        return (loss, {"log_probs": values.log_probs}) if return_outputs else loss

    def _reference(self, model, inputs: dict[str, Tensor]) -> dict:
        """The reference's hidden states before blurred tokens, without dropout, and the head that they go to.

        It runs in every micro-batch, blurred tokens or not: FSDP's processes have to take the same turns.
        """
        if self.ref_model is not None:
            hidden = self._ref_forward.hidden(self.ref_model, inputs, inputs["blurred"])
            return {"ref_hidden": hidden, "ref_head": self._ref_forward.head}
        reference = self.accelerator.unwrap_model(model)
        reference.eval()
        with reference.disable_adapter():
            hidden = self._forward.hidden(reference, inputs, inputs["blurred"])
        reference.train()
        return {"ref_hidden": hidden}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the steps since the last log come to, see `losses.means`, and the tokens seen."""
        if "loss" in logs and self._sums:
            sums, (step, seen, since) = reduced(self._sums, self.accelerator), self._mark
            logs |= {name: sums[name] / (self.state.global_step - step) for name in PARTS} | means(
                sums
            )
            self._mark = self.state.global_step, self.state.num_input_tokens_seen, time.monotonic()
            logs |= {"threshold": self.threshold(self._mark[0] - 1), "tokens_seen": self._mark[1]}
            logs["tokens_per_second"] = (self._mark[1] - seen) / (self._mark[2] - since)
            self._sums.clear()
        super().log(logs, start_time)

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        """As Trainer's, of all that was logged at this step: what trackers measured, too."""
        logged = (log for log in self.state.log_history if log["step"] == self.state.global_step)
        return super()._determine_best_metric(
            {name: log[name] for log in logged for name in log} | metrics, trial
        )

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """As Trainer's, with the loss and its parts over the whole set in place of the mean of batch means."""
        self._eval_sums.clear()
        with torch.random.fork_rng(
            devices=[]
        ):  # a data loader draws a seed; training goes on as without evaluation
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = reduced(self._eval_sums, self.accelerator)
        logs = {"loss_nll": sums["loss_nll"] / max(sums["supervised"], 1)}
        logs["loss_format"] = sums["loss_format"] / max(sums["sequences"], 1)
        for name, value in ({"loss": sum(logs.values())} | logs | means(sums)).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output


def _check(model, config, ref_model, train_dataset, eval_dataset, tags) -> None:
    """Raises ValueError for what cannot be trained, before anything is built."""
    anchored = config.anchor and (config.threshold or config.threshold_end)
    if anchored and ref_model is None and not isinstance(model, PeftModel):
        raise ValueError(
            f"anchor={config.anchor} needs a reference: a model with adapters, which are switched off to get it (load "
            "it with qlora=True or lora=LoraConfig(...)), or ref_model=...; or set anchor=0"
        )
    if ref_model is not None and not config.anchor:
        raise ValueError(
            "ref_model without an anchor does nothing: set anchor in the configuration, or leave it out"
        )
    if ref_model is not None:
        ours, theirs = (
            (c.vocab_size, c.hidden_size)
            for c in (m.config.get_text_config() for m in (model, ref_model))
        )
        if ours != theirs:
            raise ValueError(
                f"ref_model has (tokens, width) {theirs}, the model {ours}; they must be equal"
            )
    for data in filter(None, (train_dataset, eval_dataset)):
        missing = {"id", "input_ids", "weights", "kinds"} - set(data.column_names)
        if missing:
            raise ValueError(
                f"the data set lacks the columns {sorted(missing)}; make it with btsft_nb.prepare"
            )
    rows = model.get_input_embeddings().weight.shape[0]
    if max(tags) >= rows:
        raise ValueError(
            f"the think tags have the ids {tags}, and the model has {rows} token rows: call "
            "model.resize_token_embeddings(len(tokenizer)) before adapters are attached, and train the new rows "
            "(LoraConfig(trainable_token_indices=...))"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "nothing to train: the model has no trainable parameter; load it with qlora=True or lora=..."
        )
    if config.n_gpu > 1:
        raise ValueError(
            f"{config.n_gpu} GPUs in one process: start one for each with torchrun, or set CUDA_VISIBLE_DEVICES=0"
        )
