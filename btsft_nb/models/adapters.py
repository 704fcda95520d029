"""What is trained beside a model's own weights: LoRA layers, and embedding rows for tokens that are new."""

import copy
import logging
import re
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import torchao as peft_torchao

from ..data.tokens import add_tags


def lora_config(config):
    """The adapters that a configuration asks for."""
    targets = config.lora_targets
    # PEFT takes text as a regular expression, and only a list as names
    if isinstance(targets, str) and re.fullmatch(r"[\w.]+", targets):
        targets = [targets]
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        use_dora=config.dora,
        use_rslora=config.rslora,
        task_type="CAUSAL_LM",
    )


def attach(model, lora, rows, seed):
    """The model with adapters.

    Args:
        rows: of the embeddings, and of a head of its own: these train too, and are saved with the adapters.
        seed: of the adapters' random start.

    Raises:
        ValueError: a target that the model lacks, or what PEFT computes wrongly: rows of a head with a bias, and DoRA
            on 8 bits on a CPU.
    """
    _check_targets(lora, model)
    if lora.use_dora and getattr(model, "is_loaded_in_8bit", False) and model.device.type == "cpu":
        raise ValueError("dora: PEFT computes it wrongly in 8 bits on a CPU; use bits=4")
    if rows and not lora.trainable_token_indices:
        lora = copy.deepcopy(lora)
        lora.trainable_token_indices = dict.fromkeys(_embedding_names(model), rows)
    with torch.random.fork_rng(), without_old_torchao():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, lora)
    return adapters_only(adapted)


def adapters_only(adapted):
    """The same model, to be saved without its embeddings: PEFT would save all rows, or ask the Hub whether to."""
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def _embedding_names(model):
    """The modules with a row for each token: the embeddings, and the head unless it is tied to them."""
    layers = {model.get_input_embeddings()}
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        layers.add(head)
        if getattr(head, "bias", None) is not None:
            raise ValueError("PEFT drops the head's bias where new tags train; use method='full'")
    return [name for name, module in model.named_modules() if module in layers]


@contextmanager
def without_old_torchao():
    """Context manager in which PEFT ignores a torchao that is older than it supports, as Colab's is.

    PEFT raises where an adapter meets a plain layer, to ask whether its weights are torchao's. None are here.
    """
    is_available = peft_torchao.is_torchao_available
    try:
        is_available()
    except ImportError:
        peft_torchao.is_torchao_available = lambda: False
    try:
        yield
    finally:
        peft_torchao.is_torchao_available = is_available


def _check_targets(lora, model):
    """Raises ValueError for a name that fits no layer: PEFT itself does so only where none of all fits."""
    if isinstance(lora.target_modules, str):
        return
    names = [f".{name}" for name, _ in model.named_modules()]
    for target in lora.target_modules or []:
        if not any(name.endswith(f".{target}") for name in names):
            ends = [name.rpartition(".")[2] for name in names]
            close = get_close_matches(target, ends, n=1, cutoff=0)
            raise ValueError(f"LoRA target {target!r}: no such layer; did you mean {close[0]!r}?")


def add_tag_rows(model, tokenizer):
    """Makes the think tags single tokens, and gives the embeddings a row for every token.

    Returns:
        The ids whose rows no model has trained.
    """
    known = tokenizer.get_vocab()
    rows = len(model.get_input_embeddings().weight)
    tags = add_tags(tokenizer)
    ids = tokenizer.get_vocab()
    new = ids.keys() - known
    if new:
        text = f"{model.name_or_path}: added {sorted(new)}, whose rows train"
        logging.getLogger(__name__).warning(text)
    resize(model, max(ids.values()) + 1)
    return sorted({ids[tag] for tag in tags} | {token for token in ids.values() if token >= rows})


def resize(model, rows):
    """Adds rows to the embeddings up to a number. Each is the mean of the others, so the same in a reload."""
    before = len(model.get_input_embeddings().weight)
    if rows <= before:
        return
    with torch.random.fork_rng():
        model.resize_token_embeddings(rows, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for parameter in layer.parameters():
            parameter.data[before:] = parameter.data[:before].float().mean(0)
