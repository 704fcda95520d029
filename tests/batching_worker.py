"""One optimiser step over 16 examples, as test_batching.py asks for it: alone, or one of the processes of torchrun.

    python tests/batching_worker.py FOLDER '{"a name": {"per_device_train_batch_size": 2}, ...}'

Takes the step with each of the settings, one after the other, on the `silent` data. Leaves FOLDER/rank0.pt and so on:
by name gradients, logs, and what was blurred in each example.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from peft import LoraConfig
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

import btsft_nb as bt

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
# a short run with all that is drawn by chance
DROPOUT_LORA = LoraConfig(
    r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
)
SHORT_RUN = dict(
    threshold=0.5,
    anchor=1.0,
    beta=0.5,
    learning_rate=1e-3,
    max_steps=6,
    logging_steps=1,
    disable_tqdm=True,
)


def adapted_model(noise: float = 0.1):
    """The embedded model with LoRA layers that already do something: neither anchor nor format term is 0."""
    model, tokenizer = bt.load_model("tiny", lora=LORA)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = noise * torch.randn(parameter.shape, generator=generator)
    return model, tokenizer


class Recorder(TrainerCallback):
    """Keeps the gradients of an optimiser step, whole where they are sharded."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        whole = {
            name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in grads.items()
        }
        self.gradients = {
            name.replace("_orig_mod.", "").replace("module.", "", 1): g.clone()
            for name, g in whole.items()
        }


class Trainer(bt.BTSFTTrainer):
    """Keeps which tokens of which example were blurred."""

    blurred: dict

    def create_accelerator_and_postprocess(self):
        """accelerate shards only where it finds accelerators; FSDP2 itself runs on CPUs as well."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            self.accelerator.state.distributed_type = PartialState().distributed_type = (
                DistributedType.FSDP
            )
            self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
                **self.args.fsdp_plugin_args
            )
            self.is_fsdp_enabled = True

    def blur(self, batch):
        found = super().blur(batch)
        for i, key in enumerate(batch["keys"].tolist()):
            real = batch.get("attention_mask", torch.ones_like(batch["kinds"])).bool()
            self.blurred[key] = found[(batch["sequence"] == i) & real].tolist()
        return found


def examples_of(name: str, tokenizer):
    """16 examples; of `silent`, every second pair supervises nothing, so that some micro-batches have no target."""
    examples = bt.prepare(bt.load_rows("tiny/messy")[:16], tokenizer)
    if name == "silent":
        examples = examples.map(
            lambda example, i: {"weights": [w * (i % 4 < 2) for w in example["weights"]]},
            with_indices=True,
        )
    return examples


def step(folder: str, data: str, settings: dict, noise: float = 0.1) -> dict:
    """Trains one step; gradients, the log, and what was blurred."""
    model, tokenizer = adapted_model(noise)
    settings = (
        dict(threshold=0.5, anchor=1.0, beta=0.5, train_sampling_strategy="sequential") | settings
    )
    settings |= dict(
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        max_grad_norm=0,
        disable_tqdm=True,
        use_cpu=True,
    )
    config, recorder = bt.BTSFTConfig(folder, **settings), Recorder()
    trainer = Trainer(
        model,
        config,
        examples_of(data, tokenizer),
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    trainer.blurred = {}
    trainer.train()
    sharded = isinstance(trainer.model_wrapped, FSDPModule)
    return {
        "gradients": recorder.gradients,
        "log": trainer.state.log_history[0],
        "blurred": trainer.blurred,
        "sharded": sharded,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs = json.loads(sys.argv[2])
    found = {name: step(sys.argv[1], "silent", settings) for name, settings in jobs.items()}
    torch.save(found, Path(sys.argv[1], f"rank{os.environ.get('RANK', 0)}.pt"))
