"""Model and tokenizer: the embedded one, one from the Hub, or one from a run folder, made ready for what is trained."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from .adapters import add_tag_rows, attach, lora_config, resize
from .config import ModelConfig
from .hardware import choose_attention, choose_dtype, detect
from .parts import freeze_parts

TINY = Path(__file__).parent / "tiny" / "model"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_RECORD = "btsft_base.json"  # beside an adapter: the base model's name, and how its weights were loaded
_NO_PICKLES = (
    "weights in other files (.bin, .pt) are pickles, which can run code when they are read, so they are not: convert "
    "them where you trust them, with save_pretrained of the library that wrote them, or take another copy of the model"
)
_SAME = ("bits", "tokenizer", "dtype", "attention", "device_map", "max_memory", "freeze", "layers_not_to_freeze")


def load_model(
    name: str | Path | ModelConfig,
    *,
    qlora: bool = False,
    bits: int = 4,
    lora: LoraConfig | None = None,
    full: bool = False,
    tokenizer: str | Path | None = None,
    dtype: str = "auto",
    attention: str = "auto",
    device_map: str | dict | None = None,
    max_memory: dict | None = None,
    freeze: Sequence[str] = (),
    layers_not_to_freeze: Sequence[int] = (),
    seed: int = 0,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    Loaded to be trained, it gets the think tags that its tokenizer would split: as tokens, whose rows train and are
    saved, too. What `auto` chose is printed. Weights come from safetensors, and no code comes with a model.

    Args:
        name: "tiny" (embedded), the id of a model on the Hub, a model's folder, or a run folder: that loads the base
            model as it was when the adapter was trained, and the adapter on it. Or a ModelConfig, with `seed` at most.
        qlora: quantise the weights and attach trainable LoRA layers (QLoRA, https://arxiv.org/abs/2305.14314).
        bits: of the quantised weights: 4 (NF4, double quantisation) or 8 (LLM.int8, https://arxiv.org/abs/2208.07339).
        lora: the LoRA layers to attach; by default rank 16 on all linear layers where `qlora` is set, else none.
        full, freeze, layers_not_to_freeze: train all weights, but for the parts that `parts.freeze_parts` freezes.
        tokenizer: where it is not the model's own: as `name`.
        dtype, attention: see `hardware`.
        device_map, max_memory: as accelerate's; by default the GPU of this process, or the CPU.
        seed: of the LoRA layers' random start.

    Raises:
        FileNotFoundError: no such model, or a folder without a model, its safetensors or a tokenizer.
        PermissionError: a model that the Hub gives to accounts that accepted its licence.
        ValueError: `qlora`, `lora` or `full` on a run folder, which has its own; settings that do not go together, or
            that the hardware cannot do; a LoRA target, a part or a layer that the model lacks.
    """
    given = locals()
    if isinstance(name, ModelConfig):
        if beside := [key for key, value in load_model.__kwdefaults__.items() if key != "seed" and given[key] != value]:
            raise ValueError(f"{', '.join(beside)}: to be set in the ModelConfig, not beside it")
        return load_model(name.model, **_options(name), seed=seed)
    where, adapted, full = {"device_map": device_map, "max_memory": max_memory}, bool(qlora or lora), full or freeze
    if Path(name, "adapter_config.json").is_file():
        if adapted or full:
            raise ValueError(f"{name} is a run folder with its own adapter; load it without qlora, lora and full")
        return load_run(name, **where)
    if adapted and full:
        raise ValueError("full or freeze with adapters, which leave all weights as they are: take one of the two")
    loaded = load_tokenizer(tokenizer or name)
    model = _load_base(str(name), bits if qlora else None, dtype, attention, adapted=adapted, full=full, **where)
    rows = add_tag_rows(model, loaded) if adapted or full else []
    if adapted:
        model = attach(model, lora or lora_config(ModelConfig(str(name))), rows, seed)
    if freeze:
        _freeze(model, freeze, layers_not_to_freeze, rows)
    return model, loaded


def load_run(folder: str | Path, *, dequantize: bool = False, **where) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The model of a run folder as it was trained, its adapter on its base; and its tokenizer.

    Args:
        dequantize: with the numbers that its quantised weights stand for, in the type that the model computed in.
        where: device_map and max_memory.
    """
    run = read_run(folder)
    if not Path(folder, "adapter_model.safetensors").is_file():
        raise FileNotFoundError(f"{folder}: no adapter_model.safetensors; {_NO_PICKLES}")
    dtype, bits = run.get("dtype", "auto"), run.get("bits", 4) if run["qlora"] else None
    if dtype == "bfloat16" and not detect().bf16:
        dtype = "auto"
    model = _load_base(run["base_model"], bits, dtype, run.get("attention", "auto"), adapted=True, **where)
    if dequantize and bits:
        model = model.dequantize(model.config.dtype)
    resize(model, run.get("rows", 0))
    return PeftModel.from_pretrained(model, folder).eval(), load_tokenizer(folder)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of "tiny", a Hub id or a folder; one without a padding token pads with its end token."""
    path = _resolve(name)
    if os.path.isdir(path) and not any((Path(path) / file).is_file() for file in _TOKENIZER_FILES):
        raise FileNotFoundError(f"{name}: the folder has no tokenizer; one of {', '.join(_TOKENIZER_FILES)} wanted")
    with _explained(name):
        tokenizer = _as_its_file_says(AutoTokenizer.from_pretrained(path, trust_remote_code=False), path)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ValueError(
            f"{name}: the tokenizer has neither a padding nor an end token, and a completion has to end; give it one "
            "with tokenizer.eos_token = ..., save it with tokenizer.save_pretrained(folder), and name that folder"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _explained(name: str | Path) -> Iterator[None]:
    """Within, an error of the Hub or of transformers says what to do."""
    try:
        yield
    except OSError as error:
        cause, status = error, None
        while cause is not None and not (isinstance(cause, HfHubHTTPError) and cause.response is not None):
            cause = cause.__cause__ or cause.__context__
        if cause is not None and (isinstance(cause, GatedRepoError) or not isinstance(cause, RepositoryNotFoundError)):
            status = cause.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"{name}: the Hub refuses it to this account (HTTP {status}). If its page asks to accept "
                f"a licence, https://huggingface.co/{name}, do so, and wait until access is granted. Make a token that "
                "may read it at https://huggingface.co/settings/tokens, and set HF_TOKEN to it before Python starts: "
                "in the environment, in .env, or in Colab's secrets"
            ) from error
        if "safetensors" in str(error):
            raise FileNotFoundError(f"{name}: no model.safetensors; {_NO_PICKLES}") from error
        raise FileNotFoundError(
            f"{name}: neither a folder nor a model that the Hub gave: check the spelling, the network, and access to "
            'gated models; "tiny" is the embedded one'
        ) from error


def _as_its_file_says(tokenizer: PreTrainedTokenizerBase, path: str) -> PreTrainedTokenizerBase:
    """The tokenizer, or tokenizer.json taken literally where the two disagree.

    transformers 5.15, which Colab has, rebuilds R1-Distill's byte-level tokenizer as a Llama one: other ids, no error.
    """
    file = cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    probe = " Two words,\n\t1234 caf\u00e9 <think>"
    ids = tokenizer.encode(probe, add_special_tokens=False)
    if file is None or Tokenizer.from_file(file).encode(probe, add_special_tokens=False).ids == ids:
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(path, trust_remote_code=False)


def record_base(folder: str | Path, model: PeftModel) -> None:
    """Write beside a saved adapter what it takes to reload it; the embedded model goes by its name, not its path."""
    base = model.get_base_model()
    name = base.config._name_or_path
    name = "tiny" if name == str(TINY) else name
    bits = next((bits for bits in (4, 8) if getattr(base, f"is_loaded_in_{bits}bit", False)), None)
    record = {"base_model": name, "qlora": bits is not None, "bits": bits}
    record |= {"dtype": _name(base.config.dtype), "attention": base.config._attn_implementation}
    record["rows"] = len(base.get_input_embeddings().weight)
    Path(folder, _RECORD).write_text(json.dumps(record, indent=2) + "\n")
    config_file = Path(folder, "adapter_config.json")
    config = json.loads(config_file.read_text()) | {"base_model_name_or_path": name}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_run(folder: str | Path) -> dict:
    """What a run folder holds: `base_model`, `qlora`, `bits`, `data`, `threshold`, `anchor`, `beta`, as far as it says.

    Raises FileNotFoundError where the folder holds an adapter that another tool made, or none.
    """
    folder = Path(folder)
    if not (folder / _RECORD).is_file():
        raise FileNotFoundError(
            f"{folder}: no {_RECORD}, so this is no run of btsft_nb; load another tool's adapter with peft, on its base"
        )
    run = json.loads((folder / _RECORD).read_text())
    for file, names in (("data_report.json", ["source"]), ("training_config.json", ["threshold", "anchor", "beta"])):
        if (folder / file).is_file():
            record = json.loads((folder / file).read_text())
            run |= {"data" if name == "source" else name: record[name] for name in names}
    return run


def _resolve(name: str | Path) -> str:
    return str(TINY) if str(name) == "tiny" else str(name)


def _load_base(
    name: str,
    bits: int | None,
    dtype: str = "auto",
    attention: str = "auto",
    *,
    adapted: bool,
    full: bool = False,
    device_map: str | dict | None = None,
    max_memory: dict | None = None,
) -> PreTrainedModel:
    path, hardware = _resolve(name), detect()
    if os.path.isdir(path) and not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"{name}: the folder has no config.json, so it holds no model")
    kind, reason = choose_dtype(dtype, hardware, adapted=adapted, full=full)
    options = {"dtype": kind, "attn_implementation": choose_attention(attention, hardware, kind)}
    if device_map is not None or hardware.device == "cuda":
        options["device_map"] = device_map or {"": int(os.environ.get("LOCAL_RANK", 0))}
    if max_memory:  # JSON has no numbers for keys
        options["max_memory"] = {int(key) if str(key).isdecimal() else key: most for key, most in max_memory.items()}
    if bits:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=kind,
        )
    with _explained(name):
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, trust_remote_code=False, **options)
    if dtype == "auto" and (adapted or full):
        print(f"{name}: weights in {_name(kind)}: {reason}; attention: {model.config._attn_implementation}")
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks a 4-bit layer the first time it runs without gradients, and
        # from then on computes in bfloat16 and passes no gradient on: training after sampling would learn nothing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # what is not quantised becomes float32, in training and when a run is reloaded: the same logits in both
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False) if bits else model


def _options(config: ModelConfig) -> dict:
    """What a configuration comes to, as arguments of `load_model`."""
    full, qlora = config.method == "full", config.method == "qlora"
    lora = None if full else lora_config(config)
    return {"qlora": qlora, "full": full, "lora": lora} | {key: getattr(config, key) for key in _SAME}


def _freeze(model: PreTrainedModel, parts: Sequence[str], kept: Sequence[int], rows: list[int]) -> None:
    freeze_parts(model, parts, kept)
    if rows and not model.get_input_embeddings().weight.requires_grad:
        raise ValueError(
            f"freeze={[*parts]}: the tokens {rows} are new, and would stay untrained; leave embeddings out"
        )


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")
