"""Sampling completions, and scoring the tokens of an example."""

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from hashlib import blake2b
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import logits_process as lp
from transformers.utils import logging

from ..checks import check_number
from ..data.fit import PromptFrame
from ..data.formats import to_prompt
from ..data.messages import RowError
from ..data.render import Renderer, stop_ids
from .sample_file import append_samples, fingerprint, read_samples

_OPTIONAL = dict.fromkeys(
    ("top_k", "no_repeat_ngram_size", "max_prompt_length"), (1, math.inf, Integral)
)
_OPTIONAL |= {"top_p": (0, 1, Real)}
_RANGES = dict.fromkeys(("n", "max_new_tokens", "batch_size"), (1, math.inf, Integral)) | _OPTIONAL
_RANGES |= {"seed": (0, math.inf, Integral), "temperature": (0, math.inf, Real)}


@torch.no_grad()
def sample(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict | str],
    n: int = 8,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    no_repeat_ngram_size: int | None = None,
    max_new_tokens: int = 256,
    max_prompt_length: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    adapters: bool = True,
    path: str | Path | None = None,
) -> list[dict]:
    """Samples `n` completions of each prompt, by default from the model's own distribution.

    Each token is drawn by a uniform number keyed by (seed, prompt, sample, position): what a completion says does not
    depend on the batch that it is in, but for the rounding of logits, and no global random state is touched.

    Args:
        prompts: rows, whose conversation up to the last assistant turn is used, or user messages as text.
        temperature: 0 takes the most likely token each time, whatever top_k and top_p.
        top_k, top_p: draw among the k most likely tokens; of those, among the fewest that hold a share p.
        no_repeat_ngram_size: no n-gram of so many tokens comes twice in prompt and completion. All of these as in
            transformers' `generate`, but that padding is in no n-gram.
        max_new_tokens: a completion longer than this is cut off, and says so.
        max_prompt_length: a longer prompt is cut as `fit` does with `shorten_prompt`; how many were is printed.
        batch_size: completions drawn at once, in order of the prompts' lengths.
        adapters: False samples the model under its adapters.
        path: a .jsonl file to which each batch is added when it is drawn. A call with the same model, prompts and
            settings goes on where an earlier one was interrupted.

    Returns:
        A record for each completion, prompt by prompt: `prompt` (index), `sample` (index), `question` (the last turn),
        `text` (without the end of turn; its tags as `<think>` and `</think>`), `prefilled` (whether the prompt itself
        ends in an open think tag), `prompt_cut` (how many tokens it lost), `tokens` (how many, end of turn included)
        and `finished` (False: cut off).

    Raises ValueError where the file holds other records than those of this call, or for a setting out of its range;
    RowError for a malformed prompt, or one that max_prompt_length leaves no text.
    """
    if not adapters and not isinstance(model, PeftModel):
        raise ValueError("adapters=False: the model has no adapters to sample without")
    how = dict(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        no_repeat_ngram_size=no_repeat_ngram_size,
        n=n,
    )
    how |= dict(
        seed=seed,
        max_new_tokens=max_new_tokens,
        max_prompt_length=max_prompt_length,
        batch_size=batch_size,
    )
    renderer = Renderer(tokenizer)
    jobs = sample_jobs(renderer, prompts, how, fingerprint(model, adapters) if path else "")
    records = read_samples(Path(path), {job.key for job in jobs}) if path else {}
    left = sorted((job for job in jobs if job.key not in records), key=lambda job: len(job.ids))
    bar = logging.tqdm(total=len(jobs), initial=len(records), desc="sampling", unit="completion")
    was_training = model.training
    model.eval()
    try:
        with bar, nullcontext() if adapters else model.disable_adapter():
            for start in range(0, len(left), batch_size):
                new = _generate(model, renderer, left[start : start + batch_size], how)
                if path:
                    append_samples(Path(path), new)
                records |= new
                bar.update(len(new))
    finally:
        model.train(was_training)
    return [records[job.key] for job in jobs]


def _check(settings: dict) -> None:
    """Raises ValueError, by name, for a setting of `sample` that is unknown or out of its range."""
    for name, value in settings.items():
        if name not in _RANGES:
            raise ValueError(
                f"{name}={value!r}: no setting of sampling; those are {', '.join(sorted(_RANGES))}"
            )
        if value is not None or name not in _OPTIONAL:
            check_number(name, value, *_RANGES[name])


class _Job(NamedTuple):
    """A completion to draw; `key` tells it from every other, in a file of records."""

    prompt: int
    sample: int
    ids: list[int]
    cut: int
    question: str
    key: str


class _Draw(lp.LogitsProcessor):
    """Leaves the token of each row that its draw picks: the first whose cumulative probability exceeds it.

    Args:
        draws: (B, max_new_tokens) float64 in [0, 1). start: the length of the prompts. warpers: what comes before.
    """

    def __init__(self, draws: torch.Tensor, start: int, warpers: lp.LogitsProcessorList):
        self.draws, self.start, self.warpers = draws, start, warpers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulative = self.warpers(input_ids, scores.double()).softmax(-1).cumsum(-1)  # (B, V)
        draw = self.draws[:, input_ids.shape[1] - self.start, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, draw, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class _NoRepeat(lp.LogitsProcessor):
    """Bans each row's n-grams of `size` tokens; padding, which ends at `starts`, is in none."""

    def __init__(self, size: int, starts: list[int]):
        self.ban, self.starts = lp.NoRepeatNGramLogitsProcessor(size), starts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = zip(input_ids, scores, self.starts, strict=True)
        return torch.cat([self.ban(ids[None, start:], own[None]) for ids, own, start in rows])


def sample_jobs(
    renderer: Renderer, prompts: Sequence[dict | str], settings: dict, mark: str = ""
) -> list[_Job]:
    """All that `sample` has to draw, by its settings; `mark` tells the model. Raises as `sample` does."""
    _check(settings)
    how = [
        mark,
        settings.get("seed"),
        float(settings.get("temperature", 1)),
        settings.get("max_new_tokens"),
    ]
    how += (
        [given]
        if (given := {name: settings[name] for name in _OPTIONAL if settings.get(name) is not None})
        else []
    )
    n, limit, jobs = settings["n"], settings.get("max_prompt_length"), []
    frame = PromptFrame(renderer) if limit else None
    for i, prompt in enumerate(prompts):
        try:
            messages = to_prompt(prompt)
            whole = renderer.prompt_ids(messages)
            ids = frame.shorten(whole, limit) if frame else whole
        except RowError as error:
            raise error.at(getattr(prompts, "source", "prompts"), i) from None
        for k in range(n):
            key = blake2b(json.dumps([how, whole, i, k]).encode(), digest_size=12).hexdigest()
            jobs.append(_Job(i, k, ids, len(whole) - len(ids), messages[-1].text, key))
    cut = [job for job in jobs if job.cut]
    if (
        cut and logging.is_progress_bar_enabled()
    ):  # a tracker, which samples again and again, turns bars off
        print(f"max_prompt_length={limit}: {len(cut) // n} of {len(jobs) // n} prompts cut")
    return jobs


def _generate(
    model: PreTrainedModel | PeftModel, renderer: Renderer, jobs: list[_Job], settings: dict
) -> dict[str, dict]:
    """The records of some jobs by key."""
    stops = stop_ids(model, renderer)
    ids, limit, pad = (
        [job.ids for job in jobs],
        settings["max_new_tokens"],
        renderer.tokenizer.pad_token_id,
    )
    padded = renderer.tokenizer.pad(
        {"input_ids": ids}, padding_side="left", return_tensors="pt"
    ).to(model.device)
    config = GenerationConfig(
        max_new_tokens=limit, eos_token_id=stops, pad_token_id=pad, do_sample=False
    )
    start, processors = padded["input_ids"].shape[1], lp.LogitsProcessorList()
    if size := settings["no_repeat_ngram_size"]:
        processors.append(_NoRepeat(size, [start - len(job.ids) for job in jobs]))
    if settings["temperature"] > 0:
        warpers = lp.LogitsProcessorList(
            [lp.TemperatureLogitsWarper(float(settings["temperature"]))]
        )
        if settings["top_k"] is not None:
            warpers.append(lp.TopKLogitsWarper(settings["top_k"]))
        if settings["top_p"] is not None:
            warpers.append(lp.TopPLogitsWarper(float(settings["top_p"])))
        keys = [
            np.array([settings["seed"], (job.prompt << 32) + job.sample], np.uint64) for job in jobs
        ]
        draws = np.stack(
            [np.random.Generator(np.random.Philox(key=key)).random(limit) for key in keys]
        )
        processors.append(_Draw(torch.from_numpy(draws).to(model.device), start, warpers))
    # in place of the model's own defaults, which fill what a passed one leaves open: a repetition penalty, say
    holders = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    before = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            holder.generation_config = config
        output = model.generate(**padded, logits_processor=processors)
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own
    drawn = zip(jobs, output[:, start:].tolist(), strict=True)
    return {job.key: _record(renderer, job, ids, stops) for job, ids in drawn}


def _record(renderer: Renderer, job: _Job, ids: list[int], stops: list[int]) -> dict:
    text, stop = renderer.read(ids, stops)
    return {
        "prompt": job.prompt,
        "sample": job.sample,
        "question": job.question,
        "text": text,
        "prefilled": renderer.opens(renderer.tokenizer.decode(job.ids[-8:])),
        "prompt_cut": job.cut,
        "tokens": len(ids) if stop is None else stop + 1,
        "finished": stop is not None,
    }
