"""The forward pass without logits: the same values and gradients as through the model's own logits, for any family."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MiniCPM3Config,
    MiniCPM3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from btsft_nb.objective.forward import HeadForward

VOCABULARY, TAGS = 41, (1, 2)
SMALL = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=3,
    eos_token_id=4,
)
HEADS = dict(num_key_value_heads=1, head_dim=8)
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS)),
    "qwen2, tied": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, num_key_value_heads=1, tie_word_embeddings=True)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, **HEADS)),
    "gemma2, soft cap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, **HEADS, final_logit_softcapping=3.0)
    ),
    "cohere, scale": lambda: CohereForCausalLM(
        CohereConfig(**SMALL, num_key_value_heads=1, logit_scale=0.0625)
    ),
    "granite, scale": lambda: GraniteForCausalLM(
        GraniteConfig(**SMALL, num_key_value_heads=1, logits_scaling=8.0)
    ),
    "phi, bias": lambda: PhiForCausalLM(PhiConfig(**SMALL, num_key_value_heads=2)),
    "gpt-neo": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            num_heads=2,
        )
    ),
    "opt, projected": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=8,
            do_layer_norm_before=False,
        )
    ),
}
LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
ADAPTERS = {
    "full": None,
    "lora": LORA,
    "lora on the head": LoraConfig(
        r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"
    ),
    "head saved": LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    ),
    "tokens": LoraConfig(
        r=2, target_modules=["q_proj"], trainable_token_indices=[1, 2], task_type="CAUSAL_LM"
    ),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


def build(family: str, adapter: LoraConfig | None = LORA):
    """A random float64 model, its logits large enough for a soft cap to matter, with adapters that do something."""
    torch.manual_seed(0)
    model = FAMILIES[family]().double()
    model.get_output_embeddings().weight.data.mul_(20)
    if adapter is not None:
        model = get_peft_model(model, copy.deepcopy(adapter)).double()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or "trainable_tokens" in name):
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def batch(seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Ids and padding (2, 9), what is blurred, and the positions asked for."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (2, 9), generator=generator)
    ids[0, 3], ids[0, 6] = TAGS
    mask = torch.tensor([[1] * 9, [1] * 7 + [0] * 2])
    positions = (torch.rand(2, 9, generator=generator) < 0.7) & (mask == 1)
    positions[:, 0] = False
    blurred = positions & (torch.rand(2, 9, generator=generator) < 0.5)
    return {"input_ids": ids, "attention_mask": mask, "blurred": blurred}, positions


def plain(logits: Tensor, ids: Tensor, ref_logits: Tensor | None) -> list[Tensor]:
    """Log-probabilities of tokens and tags, and KL, (B, T) in float64 from full logits."""
    log_p = F.pad(logits.double()[:, :-1].log_softmax(-1), (0, 0, 1, 0))
    rest = [token for token in range(log_p.shape[-1]) if token not in TAGS]
    log_tags = torch.stack(
        [log_p[..., TAGS[0]], log_p[..., TAGS[1]], log_p[..., rest].logsumexp(-1)]
    )
    log_ref = F.pad(ref_logits.double()[:, :-1].log_softmax(-1), (0, 0, 1, 0))
    return [
        log_p.gather(-1, ids[..., None])[..., 0],
        log_tags,
        (log_ref.exp() * (log_ref - log_p)).sum(-1),
    ]


def gradients(model, outputs: list[Tensor], masks: list[Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    total = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64))[..., mask].sum()
        for x, mask in zip(outputs, masks, strict=True)
    )
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(names.values()), allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize(
    ("family", "adapter"),
    [(family, "lora") for family in FAMILIES]
    + [("llama", adapter) for adapter in ADAPTERS]
    + [
        ("qwen2, tied", "full"),
        ("qwen2, tied", "tokens"),
        ("gemma2, soft cap", "full"),
        ("gpt-neo", "full"),
    ],
)
def test_values_and_gradients_are_those_of_the_logits(family, adapter):
    """In float64, with a reference of other weights; only at the positions asked for."""
    model = build(family, ADAPTERS[adapter])
    inputs, positions = batch()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    forward = HeadForward(model, TAGS)
    reference = build(family, None)
    reference.load_state_dict({name: p + 0.01 for name, p in reference.state_dict().items()})
    ref_hidden = HeadForward(reference, TAGS).hidden(reference, inputs, inputs["blurred"])
    got = forward.token_values(
        model, inputs, positions, ref_hidden=ref_hidden, ref_head=reference.get_output_embeddings()
    )
    logits = model(**text).logits[:, -9:]
    want = plain(logits, inputs["input_ids"], reference(**text).logits.detach())
    masks = [positions, positions, inputs["blurred"]]
    for ours, theirs, mask in zip([got.log_probs, got.log_tags, got.kl], want, masks, strict=True):
        torch.testing.assert_close(
            ours[..., mask], theirs[..., mask], rtol=1e-8, atol=1e-10, check_dtype=False
        )
    assert torch.equal(got.argmax[positions], F.pad(logits[:, :-1].argmax(-1), (1, 0))[positions])
    assert not got.log_probs[~positions].any() and not got.kl[~inputs["blurred"]].any()
    ours = gradients(model, [got.log_probs, got.log_tags, got.kl], masks)
    theirs = gradients(model, want, masks)
    assert set(ours) == set(theirs) and len(ours) > 0
    tolerance = 1e-5 if "neo" in family else 1e-9  # GPT-Neo computes its attention in float32
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= tolerance * gradient.norm() + 1e-12, name


def test_no_position_gives_zeros_connected_to_all_that_is_trained():
    model = build("llama")
    inputs, positions = batch()
    values = HeadForward(model, TAGS).token_values(model, inputs, torch.zeros_like(positions))
    values.log_probs.sum().backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)


def test_the_model_is_left_as_it_was():
    """Its own forward gives logits again, also after an error, and training or evaluation mode stays."""
    model = build("llama").train()
    before = vars(model.get_base_model()).copy()
    inputs, positions = batch()
    forward = HeadForward(model, TAGS)
    forward.token_values(model, inputs, positions)
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        forward.token_values(model, inputs | {"input_ids": inputs["input_ids"].float()}, positions)
    assert vars(model.get_base_model()) == before and model.training
    assert model(input_ids=inputs["input_ids"]).logits.shape == (2, 9, VOCABULARY)


def test_an_interrupt_while_the_head_is_probed_leaves_no_hook(monkeypatch):
    model = build("llama")
    base = model.get_base_model()
    inner, calls = base.base_model.forward, []

    def interrupted(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(*arguments, **named)

    monkeypatch.setattr(base.base_model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        HeadForward(model, TAGS)
    assert not base.get_output_embeddings()._forward_hooks


def test_padding_free_gives_what_padding_gives():
    """Sequences laid end to end do not see each other."""
    model = build("qwen3")
    inputs, positions = batch()
    real = inputs["attention_mask"].bool()
    flat = {name: inputs[name][real][None] for name in ("input_ids", "blurred")}
    flat["position_ids"] = torch.tensor([[*range(9), *range(7)]])
    forward = HeadForward(model, TAGS, padding_free=True)
    padded = forward.token_values(model, inputs, positions).log_probs[real]
    torch.testing.assert_close(
        forward.token_values(model, flat, positions[real][None]).log_probs[0], padded
    )


def test_a_model_that_mixes_sequences_is_refused():
    model = build("opt, projected", None)
    with pytest.raises(
        ValueError, match=r"OPTForCausalLM with sdpa attention mixes sequences.*padding_free=False"
    ):
        HeadForward(model, TAGS, padding_free=True)


def test_a_head_that_takes_something_else_is_refused():
    """MiniCPM3 scales the hidden states first."""
    sizes = dict(
        q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8
    )
    config = MiniCPM3Config(**SMALL, num_key_value_heads=2, **sizes)
    with pytest.raises(
        ValueError, match=r"MiniCPM3ForCausalLM: its logits are not .* head\(last hidden states\)"
    ):
        HeadForward(MiniCPM3ForCausalLM(config), TAGS)


def test_logits_made_in_an_unknown_way_are_refused():
    """A soft cap that the config does not tell."""
    model = build("gemma2, soft cap", None)

    class Other(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = 2.0 * torch.tanh(output.logits / 2.0)
            return output

    model.__class__ = Other
    with pytest.raises(ValueError, match="Other: its logits are not softcap"):
        HeadForward(model, TAGS)


def test_a_router_loss_is_refused():
    config = MixtralConfig(
        **SMALL, num_key_value_heads=1, num_local_experts=2, output_router_logits=True
    )
    with pytest.raises(ValueError, match="output_router_logits=False"):
        HeadForward(MixtralForCausalLM(config), TAGS)


def test_a_merged_adapter_of_the_head_has_no_reference():
    model = build("llama", LoraConfig(target_modules=["lm_head"], r=2))
    inputs, positions = batch()
    forward = HeadForward(model, TAGS)
    inputs["blurred"] = positions
    hidden = forward.hidden(model, inputs, positions)
    model.merge_adapter()
    with pytest.raises(ValueError, match="the head's adapter is merged: unmerge it"):
        forward.token_values(model, inputs, positions, ref_hidden=hidden)
