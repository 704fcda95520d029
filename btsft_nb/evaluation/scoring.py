"""Scoring the tokens of prepared examples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokens import tag_ids
from ..objective.format_reward import expected_format_reward, find_completions
from ..objective.forward import HeadForward
from ..objective.head import head_log_probs
from ..training.collator import Collator

_ROWS = 128  # tokens whose logits exist at a time
_TOP = 5  # alternatives to each token


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within, the model does not train; then it is in the mode in which it was, whatever happened."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def tagged_log_probs(
    forward: HeadForward, model: nn.Module, pad_token_id: int, examples: list[dict]
) -> Tensor:
    """The log-probabilities of the tokens in examples' `tags`: (B, T), 0 for all other tokens."""
    batch = Collator(pad_token_id)(examples)
    positions = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    for row, example in enumerate(examples):
        for span in example["tags"]:
            positions[row, span["start"] : span["stop"]] = True
    positions[:, 0] = False  # nothing predicts the first token
    batch = {name: value.to(model.device) for name, value in batch.items()}
    return forward.token_values(model, batch, positions.to(model.device)).log_probs


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

    Raises ValueError for a KL of a model that has neither adapters nor a reference, or for a model whose head the
    objective cannot read.

    >>> model, tokenizer = bt.load_model("tiny")
    >>> examples = bt.prepare(bt.load_rows("tiny/teacher")[:1], tokenizer)
    tiny/teacher: 1 rows -> 1 examples...
    >>> values, = bt.score(model, tokenizer, examples)
    >>> len(values["log_probs"]) == len(examples[0]["input_ids"]), float(values["log_probs"][0])
    (True, 0.0)
    """
    if kl and ref_model is None and not isinstance(model, PeftModel):
        raise ValueError("kl=True needs a reference: a model with adapters, or ref_model=...")
    ids = tag_ids(tokenizer)
    collate = Collator(tokenizer.pad_token_id)
    scores = []
    with eval_mode(model):
        forward = HeadForward(model, ids)
        ref_forward = None if ref_model is None else HeadForward(ref_model.eval(), ids)
        for example in examples:
            batch = {name: value.to(model.device) for name, value in collate([example]).items()}
            positions = torch.ones_like(batch["input_ids"], dtype=torch.bool)
            positions[:, 0] = False  # nothing predicts the first token
            hidden = forward.hidden(model, batch, positions)
            reference = {}
            if kl and ref_model is not None:
                reference["ref_hidden"] = ref_forward.hidden(ref_model, batch, positions)
                reference["ref_head"] = ref_forward.head
            elif kl:
                with model.disable_adapter():
                    reference["ref_hidden"] = forward.hidden(model, batch, positions)
            values = _token_values(forward, hidden, batch["input_ids"][0, 1:], reference)
            values |= _format_values(values.pop("log_tags"), batch, ids)
            scores.append({name: value.cpu().numpy() for name, value in values.items()})
            scores[-1]["expected_reward"] = float(scores[-1]["expected_reward"])
    return scores


@torch.no_grad()
def _token_values(
    forward: HeadForward, hidden: Tensor, labels: Tensor, reference: dict
) -> dict[str, Tensor]:
    """(T, ...) values of each token, from the T - 1 hidden states before tokens; 0 for the first token."""
    form = {"softcap": forward.softcap, "scale": forward.scale}
    output = head_log_probs(hidden, forward.head, labels, forward.tag_ids, **form, **reference)
    ranks = []
    tops = []
    for rows, label in zip(hidden.split(_ROWS), labels.split(_ROWS), strict=True):
        log_probs = forward.logits(rows).log_softmax(-1)
        ranks.append((log_probs > log_probs.gather(-1, label[:, None])).sum(-1) + 1)
        tops.append(log_probs.topk(_TOP))
    values = {
        "log_probs": output.log_probs,
        "log_tags": output.log_tags.T,
        "rank": torch.cat(ranks),
        "top_ids": torch.cat([top.indices for top in tops]),
        "top_log_probs": torch.cat([top.values for top in tops]),
    }
    if output.kl is not None:
        values["kl"] = output.kl
    return {name: torch.cat([torch.zeros_like(x[:1]), x]) for name, x in values.items()}


def _format_values(
    log_tags: Tensor, batch: dict[str, Tensor], ids: tuple[int, int]
) -> dict[str, Tensor]:
    """What the format term makes of (T, 3) log-probabilities of open tag, close tag and anything else."""
    logits = log_tags.T[:, None].clone().requires_grad_()
    reward = logits.new_ones(1)
    pull = torch.zeros_like(logits)
    completions = find_completions(batch, ids)
    if completions:
        reward = expected_format_reward(logits.log_softmax(0), completions, 1)
        (pull,) = torch.autograd.grad(reward.sum(), logits)
    tags = log_tags[:, :2].T.exp().float()
    tags[:, 0] = 0
    pull = pull[:, 0].abs().sum(0).float() / 2
    return {"tags": tags, "expected_reward": reward.sum().detach(), "format_pull": pull}
