"""What is chosen for a T4, an A100, a CPU and an Apple GPU, and what is refused there."""

import pytest
import torch

from btsft_nb.models.hardware import Hardware, check_bf16, choose_dtype, detect

T4 = Hardware("cuda", "Tesla T4", bf16=False)
A100 = Hardware("cuda", "NVIDIA A100")
CPU, MPS = Hardware("cpu", "the CPU"), Hardware("mps", "an Apple GPU")


@pytest.mark.parametrize(
    ("hardware", "dtype"),
    [(T4, torch.float16), (A100, torch.bfloat16), (CPU, torch.float32), (MPS, torch.float32)],
)
def test_weights_under_adapters_take_what_the_hardware_computes_best(hardware, dtype):
    for method in ("qlora", "lora"):
        assert choose_dtype("auto", hardware, method) == dtype


def test_weights_that_train_are_float32_everywhere():
    assert {choose_dtype("auto", hardware, "full") for hardware in (T4, A100, CPU, MPS)} == {
        torch.float32
    }
    with pytest.raises(ValueError, match=r"dtype='float16' cannot hold.*fp16=True"):
        choose_dtype("float16", A100, "full")


@pytest.mark.parametrize(
    ("hardware", "published", "dtype"),
    [
        (A100, torch.bfloat16, torch.bfloat16),
        (T4, torch.bfloat16, torch.float16),
        (T4, torch.float16, torch.float16),
        (A100, torch.float32, torch.float32),
        (A100, None, torch.bfloat16),
        (CPU, torch.bfloat16, torch.float32),
    ],
)
def test_a_model_that_only_writes_is_as_published_or_as_the_hardware_has_it(
    hardware, published, dtype
):
    """On a GPU an 8 B model took 32 GB in float32, since weights that train need it; none train here."""
    assert choose_dtype("auto", hardware, None, published) == dtype


def test_what_is_asked_for_is_taken_where_it_exists():
    for name in ("float32", "bfloat16", "float16"):
        assert choose_dtype(name, A100, "lora") == getattr(torch, name)
    assert choose_dtype("bfloat16", CPU, "lora") == torch.bfloat16


def test_bfloat16_on_a_t4_is_refused_with_what_to_take_instead():
    words = "Tesla T4 has no bfloat16; use float16 or fp16=True"
    with pytest.raises(ValueError, match=f"^dtype='bfloat16': {words}"):
        choose_dtype("bfloat16", T4, "qlora")
    with pytest.raises(ValueError, match=f"^bf16=True: {words}"):
        check_bf16(T4)
    for hardware in (A100, CPU, MPS):
        check_bf16(hardware)


def test_what_is_detected_is_this_machine():
    assert detect().device == (
        "cuda" if torch.cuda.is_available() else CPU.device if not MPS_HERE else MPS.device
    )


MPS_HERE = torch.backends.mps.is_available()
