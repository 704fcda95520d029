"""What the hardware computes, and the precision and attention that follow from it."""

from importlib.util import find_spec
from typing import NamedTuple

import torch


class Hardware(NamedTuple):
    """The device that a model goes to."""

    device: str  # cuda, mps or cpu
    name: str
    capability: tuple[int, int] = (0, 0)  # CUDA's compute capability
    bf16: bool = True  # whether it computes in bfloat16 without emulation


def detect() -> Hardware:
    """The hardware of this process: its current GPU, where there is one."""
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Hardware(
            "cuda", torch.cuda.get_device_name(), torch.cuda.get_device_capability(), bf16
        )
    return (
        Hardware("mps", "an Apple GPU")
        if torch.backends.mps.is_available()
        else Hardware("cpu", "the CPU")
    )


def choose_dtype(asked: str, hardware: Hardware, method: str | None) -> tuple[torch.dtype, str]:
    """The type of a model's weights, and why; adapters are float32 whatever it is.

    Args:
        asked: float32, bfloat16, float16 or auto.
        method: qlora, lora or full; None for a model that is not to be trained.

    Raises ValueError for a type that the hardware lacks, or that cannot be trained.
    """
    if asked == "bfloat16":
        check_bf16(hardware, "dtype='bfloat16'", "dtype='float16' or 'auto'")
    if asked == "float16" and method == "full":
        raise ValueError(
            "dtype='float16' cannot hold the updates of all weights; take 'auto' (float32) and fp16=True"
        )
    if asked != "auto":
        return getattr(torch, asked), "as asked"
    if method in (None, "full"):
        return torch.float32, "weights that train need it for small updates"
    if hardware.device != "cuda":
        return torch.float32, f"{hardware.name} computes nothing faster"
    reason = f"{hardware.name} has {'' if hardware.bf16 else 'no '}bfloat16"
    return torch.bfloat16 if hardware.bf16 else torch.float16, reason


def choose_attention(asked: str, hardware: Hardware, dtype: torch.dtype) -> str | None:
    """What transformers takes as `attn_implementation`; None, for auto, leaves it the choice.

    That is PyTorch's own (sdpa), which has flash attention's kernels, or eager for models without it.

    Raises ValueError for flash_attention_2 where GPU, type or package are not for it.
    """
    flash = asked == "flash_attention_2"
    if flash and (hardware.device != "cuda" or hardware.capability < (8, 0)):
        raise ValueError(
            f"attention={asked!r} wants a GPU of capability 8.0 or more, not {hardware.name}; take 'auto'"
        )
    if flash and (dtype == torch.float32 or find_spec("flash_attn") is None):
        raise ValueError(
            f"attention={asked!r} wants half precision and the package flash-attn; or take 'auto'"
        )
    return None if asked == "auto" else asked


def check_bf16(hardware: Hardware, asked: str = "bf16=True", instead: str = "fp16=True") -> None:
    """Raises ValueError, with what to take instead, where a GPU does not compute in bfloat16: a T4, say."""
    if not hardware.bf16:
        number = ".".join(map(str, hardware.capability))
        raise ValueError(
            f"{asked}: {hardware.name} (compute capability {number}) has no bfloat16; take {instead}"
        )
