"""A run's model as any library reads it: adapter and base in one."""

from pathlib import Path

import torch
from transformers import AutoConfig

from ..checks import check_choice
from ..data.render import Renderer
from ..models.load import load_run, read_base
from ..models.tokenizer import resolve
from ..text import no_weight_bars
from .card import model_card
from .run import Run


@no_weight_bars()
def merge(run: str | Path, folder: str | Path, *, dtype: str = "auto") -> Path:
    """Writes a run's model with its adapter merged in: safetensors, tokenizer with template, generation settings, card.

    `AutoModelForCausalLM.from_pretrained(folder)` then gives what the adapter on its base gave, but for rounding to
    `dtype`. An adapter that was trained on quantised weights is merged into the numbers that those stand for. (LLM.int8
    also rounds what goes into a layer, which a merged model does not.)

    Args:
        run: a run folder with an adapter. One with a whole model is what this makes.
        folder: a new or empty folder.
        dtype: float32, bfloat16, float16, or auto: what the base was published in.

    Raises:
        FileNotFoundError: `run` has no adapter.
        FileExistsError: `folder` holds something else.
        ValueError: another `dtype`.

    >>> bt.merge("runs/mine", "merged", dtype="bfloat16")  # doctest: +SKIP
    PosixPath('merged')
    """
    check_choice("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    folder = Path(folder)
    base = read_base(run)["base_model"]
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder for the merged model")
    published = AutoConfig.from_pretrained(resolve(base)).dtype or torch.float32
    model, tokenizer = load_run(run, dequantize=True)
    model = model.merge_and_unload(safe_merge=True)
    model = model.to(published if dtype == "auto" else getattr(torch, dtype))
    # generation stops at the end of a turn, too
    model.generation_config.eos_token_id = Renderer(tokenizer).stop_ids(model)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model_card(Run(run), folder).save(folder / "README.md")
    return folder
