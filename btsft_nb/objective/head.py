"""Token log-probabilities, tag log-probabilities and KL from hidden states, without keeping logits.

A row h (D,) and a head W (V, D) give logits z = W h. The objective names up to three, of label and tags; the others,
the rest, enter through their logsumexp. One pass over blocks of W makes, in two products, z_label, z_open,
z_close, lse_rest and mean = sum_{v in rest} softmax_rest(z)_v W_v. The gradient of whatever follows takes no product:

    dh = a_label W_label + a_open W_open + a_close W_close + a_rest mean,      a = d loss / d (the four numbers)

Each a is as small as the probability that it moves, so nothing cancels where a token is all but certain; with W_label
inside the mean it would. A KL adds a product for the reference's logits and one for (p - p_ref) W, within the rest:
named tokens and rest are four outcomes, with a KL of their own. A trained matrix adds two, in backward. Bias, scale and
soft cap (Gemma 2, https://arxiv.org/abs/2408.00118) change none of that. Other heads (LoRA, 4 bits, trained token rows,
hooks, another one as reference) are called by chunks of rows under `torch.utils.checkpoint`, in four products.

`full_logits` has the definition of all this.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from .full_logits import LOWEST, HeadOutput, reference_head
from .head_blocks import LogitSums, Plan
from .head_matrix import matrix_head

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def head_log_probs(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    tag_ids: tuple[int, int],
    *,
    ref_hidden: Tensor | None = None,
    kl_rows: Tensor | None = None,
    ref_head: nn.Module | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_bytes: int = 2**26,
) -> HeadOutput:
    """Log-probabilities of labels and tags, and KL to a reference; z = softcap * tanh(scale * head(hidden) / softcap).

    Args:
        hidden: (R, D), the head's input at the positions that predict the labels; better without rows that need
            nothing. R may be 0: the result is empty and still connected to every parameter.
        head: `nn.Linear`, or any module that maps (r, D) to (r, V) row by row. Gradients reach its parameters.
        labels, tag_ids: (R,) int64; the ids of the open and the close tag. All in [0, V).
        ref_hidden, kl_rows: (R_kl, D), a constant, the reference's hidden states at the rows (R,) bool, by default all.
        ref_head: maps `ref_hidden` to the reference's logits; by default `head` with its PEFT adapters left out.
        softcap, scale: Gemma: final_logit_softcapping. Cohere: scale=logit_scale. Granite: scale=1 / logits_scaling.
        chunk_bytes: size of a block of logits in float32; a few such blocks exist at a time, logits (R, V) never.

    Products run in the dtype of autocast or else of the weight, softmax and sums in float32. Only first derivatives
    exist. Raises ValueError for shapes, ids or a head that do not fit.
    """
    is_matrix = _is_matrix(head)
    vocabulary = len(head.weight) if is_matrix else _vocabulary(head, hidden)
    _check(hidden, labels, tag_ids, vocabulary, ref_hidden, kl_rows)
    with_grad = torch.is_grad_enabled() and hidden.requires_grad
    plan = Plan(scale, softcap, max(1, chunk_bytes // 4), with_grad)
    # rows with a KL go first, so that they and their references are slices
    order = back = slice(None)
    reference = hidden.detach()[:0]
    if ref_hidden is not None:
        has_kl = torch.ones_like(labels) if kl_rows is None else kl_rows.long()
        order = has_kl.argsort(descending=True, stable=True)
        back = order.argsort()
        reference = ref_hidden.detach()
    if ref_head is None:
        ref_head = head if ref_hidden is None else _without_adapters(head)
    rows = hidden[order]
    labels = labels[order]
    if is_matrix and ref_head is head:  # two products; else the definition
        tags = [torch.full_like(labels, tag) for tag in tag_ids]
        picked = torch.stack([labels, *tags], 1)
        output = _combine(picked, matrix_head(rows, head, picked, reference, plan))
    else:
        chunks = plan.blocks(len(rows), vocabulary)
        output = _module_head(rows, head, labels, tag_ids, reference, ref_head, plan, chunks)
    log_probs, log_tags, argmax, kl = output
    kl = None if ref_hidden is None else kl
    return HeadOutput(log_probs[back], log_tags[:, back], argmax[back], kl)


def _combine(picked: Tensor, sums: LogitSums) -> HeadOutput:
    """From logits to probabilities: of four outcomes, label, open tag, close tag and rest, in float64."""
    is_open = picked[:, 0] == picked[:, 1]
    is_close = picked[:, 0] == picked[:, 2]

    # log-probabilities (4, rows) from logits
    def outcomes(named: Tensor, rest: Tensor) -> Tensor:
        label, tag_open, tag_close = named.double().unbind(1)
        # a label that is a tag counts once
        label = label.masked_fill((is_open | is_close)[: len(label)], LOWEST)
        return torch.stack([tag_open, tag_close, label, rest.double()]).log_softmax(0)

    log_p = outcomes(sums.named, sums.rest)
    log_q = outcomes(sums.ref_named, sums.ref_rest)
    log_open, log_close, log_label, log_rest = log_p
    label = torch.where(is_open, log_open, torch.where(is_close, log_close, log_label))
    log_tags = torch.stack([log_open, log_close, torch.logaddexp(log_label, log_rest)])
    # KL of the four outcomes, and q_rest times that within the rest
    of_outcomes = log_q.exp() * (log_q - log_p[:, : len(sums.kl)])
    kl = of_outcomes.sum(0) + log_q[3].exp() * sums.kl
    dtype = sums.named.dtype
    return HeadOutput(label.to(dtype), log_tags, sums.argmax, kl.to(dtype))


def _module_head(hidden, head, labels, tag_ids, ref_hidden, ref_head, plan, chunks) -> HeadOutput:
    """By its definition, in chunks of rows, whose logits are made once in forward and once in backward."""

    def output_of(h: Tensor, labels: Tensor, ref_h: Tensor) -> HeadOutput:
        logits = plan.logits(head(h))
        device = logits.device  # the head's
        with torch.no_grad():
            ref_logits = plan.logits(ref_head(ref_h)).to(device)
        some = slice(len(ref_h))
        output = reference_head(
            logits, labels.to(device), tag_ids, ref_logits=ref_logits, kl_rows=some
        )
        return HeadOutput(*(x.to(h.device) for x in output))

    # logits are made anew in backward, else all of them would be kept
    if torch.is_grad_enabled():
        output_of = partial(checkpoint, output_of, use_reentrant=False)
    outputs = [output_of(hidden[rows], labels[rows], ref_hidden[rows]) for rows in chunks]
    log_probs, log_tags, argmax, kl = zip(*outputs, strict=True)
    return HeadOutput(
        torch.cat(log_probs), torch.cat(log_tags, 1), torch.cat(argmax), torch.cat(kl)
    )


def _is_matrix(head: nn.Module) -> bool:
    """Whether a call of the module is one product with a plain tensor: nn.Linear itself, without hooks."""
    hooks = [*head._forward_hooks, *head._forward_pre_hooks]
    hooks += [*head._backward_hooks, *head._backward_pre_hooks]
    if isinstance(head, FSDPModule):
        # FSDP2 has a class and two hooks of its own; within the forward pass that it wraps the weight is whole
        is_linear = isinstance(head, nn.Linear) and len(hooks) == 2
    else:
        is_linear = type(head) is nn.Linear and not hooks
    if not is_linear or "forward" in vars(head):  # accelerate sets one, to bring offloaded weights
        return False
    weight = head.weight
    if hasattr(weight, "full_tensor") or weight.dim() != 2:
        raise ValueError("the head is sharded: call this inside the wrapped model's forward pass")
    return type(weight.data) is Tensor and weight.dtype in _FLOATS


def _vocabulary(head: nn.Module, hidden: Tensor) -> int:
    with torch.no_grad():  # no rows: a dropout in the head draws nothing
        return head(hidden[:0]).shape[-1]


def _without_adapters(head: nn.Module) -> nn.Module:
    """The module under PEFT's wrappers, by their names for it."""
    inner = getattr(head, "original_module", getattr(head, "base_layer", None))
    if not isinstance(inner, nn.Module):
        return head
    if getattr(head, "merged", False):
        raise ValueError("the head's adapter is merged, so it has no reference: unmerge it first")
    return _without_adapters(inner)


def _check(hidden, labels, tag_ids, vocabulary, ref_hidden, kl_rows) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    if hidden.shape[:-1] != labels.shape:
        shapes = f"{tuple(hidden.shape)} for {tuple(labels.shape)}"
        raise ValueError(f"hidden must be (R, D) for labels (R,), got {shapes}")
    # a block of the vocabulary would not miss them
    ids = [*labels.tolist(), *tag_ids]
    if min(ids) < 0 or max(ids) >= vocabulary:
        span = f"{min(ids)} to {max(ids)}"
        raise ValueError(f"labels and tags must be in [0, {vocabulary}), got {span}")
    if tag_ids[0] == tag_ids[1]:
        raise ValueError(f"tag_ids must be two, got {tag_ids}")
    # a slice of the rows would not either
    if ref_hidden is not None:
        rows = len(labels) if kl_rows is None else int(kl_rows.sum())
        if len(ref_hidden) != rows:
            raise ValueError(f"ref_hidden must have {rows} rows, got {len(ref_hidden)}")
