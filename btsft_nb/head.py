"""Token log-probabilities, tag log-probabilities and KL from hidden states, without keeping logits.

A row h (D,) and a head W (V, D) give logits z = W h. Of these V numbers, up to three have a name: the two tags' and
the label's. The others, the rest, enter the objective only through their logsumexp. One pass over chunks of rows makes

    z_label, z_open, z_close,   lse_rest = logsumexp_{v in rest} z_v,   mean = sum_{v in rest} softmax_rest(z)_v W_v

which is two matrix products, and the gradient by h of whatever is later made of the four numbers is

    dh = a_label W_label + a_open W_open + a_close W_close + a_rest mean,      a = d loss / d (the four)

with no product and no recomputation, for any upstream gradient of any row. Each a is small where its probability is
(a_label is proportional to 1 - p_label), so nothing cancels where a token is all but certain, in half precision too;
with W_label left inside the mean it would. A KL to a reference adds a product for the reference's logits and one for
its gradient, (p - p_ref) W, on its rows only. A trainable matrix adds two products to the backward pass, which goes
over blocks of the vocabulary: each block of dW is written once, summed over all rows at once.

A bias, a scale and a soft cap (Gemma, https://arxiv.org/abs/2408.00118) keep all of that. A head that is not one plain
matrix (LoRA, quantised, trainable token rows, hooks) is called chunk by chunk under `torch.utils.checkpoint` instead:
the same value, and the gradient of every parameter it has, for one forward pass more.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class HeadOutput(NamedTuple):
    """What the head says of R rows.

    Attributes:
        log_probs: (R,) float32, log p of the label (float64 where the head computes in float64).
        log_tags: (3, R) float64, log p of the open tag, the close tag and anything else, each a sum of its own: finite
            where a tag is all but certain. Where nothing else exists (V = 2), the third is about -3e38, not -inf.
        argmax: (R,) int64, the most probable token. It has no gradient.
        kl: (R_kl,) KL(p_ref || p) in nats, float32 as log_probs; None where no reference was given.
    """

    log_probs: Tensor
    log_tags: Tensor
    argmax: Tensor
    kl: Tensor | None


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


class _Reference(NamedTuple):
    """The rows (R_kl,) that have a KL, in order, and their hidden states (R_kl, D) and head in the reference model."""

    rows: Tensor
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


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
        labels: (R,) int64 in [0, V).
        tag_ids: the ids of the open and the close tag.
        ref_hidden: (R_kl, D), the reference model's hidden states at the rows of `kl_rows`, in their order; a constant.
        kl_rows: (R,) bool, the rows that have a KL; by default all, where `ref_hidden` is given.
        ref_head: maps `ref_hidden` to the reference's logits; by default `head` with its PEFT adapters left out.
        softcap, scale: what the model does to the head's output before the softmax, in logits; scale comes first.
            Gemma: softcap=config.final_logit_softcapping. Cohere: scale=config.logit_scale. Granite:
            scale=1 / config.logits_scaling.
        chunk_bytes: size of a block of logits in float32; a few such blocks exist at a time, logits (R, V) never.

    Products run in the dtype of autocast or else of the head's weight, softmax and sums in float32. Only first
    derivatives exist.

    Raises ValueError, with what was given and what would do, for shapes, ids or a head that do not fit.
    """
    plain = _is_matrix(head)
    shape = head.weight.shape if plain else (_width(head, hidden), hidden.shape[-1])
    _check(hidden, labels, tag_ids, shape, ref_hidden, kl_rows)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap}: a positive number of logits, or None for no cap")
    plan = _Plan(scale, softcap, max(1, chunk_bytes // 4), torch.is_grad_enabled() and hidden.requires_grad)
    picked = torch.stack([labels, *(torch.full_like(labels, tag) for tag in tag_ids)], 1)  # (R, 3)
    rows = None
    if ref_hidden is not None:
        rows = torch.arange(len(labels), device=labels.device) if kl_rows is None else kl_rows.nonzero()[:, 0]
        ref_hidden, ref_head = ref_hidden.detach(), _without_adapters(head) if ref_head is None else ref_head
    if plain and (rows is None or _is_matrix(ref_head)):
        named, rest, kl, argmax = _matrix_head(hidden, head, picked, rows, ref_hidden, ref_head, plan)
    else:
        named, rest, kl, argmax = _module_head(hidden, head, picked, rows, ref_hidden, ref_head, plan, shape[0])
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


def _matrix_head(hidden, head, picked, rows, ref_hidden, ref_head, plan) -> tuple[Tensor, ...]:
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device) and head.weight.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else head.weight.dtype

    def cast(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(dtype)

    reference = None
    if rows is not None:
        weight, bias = (None if x is None else x.detach() for x in (ref_head.weight, ref_head.bias))
        reference = _Reference(rows, cast(ref_hidden), cast(weight), cast(bias))
    inputs = cast(hidden), cast(head.weight), cast(head.bias)
    with torch.autocast(device, enabled=False):
        return _MatrixHead.apply(*inputs, picked, reference, plan)


class _MatrixHead(torch.autograd.Function):
    """Named logits (R, 3), logsumexp of the rest (R,), KL (R_kl,) and argmax (R,) of a head that is one matrix."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, picked, reference, plan):
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total, kl_total = len(hidden), 0 if reference is None else len(reference.rows)
        named, rest = hidden.new_empty(total, 3, dtype=wide), hidden.new_empty(total, dtype=torch.float64)
        mean, pull = (hidden.new_empty(n if plan.with_grad else 0, hidden.shape[1]) for n in (total, kl_total))
        kl, kl_sums = hidden.new_empty(kl_total, dtype=wide), hidden.new_empty(kl_total, 2, dtype=wide)
        argmax = torch.empty_like(picked[:, 0])
        for part in plan.blocks(total, len(weight)):
            z = plan.logits(F.linear(hidden[part], weight, bias))
            slope = plan.slope(z) if plan.with_grad else None
            argmax[part], named[part] = z.argmax(-1), z.gather(1, picked[part])
            if kl_total:
                at, local = _kl_part(reference.rows, part)
                ref_z = plan.logits(F.linear(reference.hidden[at], reference.weight, reference.bias))
                kl[at], kl_sums[at], excess = _kl(z[local], ref_z)
                if plan.with_grad:
                    excess.mul_(slope[local] if plan.cap else 1).mul_(_boost(hidden.dtype))
                    pull[at] = excess.to(hidden.dtype) @ weight
                del ref_z, excess
            rest[part], share = _softmax(z.scatter_(1, picked[part], -torch.inf))
            if plan.with_grad:
                mean[part] = share.mul_(slope * _boost(hidden.dtype)).to(hidden.dtype) @ weight
        ctx.plan, ctx.reference = plan, reference
        keep = hidden if any(ctx.needs_input_grad[1:3]) else None
        ctx.save_for_backward(keep, weight, bias, picked, named, rest, mean, pull, kl_sums)
        ctx.mark_non_differentiable(argmax)
        return named, rest, kl, argmax

    @staticmethod
    @once_differentiable
    def backward(ctx, d_named, d_rest, d_kl, _):
        hidden, weight, bias, picked, named, rest, mean, pull, kl_sums = ctx.saved_tensors
        plan, reference = ctx.plan, ctx.reference
        d_named, d_rest, d_kl = (plan.scale * d.to(named.dtype) for d in (d_named, d_rest, d_kl))
        d_hidden = d_weight = d_bias = None
        with torch.autocast(weight.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                boost, direct = _boost(mean.dtype), plan.slope(named) * d_named
                d_hidden = (d_rest / boost)[:, None] * mean
                for k in range(3):
                    d_hidden.addcmul_(direct[:, k : k + 1], weight[picked[:, k]].to(direct.dtype))
                if reference is not None:
                    d_hidden.index_add_(0, reference.rows, (d_kl / boost)[:, None] * pull)
                d_hidden = d_hidden.to(mean.dtype)
            if hidden is not None:
                state = picked, rest, kl_sums, d_named, d_rest, d_kl
                d_weight, d_bias = _parameter_grads(hidden, weight, bias, reference, plan, state)
        return d_hidden, d_weight, d_bias, None, None, None


def _parameter_grads(hidden, weight, bias, reference, plan, state) -> tuple[Tensor, Tensor | None]:
    """dW (V, D) and d bias (V,), by blocks of the vocabulary, whose logits are made anew."""
    picked, rest, kl_sums, d_named, d_rest, d_kl = state
    d_weight, d_bias = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
    for part in plan.blocks(len(weight), len(hidden)):
        z = plan.logits(F.linear(hidden, weight[part], None if bias is None else bias[part]))
        row, which = ((picked >= part.start) & (picked < part.stop)).nonzero(as_tuple=True)
        column = picked[row, which] - part.start
        slope = plan.slope(z)
        p = z[reference.rows].sub_(kl_sums[:, :1]).exp_() if len(d_kl) else None
        z[row, column] = -torch.inf
        grad = z.sub_(rest[:, None].to(z.dtype)).exp_().mul_(d_rest[:, None])
        grad.index_put_((row, column), d_named[row, which], accumulate=True)
        if len(d_kl):
            ref_bias = None if reference.bias is None else reference.bias[part]
            ref_z = plan.logits(F.linear(reference.hidden, reference.weight[part], ref_bias))
            excess = p.sub_(ref_z.sub_(kl_sums[:, 1:]).exp_())
            grad.index_add_(0, reference.rows, excess.mul_(d_kl[:, None]))
        grad.mul_(slope)
        d_weight[part] = grad.to(hidden.dtype).T @ hidden
        if bias is not None:
            d_bias[part] = grad.sum(0)
    return d_weight, d_bias


def _boost(dtype: torch.dtype) -> float:
    """Probabilities are multiplied by it for their product with W, as half precision has none below 6e-8."""
    return 1024.0 if dtype == torch.float16 else 1.0


def _softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp (r,) float64 and softmax (r, V) of logits, which are lost; the lowest number and 0 where all are -inf."""
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

    parts = []
    for part in plan.blocks(len(hidden), vocabulary):
        arguments = hidden[part], picked[part], None, None
        if rows is not None:
            at, local = _kl_part(rows, part)
            arguments = hidden[part], picked[part], local, ref_hidden[at]
        kept = torch.is_grad_enabled()
        parts.append(checkpoint(stats, *arguments, use_reentrant=False) if kept else stats(*arguments))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _is_matrix(head: nn.Module) -> bool:
    """Whether a call of the module is one product with a plain tensor: nn.Linear itself, without hooks."""
    if type(head) is not nn.Linear or "forward" in vars(head):
        return False
    hooks = head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks
    return not any(hooks) and type(head.weight.data) is Tensor and head.weight.dtype in _FLOATS


def _without_adapters(head: nn.Module) -> nn.Module:
    """The module under PEFT's wrappers, by their names for it."""
    while isinstance(inner := getattr(head, "original_module", getattr(head, "base_layer", None)), nn.Module):
        if getattr(head, "merged", False):
            raise ValueError(
                f"the adapter of {type(head).__name__} is merged into its weight, so the reference is not in it: "
                "unmerge the adapter, or give ref_head"
            )
        head = inner
    return head


def _width(head: nn.Module, hidden: Tensor) -> int:
    """V of a module's output."""
    inner = _without_adapters(head) if not getattr(head, "merged", False) else head
    if isinstance(width := getattr(inner, "out_features", None), int):
        return width
    with torch.no_grad():
        return head(hidden[:0]).shape[-1]  # no rows: dropout in it draws nothing


def _check(hidden, labels, tag_ids, shape, ref_hidden, kl_rows) -> None:
    """Raises ValueError where shapes or ids do not fit a head of `shape` (V, D)."""
    if len(shape) != 2 or hidden.dim() != 2 or hidden.shape[1] != shape[1] or hidden.dtype not in _FLOATS:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)} {hidden.dtype} and the head's weight {tuple(shape)}: floats (R, D) and "
            "(V, D) wanted; flatten batch and time first, and where the weight is sharded (FSDP, ZeRO-3) call this "
            "inside the forward pass of the wrapped model, which gathers it"
        )
    if labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels are {tuple(labels.shape)} {labels.dtype}: int64 ({len(hidden)},) wanted, one a row")
    if len(labels) and not (labels.min() >= 0 and labels.max() < shape[0]):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, the head knows 0 to {shape[0] - 1}: drop the rows that "
            "need nothing (-100) before the call"
        )
    if len(tag_ids) != 2 or len({*tag_ids}) != 2 or not all(0 <= tag < shape[0] for tag in tag_ids):
        raise ValueError(f"tag_ids={tag_ids}: two different ids from 0 to {shape[0] - 1} wanted")
    if ref_hidden is None and kl_rows is not None:
        raise ValueError("kl_rows without ref_hidden: give the reference's hidden states at these rows, or neither")
    if ref_hidden is None:
        return
    if kl_rows is not None and (kl_rows.shape != labels.shape or kl_rows.dtype != torch.bool):
        raise ValueError(f"kl_rows is {tuple(kl_rows.shape)} {kl_rows.dtype}: bool ({len(labels)},) wanted")
    rows = len(labels) if kl_rows is None else int(kl_rows.sum())
    if ref_hidden.shape != (rows, shape[1]):
        raise ValueError(f"ref_hidden is {tuple(ref_hidden.shape)}: ({rows}, {shape[1]}) wanted, one row per KL row")
