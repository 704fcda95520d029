"""Model and tokenizer: the embedded one, one from the Hub, or one from a run folder; in 4 bits where asked."""

import json
import os
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
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

TINY = Path(__file__).parent / "tiny" / "model"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_RECORD = "btsft_base.json"  # beside an adapter: the base model's name, and whether it was in 4 bits


def load_model(
    name: str | Path, *, qlora: bool = False, lora: LoraConfig | None = None, seed: int = 0
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    Args:
        name: "tiny" (embedded), the id of a model on the Hub, a model's folder, or a run folder: that loads the base
            model as it was when the adapter was trained, and the adapter on it.
        qlora: load the weights in 4 bits (NF4, double quantisation; QLoRA, https://arxiv.org/abs/2305.14314) and
            attach trainable LoRA layers.
        lora: the LoRA layers to attach; by default rank 16 on all linear layers where `qlora` is set, else none.
        seed: of the LoRA layers' random start.

    Raises:
        FileNotFoundError: no such model, or a folder without a model or tokenizer.
        ValueError: `qlora` or `lora` on a run folder, which has its own.
    """
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        if qlora or lora:
            raise ValueError(f"{name} is a run folder with its own adapter; load it without qlora and lora")
        if not (folder / _RECORD).is_file():
            raise FileNotFoundError(
                f"{name}: no {_RECORD}, so this is no run of btsft_nb; load it with peft, on its base"
            )
        record = json.loads((folder / _RECORD).read_text())
        model = PeftModel.from_pretrained(_load_base(record["base_model"], record["qlora"], adapted=True), folder)
        return model.eval(), load_tokenizer(folder)
    tokenizer = load_tokenizer(name)
    model = _load_base(str(name), qlora, adapted=qlora or lora is not None)
    if qlora and not lora:
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    if lora:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = get_peft_model(model, lora)
    return model, tokenizer


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of "tiny", a Hub id or a folder; one without a padding token pads with its end token."""
    path = _resolve(name)
    if os.path.isdir(path) and not any((Path(path) / file).is_file() for file in _TOKENIZER_FILES):
        raise FileNotFoundError(f"{name}: the folder has no tokenizer; one of {', '.join(_TOKENIZER_FILES)} wanted")
    try:
        tokenizer = _as_its_file_says(AutoTokenizer.from_pretrained(path), path)
    except OSError as error:
        raise FileNotFoundError(
            f"{name}: neither a folder nor a model that the Hub gave: check the spelling, the network, and access to "
            'gated models; "tiny" is the embedded one'
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _as_its_file_says(tokenizer: PreTrainedTokenizerBase, path: str) -> PreTrainedTokenizerBase:
    """The tokenizer, or tokenizer.json taken literally where the two disagree.

    transformers 5.15, which Colab has, rebuilds R1-Distill's byte-level tokenizer as a Llama one: other ids, no error.
    """
    file = cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    probe = " Two words,\n\t1234 caf\u00e9 <think>"
    ids = tokenizer.encode(probe, add_special_tokens=False)
    if file is None or Tokenizer.from_file(file).encode(probe, add_special_tokens=False).ids == ids:
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(path)


def record_base(folder: str | Path, model: PeftModel) -> None:
    """Write beside a saved adapter what it takes to reload it; the embedded model goes by its name, not its path."""
    base = model.get_base_model()
    name = base.config._name_or_path
    name = "tiny" if name == str(TINY) else name
    record = {"base_model": name, "qlora": bool(getattr(base, "is_loaded_in_4bit", False))}
    Path(folder, _RECORD).write_text(json.dumps(record, indent=2) + "\n")
    config_file = Path(folder, "adapter_config.json")
    config = json.loads(config_file.read_text()) | {"base_model_name_or_path": name}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _resolve(name: str | Path) -> str:
    return str(TINY) if str(name) == "tiny" else str(name)


def _load_base(name: str, qlora: bool, adapted: bool) -> PreTrainedModel:
    path = _resolve(name)
    if os.path.isdir(path) and not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"{name}: the folder has no config.json, so it holds no model")
    cuda = torch.cuda.is_available()
    half = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    dtype = half if cuda and adapted else torch.float32  # weights that train themselves need float32
    options = {"dtype": dtype}
    if cuda:
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", 0))}
    if qlora:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(path, **options)
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks a 4-bit layer the first time it runs without gradients, and
        # from then on computes in bfloat16 and passes no gradient on: training after sampling would learn nothing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # what is not in 4 bits becomes float32, in training and when a run is reloaded: the same logits in both
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False) if qlora else model
