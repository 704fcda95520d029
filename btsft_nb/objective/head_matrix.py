"""A head that is one matrix: its log-probabilities in two products, and a gradient by hidden states that needs none.

Blocks of the vocabulary, for many rows at once; their softmax is merged as they come (`head_blocks`), so that neither
logits (R, V) nor their gradient ever exist. See `head` for what is computed.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .head_blocks import BOOST, LogitSums, Plan, drop, linear, locate, pass_over

CHUNK = {"cpu": 2**22}  # at most, where the head is one matrix: 16 MiB, that cache and malloc keep


def matrix_head(
    hidden: Tensor, head: nn.Linear, picked: Tensor, ref_hidden: Tensor, plan: Plan
) -> LogitSums:
    """What a head says of rows (R, D) with named ids (R, 3), the first R_kl of them with a reference (R_kl, D)."""
    device = hidden.device.type
    plan = plan._replace(chunk=min(plan.chunk, CHUNK.get(device, plan.chunk)))
    dtype = head.weight.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    bias = None if head.bias is None else head.bias.to(dtype)
    tensors = (hidden.to(dtype), ref_hidden.to(dtype), head.weight.to(dtype), bias)
    return LogitSums(*_MatrixHead.apply(plan, picked, *tensors))


class _MatrixHead(torch.autograd.Function):
    """`LogitSums`, whose gradients are

    d hidden = d_rest p W + sum_named d_named W_named + d_kl (p - q) W
    d W      = (d_rest p + d_named + d_kl (p - q))' hidden
    """

    @staticmethod
    def forward(ctx, plan, picked, hidden, ref_hidden, weight, bias):
        # tiles of rows, then blocks of the vocabulary that are four times as wide as a tile is high
        passes = [
            pass_over(plan, picked[rows], hidden[rows], ref_hidden[rows], weight, bias)
            for rows in plan.blocks(len(hidden), 2 * math.isqrt(plan.chunk))
        ]
        sums = LogitSums.join([each.sums for each in passes])
        mean = torch.cat([each.mean for each in passes])
        pull = torch.cat([each.pull for each in passes])
        ctx.plan = plan
        ctx.is_trained = any(ctx.needs_input_grad[4:6])
        kept = [picked, weight, sums.named, mean, pull]
        if ctx.is_trained:
            rest = torch.cat([sums.rest, sums.ref_rest])
            kept += [rest, torch.cat([hidden, ref_hidden]), bias]
        ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(sums.ref_named, sums.ref_rest, sums.argmax)
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_named, d_rest, _d_ref_named, _d_ref_rest, d_kl, _d_argmax):
        picked, weight, named, mean, pull = ctx.saved_tensors[:5]
        upstream = [ctx.plan.scale * d.to(named.dtype) for d in (d_named, d_rest, d_kl)]
        d_hidden = d_weight = d_bias = None
        # the forward pass chose the dtype
        with torch.autocast(weight.device.type, enabled=False):
            if ctx.needs_input_grad[2]:
                d_hidden = _hidden_grad(ctx.plan, picked, weight, named, mean, pull, *upstream)
            if ctx.is_trained:
                rest, rows, bias = ctx.saved_tensors[5:]
                d_weight, d_bias = _parameter_grads(
                    ctx.plan, picked, weight, bias, rest, rows, *upstream
                )
        return None, None, d_hidden, None, d_weight, d_bias


def _hidden_grad(plan, picked, weight, named, mean, pull, d_named, d_rest, d_kl) -> Tensor:
    """(R, D), without a product."""
    boost = BOOST.get(weight.dtype, 1.0)
    # d_rest p W
    grad = (d_rest / boost)[:, None] * mean
    # d_kl (p - q) W
    grad[: len(pull)].addcmul_((d_kl / boost)[:, None], pull)
    # d_named W_named; mean and pull hold the slope already
    direct = plan.slope(named) * d_named
    for ids, factor in zip(picked.unbind(1), direct.unbind(1), strict=True):
        grad.addcmul_(factor[:, None], weight[ids].to(factor.dtype))
    return grad


def _parameter_grads(
    plan, picked, weight, bias, rest, rows, d_named, d_rest, d_kl
) -> tuple[Tensor, Tensor | None]:
    """dW (V, D) and d bias (V,), by blocks of the vocabulary, whose logits are made anew."""
    r = len(d_rest)
    k = len(d_kl)
    picked = torch.cat([picked, picked[:k]])
    d_weight = torch.empty_like(weight)
    d_bias = None if bias is None else torch.empty_like(bias)
    for part in plan.blocks(len(weight), r + k):
        z = plan.logits(linear(rows, weight[part], None if bias is None else bias[part]))
        slope = plan.slope(z[:r])
        at, is_here = locate(picked - part.start, z.shape[1])
        # p in the first r rows, q in the last k; 0 for what is named
        share = drop(z, at, is_here).sub_(rest[:, None].to(z.dtype)).exp_()
        # d_rest p + d_kl (p - q) + d_named, each by the product
        grad = share[:r] * d_rest[:, None]
        grad[:k].addcmul_(share[:k] - share[r:], d_kl[:, None])
        grad.scatter_add_(1, at[:r], d_named.masked_fill(~is_here[:r], 0)).mul_(slope)
        d_weight[part] = linear(grad.to(rows.dtype).T, rows[:r].T)
        if bias is not None:
            d_bias[part] = grad.sum(0)
    return d_weight, d_bias
