"""Which model, and what of it is trained."""

import json
import math
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral

from ..checks import check_choice, check_number


@dataclass
class ModelConfig:
    """Which model, and what of it is trained; `load_model` takes it.

    Attributes:
        model: tiny, the id of a model on the Hub, a model's folder, or a run folder.
        tokenizer: The tokenizer, if it is not the model's own.
        method: qlora: adapters on quantised weights; lora: on the weights as they are; full: all weights.
        bits: qlora: bits of a weight, 4 (NF4, double quantisation) or 8.
        lora_r: Rank of the adapters.
        lora_alpha: Their scale is lora_alpha / lora_r.
        lora_dropout: Dropout before the adapters, 0 to 1.
        lora_targets: Layers with adapters: all-linear, the ends of their names, or one regular expression.
        dora: Train magnitude and direction apart (DoRA).
        rslora: Scale by lora_alpha / sqrt(lora_r) (rsLoRA).
        freeze: full: parts that stay: embeddings, norms, attention, feed_forward, other.
        layers_not_to_freeze: full: layers, from 0, that freeze leaves out.
        dtype: float32, bfloat16, float16, or auto: what the hardware computes best.
        attention: eager, sdpa, flash_attention_2, or auto: what the hardware has.
        device_map: As accelerate's, to spread a model over devices: auto, balanced, sequential.
        max_memory: With device_map, what each device may hold: {"0": "14GiB", "cpu": "30GiB"}.

    Raises:
        ValueError: a setting out of range, or one that the method has no use for.

    >>> bt.ModelConfig("tiny", method="lora", lora_r=4).lora_r
    4
    """

    model: str
    tokenizer: str | None = None
    method: str = "qlora"
    bits: int = 4
    lora_r: int = 16
    lora_alpha: float = 32
    lora_dropout: float = 0.0
    lora_targets: str | list[str] = "all-linear"
    dora: bool = False
    rslora: bool = False
    freeze: list[str] = field(default_factory=list)
    layers_not_to_freeze: list[int] = field(default_factory=list)
    dtype: str = "auto"
    attention: str = "auto"
    device_map: str | None = None
    max_memory: dict[str, str] | str | None = None

    def __post_init__(self):
        if isinstance(self.max_memory, str):  # from a command line
            self.max_memory = json.loads(self.max_memory)
        if isinstance(self.lora_targets, list) and len(self.lora_targets) == 1:
            self.lora_targets = self.lora_targets[0]  # the same, however it was given
        check_choice("method", self.method, ("qlora", "lora", "full"))
        check_choice("bits", self.bits, (4, 8))
        check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        check_number("lora_r", self.lora_r, 1, math.inf, Integral)
        check_number("lora_alpha", self.lora_alpha, 0, math.inf)
        check_number("lora_dropout", self.lora_dropout, 0, 1)
        adapters = ("lora_r", "lora_alpha", "lora_dropout", "lora_targets", "dora", "rslora")
        parts = ("freeze", "layers_not_to_freeze")
        unused = {"qlora": parts, "lora": ("bits", *parts), "full": ("bits", *adapters)}
        for f in fields(self):
            default = [] if f.default is MISSING else f.default
            if f.name in unused[self.method] and getattr(self, f.name) != default:
                raise ValueError(f"{f.name} does nothing with method={self.method!r}")
        if self.max_memory and not self.device_map:
            raise ValueError("max_memory does nothing without device_map='auto'")
