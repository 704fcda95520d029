"""The .jsonl file that samples go to as they are drawn: what it holds, and which model drew it."""

import json
import os
from hashlib import blake2b
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel


def model_digest(model: PreTrainedModel | PeftModel, adapters: bool) -> str:
    """Tells a model from others, and from itself before some training, by up to 1,000 numbers of each parameter."""
    off = set(getattr(model, "peft_config", {}))
    if off and adapters:
        off -= set(model.active_adapters)
    digest = blake2b(digest_size=12)
    for name, parameter in model.named_parameters():
        if off.isdisjoint(name.split(".")):  # else it belongs to an adapter that is off
            values = parameter.detach().flatten()
            digest.update(values[:: 1 + len(values) // 1000].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def read_samples(path: Path, keys: set[str]) -> dict[str, dict]:
    """The records of a file by key; a last line that was not written to its end is cut off.

    Raises ValueError for a file of anything else, or with a record whose key is not in `keys`.
    """
    if not path.exists():
        return {}
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    try:
        lines = [json.loads(line) for line in content[:end].splitlines()]
        records = {record.pop("key"): record for record in lines}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds other lines than those of `sample`") from error
    others = len(records.keys() - keys)
    if others:
        raise ValueError(
            f"{path} holds {others} samples of another model, other prompts or other settings; "
            "delete it, or name another file"
        )
    os.truncate(path, end)
    return records


def append_samples(path: Path, records: dict[str, dict]) -> None:
    """Adds records, given by key, to a file, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for key, record in records.items():
            file.write(json.dumps(record | {"key": key}) + "\n")
