"""A run's model as any library reads it: adapter and base in one, and both kinds on the Hub."""

import os
from pathlib import Path

import torch
from huggingface_hub import HfApi
from transformers import AutoConfig

from ..data.render import Renderer, stop_ids
from ..models.keys import load_secrets
from ..models.load import load_run, read_base, resolve
from .card import model_card
from .run import Run

_PUSHED = (
    *(
        "*.safetensors",
        "*.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "adapter_config.json",
    ),
    *(
        "tokenizer*",
        "*tokens*.json",
        "*.jinja",
        "vocab.*",
        "merges.txt",
        "spiece.model",
        "tekken.json",
    ),
    *("README.md", "settings.yaml", "training_config.json", "btsft_base.json"),
)


def merge(run: str | Path, folder: str | Path, *, dtype: str = "auto") -> Path:
    """Writes a run's model with its adapter merged in: safetensors, tokenizer with template, generation settings, card.

    `AutoModelForCausalLM.from_pretrained(folder)` then gives what the adapter on its base gave, but for rounding to
    `dtype`. An adapter was trained on quantised weights where the run was: those are what it is merged into. (LLM.int8
    rounds what goes into a layer, too, which a merged model does not.)

    Args:
        run: a run folder with an adapter; one with a whole model is what this makes.
        dtype: float32, bfloat16, float16, or auto: what the base was published in.

    Raises FileNotFoundError where `run` has no adapter, FileExistsError where `folder` holds something else.
    """
    folder, base = Path(folder), read_base(run)["base_model"]
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder for the merged model")
    kind = (
        getattr(torch, dtype)
        if dtype != "auto"
        else AutoConfig.from_pretrained(resolve(base)).dtype
    )
    model, tokenizer = load_run(run, dequantize=True)
    model = model.merge_and_unload(safe_merge=True).to(kind or torch.float32)
    stops = stop_ids(model, Renderer(tokenizer))  # the end of a turn, too
    model.generation_config.update(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model_card(Run(run), folder).save(folder / "README.md")
    return folder


def push(folder: str | Path, repo: str, *, private: bool = True) -> str:
    """Uploads a run's final adapter or model, or a merged one, to the Hub: its own files, no checkpoint, no pickle.

    The token is HF_TOKEN, see `load_secrets`, and may write. Returns the commit's address.

    Args:
        repo: "name" or "account/name"; made where there is none.
        private: whether only the account may read it.

    Raises FileNotFoundError for a folder without weights, ValueError for a missing token or a repository that is public
    where `private` was asked.
    """
    load_secrets()
    folder, token = Path(folder), os.environ.get("HF_TOKEN")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder}: no *.safetensors in it, so nothing to push; name a run or a merged model"
        )
    if not token:
        raise ValueError(
            "HF_TOKEN is not set: make a token that may write at https://huggingface.co/settings/tokens"
        )
    api = HfApi(token=token)
    repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo).private:
        raise ValueError(
            f"{repo} is there already, and public: take another name, or private=False"
        )
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        allow_patterns=_PUSHED,
        ignore_patterns=["*/*"],
        commit_message="btsft_nb",
    )
    return commit.commit_url
