"""One pass over blocks of the vocabulary: softmax sums, and means of rows of W, merged as the blocks come.

Of r rows p is the softmax over the rest (see `head`), q that of the reference for the first k of them. Let a new block
have the softmaxes s and t, and the shares u and v in all that was seen, itself included. Then

    p' = (1 - u) p + u s,        q' = (1 - v) q + v t,
    p' - q' = (1 - u)(p - q) + u (s - t) + (u - v)(t - q),

and so go their products with W. The last line holds p - q as exactly as p where the two are close.
"""

import shutil
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._triton import has_triton

from .full_logits import LOWEST

# on probabilities in their product with W: float16 has no number below 6e-8
BOOST = {torch.float16: 1024.0}

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


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
        """In float32, or float64 where the product is."""
        z = product if product.dtype == torch.float64 else product.float()
        if self.scale != 1:
            z = z * self.scale
        return z if self.cap is None else torch.tanh(z / self.cap) * self.cap

    def slope(self, z: Tensor) -> Tensor | float:
        """d logit / d product, the scale left out."""
        return 1.0 if self.cap is None else 1 - (z / self.cap) ** 2

    def blocks(self, total: int, other: int) -> list[slice]:
        """Slices of `total`, even and aligned, such that one times `other` keeps to the chunk; one where it is 0."""
        most = max(1, self.chunk // max(other, 1))
        unit = 8 if most >= 8 else 1
        count = max(1, -(-total // (most - most % unit)))  # rounded up
        step = max(1, -(-total // (count * unit))) * unit
        return [slice(at, min(at + step, total)) for at in range(0, max(total, 1), step)]


class LogitSums(NamedTuple):
    """What a head says of r rows, the first k of which have a reference."""

    named: Tensor  # (r, 3) the logits of label, open and close tag
    rest: Tensor  # (r,) logsumexp of all other logits
    ref_named: Tensor  # (k, 3) the same of the reference
    ref_rest: Tensor  # (k,)
    kl: Tensor  # (k,) KL(q || p) within the rest
    argmax: Tensor  # (r,)

    @classmethod
    def join(cls, parts: list["LogitSums"]) -> "LogitSums":
        """Those of consecutive rows, as one."""
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Pass(NamedTuple):
    """What one pass over the vocabulary leaves of r rows."""

    sums: LogitSums
    mean: Tensor  # (r, D) p W; (0, D) where no gradient is wanted
    pull: Tensor  # (k, D) (p - q) W, the gradient of the KL; (0, D) likewise


class Block(NamedTuple):
    """What one block of n tokens says of r rows and, behind them, of their k references."""

    share: Tensor  # (r + k, n) s, and s - t in the last k rows, as it goes into a product
    named: Tensor  # (r + k, 3) named logits, -inf where the block does not hold them
    top: Tensor  # (r + k, 1) the largest logit
    place: Tensor  # (r + k, 1) where it is
    rest: Tensor  # (r + k, 1) logsumexp of the rest
    gap: Tensor  # (k, 1) E_t[z_ref - z]


def pass_over(plan: Plan, picked, hidden, ref_hidden, weight, bias) -> Pass:
    """Goes over the vocabulary once, for rows (r, D) with named ids (r, 3) and their references (k, D); the weight is
    (V, D), the bias (V,) or None."""
    r = len(hidden)
    k = len(ref_hidden)
    # references behind the rows, so that one product makes the logits of both
    rows = torch.cat([hidden, ref_hidden])
    picked = torch.cat([picked, picked[:k]])
    wide = torch.promote_types(hidden.dtype, torch.float32)
    block_on = _block_on(hidden.is_cuda)

    named = rows.new_full((r + k, 3), -torch.inf, dtype=wide)
    rest = rows.new_full((r + k, 1), -torch.inf, dtype=torch.float64)
    gap = rows.new_zeros((k, 1), dtype=torch.float64)
    best = rows.new_full((r + k, 1), -torch.inf, dtype=wide)
    argmax = torch.zeros_like(picked[:, :1])
    mean = rows.new_zeros((r if plan.with_grad else 0, rows.shape[1]), dtype=wide)
    pull = rows.new_zeros((k if plan.with_grad else 0, rows.shape[1]), dtype=wide)

    for part in plan.blocks(len(weight), r + k):
        product = linear(rows, weight[part], None if bias is None else bias[part])
        block = block_on(plan, product, picked - part.start, k)
        # of equal logits the first is the argmax
        argmax = torch.where(block.top > best, block.place + part.start, argmax)
        best = torch.maximum(best, block.top)
        named = torch.maximum(named, block.named)
        # u in the first r rows, v in the last k
        rest = torch.logaddexp(rest, block.rest)
        share = (block.rest - rest).exp()
        gap.lerp_(block.gap.double(), share[r:])
        if plan.with_grad:
            products = linear(block.share, weight[part].T).to(wide)
            _merge(mean, pull, products, share)

    # KL(q || p) = E_q[log q - log p] = E_q[z_ref - z] - lse_ref + lse
    kl = gap + rest[:k] - rest[r:]
    sums = LogitSums(named[:r], rest[:r, 0], named[r:], rest[r:, 0], kl[:, 0], argmax[:r, 0])
    return Pass(sums, mean, pull)


def _merge(mean: Tensor, pull: Tensor, products: Tensor, share: Tensor) -> None:
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


def block_of(plan: Plan, product: Tensor, picked: Tensor, k: int) -> Block:
    """Reads products (r + k, n) with a block of the vocabulary; `picked` (r + k, 3) counts from the block's start."""
    r = len(product) - k
    z = plan.logits(product).clamp_(min=LOWEST)
    top, place = z.max(-1, keepdim=True)
    slope = plan.slope(z[:r])
    gap = z[r:] - z[:k]

    # what is named leaves the rest
    at, is_here = locate(picked, z.shape[1])
    named = z.gather(1, at).masked_fill(~is_here, -torch.inf)
    if torch.compiler.is_compiling():  # fuses
        column = torch.arange(z.shape[1], device=z.device)
        z = torch.where((column == picked[:, :, None]).any(1), LOWEST, z)
    else:  # quick by itself
        drop(z, at, is_here)

    share = z.softmax(-1)
    # the largest share is exp(largest z - lse)
    rest = z.amax(-1, keepdim=True).double() - share.amax(-1, keepdim=True).log()
    gap = gap.mul_(share[r:]).sum(-1, keepdim=True)
    share[r:] = share[:k] - share[r:]
    # d / d product in place of d / d logit
    if plan.cap is not None:
        share = share * torch.cat([slope, slope[:k]])
    if product.dtype in BOOST:
        share = share * BOOST[product.dtype]
    return Block(share.to(product.dtype), named, top, place, rest, gap)


def locate(picked: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The columns of named ids in a block of some width, and whether they are there; any column where not."""
    return picked.clamp(0, width - 1), (picked >= 0) & (picked < width)


def drop(z: Tensor, at: Tensor, is_here: Tensor) -> Tensor:
    """Takes named logits out of the rest, in place: as low as they get, they have no share."""
    low = z.new_full(at.shape, torch.inf).masked_fill_(is_here, LOWEST)
    # amin, as an id that is not here stands for another token's column
    return z.scatter_reduce_(1, at, low, "amin")


@cache
def _block_on(cuda: bool):
    """`block_of`; on CUDA in few kernels, where there is what compiles them."""
    can_compile = cuda and has_triton() and shutil.which("cc")
    return torch.compile(block_of, dynamic=True) if can_compile else block_of
