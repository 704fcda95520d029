"""Which parameter belongs to which part, by hand on a GPT-2, a Qwen3 and an OPT; what is frozen, and refused."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import btsft_nb as bt
from btsft_nb.models.freezing import PARTS, freeze_parts, locate


def count_parameters(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """By part, and in all: how many parameters train, and how many there are.

    An adapter counts to the part that it changes, a tied head once, a weight of 4 bits as one parameter.
    """
    counts = dict.fromkeys((*PARTS, "total"), (0, 0))
    for parameter, part, _ in locate(model):
        state = getattr(
            parameter, "quant_state", None
        )  # bitsandbytes packs two weights into a byte
        number = parameter.numel() if state is None else state.shape.numel()
        for name in (part, "total"):
            trained, total = counts[name]
            counts[name] = trained + number * parameter.requires_grad, total + number
    return counts


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=7, n_embd=8, n_layer=3, n_head=2))


def trains(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_parts_of_a_gpt2_are_those_counted_by_hand():
    """Width 8: two embeddings, the tied head counted once; 2 x 3 + 1 norms; fused attention; an MLP of width 32."""
    counts = count_parameters(gpt2())
    whole = {
        "embeddings": (11 + 7) * 8,
        "norms": (2 * 3 + 1) * 2 * 8,
        "attention": 3 * ((8 * 24 + 24) + (8 * 8 + 8)),
        "feed_forward": 3 * ((8 * 32 + 32) + (32 * 8 + 8)),
        "other": 0,
    }
    assert counts == {part: (n, n) for part, n in whole.items()} | {
        "total": (sum(whole.values()),) * 2
    }


def test_norms_within_attention_are_norms_and_position_embeddings_embeddings():
    tiny, _ = bt.load_model("tiny")
    freeze_parts(tiny, set(PARTS) - {"norms"})
    assert all("norm" in name for name in trains(tiny)) and any(
        "q_norm" in name for name in trains(tiny)
    )
    sizes = dict(
        vocab_size=11, hidden_size=8, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2
    )
    opt = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=4, max_position_embeddings=7))
    freeze_parts(opt, ["norms", "attention", "feed_forward"])
    assert {name.split(".")[-2] for name in trains(opt)} == {
        *("embed_tokens", "embed_positions", "project_in", "project_out")
    }
    assert count_parameters(opt)["other"] == (2 * 4 * 8,) * 2


def test_experts_are_feed_forward():
    sizes = dict(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = MixtralForCausalLM(MixtralConfig(vocab_size=11, num_local_experts=2, **sizes))
    assert count_parameters(model)["other"] == (0, 0)
    assert count_parameters(model)["feed_forward"][1] == 2 * (2 * 3 * 8 * 16 + 2 * 8)


def test_layers_that_are_left_out_stay_trainable_whole():
    model = gpt2()
    freeze_parts(model, PARTS, [2])
    assert {name.split(".")[2] for name in trains(model)} == {"2"} and len(trains(model)) == 12
    freeze_parts(model, ["embeddings"])
    assert not any("wte" in name or "wpe" in name or "lm_head" in name for name in trains(model))
    assert len(trains(model)) == 3 * 12 + 2


def test_an_adapter_counts_to_the_part_that_it_changes_and_four_bits_as_one_parameter():
    whole = count_parameters(bt.load_model("tiny")[0])
    counts = count_parameters(bt.load_model("tiny", qlora=True)[0])
    rank, width, wide, kv = 16, 128, 384, 64
    attention = 4 * rank * (2 * (width + width) + 2 * (width + kv))
    feed_forward = 4 * rank * 3 * (width + wide)
    assert counts["attention"] == (attention, whole["attention"][1] + attention)
    assert counts["feed_forward"] == (feed_forward, whole["feed_forward"][1] + feed_forward)
    assert counts["total"] == (
        attention + feed_forward,
        whole["total"][1] + attention + feed_forward,
    )


@pytest.mark.parametrize(
    ("parts", "layers", "words"),
    [
        (
            ["atention"],
            [],
            r"freeze must be one of 'embeddings', 'norms', .* got 'atention'",
        ),
        (["norms"], [3], r"layers_not_to_freeze must be one of 0, 1, 2, got 3"),
        ([], [1], r"layers_not_to_freeze does nothing without freeze"),
    ],
    ids=["part", "layer", "nothing"],
)
def test_what_makes_no_sense_is_refused(parts, layers, words):
    model = gpt2()
    with pytest.raises(ValueError, match=words):
        freeze_parts(model, parts, layers)


def test_what_is_frozen_does_not_change_in_training(tmp_path):
    config = bt.ModelConfig(
        "tiny", method="full", freeze=["attention", "embeddings"], layers_not_to_freeze=[0]
    )
    model, tokenizer = bt.load_model(config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    examples = bt.prepare(bt.load_rows("tiny/teacher")[:2], tokenizer)
    settings = bt.BTSFTConfig(str(tmp_path), max_steps=1, anchor=0.0, learning_rate=0.01)
    bt.BTSFTTrainer(model, settings, examples, processing_class=tokenizer).train()
    same = {
        name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])
    }
    assert same == {
        name
        for name in before
        if "embed" in name or ("_proj" in name and "attn" in name and ".0." not in name)
    }


def test_a_model_without_a_list_of_its_layers_is_named():
    model, _ = bt.load_model("tiny")
    model.config.num_hidden_layers = 9
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has no list of 9 decoder layers"):
        freeze_parts(model, ["norms"])
