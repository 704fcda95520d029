"""The file that samples go to as they are drawn: what is in it, and which model drew it."""

import json
from hashlib import blake2b
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel


def fingerprint(model: PreTrainedModel | PeftModel, adapters: bool) -> str:
    """Tells a model from another, and from itself before some training: up to 1,000 numbers of each parameter."""
    known = set(getattr(model, "peft_config", {}))  # names of adapters, which say nothing of them
    off = known - set(model.active_adapters if known and adapters else ())
    digest = blake2b(digest_size=12)
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if off.isdisjoint(parts):
            values = parameter.detach().flatten()
            digest.update(".".join(part for part in parts if part not in known).encode())
            digest.update(values[:: 1 + len(values) // 1000].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def read_samples(path: Path, keys: set[str]) -> dict[str, dict]:
    """The records of a file by key; a last line that was not written to its end is cut off.

    Raises ValueError for a line that is no record, or a record of another key than `keys`.
    """
    if not path.exists():
        return {}
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        with path.open("rb+") as file:
            file.truncate(end)
    records = {}
    for i, line in enumerate(whole[:end].decode().splitlines()):
        try:
            record = json.loads(line)
            records[record.pop("key")] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path}, line {i + 1}: no record of `sample`: {line[:60]!r}"
            ) from None
    if others := len(records.keys() - keys):
        raise ValueError(
            f"{path} holds {others} samples that this call would not draw: of another model, other prompts or "
            "another n, seed, temperature or max_new_tokens; delete it, or name another file"
        )
    return records


def append_samples(path: Path, records: dict[str, dict]) -> None:
    """Adds records, given by key, to a file, which is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record | {"key": key}) + "\n" for key, record in records.items())
