"""The token loss over hidden states, forward and backward, with a frozen head: ours, TRL, Liger, CCE, full logits.

    python benchmarks/head.py [--quick]

Half of the positions are weighted, as the tokens of a completion are. Every method gets the same hidden states, weight
and labels; loss and gradient are compared before anything is timed. The last line is the worst of the two sizes.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common import environment, medians, peak_bytes
from torch import Tensor, nn

from btsft_nb.objective.head import head_log_probs
from btsft_nb.objective.head_matrix import CHUNK, blocks, linear, row_blocks

SIZES = [(151_936, 896), (32_000, 2_048)]
LARGE = (151_936, 1_536)  # on CUDA, the head's time over that of its products
CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
TAGS = (1, 2)
Result = tuple[Tensor, Tensor]  # loss (), d loss / d hidden (P, D)


class Problem(NamedTuple):
    """Inputs of every method: P positions, of which `rows` are weighted and every other one of those is blurred."""

    head: nn.Linear  # (V, D), frozen
    hidden: Tensor  # (P, D)
    labels: Tensor  # (P,), -100 where not weighted
    rows: Tensor  # (R,)
    ref_hidden: Tensor  # (R / 2, D)


def problem(vocabulary: int, width: int, positions: int) -> Problem:
    """Normal hidden states, as after a norm; logits have a standard deviation of 2."""
    torch.manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False, device=DEVICE, dtype=DTYPE).requires_grad_(
        False
    )
    head.weight.normal_(0, 2 / width**0.5)
    hidden = torch.randn(positions, width, device=DEVICE).to(DTYPE)
    labels = torch.randint(vocabulary, (positions,), device=DEVICE)
    labels[::2] = -100
    rows = (labels != -100).nonzero()[:, 0]
    ref_hidden = hidden[rows[::2]] + 0.3 * torch.randn(len(rows[::2]), width, device=DEVICE).to(
        DTYPE
    )
    return Problem(head, hidden.requires_grad_(), labels, rows, ref_hidden)


def finish(loss: Tensor, p: Problem) -> Result:
    """Backward."""
    return loss.detach(), torch.autograd.grad(loss, p.hidden)[0]


def ours(p: Problem) -> Result:
    """head_log_probs on the weighted rows: log-probabilities of label and tags, and argmax."""
    out = head_log_probs(p.hidden[p.rows], p.head, p.labels[p.rows], TAGS)
    return finish(-out.log_probs.sum(), p)


def anchored(p: Problem) -> Result:
    """As ours, with a KL in place of the loss on half of the weighted rows."""
    blurred = torch.arange(len(p.rows), device=DEVICE) % 2 == 0
    labels = p.labels[p.rows]
    out = head_log_probs(
        p.hidden[p.rows], p.head, labels, TAGS, ref_hidden=p.ref_hidden, kl_rows=blurred
    )
    return finish(out.kl.sum() - out.log_probs[~blurred].sum(), p)


def products(p: Problem) -> None:
    """The two products of ours, of the same blocks, by the same library, and nothing else."""
    hidden, weight = p.hidden.detach()[p.rows], p.head.weight
    chunk = CHUNK.get(DEVICE, 2**24)
    for tile in row_blocks(len(hidden), chunk):
        for part in blocks(len(weight), chunk // len(hidden[tile])):
            linear(linear(hidden[tile], weight[part]), weight[part].T)


def full_logits(p: Problem) -> Result:
    """What a model of transformers does with labels: float32 logits of all positions, -100 ignored."""
    logits = p.head(p.hidden).float()
    return finish(F.cross_entropy(logits, p.labels, reduction="sum"), p)


def trl(
    p: Problem,
    rows: Tensor | None = None,
    outputs: tuple[str, ...] = ("log_probs", "entropy", "is_top1"),
):
    """TRL's fused head. By default as SFTTrainer calls it: with its outputs; on CUDA the weighted rows, else all."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    rows = torch.arange(len(p.labels), device=DEVICE) if rows is None else rows
    log_probs = ChunkedLogProbFunction.apply(
        p.hidden[rows], p.head.weight, None, p.labels[rows].clamp(min=0), 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0,
        outputs,
    )[0]  # fmt: skip
    return finish(-log_probs.masked_fill(p.labels[rows] == -100, 0).sum(), p)


def trl_trainer(p: Problem) -> Result:
    """On the rows that its trainer gives it here."""
    return trl(p, p.rows if CUDA else None)


def trl_same_rows(p: Problem) -> Result:
    """On the weighted rows, with what ours gives too."""
    return trl(p, p.rows, ("log_probs", "is_top1"))


def liger(p: Problem) -> Result:
    """Liger's fused linear cross entropy."""
    if not CUDA:
        raise RuntimeError("its Triton kernels need a GPU")
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    rows = p.hidden[p.rows], p.head.weight, p.labels[p.rows]
    return finish(liger_fused_linear_cross_entropy(*rows, reduction="sum"), p)


def cut_cross_entropy(p: Problem) -> Result:
    """Apple's CCE: its kernels on CUDA, its torch.compile variant elsewhere."""
    from cut_cross_entropy import linear_cross_entropy

    rows = p.hidden[p.rows], p.head.weight, p.labels[p.rows]
    return finish(
        linear_cross_entropy(*rows, reduction="sum", impl="cce" if CUDA else "torch_compile"), p
    )


PEERS = {f.__name__: f for f in (full_logits, trl_same_rows, trl_trainer, liger, cut_cross_entropy)}
SLOW = ("trl_trainer", "cut_cross_entropy")  # all rows; compiles
METHODS = {"ours": ours, "anchored": anchored, **PEERS}


def runnable(p: Problem, names: list[str]) -> dict[str, Callable]:
    """Those that run here and agree with ours; for each of the others a line that says why not."""
    loss, gradient = ours(p)
    loose = 2e-2 if CUDA else 1e-4
    found = {}
    for name in names:
        try:
            theirs = PEERS[name](p)
        except Exception as error:
            print(
                f"  {name}: not run, {type(error).__name__}: {str(error).strip().splitlines()[0][:150]}"
            )
            continue
        torch.testing.assert_close(theirs[0].float(), loss.float(), rtol=loose, atol=0)
        error = (theirs[1] - gradient).norm() / gradient.norm()
        assert error < loose, f"{name}: d hidden differs by {error:.1e}"
        found[name] = PEERS[name]
    return found


def memory(name: str, size: tuple[int, int], positions: int) -> int:
    """Peak bytes of a method, in a process of its own."""
    arguments = [name, *map(str, (*size, positions))]
    command = [sys.executable, __file__, "--memory-of", *arguments]
    return int(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def memory_of(name: str, vocabulary: int, width: int, positions: int) -> int:
    """As `memory`, in this process; a small problem first, for what is loaded and compiled once."""
    METHODS[name](problem(1000, 64, 32))
    large = problem(vocabulary, width, positions)
    return peak_bytes(lambda: METHODS[name](large))


def measure(size: tuple[int, int], positions: int, repeats: int, quick: bool) -> dict[str, float]:
    """Print the table of one size, and return its ratios."""
    p = problem(*size, positions)
    print(
        f"\nvocabulary {size[0]:,} x {size[1]:,}, {positions} positions, {len(p.rows)} weighted, {repeats} repeats"
    )
    peers = runnable(p, [name for name in PEERS if not (quick and name in SLOW)])
    if quick:
        print(f"  {', '.join(SLOW)}: not run, --quick leaves them out")
    anchored(p), products(p)  # warm
    calls = {"ours": ours, "anchored": anchored, "products": products, **peers}
    seconds = medians({name: lambda f=f: f(p) for name, f in calls.items()}, repeats)
    weighed = ["ours", "full_logits"] if quick else ["ours", "anchored", *peers]
    peak = {name: memory(name, size, positions) for name in weighed}
    for name, taken in seconds.items():
        extra = f"{peak[name] / 2**20:8.0f} MiB" if name in peak else " " * 12
        print(
            f"  {name:18} {taken:8.3f} s {extra}   {taken / seconds['ours']:5.2f} x ours",
            flush=True,
        )
    return {
        "time_vs_trl": seconds["trl_same_rows"] / seconds["ours"]
        if "trl_same_rows" in seconds
        else float("nan"),
        "time_vs_naive": seconds["full_logits"] / seconds["ours"],
        "memory_vs_naive": peak["ours"] / peak["full_logits"],
        "product_fraction": seconds["products"] / seconds["ours"],
        "anchor_cost": seconds["anchored"] / seconds["ours"],
    }


def main() -> None:
    """Both sizes, then the worst of each ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer positions and repeats; under a minute"
    )
    parser.add_argument(
        "--memory-of", nargs=4, metavar=("METHOD", "V", "D", "POSITIONS"), help=argparse.SUPPRESS
    )
    given = parser.parse_args()
    if given.memory_of:
        print(memory_of(given.memory_of[0], *map(int, given.memory_of[1:])))
        return
    print(environment(DTYPE, ("torch", "transformers", "trl", "liger-kernel", "cut-cross-entropy")))
    positions, repeats = (320, 2) if given.quick else (1024, 5)
    found = [measure(size, positions, repeats, given.quick) for size in SIZES]
    if CUDA:
        p = problem(*LARGE, 8192)
        ours(p), products(p)
        seconds = medians({"ours": lambda: ours(p), "products": lambda: products(p)}, repeats)
        print(
            f"\n{LARGE[0]:,} x {LARGE[1]:,}: head over its products {seconds['ours'] / seconds['products']:.2f}"
        )
    print(
        "\nworst case over the two sizes (time_vs: theirs / ours; others: ours / theirs, or as named):"
    )
    largest = ("memory_vs_naive", "anchor_cost")  # the smaller the better
    print(
        " ".join(
            f"{key}={(max if key in largest else min)(f[key] for f in found):.3g}"
            for key in found[0]
        )
    )


if __name__ == "__main__":
    main()
