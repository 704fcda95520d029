"""What the hardware computes, and the precision and attention that follow from it, each with its reason."""

from importlib.util import find_spec
from typing import NamedTuple

import torch


class Hardware(NamedTuple):
    """The device that a model goes to."""

    device: str  # cuda, mps or cpu
    name: str
    capability: tuple[int, int] | None = None  # CUDA's compute capability
    bf16: bool = True  # whether it computes in bfloat16 without emulation


def detect() -> Hardware:
    """The hardware of this process: the current GPU, where it has one."""
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Hardware("cuda", torch.cuda.get_device_name(), torch.cuda.get_device_capability(), bf16)
    if torch.backends.mps.is_available():
        return Hardware("mps", "an Apple GPU")
    return Hardware("cpu", "the CPU")


def choose_dtype(asked: str, hardware: Hardware, *, adapted: bool, full: bool = False) -> tuple[torch.dtype, str]:
    """The type of a model's weights, and why.

    Args:
        asked: float32, bfloat16, float16 or auto.
        adapted: whether the weights stay as they are and adapters train, which are float32 whatever this says.
        full: whether the weights train themselves.

    Raises ValueError for a type that the hardware lacks, or that cannot be trained.
    """
    if asked == "bfloat16":
        check_bf16(hardware, "dtype='bfloat16'", "dtype='float16' or 'auto'")
    if asked == "float16" and full:
        raise ValueError(
            "dtype='float16' with all weights trained: their updates are too small for it; take dtype='auto', which "
            "is float32, and fp16=True to compute in half precision"
        )
    if asked != "auto":
        return getattr(torch, asked), "as asked"
    if not adapted:
        return torch.float32, "all weights train, and small updates need it" if full else "the most precise"
    if hardware.device != "cuda":
        return torch.float32, f"{hardware.name} computes nothing faster"
    if hardware.bf16:
        return torch.bfloat16, f"{hardware.name} computes in it"
    return torch.float16, f"{hardware.name}{_capability(hardware)} has no bfloat16"


def choose_attention(asked: str, hardware: Hardware, dtype: torch.dtype) -> str | None:
    """What transformers takes as `attn_implementation`; None leaves it the choice.

    With auto that is PyTorch's own (sdpa), which has the kernels of flash attention, or eager for models without it.

    Raises ValueError for flash_attention_2 where the GPU, the type of the weights or the package is not for it.
    """
    if asked != "flash_attention_2":
        return None if asked == "auto" else asked
    if hardware.device != "cuda" or hardware.capability < (8, 0):
        lacking = f"{hardware.name}{_capability(hardware)} cannot run it: a GPU of capability 8.0 or more wanted"
    elif dtype == torch.float32:
        lacking = "it takes no float32: set dtype='bfloat16' or 'float16'"
    elif find_spec("flash_attn") is None:
        lacking = "the package flash-attn is not installed"
    else:
        return asked
    raise ValueError(f"attention='flash_attention_2': {lacking}; or take attention='auto'")


def check_bf16(hardware: Hardware, asked: str = "bf16=True", instead: str = "fp16=True") -> None:
    """Raises ValueError, which says what to take instead, where a GPU does not compute in bfloat16: a T4, say."""
    if hardware.device == "cuda" and not hardware.bf16:
        raise ValueError(f"{asked}: {hardware.name}{_capability(hardware)} has no bfloat16; take {instead}")


def _capability(hardware: Hardware) -> str:
    return f" (compute capability {'.'.join(map(str, hardware.capability))})" if hardware.capability else ""
