"""Token log-probabilities, tag log-probabilities and KL from hidden states, without keeping logits.

A row h (D,) and a head W (V, D) give logits z = W h. The objective names up to three, of label and tags; the others,
the rest, enter through their logsumexp. One pass over blocks of W makes, in two products, z_label, z_open,
z_close, lse_rest and mean = sum_{v in rest} softmax_rest(z)_v W_v. The gradient of whatever follows takes no product:

    dh = a_label W_label + a_open W_open + a_close W_close + a_rest mean,      a = d loss / d (the four numbers)

Each a is as small as the probability that it moves, so nothing cancels where a token is all but certain; with W_label
inside the mean it would. A KL adds a product for the reference's logits and one for (p - p_ref) W, within the rest:
named tokens and rest are four outcomes, with a KL of their own. Bias, scale and soft cap (Gemma 2,
https://arxiv.org/abs/2408.00118) change none of that. `head_matrix` does it.

A head that trains, or that is more than one matrix (LoRA, 4 bits, trained token rows, hooks, another one as reference),
is called by chunks of rows under `torch.utils.checkpoint`, in four products. `full_logits` has the definition of all.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from .full_logits import PLAIN, Form, HeadOutput, reference_head
from .head_matrix import blocks, matrix_head


# its loops over blocks are not for torch.compile, which would unroll them
@torch.compiler.disable
def head_log_probs(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    tag_ids: tuple[int, int],
    *,
    ref_hidden: Tensor | None = None,
    kl_rows: Tensor | None = None,
    ref_head: nn.Module | None = None,
    form: Form = PLAIN,
    chunk_bytes: int = 2**26,
) -> HeadOutput:
    """Log-probabilities of labels and tags, and KL to a reference.

    Args:
        hidden: (R, D), the head's input at the positions that predict the labels; better without rows that need
            nothing. R may be 0: the result is empty and still connected to every parameter.
        head: `nn.Linear`, or any module that maps (r, D) to (r, V) row by row. Gradients reach its parameters.
        labels, tag_ids: (R,) int64; the ids of the open and the close tag. All in [0, V).
        ref_hidden, kl_rows: (R_kl, D), a constant, the reference's hidden states at the rows (R,) bool, by default all.
        ref_head: maps `ref_hidden` to the reference's logits; by default `head` with its PEFT adapters left out.
        form: of the logits.
        chunk_bytes: size of a block of logits in float32; a few such blocks exist at a time, logits (R, V) never.

    Products run in the dtype of autocast or else of the weight, softmax and sums in float32. Only first derivatives
    exist.
    """
    # rows with a KL go first, so that they and their references are slices
    order = back = slice(None)
    reference = hidden.detach()[:0]
    if ref_hidden is not None:
        has_kl = torch.ones_like(labels) if kl_rows is None else kl_rows.long()
        order = has_kl.argsort(descending=True, stable=True)
        back = order.argsort()
        reference = ref_hidden.detach()
    if ref_head is None:
        if ref_hidden is not None and getattr(head, "merged", False):
            raise ValueError("the head's adapter is merged: unmerge it, so that it has a reference")
        ref_head = _without_adapters(head)
    rows = (hidden[order], labels[order], reference)
    chunk = chunk_bytes // 4
    trains = torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
    if ref_head is head and _is_matrix(head) and not trains:
        output = matrix_head(head, tag_ids, form, *rows, chunk)
    else:
        output = module_head(head, tag_ids, form, *rows, chunk, ref_head)
    kl = None if ref_hidden is None else output.kl
    return HeadOutput(output.log_probs[back], output.log_tags[:, back], output.argmax[back], kl)


def module_head(head, tag_ids, form, hidden, labels, ref_hidden, chunk, ref_head) -> HeadOutput:
    """By its definition, in chunks of rows, whose logits are made once in forward and once in backward.

    The references (k, D) are those of the first k rows.
    """
    if _is_matrix(head):  # FSDP2's hooks are for one call in a pass
        head = partial(F.linear, weight=head.weight, bias=head.bias)
    with torch.no_grad():  # no rows: a dropout in the head draws nothing
        vocabulary = head(hidden.detach()[:0]).shape[-1]

    def output_of(h, labels, ref_h):
        logits = form.logits(head(h))
        device = logits.device  # the head's
        with torch.no_grad():
            ref_logits = form.logits(ref_head(ref_h)).to(device)
        some = slice(len(ref_h))
        output = reference_head(
            logits, labels.to(device), tag_ids, ref_logits=ref_logits, kl_rows=some
        )
        return HeadOutput(*(x.to(h.device) for x in output))

    # logits are made anew in backward, else all of them would be kept
    if torch.is_grad_enabled():
        output_of = partial(checkpoint, output_of, use_reentrant=False)
    chunks = blocks(len(hidden), chunk // vocabulary)
    outputs = [output_of(hidden[rows], labels[rows], ref_hidden[rows]) for rows in chunks]
    return HeadOutput(*(torch.cat(parts, -1) for parts in zip(*outputs, strict=True)))


def _is_matrix(head):
    """Whether a call of the module is one product with a plain tensor: nn.Linear itself, without hooks."""
    hooks = [*head._forward_hooks, *head._forward_pre_hooks]
    if isinstance(head, FSDPModule):
        # FSDP2 has a class and two hooks of its own; within the forward pass that it wraps the weight is whole
        is_linear = isinstance(head, nn.Linear) and len(hooks) == 2
    else:
        is_linear = type(head) is nn.Linear and not hooks
    # accelerate sets a forward, to bring offloaded weights
    return is_linear and "forward" not in vars(head) and type(head.weight.data) is Tensor


def _without_adapters(head):
    """The module under PEFT's wrappers, by their names for it."""
    inner = getattr(head, "original_module", getattr(head, "base_layer", None))
    return _without_adapters(inner) if isinstance(inner, nn.Module) else head
