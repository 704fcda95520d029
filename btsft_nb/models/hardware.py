"""What the hardware computes, and the precision that follows from it."""

import sys
from typing import NamedTuple

import torch


class Hardware(NamedTuple):
    """The device that a model goes to."""

    device: str  # cuda, mps or cpu
    name: str
    bf16: bool = True  # whether it computes in bfloat16 without emulation


def detect():
    """The hardware of this process: its current GPU, if there is one."""
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Hardware("cuda", torch.cuda.get_device_name(), bf16)
    if torch.backends.mps.is_available():
        return Hardware("mps", "an Apple GPU")
    return Hardware("cpu", "the CPU")


def choose_dtype(dtype, hardware, method, checkpoint=None):
    """The type of a model's weights. Adapters are always float32.

    Args:
        dtype: float32, bfloat16, float16 or auto.
        method: qlora, lora or full; None for a model that is not trained.
        checkpoint: the type of the weights as they were published.

    Raises:
        ValueError: a type that the hardware lacks, or that cannot be trained.
    """
    if dtype == "bfloat16":
        check_bf16(hardware, "dtype='bfloat16'")
    if dtype in ("float16", "bfloat16") and method == "full":
        raise ValueError(
            f"dtype={dtype!r} cannot hold small updates; use 'auto', with bf16=True or fp16=True"
        )
    if dtype != "auto":
        return getattr(torch, dtype)
    if method == "full" or hardware.device != "cuda":
        # small updates of weights need it, and a CPU computes nothing faster
        return torch.float32
    if method is None and checkpoint not in (None, torch.bfloat16):
        return checkpoint
    return torch.bfloat16 if hardware.bf16 else torch.float16


def check_bf16(hardware, setting="bf16=True"):
    """Raises ValueError, with a remedy, for a GPU that does not compute in bfloat16, such as a T4."""
    if not hardware.bf16:
        raise ValueError(f"{setting}: {hardware.name} has no bfloat16; use float16 or fp16=True")


def check_bitsandbytes(method):
    """Raises ImportError, with a remedy, for quantised weights where bitsandbytes does not work.

    One that cannot be imported is hidden: PEFT would import it for plain layers, too.
    """
    try:
        from bitsandbytes.cextension import lib

        # left by a stand-in for the GPU's library, which raises when it is first called
        reason = torch.cuda.is_available() and vars(lib).get("error_msg")
    except Exception as error:
        reason = error
        sys.modules["bitsandbytes"] = None
    if reason and method == "qlora":
        raise ImportError(
            f"bitsandbytes does not work here ({reason}); use method='lora', or mend it and restart"
        )
