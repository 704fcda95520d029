"""What cannot be trained, refused before anything is built."""

from collections.abc import Sequence

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from .config import BTSFTConfig

_COLUMNS = {"id", "input_ids", "weights", "kinds"}


def check_trainable(
    model: PreTrainedModel,
    config: BTSFTConfig,
    ref_model: PreTrainedModel | None,
    data_sets: Sequence[Dataset | None],
    tag_ids: Sequence[int],
) -> None:
    """Raises ValueError if model, reference, data sets and configuration do not go together."""
    for data in data_sets:
        missing = _COLUMNS - set(data.column_names) if data is not None else None
        if missing:
            raise ValueError(f"the data set lacks the columns {sorted(missing)}; prepare makes it")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("nothing to train: load the model with qlora=True or lora=LoraConfig(...)")
    rows = model.get_input_embeddings().weight.shape[0]
    if max(tag_ids) >= rows:
        raise ValueError(f"the model has {rows} token rows, too few for the think tags {tag_ids}")
    if ref_model is not None:
        _check_reference(model, config, ref_model)
    elif config.is_anchored and not isinstance(model, PeftModel):
        raise ValueError(
            f"anchor={config.anchor} needs a reference: load the model with adapters "
            "(qlora=True or lora=...), pass ref_model, or set anchor=0"
        )


def _check_reference(model, config: BTSFTConfig, ref_model) -> None:
    if not config.anchor:
        raise ValueError("ref_model without an anchor does nothing: set anchor or leave it out")
    ours = model.config.get_text_config()
    theirs = ref_model.config.get_text_config()
    for name in ("vocab_size", "hidden_size"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"ref_model has {name}={getattr(theirs, name)}, the model {getattr(ours, name)}"
            )
