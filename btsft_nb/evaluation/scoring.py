"""Score the tokens of prepared examples."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokens import tag_ids
from ..objective.format_reward import expected_format_reward, find_completions
from ..training.collator import Collator


def tag_log_probs(logits: Tensor, tag_ids: tuple[int, int]) -> Tensor:
    """log p of the open tag, the close tag and anything else: logits (B, T, V) -> (3, B, T) float64.

    The third is a sum of its own, not 1 minus the others, so that all three stay finite where a tag is all but certain.
    Position 0 holds log 1/3, an arbitrary finite value.
    """
    logits = logits[:, :-1].float()
    tags = torch.tensor(tag_ids, device=logits.device)
    other = logits.index_fill(-1, tags, -torch.inf).logsumexp(-1)
    three = torch.stack([logits[..., tag_ids[0]], logits[..., tag_ids[1]], other]).double()
    return F.pad(three, (1, 0)).log_softmax(0)


def kl_divergence(ref_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p_ref || p) at each position: (B, T, V) twice -> (B, T) float32, 0 at position 0."""
    ref, new = (x[:, :-1].float().log_softmax(-1) for x in (ref_logits, logits))
    terms = (ref.exp() * (ref - new)).masked_fill(
        ref == -torch.inf, 0
    )  # a masked token adds nothing
    return F.pad(terms.sum(-1), (1, 0))


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
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            found = _ranked(logits[0], batch["input_ids"][0])
            if kl:
                found["kl"] = kl_divergence(_reference(model, ref_model, batch), logits)[0]
            log_tags = tag_log_probs(logits, ids)
        reward, pull = 1.0, torch.zeros(3, log_tags.shape[-1], dtype=log_tags.dtype)
        if completions := find_completions(batch, ids):
            z = log_tags.clone().requires_grad_()
            r = expected_format_reward(z.log_softmax(0), completions, 1)
            reward, pull = r.item(), torch.autograd.grad(r.sum(), z)[0][:, 0]
        found |= {
            "tags": log_tags[:2, 0].exp().float(),
            "format_pull": pull.abs().sum(0).float() / 2,
        }
        found["tags"][:, 0] = 0
        scores.append(
            {name: value.cpu().numpy() for name, value in found.items()}
            | {"expected_reward": reward}
        )
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


def _reference(
    model: PeftModel, ref_model: PreTrainedModel | PeftModel | None, batch: dict
) -> torch.Tensor:
    """(1, T, V) logits of the reference."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if ref_model is not None:
        return ref_model.eval()(**inputs).logits.to(batch["input_ids"].device)
    with model.disable_adapter():
        return model(**inputs).logits
