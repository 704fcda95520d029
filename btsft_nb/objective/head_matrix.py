"""A frozen head that is one matrix: its log-probabilities in two products, and a gradient that needs none.

Blocks of the vocabulary, for many rows at once; neither logits (R, V) nor their gradient ever exist. See `head` for
what is computed. Of r rows p is the softmax over the rest, q that of the reference for the first k of them. Let a new
block have the softmaxes s and t, and the shares u and v in all that was seen, itself included. Then

    p' = (1 - u) p + u s,        q' = (1 - v) q + v t,
    p' - q' = (1 - u)(p - q) + u (s - t) + (u - v)(t - q),

and so go their products with W. The last line holds p - q as exactly as p where the two are close.
"""

import math
import shutil
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._triton import has_triton

from .full_logits import LOWEST, HeadOutput

CHUNK = {"cpu": 2**22}  # elements of a block, at most: 16 MiB, that cache and malloc keep

# on probabilities in their product with W: float16 has no number below 6e-8
_BOOST = {torch.float16: 1024.0}

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x, w, b=None):
    """As F.linear; in float32 on a CPU by oneDNN, which here is a fifth faster, and twice where rows are few."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() and _ONEDNN:
        return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
    return F.linear(x, w, b)


def blocks(total, most):
    """Slices of `total`, even and aligned, of at most `most`; one where `total` is 0.

    >>> blocks(20, 16)
    [slice(0, 16, None), slice(16, 20, None)]
    """
    unit = 8 if most >= 8 else 1
    count = max(1, -(-total // max(1, most - most % unit)))  # rounded up
    step = max(1, -(-total // (count * unit))) * unit
    return [slice(at, min(at + step, total)) for at in range(0, max(total, 1), step)]


def row_blocks(rows, chunk):
    """Tiles of rows, over which blocks of the vocabulary are four times as wide as a tile is high."""
    return blocks(rows, math.isqrt(chunk) // 2)


def matrix_head(head, tag_ids, form, hidden, labels, ref_hidden, chunk) -> HeadOutput:
    """What `nn.Linear` says of rows (R, D), the first R_kl of them with a reference (R_kl, D)."""
    device = hidden.device.type
    chunk = min(chunk, CHUNK.get(device, chunk))
    dtype = head.weight.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    weight = head.weight.to(dtype)
    bias = None if head.bias is None else head.bias.to(dtype)
    picked = torch.stack([labels, *(torch.full_like(labels, tag) for tag in tag_ids)], 1)
    tiles = row_blocks(len(hidden), chunk)
    # the gradient of a slice would be as large as all rows
    parts = hidden.to(dtype).split([rows.stop - rows.start for rows in tiles])
    outputs = [
        _Tile.apply(form, chunk, picked[rows], part, ref_hidden[rows].to(dtype), weight, bias)
        for rows, part in zip(tiles, parts, strict=True)
    ]
    return _combine(picked, *(torch.cat(each) for each in zip(*outputs, strict=True)))


def _combine(picked, named, rest, ref_named, ref_rest, kl, argmax) -> HeadOutput:
    """From logits to probabilities: of four outcomes, label, open tag, close tag and rest, in float64."""
    is_open = picked[:, 0] == picked[:, 1]
    is_close = picked[:, 0] == picked[:, 2]

    # log-probabilities (4, rows) from logits
    def outcomes(named, rest):
        label, tag_open, tag_close = named.double().unbind(1)
        # a label that is a tag counts once
        label = label.masked_fill((is_open | is_close)[: len(label)], LOWEST)
        return torch.stack([tag_open, tag_close, label, rest]).log_softmax(0)

    log_p = outcomes(named, rest)
    log_q = outcomes(ref_named, ref_rest)
    log_open, log_close, log_label, log_rest = log_p
    label = torch.where(is_open, log_open, torch.where(is_close, log_close, log_label))
    log_tags = torch.stack([log_open, log_close, torch.logaddexp(log_label, log_rest)])
    # KL of the four outcomes, and q_rest times that within the rest
    of_outcomes = (log_q.exp() * (log_q - log_p[:, : len(kl)])).sum(0)
    kl = of_outcomes + log_q[3].exp() * kl
    return HeadOutput(label.to(named.dtype), log_tags, argmax, kl.to(named.dtype))


class _Tile(torch.autograd.Function):
    """One pass over the vocabulary.

    Takes rows (r, D) with named ids (r, 3), and references (k, D) of the first k. Gives the logits (r, 3) of label,
    open and close tag and the logsumexp (r,) of the rest, the same of the references, KL(q || p) (k,) within the rest,
    and the argmax (r,). Its gradient is

        d hidden = d_rest p W + sum_named d_named W_named + d_kl (p - q) W
    """

    @staticmethod
    def forward(ctx, form, chunk, picked, hidden, ref_hidden, weight, bias):
        r = len(hidden)
        k = len(ref_hidden)
        # references behind the rows, so that one product makes the logits of both
        rows = torch.cat([hidden, ref_hidden])
        ids = torch.cat([picked, picked[:k]])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        block_on = _block_on(hidden.is_cuda)

        named = rows.new_full((r + k, 3), -torch.inf, dtype=wide)
        rest = rows.new_full((r + k, 1), -torch.inf, dtype=torch.float64)
        gap = rows.new_zeros((k, 1), dtype=torch.float64)
        best = rows.new_full((r + k, 1), -torch.inf, dtype=wide)
        argmax = torch.zeros_like(ids[:, :1])
        mean = torch.zeros_like(hidden, dtype=wide)  # p W
        pull = torch.zeros_like(ref_hidden, dtype=wide)  # (p - q) W, the gradient of the KL

        for part in blocks(len(weight), chunk // max(r + k, 1)):
            product = linear(rows, weight[part], None if bias is None else bias[part])
            block = block_on(form, product, ids - part.start, k)
            # of equal logits the first is the argmax
            argmax = torch.where(block.top > best, block.place + part.start, argmax)
            best = torch.maximum(best, block.top)
            named = torch.maximum(named, block.named)
            # u in the first r rows, v in the last k
            rest = torch.logaddexp(rest, block.rest)
            share = (block.rest - rest).exp()
            gap.lerp_(block.gap.double(), share[r:])
            if ctx.needs_input_grad[3]:
                _merge(mean, pull, linear(block.share, weight[part].T).to(wide), share)

        # KL(q || p) = E_q[log q - log p] = E_q[z_ref - z] - lse_ref + lse
        kl = gap + rest[:k] - rest[r:]
        ctx.form = form
        ctx.save_for_backward(picked, weight, named[:r], mean, pull)
        outputs = named[:r], rest[:r, 0], named[r:], rest[r:, 0], kl[:, 0], argmax[:r, 0]
        ctx.mark_non_differentiable(*outputs[2:4], outputs[5])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, d_named, d_rest, _ref_named, _ref_rest, d_kl, _argmax):
        picked, weight, named, mean, pull = ctx.saved_tensors
        # mean and pull hold slope and boost already
        scale = ctx.form.scale / _BOOST.get(weight.dtype, 1.0)
        # d_rest p W
        grad = (scale * d_rest).to(mean.dtype)[:, None] * mean
        # d_kl (p - q) W
        grad[: len(pull)].addcmul_((scale * d_kl).to(mean.dtype)[:, None], pull)
        # d_named W_named
        direct = ctx.form.scale * ctx.form.slope(named) * d_named
        for token, factor in zip(picked.unbind(1), direct.unbind(1), strict=True):
            grad.addcmul_(factor[:, None], weight[token].to(factor.dtype))
        return None, None, None, grad, None, None, None


def _merge(mean, pull, products, share):
    """Takes a block's s W (r, D) and (s - t) W (k, D), one below the other, into `mean` and `pull`, in place."""
    r = len(mean)
    k = len(pull)
    block_mean = products[:r]
    block_pull = products[r:]
    u = share[:r].to(mean.dtype)
    u_less_v = (share[:k] - share[r:]).to(mean.dtype)  # a difference of float64
    # (t - q) W = (s - (s - t) - p + (p - q)) W, before p and q change
    toward = (block_mean[:k] - block_pull).sub_(mean[:k]).add_(pull)
    pull.lerp_(block_pull, u[:k]).addcmul_(u_less_v, toward)
    mean.lerp_(block_mean, u)


class Block(NamedTuple):
    """What one block of n tokens says of r rows and, behind them, of their k references."""

    share: Tensor  # (r + k, n) s, and s - t in the last k rows, as it goes into a product
    named: Tensor  # (r + k, 3) named logits, -inf where the block does not hold them
    top: Tensor  # (r + k, 1) the largest logit
    place: Tensor  # (r + k, 1) where it is
    rest: Tensor  # (r + k, 1) logsumexp of the rest
    gap: Tensor  # (k, 1) E_t[z_ref - z]


def block_of(form, product, picked, k):
    """Reads products (r + k, n) with a block of the vocabulary; `picked` (r + k, 3) counts from the block's start."""
    r = len(product) - k
    z = form.logits(product).clamp_(min=LOWEST)
    top, place = z.max(-1, keepdim=True)
    slope = form.slope(z[:r])
    gap = z[r:] - z[:k]

    # what is named leaves the rest: as low as it gets, it has no share
    at = picked.clamp(0, z.shape[1] - 1)
    is_here = at == picked
    named = z.gather(1, at).masked_fill(~is_here, -torch.inf)
    if torch.compiler.is_compiling():  # fuses
        column = torch.arange(z.shape[1], device=z.device)
        z = torch.where((column == picked[:, :, None]).any(1), LOWEST, z)
    else:  # quick by itself; amin, as an id that is not here stands for another token's column
        low = z.new_full(at.shape, torch.inf).masked_fill_(is_here, LOWEST)
        z.scatter_reduce_(1, at, low, "amin")

    share = z.softmax(-1)
    # the largest share is exp(largest z - lse)
    rest = z.amax(-1, keepdim=True).double() - share.amax(-1, keepdim=True).log()
    gap = gap.mul_(share[r:]).sum(-1, keepdim=True)
    share[r:] = share[:k] - share[r:]
    # d / d product in place of d / d logit
    if form.softcap is not None:
        share = share * torch.cat([slope, slope[:k]])
    if product.dtype in _BOOST:
        share = share * _BOOST[product.dtype]
    return Block(share.to(product.dtype), named, top, place, rest, gap)


@cache
def _block_on(cuda: bool):
    """`block_of`; on CUDA in few kernels, where there is what compiles them."""
    can_compile = cuda and has_triton() and shutil.which("cc")
    return torch.compile(block_of, dynamic=True) if can_compile else block_of
