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
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from .head_matrix import LOWEST, Plan, matrix_head

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class HeadOutput(NamedTuple):
    """What the head says of R rows, in nats. log_tags is finite: where V = 2, its third is about -3e38."""

    log_probs: Tensor  # (R,) float32, of the labels; float64 where the head is
    log_tags: Tensor  # (3, R) float64, of the open tag, the close tag and anything else
    argmax: Tensor  # (R,) int64, the most probable token, without gradient
    kl: Tensor | None  # (R_kl,) KL(p_ref || p), dtype as log_probs; None without a reference


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
    exist. Raises ValueError, with what was given and what would do, for shapes, ids or a head that do not fit.
    """
    plain = _is_matrix(head)
    with torch.no_grad():  # no rows: a dropout in the head draws nothing
        shape = head.weight.shape if plain else (head(hidden[:0]).shape[-1], hidden.shape[-1])
    _check(hidden, labels, tag_ids, shape, ref_hidden, kl_rows, softcap)
    plan = Plan(
        scale, softcap, max(1, chunk_bytes // 4), torch.is_grad_enabled() and hidden.requires_grad
    )
    picked = torch.stack([labels, *(torch.full_like(labels, tag) for tag in tag_ids)], 1)  # (R, 3)
    order, back, ref = slice(None), slice(None), hidden.detach()[:0]
    if ref_hidden is not None:  # rows with a KL first
        rows = torch.ones_like(labels) if kl_rows is None else kl_rows.long()
        order, ref = rows.argsort(descending=True, stable=True), ref_hidden.detach()
        back, ref_head = order.argsort(), _without_adapters(head) if ref_head is None else ref_head
    if plain and ref_head in (None, head):
        *found, argmax = matrix_head(hidden[order], head, picked[order], ref, plan)
    else:
        *found, argmax = _module_head(
            hidden[order], head, picked[order], ref, ref_head, plan, shape[0]
        )
    log_probs, log_tags, kl = _combine(picked[order], *found)
    log_probs, kl = (
        log_probs.to(found[0].dtype),
        None if ref_hidden is None else kl.to(found[0].dtype),
    )
    return HeadOutput(log_probs[back], log_tags[:, back], argmax[back], kl)


def _combine(picked, named, rest, ref_named, ref_rest, kl_rest) -> tuple[Tensor, Tensor, Tensor]:
    """Log p of labels (R,), of tags (3, R), and KL (R_kl,), float64: of four outcomes, and within the rest if it is."""
    is_open, is_close = picked[:, 0] == picked[:, 1], picked[:, 0] == picked[:, 2]

    def four(named: Tensor, rest: Tensor) -> Tensor:
        label, tag_open, tag_close = named.double().unbind(1)
        label = label.masked_fill((is_open | is_close)[: len(label)], LOWEST)  # counted once
        return torch.stack([tag_open, tag_close, label, rest.double()]).log_softmax(0)

    logs, ref_logs = four(named, rest), four(ref_named, ref_rest)
    kl = (ref_logs.exp() * (ref_logs - logs[:, : len(ref_rest)])).sum(0) + ref_logs[
        3
    ].exp() * kl_rest
    label = torch.where(is_open, logs[0], torch.where(is_close, logs[1], logs[2]))
    return label, torch.stack([logs[0], logs[1], torch.logaddexp(logs[2], logs[3])]), kl


def _module_head(
    hidden, head, picked, ref_hidden, ref_head, plan, vocabulary
) -> tuple[Tensor, ...]:
    """As `matrix_head`, through the module: its logits are made once in forward and once in backward, by chunks."""

    def stats(h: Tensor, ids: Tensor, ref_h: Tensor) -> tuple[Tensor, ...]:
        z = plan.logits(head(h))  # on the head's device
        ids, own = ids.to(z.device), ids[: len(ref_h)].to(z.device)
        with torch.no_grad():
            ref_z = plan.logits(ref_head(ref_h)).to(z.device) if len(own) else z[:0]
        rest, ref_rest = (x.scatter(1, i, LOWEST) for x, i in ((z, ids), (ref_z, own)))
        logs, ref_logs = rest[: len(own)].log_softmax(-1), ref_rest.log_softmax(-1)
        kl = F.kl_div(logs, ref_logs, reduction="none", log_target=True).sum(-1)
        found = (
            z.gather(1, ids),
            rest.logsumexp(-1),
            ref_z.gather(1, own),
            ref_rest.logsumexp(-1),
            kl,
        )
        return *(x.to(h.device) for x in found), z.detach().argmax(-1).to(h.device)

    run = partial(checkpoint, stats, use_reentrant=False) if torch.is_grad_enabled() else stats
    parts = [
        run(hidden[part], picked[part], ref_hidden[part])
        for part in plan.blocks(len(hidden), vocabulary)
    ]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def _is_matrix(head: nn.Module) -> bool:
    """Whether a call of the module is one product with a plain tensor: nn.Linear itself, without hooks.

    FSDP2 has the class and hooks of its own; within the forward pass that it wraps the weight is whole.
    """
    hooks = [
        head._forward_hooks,
        head._forward_pre_hooks,
        head._backward_hooks,
        head._backward_pre_hooks,
    ]
    sharded = (
        isinstance(head, FSDPModule)
        and isinstance(head, nn.Linear)
        and [*map(len, hooks)] == [1, 1, 0, 0]
    )
    if not (sharded or (type(head) is nn.Linear and not any(hooks))) or "forward" in vars(head):
        return False
    if hasattr(head.weight, "full_tensor"):
        raise ValueError(
            "the head's weight is a sharded DTensor: call this in the wrapped model's forward pass"
        )
    return type(head.weight.data) is Tensor and head.weight.dtype in _FLOATS


def _without_adapters(head: nn.Module) -> nn.Module:
    """The module under PEFT's wrappers, by their names for it."""
    while isinstance(
        inner := getattr(head, "original_module", getattr(head, "base_layer", None)), nn.Module
    ):
        if getattr(head, "merged", False):
            raise ValueError(
                f"{type(head).__name__} holds its adapter merged, so no reference: unmerge, or ref_head"
            )
        head = inner
    return head


def _check(hidden, labels, tag_ids, shape, ref_hidden, kl_rows, softcap) -> None:
    """Raises ValueError where the arguments do not fit a head of `shape` (V, D) or each other."""
    rows = len(labels) if kl_rows is None else int(kl_rows.sum())
    if (
        len(shape) != 2
        or hidden.dim() != 2
        or hidden.shape[1] != shape[1]
        or hidden.dtype not in _FLOATS
    ):
        wanted = "float hidden (R, D) and weight (V, D): flatten (B, T); call it where a sharded weight is gathered"
    elif labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        wanted = "one int64 label a row"
    elif len(labels) and not (labels.min() >= 0 and labels.max() < shape[0]):
        wanted = f"labels in [0, {shape[0]}), not {labels.min()} to {labels.max()}: drop rows that need nothing (-100)"
    elif (
        len(tag_ids) != 2 or len({*tag_ids}) != 2 or not all(0 <= tag < shape[0] for tag in tag_ids)
    ):
        wanted = f"two different tag_ids in [0, {shape[0]})"
    elif kl_rows is not None and (
        ref_hidden is None or kl_rows.shape != labels.shape or kl_rows.dtype != torch.bool
    ):
        wanted = "ref_hidden with kl_rows, and those one bool a row"
    elif ref_hidden is not None and ref_hidden.shape != (rows, shape[1]):
        wanted = f"ref_hidden ({rows}, {shape[1]}), one row for each KL row"
    elif softcap is not None and not softcap > 0:
        wanted = "a positive softcap, or None for no cap"
    else:
        return
    tensors = dict(hidden=hidden, labels=labels, ref_hidden=ref_hidden, kl_rows=kl_rows)
    given = "".join(
        f"{name} {tuple(x.shape)} {x.dtype}, " for name, x in tensors.items() if x is not None
    )
    raise ValueError(
        f"wanted {wanted}; given: {given}weight {tuple(shape)}, {tag_ids=}, {softcap=}"
    )
