"""Freezing by part: which parameters of a causal language model are its embeddings, norms, attention and so on."""

import re

from torch import nn

from ..checks import check_choice

PARTS = ("embeddings", "norms", "attention", "feed_forward", "other")


def freeze_parts(model, parts, layers_not_to_freeze=()):
    """Freezes the parameters of `parts`, except in the decoder layers given, which count from 0.

    Embeddings are those of tokens and positions, and the head. Norms include those within attention.

    Raises:
        ValueError: an unknown part or layer, or layers without parts.
    """
    located = list(locate(model))
    layers = {layer for _, _, layer in located} - {None}
    for part in parts:
        check_choice("freeze", part, PARTS)
    for layer in layers_not_to_freeze:
        check_choice("layers_not_to_freeze", layer, tuple(sorted(layers)))
    if layers_not_to_freeze and not parts:
        raise ValueError("layers_not_to_freeze does nothing without freeze")
    for parameter, part, layer in located:
        parameter.requires_grad_(part not in parts or layer in layers_not_to_freeze)


def locate(model):
    """Of each parameter: itself, its part, and the number of its decoder layer, or None outside of these."""
    number = model.config.get_text_config().num_hidden_layers
    modules = dict(model.named_modules())
    # the outermost list of as many modules as the config says
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    layers = next((name for name in lists if len(modules[name]) == number), None)
    if layers is None:
        raise ValueError(f"{type(model).__name__} has no list of {number} decoder layers")
    ends = {model.get_input_embeddings(), model.get_output_embeddings()}
    for name, parameter in model.named_parameters():
        steps = name.split(".")
        path = [modules[".".join(steps[:end])] for end in range(1, len(steps))]
        match = re.fullmatch(rf"{re.escape(layers)}\.(\d+)\.(.*)", name)
        layer = int(match[1]) if match else None
        yield parameter, _part(path, match[2] if match else "", ends), layer


def _part(path, name, ends):
    """The part of a parameter, by the modules it is in and its name within the layer."""
    if any(isinstance(module, nn.Embedding) or module in ends for module in path):
        return "embeddings"
    if any("norm" in type(module).__name__.lower() for module in path):
        return "norms"
    if re.search("attn|attention", name, re.I):
        return "attention"
    if re.search(r"mlp|feed_?forward|ffn|\bfc|moe|expert|\bdense", name, re.I):
        return "feed_forward"
    return "other"
