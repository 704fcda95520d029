"""Sampling completions: prompts -> records of what a model answers, and the file that they go to."""

import json
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import blake2b
from numbers import Integral, Real
from operator import itemgetter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import logits_process as lp
from transformers.utils.logging import get_logger, tqdm

from ..checks import check_number
from ..data.errors import RowError
from ..data.fit import PromptFrame
from ..data.formats import to_prompt
from ..data.render import Renderer
from ..objective.forward import eval_mode


@dataclass
class SamplingSettings:
    """How completions are drawn; all but `seed` as in transformers' `generate`.

    `temperature`: 0 takes the most likely token each time, whatever top_k and top_p. `top_k`, `top_p`: draw among the
    k most likely tokens; of those, among the fewest that hold a share p. `no_repeat_ngram_size`: 2 or more; no n-gram
    of this many tokens occurs twice in prompt and completion. `max_new_tokens`: a longer completion is cut off, and
    its record says so. `max_prompt_length`: tokens of a prompt; a longer one loses the start of its text, and how many
    did is logged. `batch_size`: completions drawn at once; None: as many as a GPU's free memory holds, else 64.

    Raises ValueError for a setting out of its range, by name.
    """

    n: int = 8
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    no_repeat_ngram_size: int | None = None
    max_new_tokens: int = 256
    max_prompt_length: int | None = None
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self):
        # n-grams of one token would ban the padding, which may be the token that ends a completion
        lowest = {"seed": 0, "temperature": 0, "top_p": 0, "no_repeat_ngram_size": 2}
        for name, value in vars(self).items():
            kind = Real if name in ("temperature", "top_p") else Integral
            high = 1 if name == "top_p" else math.inf
            is_optional = getattr(SamplingSettings, name) is None
            if value is not None or not is_optional:
                check_number(name, value, lowest.get(name, 1), high, kind)
        self.temperature = float(self.temperature)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
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
        raise ValueError("adapters=False: the model has no adapters")
    settings = SamplingSettings(n, **settings)
    renderer = Renderer(tokenizer)
    jobs = sampling_jobs(renderer, prompts, settings)
    records = []
    if path:
        path = Path(path)
        key = _key(model, adapters, settings, jobs)
        records = _read(path, key)
    bar = tqdm(total=len(jobs), initial=len(records), desc="sampling", disable=not progress)
    with bar, eval_mode(model), nullcontext() if adapters else model.disable_adapter():
        for batch in drawn(model, renderer, jobs, settings, len(records)):
            if path:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps({"key": key} | record) + "\n" for record in batch)
            records += batch
            bar.update(len(batch))
    return sorted(records, key=itemgetter("prompt", "sample"))


def sampling_jobs(renderer, prompts, settings: SamplingSettings) -> list[tuple[list[int], dict]]:
    """The completions that `sample` has to draw: the ids of the prompt, and what the record says before it is drawn.

    Raises RowError as `sample` does.
    """
    frame = PromptFrame(renderer)
    jobs = []
    n_cut = 0
    for i, prompt in enumerate(prompts):
        try:
            messages = to_prompt(prompt)
            whole = renderer.prompt_ids(messages)
            ids = frame.shorten(whole, settings.max_prompt_length or len(whole))
        except RowError as error:
            raise error.at(getattr(prompts, "source", "prompts"), i) from None
        n_cut += len(ids) < len(whole)
        record = {
            "prompt": i,
            "question": messages[-1].text,
            "prefilled": renderer.opens(renderer.tokenizer.decode(ids[-8:])),
            "prompt_cut": len(whole) - len(ids),
        }
        jobs += [(ids, record | {"sample": k}) for k in range(settings.n)]
    if n_cut:
        text = f"{n_cut} of {i + 1} prompts were cut to max_prompt_length"
        get_logger(__name__).warning_once(text)
    return jobs


def drawn(model, renderer, jobs, settings, n_done=0):
    """The records of jobs, a batch at a time; without the first `n_done`, which are there already."""
    # prompts of like length together, so that there is little padding
    jobs = sorted(jobs, key=lambda job: len(job[0]))
    size = settings.batch_size or fitting_batch(model, jobs, settings)
    for start in range(n_done, len(jobs), size):
        yield _generate(model, renderer, jobs[start : start + size], settings)


def fitting_batch(model, jobs, settings) -> int:
    """How many completions fit into a GPU's free memory at once, by the size of their cache; elsewhere 64."""
    if model.device.type != "cuda":
        return 64
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    length = max(len(ids) for ids, _ in jobs) + settings.max_new_tokens
    # keys and values, twice, as the cache is copied when it grows; and logits in float64, a few times
    cache = 4 * config.num_hidden_layers * heads * width * length * model.dtype.itemsize
    logits = 8 * 8 * config.vocab_size
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    free -= torch.cuda.memory_allocated()
    return int(min(max(0.8 * free / (cache + logits), 1), 512))


def _key(model, adapters, settings, jobs):
    """Tells a call of `sample` from others; and a model from itself before some training.

    Of the model it takes up to 1,000 numbers of each parameter, those of adapters that are off left out.
    """
    call = [asdict(settings) | {"batch_size": None}, jobs]
    digest = blake2b(json.dumps(call).encode(), digest_size=12)
    off = set(getattr(model, "peft_config", {}))
    if off and adapters:
        off -= set(model.active_adapters)
    for name, parameter in model.named_parameters():
        if off.isdisjoint(name.split(".")):
            values = parameter.flatten()
            digest.update(values[:: 1 + len(values) // 1000].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(path, key):
    """The records of a file; a last line that was cut off goes.

    Raises ValueError for a file of anything else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    content = path.read_bytes()
    head = f'{{"key": "{key}", '.encode()
    *lines, rest = content.split(b"\n")  # the last may be cut off
    if not all(line.startswith(head) for line in lines) or not head.startswith(rest[: len(head)]):
        raise ValueError(f"{path} holds other lines than the samples of this call; delete it")
    os.truncate(path, len(content) - len(rest))
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["key"]
    return records


class _Draw(lp.LogitsProcessor):
    """Leaves one token to each row: the first whose cumulative probability exceeds the row's uniform number."""

    def __init__(self, jobs, settings, prompts):
        draws = []
        for _, record in jobs:
            number = (record["prompt"] << 32) + record["sample"]
            philox = np.random.Philox(key=np.array([settings.seed, number], np.uint64))
            draws.append(np.random.Generator(philox).random(settings.max_new_tokens))
        self.draws = torch.tensor(np.stack(draws), device=prompts.device)  # (B, max_new_tokens)
        self.prompt_length = prompts.shape[1]
        self.warpers = lp.LogitsProcessorList()
        for warper, value in (
            (lp.TemperatureLogitsWarper, settings.temperature),
            (lp.TopKLogitsWarper, settings.top_k),
            (lp.TopPLogitsWarper, settings.top_p),
        ):
            if value is not None:
                self.warpers.append(warper(value))

    def __call__(self, input_ids, scores):
        # in float64, since a vocabulary has many small probabilities to add up
        cumulative = self.warpers(input_ids, scores.double()).softmax(-1).cumsum(-1)  # (B, V)
        step = input_ids.shape[1] - self.prompt_length
        draw = self.draws[:, step, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, draw, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def _generate(model, renderer, jobs, settings):
    """The records of some jobs."""
    tokenizer = renderer.tokenizer
    prompts = {"input_ids": [ids for ids, _ in jobs]}
    padded = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(model.device)
    stops = renderer.stop_ids(model)
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    draw = [_Draw(jobs, settings, padded["input_ids"])] if settings.temperature > 0 else []
    # in place of the model's own, which would fill what ours leaves open: a repetition penalty, say
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with patch.object(base, "generation_config", config):
        output = model.generate(**padded, logits_processor=draw)
    records = []
    completions = output[:, padded["input_ids"].shape[1] :].tolist()
    for (_, record), ids in zip(jobs, completions, strict=True):
        text, stop = renderer.read(ids, stops)
        n_tokens = len(ids) if stop is None else stop + 1
        records.append(record | {"text": text, "tokens": n_tokens, "finished": stop is not None})
    return records
