"""Model and tokenizer: the embedded one, one from the Hub, or one from a run folder, made ready for what is trained."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
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

from .adapters import add_tag_rows, attach, lora_config, resize, without_old_torchao
from .config import ModelConfig
from .freezing import freeze_parts
from .hardware import choose_attention, choose_dtype, detect

TINY = Path(__file__).parents[1] / "tiny" / "model"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
RECORD = (
    "btsft_base.json"  # beside an adapter: the base model's name, and how its weights were loaded
)
_NO_PICKLES = (
    "weights in other files (.bin, .pt) are pickles, which can run code when they are read, so they are not: convert "
    "them where you trust them, with save_pretrained of the library that wrote them, or take another copy of the model"
)
_METHODS = {
    (True, False): "qlora",
    (True, True): "qlora",
    (False, True): "lora",
    (False, False): "full",
}


def load_model(
    name: str | Path | ModelConfig,
    *,
    qlora: bool = False,
    lora: LoraConfig | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    With adapters or a ModelConfig it is made to be trained: think tags that the tokenizer would split become tokens,
    and their rows of the embeddings train, too. Only safetensors are read, and no code that comes with a model is run.

    Args:
        name: "tiny" (embedded), the id of a model on the Hub, a model's folder, or a run folder: that loads the base
            model as it was when the adapter was trained, and the adapter on it. Or a ModelConfig, which says it all; of
            one that names a run folder only `device_map` and `max_memory` are taken.
        qlora: load the weights in 4 bits (NF4, double quantisation; QLoRA, https://arxiv.org/abs/2305.14314) and
            attach trainable LoRA layers. 8 bits, by ModelConfig: LLM.int8, https://arxiv.org/abs/2208.07339.
        lora: the LoRA layers to attach; by default those of ModelConfig where `qlora` is set, else none.
        seed: of the LoRA layers' random start.

    Raises:
        FileNotFoundError: no such model, or a folder without a model, its safetensors or a tokenizer.
        PermissionError: a model that the Hub gives to accounts that accepted its licence.
        ValueError: `qlora` or `lora` on a run folder or beside a ModelConfig, which have their own; what the hardware
            cannot do; a LoRA target, a part or a layer that the model lacks.
    """
    config = (
        name
        if isinstance(name, ModelConfig)
        else ModelConfig(str(name), method=_METHODS[qlora, lora is not None])
    )
    run = Path(config.model, "adapter_config.json").is_file()
    if (run or config is name) and (qlora or lora):
        whose = "a run folder with" if run else "a ModelConfig has"
        raise ValueError(f"{config.model}: {whose} its own adapter; load it without qlora and lora")
    if run:
        where = {"device_map": config.device_map, "max_memory": config.max_memory}
        return load_run(config.model, trainable=config is name, **where)
    tokenizer = load_tokenizer(config.tokenizer or config.model)
    trained = config is name or config.method != "full"
    model = _load_base(config.model, config, trained)
    rows = add_tag_rows(model, tokenizer) if trained else []
    if config.method != "full":
        return attach(model, lora or lora_config(config), rows, seed), tokenizer
    if config.freeze or config.layers_not_to_freeze:
        freeze_parts(model, config.freeze, config.layers_not_to_freeze)
    if rows and not model.get_input_embeddings().weight.requires_grad:
        raise ValueError(
            f"freeze={config.freeze}: the tokens {rows} are new, so their embeddings have to train"
        )
    return model, tokenizer


def load_run(
    folder: str | Path, *, dequantize: bool = False, trainable: bool = False, **where
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The model of a run folder as it was trained, its adapter on its base; and its tokenizer.

    Args:
        dequantize: with the numbers that its quantised weights stand for, in the type that the model computed in.
        trainable: whether the adapter is to be trained on.
        where: device_map and max_memory.
    """
    run = read_base(folder)
    if not Path(folder, "adapter_model.safetensors").is_file():
        raise FileNotFoundError(f"{folder}: no adapter_model.safetensors; {_NO_PICKLES}")
    if run["dtype"] == "bfloat16" and not detect().bf16:
        run["dtype"] = "auto"
    if run["attention"] == "flash_attention_2" and (
        detect().capability < (8, 0) or find_spec("flash_attn") is None
    ):
        print(
            f"{folder} was trained with flash_attention_2, which is not here: attention is chosen anew"
        )
        run["attention"] = "auto"
    same = {name: run[name] for name in ("bits", "dtype", "attention")}
    config = ModelConfig(
        run["base_model"], method="qlora" if run["qlora"] else "lora", **same, **where
    )
    model = _load_base(config.model, config, True)
    if dequantize and run["qlora"]:
        model = model.dequantize(model.config.dtype)
        model.is_loaded_in_4bit = model.is_loaded_in_8bit = (
            False  # which transformers leaves as they were
        )
    resize(model, run["embedding_rows"])
    with without_old_torchao():
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    return adapted.eval(), load_tokenizer(folder)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of "tiny", a Hub id or a folder; one without a padding token pads with its end token."""
    path = resolve(name)
    if os.path.isdir(path) and not any((Path(path) / file).is_file() for file in _TOKENIZER_FILES):
        raise FileNotFoundError(
            f"{name}: the folder has no tokenizer; one of {', '.join(_TOKENIZER_FILES)} wanted"
        )
    with explained(name):
        tokenizer = _as_its_file_says(
            AutoTokenizer.from_pretrained(path, trust_remote_code=False), path
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ValueError(
            f"{name}: the tokenizer has neither a padding nor an end token, and a completion has to end; give it one "
            "with tokenizer.eos_token = ..., save it with tokenizer.save_pretrained(folder), and name that folder"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def explained(name: str | Path) -> Iterator[None]:
    """Within, an error of the Hub or of transformers says what to do."""
    try:
        yield
    except OSError as error:
        cause, status = error, None
        while cause is not None and not (
            isinstance(cause, HfHubHTTPError) and cause.response is not None
        ):
            cause = cause.__cause__ or cause.__context__
        if cause is not None and (
            isinstance(cause, GatedRepoError) or not isinstance(cause, RepositoryNotFoundError)
        ):
            status = cause.response.status_code
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise  # of the disk that it is written to, and says so
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
    record = {"base_model": name, "qlora": bits is not None} | ({"bits": bits} if bits else {})
    record |= {"dtype": _name(base.config.dtype), "attention": base.config._attn_implementation}
    record["embedding_rows"] = len(base.get_input_embeddings().weight)
    Path(folder, RECORD).write_text(json.dumps(record, indent=2) + "\n")
    config_file = Path(folder, "adapter_config.json")
    config = json.loads(config_file.read_text()) | {"base_model_name_or_path": name}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_base(folder: str | Path) -> dict:
    """What stands beside an adapter: `base_model`, `qlora`, and how its weights were loaded.

    Raises FileNotFoundError where the folder holds an adapter that another tool made, or none.
    """
    file = Path(folder, RECORD)
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder}: no {RECORD}, so this is no run of btsft_nb; load another tool's adapter with peft, on its base"
        )
    return {"bits": 4, "dtype": "auto", "attention": "auto", "embedding_rows": 0} | json.loads(
        file.read_text()
    )


def resolve(name: str | Path) -> str:
    """The path of the embedded model for "tiny", else the name."""
    return str(TINY) if str(name) == "tiny" else str(name)


def _load_base(name: str, config: ModelConfig, trained: bool) -> PreTrainedModel:
    """The weights; says what was chosen for a model that is to be trained."""
    path, hardware = resolve(name), detect()
    if os.path.isdir(path) and not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"{name}: the folder has no config.json, so it holds no model")
    kind, reason = choose_dtype(config.dtype, hardware, config.method if trained else None)
    options = {
        "dtype": kind,
        "attn_implementation": choose_attention(config.attention, hardware, kind),
    }
    if config.device_map is not None or hardware.device == "cuda":
        options["device_map"] = config.device_map or {"": int(os.environ.get("LOCAL_RANK", 0))}
    if config.max_memory:  # JSON has no numbers for keys
        options["max_memory"] = {
            int(k) if str(k).isdecimal() else k: most for k, most in config.max_memory.items()
        }
    if config.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=config.bits == 4,
            load_in_8bit=config.bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=kind,
        )
    with explained(name):
        model = AutoModelForCausalLM.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, **options
        )
    if trained and config.dtype == "auto":
        print(
            f"{name}: weights in {_name(kind)}: {reason}; attention: {model.config._attn_implementation}"
        )
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks a 4-bit layer the first time it runs without gradients, and
        # from then on computes in bfloat16 and passes no gradient on: training after sampling would learn nothing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # what is not quantised becomes float32, in training and when a run is reloaded: the same logits in both
    return prepare_model_for_kbit_training(model, False) if config.method == "qlora" else model


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")
