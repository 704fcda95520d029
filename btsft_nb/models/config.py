"""Which model, and what of it is trained."""

import math
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral

from ..checks import check_choice, check_number


@dataclass
class ModelConfig:
    """Which model, and what of it is trained; `load_model` makes it so.

    Raises ValueError for a setting out of its range, or one that the method has no use for.
    """

    model: str = field(
        metadata={"help": "tiny, the id of a model on the Hub, a model's folder, or a run folder."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Where it is not the model's own: as for model."}
    )
    method: str = field(
        default="qlora",
        metadata={
            "help": "qlora: adapters on quantised weights; lora: on the weights as they are; full: all weights."
        },
    )
    bits: int = field(
        default=4, metadata={"help": "qlora: bits of a weight, 4 (NF4, double quantisation) or 8."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=32, metadata={"help": "Their scale is lora_alpha / lora_r."})
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout before the adapters, 0 to 1."}
    )
    lora_targets: str | list[str] = field(
        default="all-linear",
        metadata={"help": "Layers with adapters: all-linear, or the ends of their names."},
    )
    dora: bool = field(
        default=False, metadata={"help": "Train magnitude and direction apart (DoRA)."}
    )
    rslora: bool = field(
        default=False, metadata={"help": "Scale by lora_alpha / sqrt(lora_r) (rsLoRA)."}
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={
            "help": "full: parts that stay: embeddings, norms, attention, feed_forward, other."
        },
    )
    layers_not_to_freeze: list[int] = field(
        default_factory=list, metadata={"help": "full: layers, from 0, that freeze leaves out."}
    )
    dtype: str = field(
        default="auto",
        metadata={"help": "float32, bfloat16, float16, or auto: what the hardware computes best."},
    )
    attention: str = field(
        default="auto",
        metadata={"help": "eager, sdpa, flash_attention_2, or auto: what the hardware has."},
    )
    device_map: str | None = field(
        default=None,
        metadata={
            "help": "As accelerate's, to spread a model over devices: auto, balanced, sequential."
        },
    )
    max_memory: dict[str, str] | None = field(
        default=None,
        metadata={
            "help": 'With device_map, what each device may hold: {"0": "14GiB", "cpu": "30GiB"}.'
        },
    )

    def __post_init__(self):
        check_choice("method", self.method, ("qlora", "lora", "full"))
        check_choice("bits", self.bits, (4, 8))
        check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        check_number("lora_r", self.lora_r, 1, math.inf, Integral)
        check_number("lora_alpha", self.lora_alpha, 0, math.inf)
        check_number("lora_dropout", self.lora_dropout, 0, 1)
        of = {"full": ("freeze", "layers_not_to_freeze"), "qlora": ("bits",)}
        adapters = [f.name for f in fields(self) if f.name.startswith("lora_")] + ["dora", "rslora"]
        idle = [name for method, names in of.items() if method != self.method for name in names]
        for f in (f for f in fields(self) if f.name in idle + adapters * (self.method == "full")):
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if getattr(self, f.name) != default:
                raise ValueError(
                    f"{f.name}={getattr(self, f.name)!r} does nothing with method={self.method!r}"
                )
        if self.max_memory and not self.device_map:
            raise ValueError(
                f"max_memory={self.max_memory} does nothing without device_map: set device_map='auto'"
            )
