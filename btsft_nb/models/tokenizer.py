"""Where a model is, in the package, in a folder or on the Hub, and its tokenizer."""

from functools import partial
from pathlib import Path

from huggingface_hub import errors, hf_hub_download
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from .smollm2 import HUB_ID, INSTALL, smollm2

TINY = Path(__file__).parents[1] / "tiny" / "model"


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of "tiny", a Hub id or a folder. One without a padding token pads with its end token.

    Raises:
        FileNotFoundError: no such model, or a folder without a tokenizer.
        PermissionError: a model that the Hub gives to accounts that accepted its licence.
        ValueError: a tokenizer without an end token.

    >>> bt.load_tokenizer("tiny").tokenize("<think>2+2")
    ['<think>', '2', '+', '2']
    """
    path = resolve(name)
    # tokenizer_config.json alone would load as a tokenizer of some 20 tokens
    vocabularies = ("tokenizer.", "vocab.", "spiece.", "tekken.")
    files = [file.name for file in Path(path).glob("*")]
    if Path(path).is_dir() and not any(file.startswith(vocabularies) for file in files):
        raise FileNotFoundError(f"{name}: no tokenizer.json and no other vocabulary")
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    # transformers 5.15, which Colab has, rebuilds R1-Distill's byte-level tokenizer as a Llama one: other ids, no error
    file = cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    probe = " Two words,\n\t1234 caf\u00e9 <think>"
    ids = tokenizer.encode(probe, add_special_tokens=False)
    if file and Tokenizer.from_file(file).encode(probe, add_special_tokens=False).ids != ids:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"{name}: no end token; set tokenizer.eos_token, save, and load that")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained = partial(_save, tokenizer)
    return tokenizer


def _save(tokenizer, save_directory, *args, **kwargs):
    """As the tokenizer's save_pretrained, with what transformers 4 calls its class and its extra tokens."""
    files = type(tokenizer).save_pretrained(tokenizer, save_directory, *args, **kwargs)
    file = Path(save_directory, "tokenizer_config.json")
    text = file.read_text("utf-8")
    text = text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"')
    text = text.replace('"extra_special_tokens": [', '"additional_special_tokens": [')
    file.write_text(text, "utf-8")
    return files


def resolve(name):
    """The folder of a model, or its id on the Hub, which has been asked for it.

    Raises:
        FileNotFoundError: the Hub has no such model, or cannot be reached.
        PermissionError: it gives the model to accounts that accepted its licence.
    """
    name = str(name)
    if name == "tiny":
        return str(TINY)
    if name == "smollm2":
        name = smollm2()
    if Path(name).is_dir():
        return name
    try:
        hf_hub_download(name, "config.json")
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name}: the Hub refuses this account (HTTP {error.response.status_code}); accept "
            f"the licence at https://huggingface.co/{name}, and set HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError, FileNotFoundError) as error:
        advice = INSTALL if name == HUB_ID else "check spelling and network"
        raise FileNotFoundError(f"{name}: neither a folder nor on the Hub; {advice}") from error
    except errors.EntryNotFoundError:
        pass  # a tokenizer alone
    return name
