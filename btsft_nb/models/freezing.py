"""The parts of a causal language model: which parameter belongs to which, and freezing them."""

import re
from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn import Parameter
from transformers import PreTrainedModel

PARTS = ("embeddings", "norms", "attention", "feed_forward", "other")
_ATTENTION = re.compile(r"attn|attention", re.I)
_FEED_FORWARD = re.compile(r"mlp|feed_?forward|ffn|^fc|moe|expert|^dense", re.I)


def freeze_parts(
    model: PreTrainedModel, parts: Iterable[str], layers_not_to_freeze: Iterable[int] = ()
) -> None:
    """Leaves the parameters of `parts` without gradient, but for those of the decoder layers named, from 0.

    Embeddings are those of tokens and positions, and the head; norms are all of them, those within attention, too.

    Raises ValueError for a part or a layer that does not exist, a layer left out of nothing, or where nothing is left
    to train.
    """
    parts, kept, located = set(parts), set(layers_not_to_freeze), list(locate(model))
    if unknown := parts - set(PARTS):
        raise ValueError(f"freeze={sorted(unknown)}: unknown parts; known are {', '.join(PARTS)}")
    layers = {layer for *_, layer in located} - {None}
    if missing := kept - layers:
        raise ValueError(
            f"layers_not_to_freeze={sorted(missing)}: the model's layers are 0 to {max(layers)}"
        )
    if kept and not parts:
        raise ValueError(
            f"layers_not_to_freeze={sorted(kept)} without freeze: name the parts to freeze, {PARTS}"
        )
    for parameter, part, layer in located:
        parameter.requires_grad_(part not in parts or layer in kept)
    if not any(parameter.requires_grad for parameter, *_ in located):
        raise ValueError(
            f"freeze={sorted(parts)} leaves nothing to train; leave a part or a layer out of it"
        )


def locate(model: nn.Module) -> Iterator[tuple[Parameter, str, int | None]]:
    """Each parameter, with its part and the number of its decoder layer; None outside of them."""
    layers, modules = _layers(model), dict(model.named_modules())
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        names = name.split(".")
        path = [modules[".".join(names[:end])] for end in range(1, len(names))]
        layer = re.match(rf"{re.escape(layers)}\.(\d+)\.", name)
        if any(
            isinstance(module, nn.Embedding) or any(module is end for end in ends)
            for module in path
        ):
            part = "embeddings"
        elif any("norm" in type(module).__name__.lower() for module in path):
            part = "norms"
        else:
            inner = names[layers.count(".") + 2 :] if layer else []
            part = "attention" if any(map(_ATTENTION.search, inner)) else "other"
            if part == "other" and any(map(_FEED_FORWARD.search, inner)):
                part = "feed_forward"
        yield parameter, part, int(layer[1]) if layer else None


def _layers(model: nn.Module) -> str:
    """The name of the list of decoder layers: the outermost that has as many as the config says."""
    number = model.config.get_text_config().num_hidden_layers
    lists = (name for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    found = next((name for name in lists if len(model.get_submodule(name)) == number), None)
    if found is None:
        raise ValueError(
            f"{type(model).__name__} has no list of {number} decoder layers; not supported"
        )
    return found
