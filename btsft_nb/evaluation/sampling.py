"""Sampling completions: prompts -> records of what a model answers."""

import json
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import blake2b
from numbers import Integral
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import logits_process as lp
from transformers.utils.logging import tqdm

from ..checks import check_number
from ..data.errors import RowError
from ..data.fit import PromptFrame
from ..data.formats import to_prompt
from ..data.render import Renderer, stop_ids
from .sample_file import append_samples, model_digest, read_samples
from .scoring import eval_mode


@dataclass
class SamplingSettings:
    """How completions are drawn; all but `seed` as in transformers' `generate`.

    `temperature`: 0 takes the most likely token each time, whatever top_k and top_p. `top_k`, `top_p`: draw among the
    k most likely tokens; of those, among the fewest that hold a share p. `no_repeat_ngram_size`: 2 or more; no n-gram
    of this many tokens occurs twice in prompt and completion. `max_new_tokens`: a longer completion is cut off, and
    its record says so. `max_prompt_length`: tokens of a prompt; a longer one loses the start of its text, and how many
    did is logged. `batch_size`: completions drawn at once, in order of the prompts' lengths.

    Raises ValueError for a setting out of its range, by name.
    """

    n: int = 8
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    no_repeat_ngram_size: int | None = None
    max_new_tokens: int = 256
    max_prompt_length: int | None = None
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self):
        lowest = dict.fromkeys(
            ("n", "max_new_tokens", "batch_size", "top_k", "max_prompt_length"), 1
        )
        # n-grams of one token would ban the padding, which may be the token that ends a completion
        lowest |= {"seed": 0, "no_repeat_ngram_size": 2}
        for name, low in lowest.items():
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), low, math.inf, Integral)
        check_number("temperature", self.temperature, 0, math.inf)
        self.temperature = float(self.temperature)
        if self.top_p is not None:
            check_number("top_p", self.top_p, 0, 1)


@torch.no_grad()
def sample(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict | str],
    n: int = 8,
    *,
    adapters: bool = True,
    path: str | Path | None = None,
    progress: bool = True,
    **settings,
) -> list[dict]:
    """Samples `n` completions of each prompt, by default from the model's own distribution.

    Each token is drawn with a uniform number keyed by (seed, prompt, sample, position). So a completion does not depend
    on the batch that it is drawn in, except for the rounding of logits, and no global random state is touched.

    Args:
        prompts: rows, whose conversation up to the last assistant turn is used, or user messages as text.
        adapters: False samples the model under its adapters.
        path: a .jsonl file to which each batch is added as it is drawn. A call with the same model, prompts and
            settings continues where an earlier one was interrupted.
        progress: whether to show a bar.
        settings: temperature, max_new_tokens, seed and the others of `SamplingSettings`, which says what they mean:
            top_k, top_p, no_repeat_ngram_size, max_prompt_length, batch_size.

    Returns:
        A record for each completion, prompt by prompt: `prompt` (index), `sample` (index), `question` (the last turn),
        `text` (without the end of turn; its tags as `<think>` and `</think>`), `prefilled` (whether the prompt itself
        ends in an open think tag), `prompt_cut` (how many tokens it lost), `tokens` (how many, end of turn included)
        and `finished` (False: cut off).

    Raises:
        ValueError: a setting out of its range, or a file with records of another call.
        RowError: a malformed prompt, or one of whose text max_prompt_length leaves nothing.

    >>> model, tokenizer = bt.load_model("tiny")
    >>> question = "Ann has 2 pens and gets 3 more. How many pens does Ann have?"
    >>> record, = bt.sample(model, tokenizer, [question], n=1, temperature=0)
    >>> record["finished"], "</think>" in record["text"]
    (True, True)
    """
    if not adapters and not isinstance(model, PeftModel):
        raise ValueError("adapters=False: the model has no adapters to sample without")
    settings = SamplingSettings(n, **settings)
    renderer = Renderer(tokenizer)
    jobs = sampling_jobs(renderer, prompts, settings, model_digest(model, adapters) if path else "")
    records = read_samples(Path(path), {job.key for job in jobs}) if path else {}
    left = [job for job in jobs if job.key not in records]
    left.sort(key=lambda job: len(job.ids))
    bar = tqdm(total=len(jobs), initial=len(records), desc="sampling", disable=not progress)
    with bar, eval_mode(model), nullcontext() if adapters else model.disable_adapter():
        for start in range(0, len(left), settings.batch_size):
            batch = left[start : start + settings.batch_size]
            drawn = _generate(model, renderer, batch, settings)
            if path:
                append_samples(Path(path), drawn)
            records |= drawn
            bar.update(len(drawn))
    return [records[job.key] for job in jobs]


class _Job(NamedTuple):
    """A completion to draw."""

    key: str  # tells it from every other in a file of records
    ids: list[int]  # of the prompt
    record: dict  # what is known before it is drawn


def sampling_jobs(
    renderer: Renderer,
    prompts: Sequence[dict | str],
    settings: SamplingSettings,
    model_key: str = "",
) -> list[_Job]:
    """All completions that `sample` has to draw. Raises RowError as `sample` does."""
    # more samples, or other batches, do not change those that are there
    fixed = asdict(settings) | {"n": None, "batch_size": None}
    limit = settings.max_prompt_length
    frame = PromptFrame(renderer) if limit else None
    jobs = []
    n_cut = 0
    for i, prompt in enumerate(prompts):
        try:
            messages = to_prompt(prompt)
            whole = renderer.prompt_ids(messages)
            ids = frame.shorten(whole, limit) if limit else whole
        except RowError as error:
            raise error.at(getattr(prompts, "source", "prompts"), i) from None
        n_cut += len(ids) < len(whole)
        record = {
            "prompt": i,
            "question": messages[-1].text,
            "prefilled": renderer.opens(renderer.tokenizer.decode(ids[-8:])),
            "prompt_cut": len(whole) - len(ids),
        }
        for k in range(settings.n):
            content = json.dumps([model_key, fixed, whole, i, k])
            key = blake2b(content.encode(), digest_size=12).hexdigest()
            jobs.append(_Job(key, ids, record | {"sample": k}))
    if n_cut:
        logging.getLogger(__name__).warning_once(
            f"max_prompt_length={limit}: {n_cut} of {len(prompts)} prompts were cut"
        )
    return jobs


class _Draw(lp.LogitsProcessor):
    """Leaves one token to each row: the first whose cumulative probability exceeds the row's uniform number."""

    def __init__(self, jobs: list[_Job], settings: SamplingSettings, device: torch.device):
        draws = []
        for job in jobs:
            number = (job.record["prompt"] << 32) + job.record["sample"]
            philox = np.random.Philox(key=np.array([settings.seed, number], np.uint64))
            draws.append(np.random.Generator(philox).random(settings.max_new_tokens))
        self.draws = torch.from_numpy(np.stack(draws)).to(device)  # (B, max_new_tokens)
        self.prompt_length = max(len(job.ids) for job in jobs)
        self.warpers = lp.LogitsProcessorList()
        self.warpers.append(lp.TemperatureLogitsWarper(settings.temperature))
        if settings.top_k is not None:
            self.warpers.append(lp.TopKLogitsWarper(settings.top_k))
        if settings.top_p is not None:
            self.warpers.append(lp.TopPLogitsWarper(settings.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # in float64, since a vocabulary has many small probabilities to add up
        cumulative = self.warpers(input_ids, scores.double()).softmax(-1).cumsum(-1)  # (B, V)
        step = input_ids.shape[1] - self.prompt_length
        draw = self.draws[:, step, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, draw, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def _generate(
    model: PreTrainedModel | PeftModel,
    renderer: Renderer,
    jobs: list[_Job],
    settings: SamplingSettings,
) -> dict[str, dict]:
    """The records of some jobs by key."""
    tokenizer = renderer.tokenizer
    prompts = {"input_ids": [job.ids for job in jobs]}
    padded = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(model.device)
    stops = stop_ids(model, renderer)
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        no_repeat_ngram_size=settings.no_repeat_ngram_size or 0,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    processors = lp.LogitsProcessorList()
    if settings.temperature > 0:
        processors.append(_Draw(jobs, settings, model.device))
    # In place of the model's own, which would fill what ours leaves open: a repetition penalty, say.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with patch.object(base, "generation_config", config):
        output = model.generate(**padded, logits_processor=processors)
    records = {}
    completions = output[:, padded["input_ids"].shape[1] :].tolist()
    for job, ids in zip(jobs, completions, strict=True):
        text, stop = renderer.read(ids, stops)
        n_tokens = len(ids) if stop is None else stop + 1
        drawn = {"text": text, "tokens": n_tokens, "finished": stop is not None}
        records[job.key] = job.record | drawn
    return records
