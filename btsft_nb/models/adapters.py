"""What is trained beside a model's own weights: LoRA layers, and rows of its embeddings for tokens that are new."""

import copy
import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import torchao as peft_torchao
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..data.tokens import add_tags
from .config import ModelConfig


def lora_config(config: ModelConfig) -> LoraConfig:
    """The adapters that a configuration asks for; PEFT would take one name as a regular expression."""
    one = isinstance(config.lora_targets, str) and config.lora_targets.isidentifier()
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=[config.lora_targets] if one else config.lora_targets,
        use_dora=config.dora,
        use_rslora=config.rslora,
        task_type="CAUSAL_LM",
    )


def attach(model: PreTrainedModel, lora: LoraConfig, rows: list[int], seed: int) -> PeftModel:
    """The model with adapters; `rows` of its embeddings, and of a head of its own, are trained and saved with them.

    Raises ValueError for a target that the model lacks, and for what PEFT computes wrongly: rows of a head with a bias,
    and DoRA on 8 bits on a CPU.
    """
    modules = dict(model.named_modules())
    check_targets(lora.target_modules or [], modules)
    if lora.use_dora and getattr(model, "is_loaded_in_8bit", False) and model.device.type == "cpu":
        raise ValueError(
            "DoRA on weights of 8 bits: PEFT loses their scales on a CPU; take bits=4, or dora=False"
        )
    if rows and not lora.trainable_token_indices:
        embeddings, head, lora = (
            model.get_input_embeddings(),
            model.get_output_embeddings(),
            copy.deepcopy(lora),
        )
        layers = {embeddings} if head.weight is embeddings.weight else {embeddings, head}
        if head in layers and getattr(head, "bias", None) is not None:
            raise ValueError(
                f"{type(model).__name__}: its head has a bias, which PEFT leaves out where rows of it train, and the "
                f"tokens {rows} are new: take method='full', or a tokenizer that has the think tags"
            )
        lora.trainable_token_indices = {
            name: rows for name, module in modules.items() if module in layers
        }
    with torch.random.fork_rng(), without_old_torchao():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, lora)
    # PEFT would save all rows of embeddings that were resized
    adapted.save_pretrained = functools.partial(
        adapted.save_pretrained, save_embedding_layers=False
    )
    return adapted


@contextmanager
def without_old_torchao() -> Iterator[None]:
    """Within, PEFT passes over a torchao older than it supports, as Colab's: it raises where an adapter meets a plain
    layer, to ask whether the layer's weights are torchao's, which none are here."""
    asked = peft_torchao.is_torchao_available
    try:
        asked()
    except ImportError:
        peft_torchao.is_torchao_available = lambda: False
    try:
        yield
    finally:
        peft_torchao.is_torchao_available = asked


def check_targets(targets: str | list[str] | set[str], modules: dict[str, torch.nn.Module]) -> None:
    """Raises ValueError for a target that fits no layer. PEFT takes a string as a regular expression, and passes over
    what a list has too much."""
    kinds = (torch.nn.Linear, Conv1D)
    for target in [targets] if isinstance(targets, str) else targets:
        name = re.compile(target if isinstance(targets, str) else rf"(.*\.)?{re.escape(target)}")
        if target != "all-linear" and not any(map(name.fullmatch, modules)):
            ends = sorted(
                {
                    name.rpartition(".")[2]
                    for name, module in modules.items()
                    if isinstance(module, kinds)
                }
            )
            raise ValueError(
                f"LoRA target {target!r}: the model has no such layer; did you mean "
                f"{get_close_matches(target, ends, 1, 0)[0]!r}? Its linear layers end in {', '.join(ends)}; or take "
                "'all-linear'"
            )


def add_tag_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Makes the think tags single tokens; the ids whose rows no model has trained, for which there are rows now."""
    before = set(tokenizer.get_vocab().values())
    tags = add_tags(tokenizer)
    ids, rows = tokenizer.get_vocab(), len(model.get_input_embeddings().weight)
    resize(model, max(ids.values()) + 1)
    if new := [tag for tag in tags if ids[tag] not in before]:
        print(
            f"{tokenizer.name_or_path}: {' and '.join(new)} were no tokens; added, and their rows train"
        )
    return sorted({ids[tag] for tag in tags} | {token for token in ids.values() if token >= rows})


def resize(model: PreTrainedModel, rows: int) -> None:
    """Gives the embeddings so many rows where they have less: each the mean of the others, so the same in a reload."""
    before = len(model.get_input_embeddings().weight)
    if rows <= before:
        return
    with torch.random.fork_rng():
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for parameter in layer.parameters():
                parameter[before:] = parameter[:before].float().mean(0).to(parameter.dtype)
