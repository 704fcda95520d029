"""Freezing by part: which parameters of a causal language model are its embeddings, norms, attention and so on."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

PARTS = ("embeddings", "norms", "attention", "feed_forward", "other")
_ATTENTION = re.compile(r"attn|attention", re.I)
_FEED_FORWARD = re.compile(r"mlp|feed_?forward|ffn|^fc|moe|expert|^dense", re.I)


class Located(NamedTuple):
    """A parameter, its part, and the number of its decoder layer, if it is in one."""

    parameter: nn.Parameter
    part: str
    layer: int | None


def freeze_parts(
    model: PreTrainedModel, parts: Iterable[str], layers_not_to_freeze: Iterable[int] = ()
) -> None:
    """Freezes the parameters of `parts`, except in the decoder layers given, which count from 0.

    Embeddings are those of tokens and positions, and the head. Norms include those within attention.

    Raises:
        ValueError: an unknown part or layer, layers without parts, or nothing left to train.
    """
    parts = set(parts)
    layers_not_to_freeze = set(layers_not_to_freeze)
    located = list(locate(model))
    layers = {entry.layer for entry in located} - {None}
    if not parts <= set(PARTS):
        raise ValueError(f"freeze: {sorted(parts)} must be parts of {', '.join(PARTS)}")
    if not layers_not_to_freeze <= layers:
        raise ValueError(
            f"layers_not_to_freeze: {sorted(layers_not_to_freeze)} must be from 0 to {max(layers)}"
        )
    if layers_not_to_freeze and not parts:
        raise ValueError("layers_not_to_freeze does nothing without freeze")
    for parameter, part, layer in located:
        parameter.requires_grad_(part not in parts or layer in layers_not_to_freeze)
    if not any(entry.parameter.requires_grad for entry in located):
        raise ValueError(f"freeze={sorted(parts)} leaves nothing to train")


def locate(model: nn.Module) -> Iterator[Located]:
    """Each parameter with its part and layer."""
    layers = _layers(model)
    in_layer = re.compile(rf"{re.escape(layers)}\.(\d+)\.(.*)")
    modules = dict(model.named_modules())
    ends = {model.get_input_embeddings(), model.get_output_embeddings()}
    for name, parameter in model.named_parameters():
        names = name.split(".")
        path = [modules[".".join(names[:end])] for end in range(1, len(names))]
        match = in_layer.match(name)
        yield Located(
            parameter,
            part=_part(path, match[2].split(".") if match else [], ends),
            layer=int(match[1]) if match else None,
        )


def _part(path: list[nn.Module], names: list[str], ends: set[nn.Module]) -> str:
    """The part of a parameter, by the modules it is in and their names within the layer."""
    if any(isinstance(module, nn.Embedding) or module in ends for module in path):
        return "embeddings"
    if any("norm" in type(module).__name__.lower() for module in path):
        return "norms"
    if any(map(_ATTENTION.search, names)):
        return "attention"
    if any(map(_FEED_FORWARD.search, names)):
        return "feed_forward"
    return "other"


def _layers(model: nn.Module) -> str:
    """The name of the list of decoder layers: the outermost with as many as the config says."""
    number = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return name
    raise ValueError(f"{type(model).__name__} has no list of {number} decoder layers")
