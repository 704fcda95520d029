"""What a run needs: parameters, memory by part, and computation, from the model's configuration alone.

docs/scale.md has what it says of models from 0.5 B to 72 B, and benchmarks/memory.py holds it against measured peaks.
The package itself does not estimate: `bt.plan` trains two steps and measures.

One and two of the model's layers train on tensors without data (PyTorch's FakeTensorMode); what that allocates and
computes grows by the same amount with every further layer. So attention, precision, adapters and head are those of the
real run, not a formula's.
"""

import copy
import math
import re
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from btsft_nb.models.adapters import lora_config, without_old_torchao
from btsft_nb.models.config import ModelConfig
from btsft_nb.models.freezing import freeze_parts
from btsft_nb.models.hardware import choose_dtype, detect
from btsft_nb.models.load import read_base, resolve
from btsft_nb.objective.full_logits import PLAIN
from btsft_nb.objective.head import module_head
from btsft_nb.objective.head_matrix import CHUNK, matrix_head
from btsft_nb.training.config import BTSFTConfig

_MOMENTS = {
    "adamw": 2,
    "ademamix": 3,
    "lion": 1,
    "rmsprop": 1,
    "adagrad": 1,
    "sgd": 0,
}  # kept of each weight
_aten = torch.ops.aten
_FLOPS = {  # of what FlopCounterMode does not know, from shapes; no oneDNN, no operation
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda *x, **_: sdpa_flop_count(*x[:3]),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *x, **_: (
        sdpa_backward_flop_count(*x[:4])
    ),
    getattr(torch.ops.mkldnn, "_linear_pointwise", None): lambda x, w, *_, **__: (
        2 * math.prod(x) * w[0]
    ),
}


@dataclass
class Estimate:
    """Bytes of one process at its peak, by part, and floating-point operations a token of the batch.

    `activations` are what the layers' forward pass keeps, `head` what the head, or a layer's backward pass, adds to
    that, `other` what is whole for a moment: a quantised matrix, gathered layers, the buckets of gradients. What Python
    and CUDA need for themselves (about 1 GiB), and what allocators lose to gaps, comes on top.
    """

    parameters: int
    trainable: int
    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    other: int
    flops_per_token: float
    processes: int

    @property
    def total(self) -> int:
        """Bytes of one process."""
        return sum(getattr(self, field.name) for field in fields(self)[2:-2])

    def seconds(self, tokens: int, flops_per_second: float) -> float:
        """Time for so many tokens, padding too, on `processes` devices that each reach so many operations a second."""
        return tokens * self.flops_per_token / (flops_per_second * self.processes)

    def table(self) -> pd.Series:
        """Its figures, by name, as text."""
        parts = [field.name for field in fields(self)[2:-2]] + ["total"]
        share = f"{self.trainable:,} ({self.trainable / self.parameters:.2%})"
        rows = {"parameters": f"{self.parameters:,}", "trainable": share}
        rows |= {name: f"{getattr(self, name) / 2**20:,.0f} MiB" for name in parts}
        return pd.Series(rows | {"computation": f"{self.flops_per_token / 1e9:.3g} GFLOP a token"})


def estimate(
    model: ModelConfig,
    training: BTSFTConfig,
    length: int,
    *,
    processes: int = 1,
    sharding: str = "none",
) -> Estimate:
    """What training needs where a batch's longest example has `length` tokens, all of them supervised.

    Args:
        model, training: as for the run; of the model only config.json is read.
        processes: how many train together. sharding: what they divide, as the launch files in `btsft_nb/launch` do:
            none (DDP), fsdp (FSDP2: all), zero2 (gradients and optimiser states).

    Gradients and activations are added, as they meet where gradients are accumulated. With dtype "auto" weights are as
    this machine would load them. Raises NotImplementedError for an optimiser or a sharding that it does not know.
    """
    shares = {"none": (1, 1), "zero2": (1, processes), "fsdp": (processes, processes)}
    if sharding not in shares:
        raise NotImplementedError(f"sharding={sharding!r}: one of {', '.join(shares)} wanted")
    config, (of_weights, of_gradients) = _config(model.model), shares[sharding]
    whole = _skeleton(config, model)
    embeddings = {m.weight for m in whole.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in whole.parameters() if p.requires_grad]
    gradients, everything = (
        sum(map(_weight_bytes, some)) for some in (trained, whole.parameters())
    )
    adapters = 0 if model.method == "full" else gradients
    blurred = (
        max(training.threshold, training.threshold_end or 0) if adapters and training.anchor else 0
    )
    more = config.get_text_config().num_hidden_layers - 1
    one, two = (
        _trace(_skeleton(config, model, n), training, length, blurred if n == 1 else None)
        for n in (1, 2)
    )
    (saved, forward, flops), (saved_2, forward_2, flops_2) = one[:3], two[:3]
    kept = more * (
        one[3] if training.gradient_checkpointing else saved_2 - saved
    )  # a layer's input, or all of it
    again = (training.gradient_checkpointing + bool(blurred)) * (
        forward + more * (forward_2 - forward)
    )
    operations = one[5] + flops + more * (flops_2 - flops) + again
    return Estimate(
        parameters=sum(p.numel() for p in whole.parameters()),
        trainable=sum(p.numel() for p in trained),
        weights=(everything - adapters) // of_weights,
        adapters=adapters // of_weights,
        gradients=gradients // of_gradients,
        optimizer=sum(_state_bytes(training.optim.value, p, embeddings) for p in trained)
        // of_gradients,
        activations=saved + kept,
        head=one[4] - saved,
        other=_other(whole, sharding if processes > 1 else "", gradients),
        flops_per_token=operations / (training.per_device_train_batch_size * length),
        processes=processes,
    )


def _config(name: str) -> PretrainedConfig:
    """Of a model, or of the one under a run's adapter. Raises FileNotFoundError where there is none."""
    if Path(name, "adapter_config.json").is_file():
        name = read_base(name)["base_model"]
    return AutoConfig.from_pretrained(resolve(name))


def measured_speed(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of square matrix products on this machine, over half a second."""
    n = 1024 if device == "cpu" else 8192
    timer = Timer("a @ a", globals={"a": torch.ones(n, n, dtype=dtype, device=device)})
    return 2 * n**3 / timer.blocked_autorange(min_run_time=0.5).median


def _skeleton(
    config: PretrainedConfig, model: ModelConfig, layers: int | None = None
) -> PreTrainedModel:
    """The model as `load_model` makes it, without data; weights that would be quantised have the attribute `bits`."""
    if layers:
        config = copy.deepcopy(config)
        config.get_text_config().num_hidden_layers = layers
        if getattr(config.get_text_config(), "layer_types", None):
            config.get_text_config().layer_types = config.get_text_config().layer_types[:layers]
    attention = "eager" if model.attention == "eager" else "sdpa"
    dtype = choose_dtype(model.dtype, detect(), model.method)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention
        )
        kept = get_keys_to_not_convert(skeleton)
        for name, module in skeleton.named_modules() if model.method == "qlora" else ():
            if type(module) is nn.Linear and name not in kept:
                module.weight.bits = model.bits
                module.register_forward_pre_hook(
                    lambda module, args: args[0].to(module.weight.dtype)
                )
                module.register_forward_hook(lambda module, args, output: output.float())
        if model.method == "qlora":
            for parameter in (p for p in skeleton.parameters() if not hasattr(p, "bits")):
                parameter.data = parameter.data.float()
        if model.method != "full":
            with without_old_torchao():
                get_peft_model(skeleton, lora_config(model))
        elif model.freeze and not layers:  # the traced layers are all trained
            freeze_parts(skeleton, model.freeze, model.layers_not_to_freeze)
    return skeleton.train()


def _weight_bytes(parameter: nn.Parameter) -> int:
    """As bitsandbytes keeps it: in 4 bits with a byte for 64 weights, a float for 256 of these; in 8 one for a row."""
    bits, n = getattr(parameter, "bits", None), parameter.numel()
    if bits == 4:
        return n // 2 + n // 64 + n // (64 * 256) * 4
    return n + 4 * len(parameter) if bits == 8 else n * parameter.element_size()


def _state_bytes(optimizer: str, parameter: nn.Parameter, embeddings: set[nn.Parameter]) -> int:
    """What an optimiser keeps. In 8 bits, with a float for 256, it spares small tensors, and Trainer embeddings."""
    if optimizer == "adafactor":
        *rows, columns = parameter.shape
        return 4 * (math.prod(rows) + math.prod(rows[:-1]) * columns if rows else columns)
    family = re.fullmatch(
        r"(?:paged_)?([a-z]+?)(?:_torch|_torch_fused|_bnb)?(_8bit|_32bit)?", optimizer
    )
    if not family or family[1] not in _MOMENTS:
        raise NotImplementedError(
            f"optim={optimizer!r}: the estimate knows adafactor, {', '.join(_MOMENTS)} in 32 and 8 bits"
        )
    spared = parameter.numel() < 4096 or parameter in embeddings
    size = 1 + 4 / 256 if family[2] == "_8bit" and not spared else 4
    return int(_MOMENTS[family[1]] * parameter.numel() * size)


class _Peak(TorchDispatchMode):
    """Counts the bytes of tensors that live at once, from the storages that operations return, known ones left out."""

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.live = self.most = 0
        self._seen = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in known})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(output) if isinstance(t, Tensor)):
            if storage not in self._seen:
                self._seen[storage] = True
                weakref.finalize(storage, self._add, -storage.nbytes())
                self._add(storage.nbytes())
        return output

    def _add(self, size: int) -> None:
        self.live += size
        self.most = max(self.most, self.live)


def _trace(
    model: PreTrainedModel, training: BTSFTConfig, length: int, blurred: float | None
) -> tuple[int, ...]:
    """Trains a micro-batch; the share `blurred` of it has a reference, and None leaves the head out.

    Of the layers: bytes kept for backward, operations forward, in all, bytes between two. Of all: bytes at the peak.
    Operations of the head.
    """
    batch, half = (
        training.per_device_train_batch_size,
        torch.float16 if training.fp16 else torch.bfloat16,
    )
    shape = (1, batch * length) if training.padding_free else (batch, length)
    counts = FlopCounterMode(display=False, custom_mapping=_FLOPS)
    with (
        FakeTensorMode(),
        torch.autocast("cpu", half, enabled=training.fp16 or training.bf16),
        counts,
    ):
        peak = _Peak(_give_memory(model))
        with peak:
            inputs = {"input_ids": torch.zeros(shape, dtype=torch.long)}
            if batch > 1:  # what tells padding, or one sequence from the next
                inputs["attention_mask"] = torch.ones(
                    shape[0], 1, shape[1], shape[1], dtype=torch.bool
                )
            hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
            saved, forward = peak.live, counts.get_total_flops()
            rows = hidden.detach().flatten(0, 1)[torch.arange(batch * length)].requires_grad_()
            if blurred is not None:
                ref = rows.detach()[: int(blurred * len(rows))].clone()
                labels = torch.zeros(len(rows), dtype=torch.long)
                matrix = model.get_output_embeddings()
                given = [matrix, (0, 1), PLAIN, rows, labels, ref]
                if matrix.weight.requires_grad:
                    found = module_head(*given, 2**24, ref_head=matrix)
                else:
                    found = matrix_head(*given, CHUNK["cpu"])
                (found.log_probs.sum() + found.log_tags.sum() + found.kl.sum()).backward()
                del ref, given, found
            head = counts.get_total_flops() - forward
            hidden.backward(rows.detach().view_as(hidden))
    return saved, forward, counts.get_total_flops() - head, hidden.nbytes, peak.most, head


def _give_memory(model: nn.Module) -> list[Tensor]:
    """Puts fake tensors on the CPU in place of weights, buffers and gradients, and returns them."""
    made = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in ((name, old) for name, old in tensors.items() if old is not None):
                new = torch.empty(old.shape, dtype=old.dtype, requires_grad=old.requires_grad)
                tensors[name] = made.setdefault(old, new)
                new.grad = torch.zeros_like(new) if old.requires_grad else None
    return [*made.values(), *(tensor.grad for tensor in made.values() if tensor.grad is not None)]


def _other(model: nn.Module, sharding: str, gradients: int) -> int:
    """The largest quantised matrix in full, and DDP's buckets of gradients, or what sharding gathers at once."""
    largest = max(
        (p.numel() * p.element_size() for p in model.parameters() if hasattr(p, "bits")), default=0
    )
    if sharding in ("", "none", "zero2"):
        return largest + (gradients if sharding else 0)
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    layer, everything = (sum(map(_weight_bytes, m.parameters())) for m in (layers[0], model))
    return (
        largest + 2 * layer + everything - len(layers) * layer
    )  # two layers, and all that is in none
