"""What a head says of tokens, from full logits: the definition of what `head` makes without keeping them."""

from typing import NamedTuple

import torch
from torch import Tensor

LOWEST = -3e38  # not -inf: -inf less -inf is NaN


class Form(NamedTuple):
    """How a model makes logits of its head's products: softcap * tanh(scale * product / softcap)."""

    softcap: float | None = None  # Gemma: final_logit_softcapping
    scale: float = 1.0  # Cohere: logit_scale; Granite: 1 / logits_scaling

    def logits(self, product: Tensor) -> Tensor:
        """In float32, or float64 where the product is.

        >>> Form(softcap=2.0).logits(torch.tensor([0.0, 1000.0]))
        tensor([0., 2.])
        """
        z = product if product.dtype == torch.float64 else product.float()
        if self.scale != 1:
            z = z * self.scale
        return z if self.softcap is None else torch.tanh(z / self.softcap) * self.softcap

    def slope(self, z: Tensor) -> Tensor | float:
        """d logit / d product, the scale left out."""
        return 1.0 if self.softcap is None else 1 - (z / self.softcap) ** 2


PLAIN = Form()


class HeadOutput(NamedTuple):
    """What the head says of R rows, in nats. log_tags is finite: where V = 2, its third is about -3e38."""

    log_probs: Tensor  # (R,) float32, of the labels; float64 where the head is
    log_tags: Tensor  # (3, R) float64, of the open tag, the close tag and anything else
    argmax: Tensor  # (R,) int64, the most probable token, without gradient
    kl: Tensor | None  # (R_kl,) KL(p_ref || p), dtype as log_probs; None without a reference


def reference_head(
    logits: Tensor,
    labels: Tensor,
    tag_ids: tuple[int, int],
    *,
    ref_logits: Tensor | None = None,
    kl_rows: Tensor | slice = slice(None),
) -> HeadOutput:
    """Log-probabilities of labels and tags, and KL to a reference. Its copies of the logits want few rows at a time.

    Args:
        logits: (R, V), at the positions that predict the labels.
        labels, tag_ids: (R,) int64; the ids of the open and the close tag.
        ref_logits, kl_rows: (R_kl, V), the reference's logits at some rows, by default all.

    >>> logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    >>> output = reference_head(logits, torch.tensor([3]), tag_ids=(0, 1))
    >>> output.log_probs.exp(), output.log_tags.exp()[:, 0]  # of label; of open tag, close tag, anything else
    (tensor([0.1000]), tensor([0.4000, 0.3000, 0.3000], dtype=torch.float64))
    """
    z = _finite(logits)
    log_p = z.log_softmax(-1)
    log_probs = log_p.gather(-1, labels[:, None])[:, 0]

    # anything else is a sum of its own, not 1 minus the tags: it stays finite where a tag is all but certain
    open_id, close_id = tag_ids
    other = z.index_fill(-1, torch.tensor(tag_ids, device=z.device), LOWEST).logsumexp(-1)
    three = torch.stack([z[:, open_id], z[:, close_id], other])
    log_tags = three.double().log_softmax(0)

    # KL(q || p) = sum_v q_v (log q_v - log p_v)
    kl = None
    if ref_logits is not None:
        log_q = _finite(ref_logits).log_softmax(-1)
        kl = (log_q.exp() * (log_q - log_p[kl_rows])).sum(-1)
    return HeadOutput(log_probs, log_tags, logits.argmax(-1), kl)


def _finite(logits):
    """In float32 or float64, with the lowest number for a token that is ruled out."""
    return PLAIN.logits(logits).clamp(min=LOWEST)
