"""Every way to train on real architectures with random weights: trained, saved, reloaded, merged."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_parts import count_parameters
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

import btsft_nb as bt
from btsft_nb.models.config import ModelConfig
from btsft_nb.models.freezing import PARTS
from btsft_nb.training.export import merge

WIDE = dict(hidden_size=64, num_attention_heads=4, num_hidden_layers=2)
SMALL = WIDE | dict(intermediate_size=128, num_key_value_heads=2, max_position_embeddings=256)
OPT = WIDE | dict(ffn_dim=128, word_embed_proj_dim=64, max_position_embeddings=256)
NEO = dict(hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]])
FAMILIES = {  # config, which follows the published one but for its size; how it is trained; whether it lacks the tags
    "llama": (LlamaConfig, SMALL | {"tie_word_embeddings": False}, {}, True),
    "smollm": (LlamaConfig, SMALL | {"tie_word_embeddings": True}, {"method": "lora"}, True),
    "qwen2": (Qwen2Config, SMALL | {"tie_word_embeddings": True}, {"bits": 8}, False),
    "qwen3": (
        Qwen3Config,
        SMALL | {"tie_word_embeddings": False, "head_dim": 16},
        {"dora": True},
        True,
    ),
    "gpt-neo": (GPTNeoConfig, NEO | {"max_position_embeddings": 256}, {"rslora": True}, True),
    "gpt2": (
        GPT2Config,
        dict(n_embd=64, n_layer=2, n_head=4, n_positions=256),
        {"method": "lora"},
        False,
    ),
    "opt": (
        OPTConfig,
        OPT,
        {"method": "full", "freeze": ["norms", "attention"], "layers_not_to_freeze": [1]},
        True,
    ),
    "gemma2": (Gemma2Config, SMALL | {"head_dim": 16, "final_logit_softcapping": 30.0}, {}, True),
    "phi": (
        PhiConfig,
        SMALL | {"partial_rotary_factor": 0.5},
        {"bits": 8, "lora_targets": ["q_proj", "fc1"]},
        False,
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A model's folder, as one comes from the Hub, its settings, and whether it lacks the think tags."""
    config, sizes, settings, lacks_tags = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("base") / request.param
    tokenizer = bt.load_tokenizer("tiny")
    if lacks_tags:
        tokenizer = without_tags(tokenizer)
    torch.manual_seed(0)
    ids = dict(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=None, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config(**sizes, **ids))
    for (
        parameter
    ) in model.parameters():  # far from the start, at which a wrong row or scale would not show
        torch.nn.init.normal_(parameter.data, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, settings, lacks_tags


def without_tags(tokenizer):
    """The same tokenizer without its last two tokens, which are the think tags."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [
        token for token in state["added_tokens"] if "think" not in token["content"]
    ]
    names = {name: getattr(tokenizer, name) for name in ("eos_token", "pad_token", "chat_template")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)


@pytest.fixture(scope="module")
def trained(family, tmp_path_factory):
    """The model after two steps, its tokenizer, and its run."""
    base, settings, _ = family
    run = tmp_path_factory.mktemp("run") / base.name
    rank = {} if settings.get("method") == "full" else {"lora_r": 4}
    model, tokenizer = bt.load_model(ModelConfig(str(base), **rank | settings))
    examples = bt.prepare(bt.load_rows("tiny/teacher")[:4], tokenizer)
    anchor = 0.0 if settings.get("method") == "full" else 1.0
    config = bt.BTSFTConfig(
        *(str(run), 2),
        max_steps=2,
        anchor=anchor,
        learning_rate=0.1,
        threshold=0.5,
        lr_scheduler_type="constant",
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()
    changed = {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    return model.eval(), tokenizer, run, changed, torch.tensor([examples[0]["input_ids"]])


def test_what_was_trained_is_what_is_reloaded_and_merged(family, trained, tmp_path):
    """Logits equal bit for bit; merged, but for rounding, and that of inputs where LLM.int8 has it."""
    _, settings, lacks_tags = family
    model, tokenizer, run, changed, ids = trained
    assert changed == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert set(ids[0].tolist()) & {*bt.tag_ids(tokenizer)}
    with torch.no_grad():
        want = model(input_ids=ids).logits
        again, loaded = bt.load_model(run)
        assert (
            torch.equal(again(input_ids=ids).logits, want)
            and loaded.get_vocab() == tokenizer.get_vocab()
        )
        assert want.shape[-1] == (451 if lacks_tags else len(tokenizer))
        if settings.get("method") == "full":
            return
        folder = merge(run, tmp_path / "merged", dtype="float32")
        got = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)(
            input_ids=ids
        ).logits
        tolerance = 0.1 if settings.get("bits") == 8 else 1e-4
        assert (got - want).abs().max() < tolerance * want.abs().max()
        with model.disable_adapter():
            assert (model(input_ids=ids).logits - want).abs().max() > tolerance * want.abs().max()


def test_the_rows_of_new_tags_train_and_no_others(family, trained):
    base, settings, lacks_tags = family
    model, _, run, *_ = trained
    if settings.get("method") == "full":
        return
    first = AutoModelForCausalLM.from_pretrained(base)
    for get in (lambda m: m.get_input_embeddings(), lambda m: m.get_output_embeddings()):
        rows, old = (get(m).weight for m in (model.get_base_model(), first))
        assert torch.equal(rows[: len(old)], old) and len(rows) == len(old) + 2 * lacks_tags
    saved = load_file(run / "adapter_model.safetensors")
    kept = [tensor for name, tensor in saved.items() if "trainable_tokens" in name]
    tied = model.config.tie_word_embeddings
    assert len(kept) == (0 if not lacks_tags else 1 if tied else 2) and all(
        len(tensor) == 2 for tensor in kept
    )
    assert not any(len(tensor) >= 449 for tensor in saved.values())


def test_every_parameter_has_its_part(family, trained):
    """None is left over, and each part is there; what is frozen is so but for the layer that is left out."""
    _, settings, _ = family
    model, *_ = trained
    counts = count_parameters(model)
    assert counts["other"] == (0, 0) and all(counts[part][1] for part in PARTS[:-1])
    assert counts["total"] == tuple(map(sum, zip(*(counts[part] for part in PARTS), strict=True)))
    assert counts["total"][0] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    if settings.get("method") == "full":
        assert all(
            trains == whole for trains, whole in (counts["embeddings"], counts["feed_forward"])
        )
        assert 2 * counts["attention"][0] == counts["attention"][1]
