"""Model and tokenizer: the embedded one, one from the Hub, or one from a run folder, made ready to be trained."""

import json
import os
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..text import no_weight_bars
from .adapters import adapters_only, add_tag_rows, attach, lora_config, resize, without_old_torchao
from .config import ModelConfig
from .freezing import freeze_parts
from .hardware import check_bitsandbytes, choose_dtype, detect
from .tokenizer import load_tokenizer, resolve

BASE_FILE = "btsft_base.json"  # beside an adapter: its base model, and how the weights were loaded
_NO_PICKLES = "pickles can run code and are not read; save it as safetensors"


def load_model(
    name: str | Path | ModelConfig,
    *,
    qlora: bool = False,
    lora: LoraConfig | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    With adapters or a ModelConfig it is made ready to be trained: think tags that the tokenizer would split become
    tokens, and their rows of the embeddings train too. Only safetensors are read, and no code that comes with a model
    is run.

    Args:
        name: "tiny" (embedded), the id of a model on the Hub, a model's folder, or a run folder, which loads the base
            model as it was when the adapter was trained, and the adapter on it. Or a ModelConfig, which says it all; of
            one that names a run folder only `device_map` and `max_memory` are used.
        qlora: load the weights in 4 bits (NF4, double quantisation; QLoRA, https://arxiv.org/abs/2305.14314) and
            attach trainable LoRA layers. 8 bits, by ModelConfig: LLM.int8, https://arxiv.org/abs/2208.07339.
        lora: the LoRA layers to attach; by default those of ModelConfig if `qlora` is set, else none.
        seed: of the LoRA layers' random start.

    Raises:
        FileNotFoundError: no such model, or a folder without a model, its safetensors or a tokenizer.
        PermissionError: a model that the Hub gives to accounts that accepted its licence.
        ValueError: `qlora` or `lora` with a run folder or a ModelConfig, which have their own; what the hardware
            cannot do; a LoRA target, a part or a layer that the model lacks.

    >>> model, tokenizer = bt.load_model("tiny", qlora=True)
    >>> model.get_nb_trainable_parameters()
    (155648, 1001216)
    """
    config = name
    if not isinstance(name, ModelConfig):
        method = "qlora" if qlora else "full" if lora is None else "lora"
        config = ModelConfig(str(name), method=method)
    is_run = Path(config.model, "adapter_config.json").is_file()
    to_train = config is name or qlora or lora is not None
    if (is_run or config is name) and (qlora or lora):
        raise ValueError(f"{config.model} has its own adapter; load it without qlora and lora")
    if is_run:
        return load_run(
            config.model,
            trainable=config is name,
            device_map=config.device_map,
            max_memory=config.max_memory,
        )
    tokenizer = load_tokenizer(config.tokenizer or config.model)
    model = _load_base(config, to_train)
    rows = add_tag_rows(model, tokenizer) if to_train else []
    if config.method != "full":
        return attach(model, lora or lora_config(config), rows, seed), tokenizer
    if config.freeze or config.layers_not_to_freeze:
        freeze_parts(model, config.freeze, config.layers_not_to_freeze)
    if rows and not model.get_input_embeddings().weight.requires_grad:
        raise ValueError(f"freeze: the embeddings must train, since the tokens {rows} are new")
    return model, tokenizer


def load_run(folder, *, dequantize=False, trainable=False, **places):
    """The model of a run folder as it was trained, its adapter on its base, and its tokenizer.

    Args:
        dequantize: with the numbers that its quantised weights stand for, in the type that the model computed in.
        trainable: whether the adapter is to be trained on.
        places: `device_map` and `max_memory`, as in ModelConfig.
    """
    base = read_base(folder)
    _check_file(folder, "adapter_model.safetensors", _NO_PICKLES)
    if base["dtype"] == "bfloat16" and not detect().bf16:
        base["dtype"] = "auto"
    if base["attention"] == "flash_attention_2":
        base["attention"] = "auto"  # sdpa has the same kernels where the GPU can run them
    method = "qlora" if base["qlora"] else "lora"
    same = {name: base[name] for name in ("bits", "dtype", "attention")}
    config = ModelConfig(base["base_model"], method=method, **same, **places)
    model = _load_base(config, to_train=True)
    if dequantize and base["qlora"]:
        model = model.dequantize(model.config.dtype)
        model.is_loaded_in_4bit = False  # transformers leaves these as they were
        model.is_loaded_in_8bit = False
    resize(model, base["embedding_rows"])
    with without_old_torchao():
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    return adapters_only(adapted.eval()), load_tokenizer(folder)


def record_base(folder, model):
    """Writes beside a saved adapter what it takes to reload it."""
    base = model.get_base_model()
    is_8bit = getattr(base, "is_loaded_in_8bit", False)
    is_4bit = getattr(base, "is_loaded_in_4bit", False)
    record = {
        "base_model": base.config._name_or_path,
        "qlora": is_4bit or is_8bit,
        "bits": 8 if is_8bit else 4,
        "dtype": str(base.config.dtype).removeprefix("torch."),
        "attention": base.config._attn_implementation,
        "embedding_rows": len(base.get_input_embeddings().weight),
    }
    Path(folder, BASE_FILE).write_text(json.dumps(record, indent=2) + "\n")


def read_base(folder):
    """What stands beside an adapter: `base_model`, `qlora`, and how its weights were loaded.

    Raises:
        FileNotFoundError: the folder holds no adapter, or one of another tool.
    """
    _check_file(folder, BASE_FILE, "load adapters of other tools with peft")
    return json.loads(Path(folder, BASE_FILE).read_text())


def _check_file(folder, file, advice):
    if not Path(folder, file).is_file():
        raise FileNotFoundError(f"{folder}: no {file}; {advice}")


@no_weight_bars()
def _load_base(config, to_train):
    """The weights of a model, without adapters."""
    name = config.model
    path = resolve(name)
    if Path(path).is_dir():
        _check_file(path, "config.json", "name a model's folder")
    published = AutoConfig.from_pretrained(path, trust_remote_code=False).dtype
    dtype = choose_dtype(config.dtype, detect(), config.method if to_train else None, published)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            attn_implementation=None if config.attention == "auto" else config.attention,
            **_quantization_and_places(config, dtype),
        )
    except OSError as error:
        if "safetensors" in str(error):
            raise FileNotFoundError(f"{name}: no model.safetensors; {_NO_PICKLES}") from error
        raise
    # the embedded model goes by its name, not its path: PEFT, too, writes it down
    model.name_or_path = name
    model.config._name_or_path = name
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks a 4-bit layer the first time it runs without gradients, and
        # from then on computes in bfloat16 and passes no gradient on: training after sampling would learn nothing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if config.method == "qlora":
        # what is not quantised becomes float32, in training and in a reload: the same logits in both
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model


def _quantization_and_places(config, dtype):
    """What `from_pretrained` takes of them."""
    if config.method != "full":
        check_bitsandbytes(config.method)
    arguments = {"device_map": config.device_map}
    if config.device_map is None and torch.cuda.is_available():
        arguments["device_map"] = {"": int(os.environ.get("LOCAL_RANK", 0))}
    if config.max_memory:
        # JSON has no numbers for keys, which GPUs go by
        arguments["max_memory"] = {
            int(key) if str(key).isdecimal() else key: memory
            for key, memory in config.max_memory.items()
        }
    if config.method == "qlora":
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=config.bits == 4,
            load_in_8bit=config.bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return arguments
