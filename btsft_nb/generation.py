"""Sampling completions, and scoring the tokens of an example."""

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .collator import Collator
from .formats import to_prompt
from .losses import expected_format_reward, find_completions, kl_divergence, tag_log_probs
from .messages import THINK_TAGS, RowError
from .render import Renderer
from .tokens import tag_ids


@torch.no_grad()
def sample(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict | str],
    n: int = 8,
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    batch_size: int = 64,
    seed: int = 0,
) -> list[dict]:
    """Samples `n` completions of each prompt from the model's own distribution (no top-k, no top-p).

    Args:
        prompts: rows, whose conversation up to the last assistant turn is used, or user messages as text.
        temperature: 0 takes the most likely token each time.
        max_new_tokens: a completion longer than this is cut off, and says so.
        batch_size: completions drawn at once. seed: of the draws; the global random state is left as it was.

    Returns:
        A record for each completion, prompt by prompt: `prompt` (index), `sample` (index), `question` (the last turn),
        `text` (without the end of turn; its tags as `<think>` and `</think>`), `prefilled` (whether the prompt itself
        ends in an open think tag), `tokens` (how many, end of turn included) and `finished` (False: cut off).
    """
    renderer, encoded = Renderer(tokenizer), []
    for i, prompt in enumerate(prompts):
        try:
            messages = to_prompt(prompt)
            encoded.append((i, renderer.prompt_ids(messages), messages[-1].text))
        except RowError as error:
            raise error.at(getattr(prompts, "source", "prompts"), i) from None
    jobs = [(i, k, ids, question) for i, ids, question in encoded for k in range(n)]
    jobs.sort(key=lambda job: len(job[2]))  # stable: prompts of a length together, so that little is padding
    was_training, records = model.training, []
    model.eval()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            completions = _generate(model, renderer, [job[2] for job in batch], temperature, max_new_tokens)
            records += [_record(renderer, job, ids) for job, ids in zip(batch, completions, strict=True)]
    model.train(was_training)
    return sorted(records, key=lambda record: (record["prompt"], record["sample"]))


def _generate(
    model: PreTrainedModel | PeftModel,
    renderer: Renderer,
    prompts: list[list[int]],
    temperature: float,
    max_new_tokens: int,
) -> list[list[int]]:
    padded = renderer.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    chance = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=renderer.stop_ids,
        pad_token_id=renderer.tokenizer.pad_token_id,
        **(chance if temperature > 0 else {"do_sample": False}),
    )
    # in place of the model's own defaults, which fill what a passed one leaves open: a repetition penalty, say
    holders = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    before = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            holder.generation_config = config
        output = model.generate(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"])
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own
    return output[:, padded["input_ids"].shape[1] :].tolist()


def _record(renderer: Renderer, job: tuple[int, int, list[int], str], ids: list[int]) -> dict:
    prompt, index, prompt_ids, question = job
    stop = next((at for at, token in enumerate(ids) if token in renderer.stop_ids), None)
    prefilled = renderer.tokenizer.decode(prompt_ids).rstrip().endswith(renderer.tags[0])
    text = renderer.tokenizer.decode(ids[:stop])
    for own, tag in zip(renderer.tags, THINK_TAGS, strict=True):
        text = text.replace(own, tag)
    return {
        "prompt": prompt,
        "sample": index,
        "question": question,
        "text": text,
        "prefilled": prefilled,
        "tokens": len(ids) if stop is None else stop + 1,
        "finished": stop is not None,
    }


def score(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[dict],
    *,
    kl: bool = False,
    ref_model: PreTrainedModel | PeftModel | None = None,
) -> list[dict]:
    """What a model makes of each token of prepared examples, one by one and without a gradient on the model.

    Args:
        kl: also the KL to a reference: `ref_model`, or `model` with its adapters switched off.

    Returns:
        For each example: `log_probs` (T,) of its tokens; `tags` (2, T), the probabilities of the open and the close
        tag where that token stands; `expected_reward`, R of the objective; and `format_pull` (T,), how strongly the
        format term moves the distribution at each token: half the summed absolute gradient of R by the logits of
        open tag, close tag and anything else; `rank` (T,) of the token among all, from 1; `top_ids` and
        `top_log_probs` (T, 5), the most likely tokens; with `kl`, `kl` (T,), KL(p_ref || p) in nats. Values at
        position 0 are 0.

    Raises ValueError where a KL is asked of a model that has neither adapters nor a reference.
    """
    if kl and ref_model is None and not isinstance(model, PeftModel):
        raise ValueError("kl=True needs a reference: a model with adapters, or ref_model=...")
    ids, collate = tag_ids(tokenizer), Collator(tokenizer.pad_token_id)
    was_training, scores = model.training, []
    model.eval()
    for example in examples:
        batch = {name: value.to(model.device) for name, value in collate([example]).items()}
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            found = _ranked(logits[0], batch["input_ids"][0])
            if kl:
                found["kl"] = kl_divergence(_reference(model, ref_model, batch), logits)[0]
            log_tags = tag_log_probs(logits, ids)
        reward, pull = 1.0, torch.zeros(3, log_tags.shape[-1], dtype=log_tags.dtype)
        if completions := find_completions(batch, ids):
            z = log_tags.clone().requires_grad_()
            r = expected_format_reward(z.log_softmax(0), completions, 1)
            reward, pull = r.item(), torch.autograd.grad(r.sum(), z)[0][:, 0]
        found |= {"tags": log_tags[:2, 0].exp().float(), "format_pull": pull.abs().sum(0).float() / 2}
        found["tags"][:, 0] = 0
        scores.append({name: value.cpu().numpy() for name, value in found.items()} | {"expected_reward": reward})
    model.train(was_training)
    return scores


def _ranked(logits: torch.Tensor, input_ids: torch.Tensor, top: int = 5) -> dict[str, torch.Tensor]:
    """`log_probs`, `rank`, `top_ids` and `top_log_probs` of (T,) tokens from (T, V) logits."""
    log_probs = logits[:-1].float().log_softmax(-1)
    own = log_probs.gather(-1, input_ids[1:, None])
    most = log_probs.topk(min(top, log_probs.shape[-1]))
    found = {"log_probs": own[:, 0], "rank": (log_probs > own).sum(-1) + 1}
    found |= {"top_ids": most.indices, "top_log_probs": most.values}
    return {name: torch.cat([torch.zeros_like(value[:1]), value]) for name, value in found.items()}


def _reference(model: PeftModel, ref_model: PreTrainedModel | PeftModel | None, batch: dict) -> torch.Tensor:
    """(1, T, V) logits of the reference."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if ref_model is not None:
        return ref_model.eval()(**inputs).logits.to(batch["input_ids"].device)
    with model.disable_adapter():
        return model(**inputs).logits
