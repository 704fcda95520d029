"""The products of a head that is one matrix, and the gradient that needs none: what `head` is fast by.

Blocks of the vocabulary, for all rows at once; their softmax is merged as they come, so that neither logits (R, V) nor
their gradient ever exist. See `head` for what is computed.
"""

import shutil
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._triton import has_triton

_BOOST = {
    torch.float16: 1024.0
}  # on probabilities in their product with W: float16 has no number below 6e-8
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
CHUNK = {"cpu": 2**22}  # at most, where the head is one matrix: 16 MiB, that cache and malloc keep
LOWEST = -3e38  # not -inf: -inf less -inf is NaN, and a rest may be empty


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """As F.linear; in float32 on a CPU by oneDNN, which here is a fifth faster, and twice where rows are few."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() and _ONEDNN:
        return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
    return F.linear(x, w, b)


class Plan(NamedTuple):
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


def matrix_head(
    hidden: Tensor, head: nn.Linear, picked: Tensor, ref_hidden: Tensor, plan: Plan
) -> tuple[Tensor, ...]:
    """What a head says of R rows (R, D), the first R_kl of them with a reference (R_kl, D).

    picked (R, 3): the ids of label, open and close tag. Returns the named logits (R, 3) and the logsumexp of the rest
    (R,), the same of the reference for R_kl rows, the KL within the rest (R_kl,), and the argmax (R,).
    """
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device) and head.weight.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else head.weight.dtype
    tensors = (
        None if x is None else x.to(dtype) for x in (hidden, ref_hidden, head.weight, head.bias)
    )
    return _MatrixHead.apply(
        plan._replace(chunk=min(plan.chunk, CHUNK.get(device, plan.chunk))), picked, *tensors
    )


class _MatrixHead(torch.autograd.Function):
    """Named logits (R, 3), logsumexp of the rest (R,), both of the reference (R_kl), KL within the rest, and argmax."""

    @staticmethod
    def forward(ctx, plan, picked, hidden, ref_hidden, weight, bias):
        blocks = plan.blocks(
            len(hidden), 2 * int(plan.chunk**0.5)
        )  # of rows; then four times as wide as high
        tiles = [
            _tile(plan, picked[part], hidden[part], ref_hidden[part], weight, bias)
            for part in blocks
        ]
        named, rest, ref_named, ref_rest, kl, argmax, mean, pull = map(
            torch.cat, zip(*tiles, strict=True)
        )
        ctx.plan, ctx.trained = plan, any(ctx.needs_input_grad[4:6])
        again = (
            (torch.cat([rest, ref_rest]), torch.cat([hidden, ref_hidden]), bias)
            if ctx.trained
            else ()
        )
        ctx.save_for_backward(picked, weight, named, mean, pull, *again)
        ctx.mark_non_differentiable(ref_named, ref_rest, argmax)
        return named, rest, ref_named, ref_rest, kl, argmax

    @staticmethod
    @once_differentiable
    def backward(ctx, d_named, d_rest, _, __, d_kl, ___):
        picked, weight, named, mean, pull, *again = ctx.saved_tensors
        d_named, d_rest, d_kl = (
            ctx.plan.scale * d.to(named.dtype) for d in (d_named, d_rest, d_kl)
        )
        d_hidden, d_weight, d_bias = None, None, None
        with torch.autocast(weight.device.type, enabled=False):  # the forward pass chose the dtype
            if ctx.needs_input_grad[2]:
                boost, direct = _BOOST.get(weight.dtype, 1.0), ctx.plan.slope(named) * d_named
                d_hidden = (d_rest / boost)[:, None] * mean
                d_hidden[: len(pull)].addcmul_((d_kl / boost)[:, None], pull)
                for k in range(3):
                    d_hidden.addcmul_(direct[:, k : k + 1], weight[picked[:, k]].to(direct.dtype))
            if ctx.trained:
                d_weight, d_bias = _parameter_grads(
                    ctx.plan, picked, weight, *again, d_named, d_rest, d_kl
                )
        return None, None, d_hidden, None, d_weight, d_bias


def _tile(plan, picked, hidden, ref_hidden, weight, bias) -> tuple[Tensor, ...]:
    """What `_MatrixHead` gives and keeps of r rows, the first k with a reference, by blocks of the vocabulary.
    The softmax over the blocks seen and one more is p' = (1 - u) p + u s, u the share of the new one, s. So go means
    under p; and q' = (1 - v) q + v t of the reference makes p' - q' = (1 - u)(p - q) + u (s - t) + (u - v)(t - q).
    """
    r, k, width, new = len(hidden), len(ref_hidden), hidden.shape[1], hidden.new_full
    wide, kept, block = (
        torch.promote_types(hidden.dtype, torch.float32),
        int(plan.with_grad),
        _block_on(hidden.is_cuda),
    )
    rows, picked = torch.cat([hidden, ref_hidden]), torch.cat([picked, picked[:k]])
    rest, gap = (
        new((r + k, 1), -torch.inf, dtype=torch.float64),
        new((k, 1), 0, dtype=torch.float64),
    )
    named, best = (new((r + k, n), -torch.inf, dtype=wide) for n in (3, 1))
    mean, pull = (new((n * kept, width), 0, dtype=wide) for n in (r, k))
    token = torch.zeros_like(picked[:, :1])
    for part in plan.blocks(len(weight), r + k):
        product = linear(rows, weight[part], None if bias is None else bias[part])
        share, logits, top, place, size, apart = block(plan, product, picked - part.start, k)
        token, best = torch.where(top > best, place + part.start, token), torch.maximum(top, best)
        named, rest = torch.maximum(named, logits), torch.logaddexp(rest, size)
        u = (size - rest).exp()
        gap.lerp_(apart.double(), u[r:])
        if kept:
            turn, u, means = (
                (u[:k] - u[r:]).to(wide),
                u.to(wide),
                linear(share, weight[part].T).to(wide),
            )
            turn = (means[:k] - means[r:]).sub_(mean[:k]).add_(pull).mul_(turn)
            pull.lerp_(means[r:], u[:k]).add_(turn)
            mean.lerp_(means[:r], u[:r])
    return (
        named[:r],
        rest[:r, 0],
        named[r:],
        rest[r:, 0],
        (gap + rest[:k] - rest[r:])[:, 0],
        token[:r, 0],
        mean,
        pull,
    )


def block_of(plan: Plan, product: Tensor, picked: Tensor, k: int) -> tuple[Tensor, ...]:
    """Of products (r + k, n) with a block of the vocabulary, the last k the reference's for the first k rows:
    softmax of the rest, policy less reference in the last k rows, as it goes into a product; named logits (r + k, 3),
    -inf outside the block; the largest and its place, the rest's logsumexp (r + k, 1); reference less policy (k, 1).
    """
    z, r = plan.logits(product).clamp_(min=LOWEST), len(product) - k
    (top, place), slope, gap = z.max(-1, keepdim=True), plan.slope(z[:r]), z[r:] - z[:k]
    at, inside = picked.clamp(0, z.shape[1] - 1), (picked >= 0) & (picked < z.shape[1])
    named = z.gather(1, at).masked_fill(~inside, -torch.inf)
    if torch.compiler.is_compiling():  # what fuses; else what is quick by itself
        z = torch.where(
            (torch.arange(z.shape[1], device=z.device) == picked[:, :, None]).any(1), LOWEST, z
        )
    else:
        z.scatter_reduce_(
            1, at, torch.full_like(named, torch.inf).masked_fill_(inside, LOWEST), "amin"
        )
    share = z.softmax(-1)
    size = (
        z.amax(-1, keepdim=True).double() - share.amax(-1, keepdim=True).log()
    )  # the largest is 1 / sum
    apart = gap.mul_(share[r:]).sum(-1, keepdim=True)
    share[r:] = share[:k] - share[r:]
    share = share if plan.cap is None else share * torch.cat([slope, slope[:k]])
    share = share * _BOOST[product.dtype] if product.dtype in _BOOST else share
    return share.to(product.dtype), named, top, place, size, apart


@cache  # block_of; on CUDA in few kernels, where there is what compiles them
def _block_on(cuda: bool):
    return (
        torch.compile(block_of, dynamic=True)
        if cuda and has_triton() and shutil.which("cc")
        else block_of
    )


def _parameter_grads(
    plan, picked, weight, rest, rows, bias, d_named, d_rest, d_kl
) -> tuple[Tensor, Tensor | None]:
    """dW (V, D) and d bias (V,), by blocks of the vocabulary, whose logits are made anew."""
    d_weight, d_bias = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
    r, k, picked = len(d_rest), len(d_kl), torch.cat([picked, picked[: len(d_kl)]])
    for part in plan.blocks(len(weight), r + k):
        z = plan.logits(linear(rows, weight[part], None if bias is None else bias[part]))
        at, inside = (
            (picked - part.start).clamp(0, z.shape[1] - 1),
            (picked >= part.start) & (picked < part.stop),
        )
        slope, ends = (
            plan.slope(z[:r]),
            z.new_full(at.shape, torch.inf).masked_fill_(inside, -torch.inf),
        )
        share = z.scatter_reduce_(1, at, ends, "amin").sub_(rest[:, None].to(z.dtype)).exp_()
        grad = share[:r] * d_rest[:, None]
        grad[:k].addcmul_(share[:k] - share[r:], d_kl[:, None])
        grad = grad.scatter_add_(1, at[:r], d_named.masked_fill(~inside[:r], 0)).mul_(slope)
        d_weight[part] = linear(grad.to(rows.dtype).T, rows[:r].T)
        if bias is not None:
            d_bias[part] = grad.sum(0)
    return d_weight, d_bias
