"""Token log-probabilities, tag log-probabilities and KL from hidden states, without keeping logits.

A row h (D,) and a head W (V, D) give logits z = W h. The objective names up to three of them, the label's and the two
tags'; the others, the rest, enter through their logsumexp alone. One pass over chunks of rows makes, in two products,

    z_label, z_open, z_close,   lse_rest = logsumexp_{v in rest} z_v,   mean = sum_{v in rest} softmax_rest(z)_v W_v

and the gradient of whatever follows takes no product and no recomputation, whatever comes from upstream:

    dh = a_label W_label + a_open W_open + a_close W_close + a_rest mean,      a = d loss / d (the four numbers)

Each a is as small as the probability that it moves, so nothing cancels where a token is all but certain; with W_label
inside the mean it would. A KL adds a product for the reference's logits and one for its gradient, (p - p_ref) W. A
trained matrix adds two in backward, by blocks of the vocabulary: dW is written once, summed over all rows at once.

Bias, scale and soft cap (Gemma 2, https://arxiv.org/abs/2408.00118) change none of that. A head that is not one plain
matrix (LoRA, 4 bits, trained token rows, hooks) is called by chunks under `torch.utils.checkpoint`: the same value, and
the gradient of each of its parameters, in four products.
"""

import math
import os
import shutil
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._triton import has_triton
from torch.utils.checkpoint import checkpoint

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BOOST = {torch.float16: 1024.0}  # on probabilities in their product with W: float16 has no number below 6e-8
_CPU_CHUNK = 2**22  # elements: 16 MiB stay in the cache and in malloc's free lists


class HeadOutput(NamedTuple):
    """What the head says of R rows, in nats. log_tags is finite: where V = 2, its third is about -3e38."""

    log_probs: Tensor  # (R,) float32, of the labels; float64 where the head is
    log_tags: Tensor  # (3, R) float64, of the open tag, the close tag and anything else
    argmax: Tensor  # (R,) int64, the most probable token, without gradient
    kl: Tensor | None  # (R_kl,) KL(p_ref || p), dtype as log_probs; None without a reference


class _Plan(NamedTuple):
    """How a head's products become logits, cap * tanh(scale * product / cap), and how many at a time."""

    scale: float
    cap: float | None
    chunk: int  # elements of the largest block of logits
    with_grad: bool

    def logits(self, product: Tensor) -> Tensor:
        z = product if product.dtype == torch.float64 else product.float()
        z = z if self.scale == 1 else z * self.scale
        return z if self.cap is None else torch.tanh(z / self.cap) * self.cap

    def slope(self, z: Tensor) -> Tensor | float:
        """d logit / d product, the scale left out."""
        return 1.0 if self.cap is None else 1 - (z / self.cap) ** 2

    def tiles(self, rows: int) -> list[slice]:
        """Slices of `rows`, of one size; blocks of their logits are then four times as wide as high, or wider."""
        count = max(1, -(-rows // max(1, math.isqrt(self.chunk) // 2)))
        return _slices(rows, -(-rows // count))

    def blocks(self, total: int, other: int) -> list[slice]:
        """Slices of `total` such that one times `other` keeps to the chunk, of aligned size."""
        step = self.chunk // max(other, 1)
        return _slices(total, step if step < 8 else step - step % 8)


def _slices(total: int, step: int) -> list[slice]:
    """One, empty, where the total is 0."""
    step = max(step, 1)
    return [slice(at, min(at + step, total)) for at in range(0, max(total, 1), step)]


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
        hidden: (R, D), the head's input at the positions that predict the labels. Rows that need nothing are better
            dropped before. R may be 0: the result is empty and still connected to every parameter.
        head: `nn.Linear`, or any module that maps (r, D) to (r, V) row by row. Gradients reach its parameters.
        labels, tag_ids: (R,) int64; the ids of the open and the close tag. All in [0, V).
        ref_hidden: (R_kl, D), the reference model's hidden states at the rows of `kl_rows`, in their order; a constant.
        kl_rows: (R,) bool, the rows that have a KL; by default all, where `ref_hidden` is given.
        ref_head: maps `ref_hidden` to the reference's logits; by default `head` with its PEFT adapters left out.
        softcap, scale: as the model's config has them. Gemma: softcap=final_logit_softcapping. Cohere:
            scale=logit_scale. Granite: scale=1 / logits_scaling.
        chunk_bytes: size of a block of logits in float32; a few such blocks exist at a time, logits (R, V) never.

    Products run in the dtype of autocast or else of the weight, softmax and sums in float32. Only first derivatives
    exist. Raises ValueError, with what was given and what would do, for shapes, ids or a head that do not fit.
    """
    plain = _is_matrix(head)
    with torch.no_grad():  # no rows: a dropout in the head draws nothing
        shape = head.weight.shape if plain else (head(hidden[:0]).shape[-1], hidden.shape[-1])
    _check(hidden, labels, tag_ids, shape, ref_hidden, kl_rows, softcap)
    plan = _Plan(scale, softcap, max(1, chunk_bytes // 4), torch.is_grad_enabled() and hidden.requires_grad)
    picked = torch.stack([labels, *(torch.full_like(labels, tag) for tag in tag_ids)], 1)  # (R, 3)
    order, back, ref = slice(None), slice(None), hidden.detach()[:0]
    if ref_hidden is not None:  # rows with a KL come first
        rows = torch.ones_like(labels) if kl_rows is None else kl_rows
        order, ref = rows.long().argsort(descending=True, stable=True), ref_hidden.detach()
        back, ref_head = order.argsort(), _without_adapters(head) if ref_head is None else ref_head
    ref_head = head if ref_hidden is None else ref_head
    run = _matrix_head if plain and _is_matrix(ref_head) else _module_head
    *found, argmax = run(hidden[order], head, picked[order], ref, ref_head, plan, shape[0])
    log_probs, log_tags, kl = _combine(picked[order], *found)
    wide = found[0].dtype
    kl = None if ref_hidden is None else kl.to(wide)
    return HeadOutput(log_probs[back].to(wide), log_tags[:, back], argmax[back], kl)


def _combine(picked, named, rest, ref_named, ref_rest, kl_rest) -> tuple[Tensor, Tensor, Tensor]:
    """Log p of labels (R,) and of tags (3, R), and the KL (R_kl,), float64, from what both kinds of head give.

    KL by the chain rule: that between tags, label and rest as four outcomes, and within the rest, where that happens.
    """
    is_open, is_close = picked[:, 0] == picked[:, 1], picked[:, 0] == picked[:, 2]
    again = is_open | is_close  # a label that is a tag counts once

    def four(named: Tensor, rest: Tensor) -> Tensor:
        label, tag_open, tag_close = named.double().unbind(1)
        label = label.masked_fill(again[: len(label)], torch.finfo(torch.float32).min)
        return torch.stack([tag_open, tag_close, label, rest.double()]).log_softmax(0)

    logs, ref_logs = four(named, rest), four(ref_named, ref_rest)
    kl = (ref_logs.exp() * (ref_logs - logs[:, : len(ref_rest)])).sum(0) + ref_logs[3].exp() * kl_rest
    slot = torch.where(is_open, 0, torch.where(is_close, 1, 2))
    log_tags = torch.stack([logs[0], logs[1], torch.logaddexp(logs[2], logs[3])])
    return logs.gather(0, slot[None])[0], log_tags, kl


def _matrix_head(hidden, head, picked, ref_hidden, ref_head, plan, _) -> tuple[Tensor, ...]:
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device) and head.weight.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else head.weight.dtype
    heads = [head] if ref_head is head else [head, ref_head]
    tensors = hidden, ref_hidden, *(x for h in heads for x in (h.weight, h.bias))
    hidden, ref_hidden, *own = (None if x is None else x.to(dtype) for x in tensors)
    plan = plan._replace(chunk=min(plan.chunk, _CPU_CHUNK)) if device == "cpu" else plan
    return _MatrixHead.apply(plan, picked, hidden, ref_hidden, *own[:2], *own[-2:])


class _MatrixHead(torch.autograd.Function):
    """Named logits (R, 3) and logsumexp of the rest (R,), the same of the reference for the first R_kl rows, the KL
    within the rest (R_kl,), and argmax (R,), of a head that is one matrix."""

    @staticmethod
    def forward(ctx, plan, picked, hidden, ref_hidden, weight, bias, ref_weight, ref_bias):
        tiles, heads = [], (weight, bias, ref_weight, ref_bias)
        for part in plan.tiles(len(hidden)):
            tiles.append(_tile(plan, picked[part], hidden[part], ref_hidden[part], *heads))
        *outputs, mean, pull = (torch.cat(column) for column in zip(*tiles, strict=True))
        named, rest, ref_named, ref_rest, _, argmax = outputs
        ctx.plan, ctx.trained = plan, any(ctx.needs_input_grad[4:6])
        again = (rest, ref_rest, hidden, bias, ref_hidden, ref_weight, ref_bias) if ctx.trained else ()
        ctx.save_for_backward(picked, weight, named, mean, pull, *again)
        ctx.mark_non_differentiable(ref_named, ref_rest, argmax)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_named, d_rest, _, __, d_kl, ___):
        picked, weight, named, mean, pull, *again = ctx.saved_tensors
        d_named, d_rest, d_kl = (ctx.plan.scale * d.to(named.dtype) for d in (d_named, d_rest, d_kl))
        d_hidden, d_weight, d_bias = None, None, None
        with torch.autocast(weight.device.type, enabled=False):  # the forward pass chose the dtype
            if ctx.needs_input_grad[2]:
                boost, direct = _BOOST.get(weight.dtype, 1.0), ctx.plan.slope(named) * d_named
                d_hidden = (d_rest / boost)[:, None] * mean
                d_hidden[: len(pull)].addcmul_((d_kl / boost)[:, None], pull)
                for k in range(3):
                    d_hidden.addcmul_(direct[:, k : k + 1], weight[picked[:, k]].to(direct.dtype))
                d_hidden = d_hidden.to(weight.dtype)
            if ctx.trained:
                d_weight, d_bias = _parameter_grads(ctx.plan, picked, weight, *again, d_named, d_rest, d_kl)
        return None, None, d_hidden, None, d_weight, d_bias, None, None


def _tile(plan, picked, hidden, ref_hidden, weight, bias, ref_weight, ref_bias) -> tuple[Tensor, ...]:
    """What `_MatrixHead` gives and keeps of r rows, the first k with a reference, by blocks of the vocabulary.

    The softmax over the blocks seen and one more is p' = (1 - u) p + u s, with u the share of the new one, s. So go the
    means under p; and q' = (1 - v) q + v t for the reference gives p' - q' = (1 - u)(p - q) + u (s - t) + (u - v)(t - q).
    """
    (r, width), k = hidden.shape, len(ref_hidden)
    wide, boost, block_of = torch.promote_types(hidden.dtype, torch.float32), _BOOST.get(hidden.dtype, 1.0), _fused(hidden)
    rows, picked = torch.cat([hidden, ref_hidden]), torch.cat([picked, picked[:k]])
    rest, gap = (hidden.new_full((n, 1), fill, dtype=torch.float64) for n, fill in ((r + k, -torch.inf), (k, 0)))
    named, best = (hidden.new_full((r + k, n), -torch.inf, dtype=wide) for n in (3, 1))
    mean, pull = (hidden.new_zeros(n if plan.with_grad else 0, width, dtype=wide) for n in (r, k))
    token = torch.zeros_like(picked[:, :1])
    for part in plan.blocks(len(weight), r + k):
        w, b, ref_w, ref_b = (None if x is None else x[part] for x in (weight, bias, ref_weight, ref_bias))
        product = F.linear(rows, w, b)
        if k and ref_weight is not weight:
            product = torch.cat([F.linear(hidden, w, b), F.linear(ref_hidden, ref_w, ref_b)])
        share, found, top, place, size, apart = block_of(plan, product, picked - part.start, k, boost)
        token, best = torch.where(top > best, place + part.start, token), torch.maximum(top, best)
        named, rest = torch.maximum(named, found), torch.logaddexp(rest, size)
        new = (size - rest).exp()
        gap.lerp_(apart.double(), new[r:])
        if plan.with_grad:
            new, turn, means = new.to(wide), (new[:k] - new[r:]).to(wide), (share @ w).to(wide)
            turn = (means[:k] - means[r:]).sub_(mean[:k]).add_(pull).mul_(turn)
            pull.lerp_(means[r:], new[:k]).add_(turn)
            mean.lerp_(means[:r], new[:r])
    token, best = (torch.cat(pair, 1)[:r] for pair in ((token, picked), (best, named)))
    argmax = torch.where(best == best.amax(1, keepdim=True), token, len(weight)).amin(1)  # the first, as argmax has it
    kl = gap + rest[:k] - rest[r:]
    return named[:r], rest[:r, 0], named[r:], rest[r:, 0], kl[:, 0], argmax, mean, pull


def _block(plan: _Plan, product: Tensor, picked: Tensor, k: int, boost: float) -> tuple[Tensor, ...]:
    """Of products (r + k, n) with a block of the vocabulary, the last k the reference's for the first k rows:

    boost * softmax of the rest, policy less reference in the last k rows; named logits (r + k, 3), -inf where they are
    outside the block; the rest's largest logit, its place and logsumexp (r + k, 1); reference less policy (k, 1).
    """
    z, r = plan.logits(product), len(product) - k
    inside, at = (picked >= 0) & (picked < z.shape[1]), picked.clamp(0, z.shape[1] - 1)
    named, gap, slope = z.gather(1, at).masked_fill(~inside, -torch.inf), z[r:] - z[:k], plan.slope(z[:r])
    lowest = torch.finfo(z.dtype).min  # not -inf: all may be named, and -inf less -inf is NaN
    if torch.compiler.is_compiling():  # what fuses
        columns = torch.arange(z.shape[1], device=z.device)
        z = torch.where((columns == picked[:, :, None]).any(1), lowest, z).clamp(min=lowest)
    else:  # what is quick by itself
        ends = torch.full_like(named, torch.inf).masked_fill_(inside, lowest)
        z = z.scatter_reduce_(1, at, ends, "amin").clamp_(min=lowest)
    top, place = z.max(-1, keepdim=True)
    share = z.softmax(-1)
    size = top.double() - share.gather(1, place).double().log()
    apart = gap.mul_(share[r:]).sum(-1, keepdim=True)
    share[r:] = share[:k] - share[r:]
    if plan.cap is not None:
        share.mul_(torch.cat([slope, slope[:k]]))
    share = share if boost == 1 else share.mul_(boost)
    return share.to(product.dtype), named, top, place, size, apart


def _fused(rows: Tensor) -> Callable:
    """`_block`, on CUDA in few kernels, where there is what compiles them."""
    return _compiled() if rows.is_cuda and has_triton() and shutil.which(os.environ.get("CC", "cc")) else _block


@cache
def _compiled() -> Callable:
    return torch.compile(_block, dynamic=True)


def _parameter_grads(
    plan, picked, weight, rest, ref_rest, hidden, bias, ref_hidden, ref_weight, ref_bias, d_named, d_rest, d_kl
) -> tuple[Tensor, Tensor | None]:
    """dW (V, D) and d bias (V,), by blocks of the vocabulary, whose logits are made anew."""
    d_weight, d_bias, k = torch.empty_like(weight), None if bias is None else torch.empty_like(bias), len(d_kl)

    def block(part: slice, hidden, weight, bias, rest: Tensor) -> tuple[Tensor, ...]:
        z = plan.logits(F.linear(hidden, weight[part], None if bias is None else bias[part]))
        ids = picked[: len(z)]
        row, which = ((ids >= part.start) & (ids < part.stop)).nonzero(as_tuple=True)
        at = row, ids[row, which] - part.start
        return plan.slope(z), z.index_put_(at, z.new_tensor(-torch.inf)).sub_(rest[:, None].to(z.dtype)).exp_(), at, which

    for part in plan.blocks(len(weight), len(hidden)):
        slope, share, at, which = block(part, hidden, weight, bias, rest)
        grad = share * d_rest[:, None]
        if k:
            ref_share = block(part, ref_hidden, ref_weight, ref_bias, ref_rest)[1]
            grad[:k] += (share[:k] - ref_share) * d_kl[:, None]
        grad.index_put_(at, d_named[at[0], which], accumulate=True).mul_(slope)
        d_weight[part] = grad.to(hidden.dtype).T @ hidden
        if bias is not None:
            d_bias[part] = grad.sum(0)
    return d_weight, d_bias


def _module_head(hidden, head, picked, ref_hidden, ref_head, plan, vocabulary) -> tuple[Tensor, ...]:
    """As _MatrixHead, through the module: its logits are made once in forward and once in backward, by chunks."""

    def stats(h: Tensor, ids: Tensor, ref_h: Tensor) -> tuple[Tensor, ...]:
        z = plan.logits(head(h))
        k, ids, lowest = len(ref_h), ids.to(z.device), torch.finfo(z.dtype).min  # not -inf: the rest may be empty
        with torch.no_grad():
            ref_z = plan.logits(ref_head(ref_h)).to(z.device) if k else z[:0]
            ref_named, ref_rest = ref_z.gather(1, ids[:k]), ref_z.scatter(1, ids[:k], lowest)
        rest = z.scatter(1, ids, lowest)
        log_ref = ref_rest.log_softmax(-1)
        kl = (log_ref.exp() * (log_ref - rest[:k].log_softmax(-1))).sum(-1)
        found = z.gather(1, ids), rest.logsumexp(-1), ref_named, ref_rest.logsumexp(-1), kl, z.detach().argmax(-1)
        return tuple(x.to(h.device) for x in found)

    parts, run = [], partial(checkpoint, stats, use_reentrant=False) if torch.is_grad_enabled() else stats
    for part in plan.blocks(len(hidden), vocabulary):
        parts.append(run(hidden[part], picked[part], ref_hidden[part]))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _is_matrix(head: nn.Module) -> bool:
    """Whether a call of the module is one product with a plain tensor: nn.Linear itself, without hooks."""
    if type(head) is not nn.Linear or "forward" in vars(head):
        return False
    hooks = head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks
    if not any(hooks) and hasattr(head.weight, "full_tensor"):
        raise ValueError("the head's weight is a sharded DTensor: call this in the wrapped model's forward pass")
    return not any(hooks) and type(head.weight.data) is Tensor and head.weight.dtype in _FLOATS


def _without_adapters(head: nn.Module) -> nn.Module:
    """The module under PEFT's wrappers, by their names for it."""
    while isinstance(inner := getattr(head, "original_module", getattr(head, "base_layer", None)), nn.Module):
        if getattr(head, "merged", False):
            raise ValueError(f"{type(head).__name__} holds its adapter merged, so no reference: unmerge, or ref_head")
        head = inner
    return head


def _check(hidden, labels, tag_ids, shape, ref_hidden, kl_rows, softcap) -> None:
    """Raises ValueError where the arguments do not fit a head of `shape` (V, D) or each other."""
    rows = len(labels) if kl_rows is None else int(kl_rows.sum())
    if len(shape) != 2 or hidden.dim() != 2 or hidden.shape[1] != shape[1] or hidden.dtype not in _FLOATS:
        wanted = "float hidden (R, D) and weight (V, D): flatten (B, T); call it where a sharded weight is gathered"
    elif labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        wanted = "one int64 label a row"
    elif len(labels) and not (labels.min() >= 0 and labels.max() < shape[0]):
        wanted = f"labels in [0, {shape[0]}), not {labels.min()} to {labels.max()}: drop rows that need nothing (-100)"
    elif len(tag_ids) != 2 or len({*tag_ids}) != 2 or not all(0 <= tag < shape[0] for tag in tag_ids):
        wanted = f"two different tag_ids in [0, {shape[0]})"
    elif kl_rows is not None and ref_hidden is None:
        wanted = "ref_hidden with kl_rows"
    elif kl_rows is not None and (kl_rows.shape != labels.shape or kl_rows.dtype != torch.bool):
        wanted = "one bool a row in kl_rows"
    elif ref_hidden is not None and ref_hidden.shape != (rows, shape[1]):
        wanted = f"ref_hidden ({rows}, {shape[1]}), one row for each KL row"
    elif softcap is not None and not softcap > 0:
        wanted = "a positive softcap, or None for no cap"
    else:
        return
    tensors = dict(hidden=hidden, labels=labels, ref_hidden=ref_hidden, kl_rows=kl_rows)
    given = "".join(f"{name} {tuple(x.shape)} {x.dtype}, " for name, x in tensors.items() if x is not None)
    raise ValueError(f"wanted {wanted}; given: {given}weight {tuple(shape)}, {tag_ids=}, {softcap=}")
