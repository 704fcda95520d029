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

import shutil
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
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_LOWEST = -3e38  # not -inf: -inf less -inf is NaN, and a rest may be empty
_CHUNK = {"cpu": 2**22}  # at most, where the head is one matrix: 16 MiB, that cache and malloc keep


class HeadOutput(NamedTuple):
    """What the head says of R rows, in nats. log_tags is finite: where V = 2, its third is about -3e38."""

    log_probs: Tensor  # (R,) float32, of the labels; float64 where the head is
    log_tags: Tensor  # (3, R) float64, of the open tag, the close tag and anything else
    argmax: Tensor  # (R,) int64, the most probable token, without gradient
    kl: Tensor | None  # (R_kl,) KL(p_ref || p), dtype as log_probs; None without a reference


def _linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """As F.linear; in float32 on a CPU by oneDNN, which here is a fifth faster, and twice where rows are few."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() and _ONEDNN:
        return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
    return F.linear(x, w, b)


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

    def slope(self, z: Tensor) -> Tensor | float:  # d logit / d product, the scale left out
        return 1.0 if self.cap is None else 1 - (z / self.cap) ** 2

    def blocks(self, total: int, other: int) -> list[slice]:
        """Slices of `total`, even and aligned, such that one times `other` keeps to the chunk; one where it is 0."""
        step = max(1, self.chunk // max(other, 1))
        unit = 8 if step >= 8 else 1
        count = max(1, -(-total // (step - step % unit)))
        step = max(1, -(-total // (count * unit))) * unit
        return [slice(at, min(at + step, total)) for at in range(0, max(total, 1), step)]


def head_log_probs(
    hidden: Tensor, head: nn.Module, labels: Tensor, tag_ids: tuple[int, int], *, ref_hidden: Tensor | None = None,
    kl_rows: Tensor | None = None, ref_head: nn.Module | None = None, softcap: float | None = None, scale: float = 1.0,
    chunk_bytes: int = 2**26,
) -> HeadOutput:  # fmt: skip
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
    plan = _Plan(scale, softcap, max(1, chunk_bytes // 4), torch.is_grad_enabled() and hidden.requires_grad)
    picked = torch.stack([labels, *(torch.full_like(labels, tag) for tag in tag_ids)], 1)  # (R, 3)
    order, back, ref = slice(None), slice(None), hidden.detach()[:0]
    if ref_hidden is not None:  # rows with a KL first
        rows = torch.ones_like(labels) if kl_rows is None else kl_rows.long()
        order, ref = rows.argsort(descending=True, stable=True), ref_hidden.detach()
        back, ref_head = order.argsort(), _without_adapters(head) if ref_head is None else ref_head
    run = _matrix_head if plain and ref_head in (None, head) else _module_head
    *found, argmax = run(hidden[order], head, picked[order], ref, ref_head, plan, shape[0])
    log_probs, log_tags, kl = _combine(picked[order], *found)
    log_probs, kl = log_probs.to(found[0].dtype), None if ref_hidden is None else kl.to(found[0].dtype)
    return HeadOutput(log_probs[back], log_tags[:, back], argmax[back], kl)


def _combine(picked, named, rest, ref_named, ref_rest, kl_rest) -> tuple[Tensor, Tensor, Tensor]:
    """Log p of labels (R,), of tags (3, R), and KL (R_kl,), float64: of four outcomes, and within the rest if it is."""
    is_open, is_close = picked[:, 0] == picked[:, 1], picked[:, 0] == picked[:, 2]

    def four(named: Tensor, rest: Tensor) -> Tensor:
        label, tag_open, tag_close = named.double().unbind(1)
        label = label.masked_fill((is_open | is_close)[: len(label)], _LOWEST)  # counted once
        return torch.stack([tag_open, tag_close, label, rest.double()]).log_softmax(0)

    logs, ref_logs = four(named, rest), four(ref_named, ref_rest)
    kl = (ref_logs.exp() * (ref_logs - logs[:, : len(ref_rest)])).sum(0) + ref_logs[3].exp() * kl_rest
    label = torch.where(is_open, logs[0], torch.where(is_close, logs[1], logs[2]))
    return label, torch.stack([logs[0], logs[1], torch.logaddexp(logs[2], logs[3])]), kl


def _matrix_head(hidden, head, picked, ref_hidden, _, plan, __) -> tuple[Tensor, ...]:
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device) and head.weight.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else head.weight.dtype
    tensors = (None if x is None else x.to(dtype) for x in (hidden, ref_hidden, head.weight, head.bias))
    return _MatrixHead.apply(plan._replace(chunk=min(plan.chunk, _CHUNK.get(device, plan.chunk))), picked, *tensors)


class _MatrixHead(torch.autograd.Function):
    """Named logits (R, 3), logsumexp of the rest (R,), both of the reference (R_kl), KL within the rest, and argmax."""

    @staticmethod
    def forward(ctx, plan, picked, hidden, ref_hidden, weight, bias):
        blocks = plan.blocks(len(hidden), 2 * int(plan.chunk**0.5))  # of rows; then four times as wide as high
        tiles = [_tile(plan, picked[part], hidden[part], ref_hidden[part], weight, bias) for part in blocks]
        named, rest, ref_named, ref_rest, kl, argmax, mean, pull = map(torch.cat, zip(*tiles, strict=True))
        ctx.plan, ctx.trained = plan, any(ctx.needs_input_grad[4:6])
        again = (torch.cat([rest, ref_rest]), torch.cat([hidden, ref_hidden]), bias) if ctx.trained else ()
        ctx.save_for_backward(picked, weight, named, mean, pull, *again)
        ctx.mark_non_differentiable(ref_named, ref_rest, argmax)
        return named, rest, ref_named, ref_rest, kl, argmax

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
            if ctx.trained:
                d_weight, d_bias = _parameter_grads(ctx.plan, picked, weight, *again, d_named, d_rest, d_kl)
        return None, None, d_hidden, None, d_weight, d_bias


def _tile(plan, picked, hidden, ref_hidden, weight, bias) -> tuple[Tensor, ...]:
    """What `_MatrixHead` gives and keeps of r rows, the first k with a reference, by blocks of the vocabulary.
    The softmax over the blocks seen and one more is p' = (1 - u) p + u s, u the share of the new one, s. So go means
    under p; and q' = (1 - v) q + v t of the reference makes p' - q' = (1 - u)(p - q) + u (s - t) + (u - v)(t - q).
    """
    r, k, width, new = len(hidden), len(ref_hidden), hidden.shape[1], hidden.new_full
    wide, kept, block = torch.promote_types(hidden.dtype, torch.float32), int(plan.with_grad), _block_on(hidden.is_cuda)
    rows, picked = torch.cat([hidden, ref_hidden]), torch.cat([picked, picked[:k]])
    rest, gap = new((r + k, 1), -torch.inf, dtype=torch.float64), new((k, 1), 0, dtype=torch.float64)
    named, best = (new((r + k, n), -torch.inf, dtype=wide) for n in (3, 1))
    mean, pull = (new((n * kept, width), 0, dtype=wide) for n in (r, k))
    token = torch.zeros_like(picked[:, :1])
    for part in plan.blocks(len(weight), r + k):
        product = _linear(rows, weight[part], None if bias is None else bias[part])
        share, logits, top, place, size, apart = block(plan, product, picked - part.start, k)
        token, best = torch.where(top > best, place + part.start, token), torch.maximum(top, best)
        named, rest = torch.maximum(named, logits), torch.logaddexp(rest, size)
        u = (size - rest).exp()
        gap.lerp_(apart.double(), u[r:])
        if kept:
            turn, u, means = (u[:k] - u[r:]).to(wide), u.to(wide), _linear(share, weight[part].T).to(wide)
            turn = (means[:k] - means[r:]).sub_(mean[:k]).add_(pull).mul_(turn)
            pull.lerp_(means[r:], u[:k]).add_(turn)
            mean.lerp_(means[:r], u[:r])
    return named[:r], rest[:r, 0], named[r:], rest[r:, 0], (gap + rest[:k] - rest[r:])[:, 0], token[:r, 0], mean, pull


def _block(plan: _Plan, product: Tensor, picked: Tensor, k: int) -> tuple[Tensor, ...]:
    """Of products (r + k, n) with a block of the vocabulary, the last k the reference's for the first k rows:
    softmax of the rest, policy less reference in the last k rows, as it goes into a product; named logits (r + k, 3),
    -inf outside the block; the largest and its place, the rest's logsumexp (r + k, 1); reference less policy (k, 1).
    """
    z, r = plan.logits(product).clamp_(min=_LOWEST), len(product) - k
    (top, place), slope, gap = z.max(-1, keepdim=True), plan.slope(z[:r]), z[r:] - z[:k]
    at, inside = picked.clamp(0, z.shape[1] - 1), (picked >= 0) & (picked < z.shape[1])
    named = z.gather(1, at).masked_fill(~inside, -torch.inf)
    if torch.compiler.is_compiling():  # what fuses; else what is quick by itself
        z = torch.where((torch.arange(z.shape[1], device=z.device) == picked[:, :, None]).any(1), _LOWEST, z)
    else:
        z.scatter_reduce_(1, at, torch.full_like(named, torch.inf).masked_fill_(inside, _LOWEST), "amin")
    share = z.softmax(-1)
    size = z.amax(-1, keepdim=True).double() - share.amax(-1, keepdim=True).log()  # the largest is 1 / sum
    apart = gap.mul_(share[r:]).sum(-1, keepdim=True)
    share[r:] = share[:k] - share[r:]
    share = share if plan.cap is None else share * torch.cat([slope, slope[:k]])
    share = share * _BOOST[product.dtype] if product.dtype in _BOOST else share
    return share.to(product.dtype), named, top, place, size, apart


@cache  # _block; on CUDA in few kernels, where there is what compiles them
def _block_on(cuda: bool):
    return torch.compile(_block, dynamic=True) if cuda and has_triton() and shutil.which("cc") else _block


def _parameter_grads(plan, picked, weight, rest, rows, bias, d_named, d_rest, d_kl) -> tuple[Tensor, Tensor | None]:
    """dW (V, D) and d bias (V,), by blocks of the vocabulary, whose logits are made anew."""
    d_weight, d_bias = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
    r, k, picked = len(d_rest), len(d_kl), torch.cat([picked, picked[: len(d_kl)]])
    for part in plan.blocks(len(weight), r + k):
        z = plan.logits(_linear(rows, weight[part], None if bias is None else bias[part]))
        at, inside = (picked - part.start).clamp(0, z.shape[1] - 1), (picked >= part.start) & (picked < part.stop)
        slope, ends = plan.slope(z[:r]), z.new_full(at.shape, torch.inf).masked_fill_(inside, -torch.inf)
        share = z.scatter_reduce_(1, at, ends, "amin").sub_(rest[:, None].to(z.dtype)).exp_()
        grad = share[:r] * d_rest[:, None]
        grad[:k].addcmul_(share[:k] - share[r:], d_kl[:, None])
        grad = grad.scatter_add_(1, at[:r], d_named.masked_fill(~inside[:r], 0)).mul_(slope)
        d_weight[part] = _linear(grad.to(rows.dtype).T, rows[:r].T)
        if bias is not None:
            d_bias[part] = grad.sum(0)
    return d_weight, d_bias


def _module_head(hidden, head, picked, ref_hidden, ref_head, plan, vocabulary) -> tuple[Tensor, ...]:
    """As _MatrixHead, through the module: its logits are made once in forward and once in backward, by chunks."""

    def stats(h: Tensor, ids: Tensor, ref_h: Tensor) -> tuple[Tensor, ...]:
        z = plan.logits(head(h))  # on the head's device
        ids, own = ids.to(z.device), ids[: len(ref_h)].to(z.device)
        with torch.no_grad():
            ref_z = plan.logits(ref_head(ref_h)).to(z.device) if len(own) else z[:0]
        rest, ref_rest = (x.scatter(1, i, _LOWEST) for x, i in ((z, ids), (ref_z, own)))
        logs, ref_logs = rest[: len(own)].log_softmax(-1), ref_rest.log_softmax(-1)
        kl = F.kl_div(logs, ref_logs, reduction="none", log_target=True).sum(-1)
        found = z.gather(1, ids), rest.logsumexp(-1), ref_z.gather(1, own), ref_rest.logsumexp(-1), kl
        return *(x.to(h.device) for x in found), z.detach().argmax(-1).to(h.device)

    run = partial(checkpoint, stats, use_reentrant=False) if torch.is_grad_enabled() else stats
    parts = [run(hidden[part], picked[part], ref_hidden[part]) for part in plan.blocks(len(hidden), vocabulary)]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


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
    elif kl_rows is not None and (ref_hidden is None or kl_rows.shape != labels.shape or kl_rows.dtype != torch.bool):
        wanted = "ref_hidden with kl_rows, and those one bool a row"
    elif ref_hidden is not None and ref_hidden.shape != (rows, shape[1]):
        wanted = f"ref_hidden ({rows}, {shape[1]}), one row for each KL row"
    elif softcap is not None and not softcap > 0:
        wanted = "a positive softcap, or None for no cap"
    else:
        return
    tensors = dict(hidden=hidden, labels=labels, ref_hidden=ref_hidden, kl_rows=kl_rows)
    given = "".join(f"{name} {tuple(x.shape)} {x.dtype}, " for name, x in tensors.items() if x is not None)
    raise ValueError(f"wanted {wanted}; given: {given}weight {tuple(shape)}, {tag_ids=}, {softcap=}")
