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

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BOOST = {torch.float16: 1024.0}  # on probabilities in their product with W: float16 has no number below 6e-8


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

    def blocks(self, total: int, other: int) -> list[slice]:
        """Slices of `total` such that one times `other` keeps to the chunk; one, empty, where total is 0."""
        step = max(1, self.chunk // max(other, 1))
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
    rows = None
    if ref_hidden is not None:
        rows = (torch.ones_like(labels) if kl_rows is None else kl_rows).nonzero()[:, 0]
        ref_hidden, ref_head = ref_hidden.detach(), _without_adapters(head) if ref_head is None else ref_head
    run = _matrix_head if plain and (rows is None or _is_matrix(ref_head)) else _module_head
    named, rest, kl, argmax = run(hidden, head, picked, rows, ref_hidden, ref_head, plan, shape[0])
    log_probs, log_tags = _combine(named, rest, picked)
    return HeadOutput(log_probs.to(named.dtype), log_tags, argmax, kl if rows is not None else None)


def _combine(named: Tensor, rest: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
    """Named logits (R, 3) and logsumexp of the rest (R,) -> log p of labels (R,) and of tags (3, R), float64."""
    label, tag_open, tag_close = named.double().unbind(1)
    is_open, is_close = picked[:, 0] == picked[:, 1], picked[:, 0] == picked[:, 2]
    label = torch.where(is_open | is_close, -torch.inf, label)  # counted once
    logs = torch.stack([tag_open, tag_close, label, rest.double()]).log_softmax(0)
    slot = torch.where(is_open, 0, torch.where(is_close, 1, 2))
    return logs.gather(0, slot[None])[0], torch.stack([logs[0], logs[1], torch.logaddexp(logs[2], logs[3])])


def _matrix_head(hidden, head, picked, rows, ref_hidden, ref_head, plan, _) -> tuple[Tensor, ...]:
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device) and head.weight.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else head.weight.dtype
    heads = [head] if rows is None or ref_head is head else [head, ref_head]
    tensors = hidden, ref_hidden, *(x for h in heads for x in (h.weight, h.bias))
    hidden, ref_hidden, *own = (None if x is None else x.to(dtype) for x in tensors)
    return _MatrixHead.apply(plan, picked, rows, hidden, ref_hidden, *own[:2], *own[-2:])


class _MatrixHead(torch.autograd.Function):
    """Named logits (R, 3), logsumexp of the rest (R,), KL (R_kl,) and argmax (R,) of a head that is one matrix."""

    @staticmethod
    def forward(ctx, plan, picked, rows, hidden, ref_hidden, weight, bias, ref_weight, ref_bias):
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total, kl_total = len(hidden), 0 if rows is None else len(rows)
        named, rest = hidden.new_empty(total, 3, dtype=wide), hidden.new_empty(total, dtype=torch.float64)
        mean, pull = (hidden.new_empty(n if plan.with_grad else 0, hidden.shape[1]) for n in (total, kl_total))
        kl, kl_sums = hidden.new_empty(kl_total, dtype=wide), hidden.new_empty(kl_total, 2, dtype=wide)
        argmax, boost = torch.empty_like(picked[:, 0]), _BOOST.get(hidden.dtype, 1.0)
        for part in plan.blocks(total, len(weight)):
            z = plan.logits(F.linear(hidden[part], weight, bias))
            slope = plan.slope(z) if plan.with_grad else None
            argmax[part], named[part] = z.argmax(-1), z.gather(1, picked[part])
            if kl_total:
                at, local = _kl_part(rows, part)
                ref_z = plan.logits(F.linear(ref_hidden[at], ref_weight, ref_bias))
                kl[at], kl_sums[at], excess = _kl(z[local], ref_z)
                if plan.with_grad:
                    pull[at] = excess.mul_((slope[local] if plan.cap else 1) * boost).to(hidden.dtype) @ weight
                del ref_z, excess
            rest[part], share = _softmax(z.scatter_(1, picked[part], -torch.inf))
            if plan.with_grad:
                mean[part] = share.mul_(slope * boost).to(hidden.dtype) @ weight
        ctx.plan, ctx.trained = plan, any(ctx.needs_input_grad[5:7])
        again = (hidden, bias, kl_sums, ref_hidden, ref_weight, ref_bias) if ctx.trained else ()
        ctx.save_for_backward(picked, rows, weight, named, rest, mean, pull, *again)
        ctx.mark_non_differentiable(argmax)
        return named, rest, kl, argmax

    @staticmethod
    @once_differentiable
    def backward(ctx, d_named, d_rest, d_kl, _):
        picked, rows, weight, named, rest, mean, pull, *again = ctx.saved_tensors
        d_named, d_rest, d_kl = (ctx.plan.scale * d.to(named.dtype) for d in (d_named, d_rest, d_kl))
        d_hidden, d_weight, d_bias = None, None, None
        with torch.autocast(weight.device.type, enabled=False):  # the forward pass chose the dtype
            if ctx.needs_input_grad[3]:
                boost, direct = _BOOST.get(mean.dtype, 1.0), ctx.plan.slope(named) * d_named
                d_hidden = (d_rest / boost)[:, None] * mean
                for k in range(3):
                    d_hidden.addcmul_(direct[:, k : k + 1], weight[picked[:, k]].to(direct.dtype))
                if rows is not None:
                    d_hidden.index_add_(0, rows, (d_kl / boost)[:, None] * pull)
                d_hidden = d_hidden.to(mean.dtype)
            if ctx.trained:
                d_weight, d_bias = _parameter_grads(ctx.plan, picked, rows, weight, rest, *again, d_named, d_rest, d_kl)
        return None, None, None, d_hidden, None, d_weight, d_bias, None, None


def _parameter_grads(
    plan, picked, rows, weight, rest, hidden, bias, kl_sums, ref_hidden, ref_weight, ref_bias, d_named, d_rest, d_kl
) -> tuple[Tensor, Tensor | None]:
    """dW (V, D) and d bias (V,), by blocks of the vocabulary, whose logits are made anew."""
    d_weight, d_bias = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
    for part in plan.blocks(len(weight), len(hidden)):
        z = plan.logits(F.linear(hidden, weight[part], None if bias is None else bias[part]))
        slope = plan.slope(z)
        p = z[rows].sub_(kl_sums[:, :1]).exp_() if len(d_kl) else None
        row, which = ((picked >= part.start) & (picked < part.stop)).nonzero(as_tuple=True)
        column = picked[row, which] - part.start
        z[row, column] = -torch.inf
        grad = z.sub_(rest[:, None].to(z.dtype)).exp_().mul_(d_rest[:, None])
        grad.index_put_((row, column), d_named[row, which], accumulate=True)
        if len(d_kl):
            ref_z = plan.logits(F.linear(ref_hidden, ref_weight[part], None if ref_bias is None else ref_bias[part]))
            grad.index_add_(0, rows, p.sub_(ref_z.sub_(kl_sums[:, 1:]).exp_()).mul_(d_kl[:, None]))
        grad.mul_(slope)
        d_weight[part] = grad.to(hidden.dtype).T @ hidden
        if bias is not None:
            d_bias[part] = grad.sum(0)
    return d_weight, d_bias


def _softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp (r,) float64 and softmax (r, V) of logits, which are lost. All -inf: the lowest, and 0."""
    lowest = torch.finfo(z.dtype).min
    top = z.amax(-1, keepdim=True).clamp(min=lowest)
    share = z.sub_(top).exp_()
    norm = share.sum(-1, keepdim=True)  # at least 1, or 0
    return (top.double() + norm.log())[:, 0].clamp(min=lowest), share.div_(norm.clamp(min=1))


def _kl_part(rows: Tensor, part: slice) -> tuple[slice, Tensor]:
    """Where the rows of a chunk stand among the KL's rows, and their places within the chunk."""
    low, high = torch.searchsorted(rows, torch.tensor([part.start, part.stop], device=rows.device)).tolist()
    return slice(low, high), rows[low:high] - part.start


def _kl(z: Tensor, ref_z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p_ref || p) (r,), the two logsumexps (r, 2), and p - p_ref (r, V), of logits (r, V), which are lost."""
    sums = []
    for x in (z, ref_z):
        top = x.amax(-1, keepdim=True)
        norm = x.sub_(top).logsumexp(-1, keepdim=True)  # after the subtraction: logsumexp(z) itself is less precise
        x.sub_(norm)
        sums.append(top + norm)
    p_ref = ref_z.exp()
    return ref_z.sub_(z).mul_(p_ref).sum(-1), torch.cat(sums, 1), z.exp_().sub_(p_ref)


def _module_head(hidden, head, picked, rows, ref_hidden, ref_head, plan, vocabulary) -> tuple[Tensor, ...]:
    """As _MatrixHead, through the module: its logits are made once in forward and once in backward, by chunks."""

    def stats(h: Tensor, ids: Tensor, local: Tensor | None, ref_h: Tensor | None) -> tuple[Tensor, ...]:
        z = plan.logits(head(h))
        kl = z.new_zeros(0)
        if local is not None:
            with torch.no_grad():
                log_ref = plan.logits(ref_head(ref_h)).log_softmax(-1)
            kl = (log_ref.exp() * (log_ref - z[local].log_softmax(-1))).sum(-1)
        rest = z.scatter(1, ids, torch.finfo(z.dtype).min).logsumexp(-1)  # not -inf: the rest may be empty
        return z.gather(1, ids), rest, kl, z.detach().argmax(-1)

    parts, run = [], partial(checkpoint, stats, use_reentrant=False) if torch.is_grad_enabled() else stats
    for part in plan.blocks(len(hidden), vocabulary):
        at, local = (None, None) if rows is None else _kl_part(rows, part)
        arguments = hidden[part], picked[part], local, None if at is None else ref_hidden[at]
        parts.append(run(*arguments))
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
