"""The estimate against models that are really loaded; benchmarks/memory.py holds it against measured peaks."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

import btsft_nb as bt
from btsft_nb.models.config import ModelConfig
from btsft_nb.models.tokenizer import TINY
from btsft_nb.objective import head_matrix

sys.path.append(str(Path(__file__).parents[1] / "tools"))
from estimate import estimate, measured_speed


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with two layers of random weights, untied head, and a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    shape = dict(hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(LlamaConfig(vocab_size=1024, num_key_value_heads=2, **shape)).save_pretrained(
        folder
    )
    bt.load_tokenizer("tiny").save_pretrained(folder)
    return folder


def training(**settings):
    defaults = dict(per_device_train_batch_size=2, use_cpu=True, anchor=1.0, threshold=0.2)
    return bt.BTSFTConfig("runs/none", **(defaults | settings))


def bytes_of(model) -> int:
    """Of all tensors of a model, with what bitsandbytes keeps beside 4-bit weights."""
    total = 0
    for parameter in model.parameters():
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.nbytes + state.state2.absmax.nbytes
    return total


@pytest.mark.parametrize(
    ("name", "method"),
    [("tiny", "qlora"), ("tiny", "full"), ("llama", "qlora"), ("llama", "lora")],
)
def test_parameters_and_weights_are_those_of_the_loaded_model(request, name, method):
    path = name if name == "tiny" else str(request.getfixturevalue(name))
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model, _ = bt.load_model(path, qlora=method == "qlora", lora=None if method == "full" else lora)
    found = estimate(ModelConfig(path, method=method), training(anchor=0.0), 64)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert found.trainable == sum(p.numel() for p in trained)
    logical = sum(
        p.quant_state.shape.numel() if hasattr(p, "quant_state") else p.numel()
        for p in model.parameters()
    )
    assert found.parameters == logical
    assert found.weights + found.adapters == pytest.approx(bytes_of(model), rel=0.02)
    assert found.gradients == sum(p.nbytes for p in trained)
    assert found.optimizer == 2 * found.gradients


def test_frozen_parts_are_counted_as_frozen(llama):
    """As load_model freezes them: the second layer, and nothing else, is trained."""
    config = ModelConfig(
        str(llama), method="full", freeze=["embeddings", "norms", "attention", "feed_forward"]
    )
    config.layers_not_to_freeze = [1]
    model, _ = bt.load_model(config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = estimate(config, training(anchor=0.0), 64)
    assert 0 < found.trainable == trained < found.parameters / 2


@pytest.mark.parametrize("dora", [False, True])
def test_dora_trains_its_magnitudes_too(dora):
    found = estimate(ModelConfig("tiny", method="lora", dora=dora), training(), 64)
    plain = estimate(ModelConfig("tiny", method="lora"), training(), 64)
    assert (found.trainable > plain.trainable) == dora


def test_what_each_setting_saves():
    """Checkpointing trades memory for computation; 8-bit states, sharding and a smaller batch save what they should."""
    model = ModelConfig(str(TINY), method="full")
    plain = estimate(model, training(anchor=0.0), 512)
    checkpointed = estimate(model, training(anchor=0.0, gradient_checkpointing=True), 512)
    assert checkpointed.activations < plain.activations / 2
    assert plain.flops_per_token < checkpointed.flops_per_token < 1.4 * plain.flops_per_token
    small = estimate(model, training(anchor=0.0, optim="adamw_8bit"), 512)
    assert small.optimizer < 0.5 * plain.optimizer
    half = estimate(model, training(anchor=0.0), 512, processes=2, sharding="fsdp")
    assert half.weights == plain.weights // 2 and half.optimizer == plain.optimizer // 2
    one = estimate(model, training(anchor=0.0, per_device_train_batch_size=1), 512)
    assert one.activations < 0.6 * plain.activations
    assert one.seconds(100, 1e9) == pytest.approx(one.flops_per_token * 1e-7)


def test_computation_is_six_operations_a_weight():
    """Without attention to speak of: 2 forward and 4 backward for each weight of a product.

    A head that trains makes its logits once more in backward.
    """
    model = bt.load_model("tiny")[0]
    head = model.get_output_embeddings().weight.numel()
    others = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)) - head
    found = estimate(
        ModelConfig("tiny", method="full"), training(anchor=0.0, per_device_train_batch_size=1), 8
    )
    assert found.flops_per_token == pytest.approx(6 * others + 8 * head, rel=0.05)


def test_an_unknown_optimiser_or_sharding_is_named():
    with pytest.raises(NotImplementedError, match=r"optim='lomo'.*adafactor, adamw"):
        estimate(ModelConfig("tiny"), training(optim="lomo"), 64)
    with pytest.raises(NotImplementedError, match=r"sharding='zero9'.*fsdp"):
        estimate(ModelConfig("tiny"), training(), 64, sharding="zero9")


def test_an_estimate_is_told_as_a_table():
    found = estimate(ModelConfig("tiny"), training(), 64)
    said = found.table()
    assert f"{found.parameters:,}" == said["parameters"] and said["trainable"].startswith(
        f"{found.trainable:,} ("
    )
    assert said["computation"].endswith("GFLOP a token")


def test_speed_is_measured():
    assert 1e8 < measured_speed("cpu", torch.float32) < 1e14


def test_the_page_has_what_the_estimator_says(monkeypatch):
    """Of the smallest model; the rest of the table is made the same way, and takes minutes."""
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    monkeypatch.setattr(head_matrix, "CHUNK", dict(head_matrix.CHUNK))
    row = importlib.import_module("memory").table(["Qwen2.5 0.5B"]).splitlines()[-1]
    assert row in (benchmarks.parent / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()
