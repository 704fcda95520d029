"""Log-probabilities and KL without logits: against plain formulas over full logits in float64, and what it costs."""

import copy
import math
import shutil

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from accelerate import disk_offload
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from btsft_nb.objective.full_logits import Form, HeadOutput, reference_head
from btsft_nb.objective.head import head_log_probs
from btsft_nb.objective.head_matrix import block_of

ROWS, WIDTH, VOCABULARY = 11, 6, 37
TAGS = (1, 2)


def plain(
    logits: Tensor, labels: Tensor, tags: tuple[int, int] = TAGS, ref_logits: Tensor | None = None
) -> HeadOutput:
    """The definition over full logits (R, V), the KL of the last R_kl rows where ref_logits are (R_kl, V)."""
    kl_rows = slice(0 if ref_logits is None else len(logits) - len(ref_logits), None)
    return reference_head(logits, labels, tags, ref_logits=ref_logits, kl_rows=kl_rows)


def transform(product: Tensor, softcap: float | None, scale: float) -> Tensor:
    z = product * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def problem(
    rows=ROWS, vocabulary=VOCABULARY, dtype=torch.float64, *, spread=1.0, width=WIDTH, seed=0
):
    """A head, hidden states, labels of which some are tags and some the most probable token, and a generator."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(width, vocabulary, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.randn(vocabulary, width, generator=generator, dtype=torch.float64))
    hidden = spread * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    head, hidden = head.to(dtype).requires_grad_(False), hidden.to(dtype)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    labels[: rows // 3] = head(hidden[: rows // 3]).argmax(-1)
    labels[rows // 3 :][:2] = torch.tensor(TAGS)[: len(labels[rows // 3 :][:2])].clamp(
        max=vocabulary - 1
    )
    return head, hidden.requires_grad_(), labels, generator


def upstream(output: HeadOutput, seed: int = 0) -> list[Tensor]:
    """Gradients to send back: of both signs, some 0."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [x for x in (output.log_probs, output.log_tags, output.kl) if x is not None]
    made = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in shapes]
    return [x * (torch.rand(x.shape, generator=generator) < 0.8) for x in made]


def pull(output: HeadOutput, gradients: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    outputs = [x for x in (output.log_probs, output.log_tags, output.kl) if x is not None]
    total = sum((x.double() * g).sum() for x, g in zip(outputs, gradients, strict=True))
    return torch.autograd.grad(total, inputs)


def assert_same(got: HeadOutput, want: HeadOutput, inputs: list[Tensor], **tolerance) -> None:
    """Values, and the gradients of random upstream ones."""
    tolerance = tolerance or dict(rtol=1e-9, atol=1e-11)
    for name, a, b in zip(HeadOutput._fields, got, want, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(
                a, b, msg=lambda m, name=name: f"{name}: {m}", check_dtype=False, **tolerance
            )
    gradients = upstream(want)
    for a, b in zip(pull(got, gradients, inputs), pull(want, gradients, inputs), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


class TestMatrix:
    """nn.Linear, frozen."""

    @pytest.mark.parametrize("chunk_bytes", [1, 4 * 3 * VOCABULARY, 2**26])
    @pytest.mark.parametrize("kl", ["none", "no row", "some", "all"])
    @pytest.mark.parametrize("softcap, scale", [(None, 1.0), (None, 0.25), (4.0, -1.5)])
    @pytest.mark.parametrize("bias", [False, True])
    def test_values_and_gradients(self, bias, softcap, scale, kl, chunk_bytes):
        head, hidden, labels, generator = problem()
        if bias:
            head.bias = nn.Parameter(
                torch.randn(VOCABULARY, generator=generator, dtype=torch.float64),
                requires_grad=False,
            )
        count = {"none": 0, "no row": 0, "some": 4, "all": ROWS}[kl]
        ref_hidden = hidden.detach()[ROWS - count :] + 0.5
        options = (
            {}
            if kl == "none"
            else dict(ref_hidden=ref_hidden, kl_rows=torch.arange(ROWS) >= ROWS - count)
        )
        form = Form(softcap, scale)
        got = head_log_probs(
            hidden, head, labels, TAGS, form=form, chunk_bytes=chunk_bytes, **options
        )
        ref_logits = None if kl == "none" else transform(head(ref_hidden), softcap, scale).detach()
        want = plain(transform(head(hidden), softcap, scale), labels, TAGS, ref_logits)
        assert_same(got, want, [hidden])

    @pytest.mark.parametrize("vocabulary", [3, 5, 7, 101])
    @pytest.mark.parametrize("rows", [1, 2, 13])
    @pytest.mark.parametrize("chunk_bytes", [1, 3000])
    def test_any_vocabulary(self, rows, vocabulary, chunk_bytes):
        head, hidden, labels, _ = problem(rows, vocabulary)
        got = head_log_probs(hidden, head, labels, TAGS, chunk_bytes=chunk_bytes)
        assert_same(got, plain(head(hidden), labels), [hidden])

    def test_kl_rows_may_stand_anywhere(self):
        head, hidden, labels, _ = problem()
        rows = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1], dtype=torch.bool)
        ref = hidden.detach()[rows] * 0.7
        got = head_log_probs(
            hidden, head, labels, TAGS, ref_hidden=ref, kl_rows=rows, chunk_bytes=4 * 2 * VOCABULARY
        )
        want = plain(head(hidden[rows]), labels[rows], TAGS, head(ref)).kl
        torch.testing.assert_close(got.kl, want)
        ours, theirs = (torch.autograd.grad(kl.square().sum(), hidden)[0] for kl in (got.kl, want))
        torch.testing.assert_close(ours, theirs)

    def test_the_reference_at_itself_has_no_kl_and_no_gradient(self):
        head, hidden, labels, _ = problem()
        kl = head_log_probs(hidden, head, labels, TAGS, ref_hidden=hidden.detach()).kl
        assert kl.abs().max() < 1e-14
        assert torch.autograd.grad(kl.sum(), hidden)[0].abs().max() < 1e-14

    @pytest.mark.parametrize("module", [False, True])
    def test_a_vocabulary_of_two_tags(self, module):
        """Nothing else can be said: its probability is 0, and no gradient is NaN."""
        head, hidden, labels, _ = problem(5, 2)
        labels, tags = labels.clamp(max=1), (1, 0)
        got = head_log_probs(hidden, nn.Sequential(head) if module else head, labels, tags)
        torch.testing.assert_close(
            got.log_probs, head(hidden).log_softmax(-1).gather(1, labels[:, None])[:, 0]
        )
        assert (got.log_tags[2].exp() == 0).all() and got.log_tags[2].isfinite().all()
        torch.testing.assert_close(
            got.log_tags[:2].exp().sum(0), torch.ones(5, dtype=torch.float64)
        )
        ours = torch.autograd.grad(
            got.log_probs.sum() + got.log_tags[2].exp().sum(), hidden, retain_graph=True
        )
        theirs = torch.autograd.grad(
            F.cross_entropy(head(hidden), labels, reduction="sum").neg(), hidden
        )
        torch.testing.assert_close(ours, theirs)
        assert torch.autograd.grad(got.log_tags.sum(), hidden)[0].isfinite().all()

    @pytest.mark.parametrize("chunk_bytes", [1, 4 * 3 * VOCABULARY, 2**26])
    def test_tokens_ruled_out_by_an_infinite_bias(self, chunk_bytes):
        """As padded vocabularies have it; whole blocks of nothing else among them."""
        head, hidden, labels, _ = problem()
        head.bias = nn.Parameter(torch.zeros(VOCABULARY, dtype=torch.float64), requires_grad=False)
        head.bias[20:] = -torch.inf
        labels = labels % 20
        got = head_log_probs(
            hidden, head, labels, TAGS, ref_hidden=hidden.detach() + 0.5, chunk_bytes=chunk_bytes
        )
        short = nn.Linear(WIDTH, 20, bias=False, dtype=torch.float64)
        short.weight = nn.Parameter(head.weight[:20])
        assert_same(
            got, plain(short(hidden), labels, TAGS, short(hidden.detach() + 0.5).detach()), [hidden]
        )

    @pytest.mark.parametrize("chunk_bytes", [1, 4 * 3 * VOCABULARY, 2**26])
    def test_the_argmax_of_equals_is_the_first(self, chunk_bytes):
        head, hidden, labels, _ = problem()
        head.weight[7], head.weight[30] = head.weight[30].clone(), head.weight[7]
        head.weight[20:25] = head.weight[5]
        got = head_log_probs(hidden, head, labels, TAGS, chunk_bytes=chunk_bytes).argmax
        assert torch.equal(got, head(hidden).argmax(-1))

    @pytest.mark.parametrize("trained", [False, True])
    @pytest.mark.parametrize("chunk_bytes", [1, 4 * 3 * VOCABULARY])
    def test_another_head_as_reference(self, chunk_bytes, trained):
        head, hidden, labels, _ = problem()
        other = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)
        head.requires_grad_(trained)
        got = head_log_probs(hidden, head, labels, TAGS, ref_hidden=hidden.detach(), ref_head=other,
                             chunk_bytes=chunk_bytes)  # fmt: skip
        want = plain(head(hidden), labels, TAGS, other(hidden).detach())
        assert_same(got, want, [hidden, *(p for p in head.parameters() if trained)])

    @pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
    @pytest.mark.parametrize(("dtype", "cap"), [(torch.float32, None), (torch.float16, 5.0)])
    def test_what_is_compiled_on_cuda_gives_the_same(self, dtype, cap):
        """Through inductor's other back end; on a GPU it is Triton's."""
        generator = torch.Generator().manual_seed(0)
        products = torch.randn(7, 40, generator=generator).mul(3).to(dtype)
        picked = torch.tensor([[5, -3, 39], [60, -3, 39], [39, -3, 39], [0, -3, 39]])
        picked = torch.cat([picked, picked[:3]])
        form = Form(cap, 0.7)
        fused = torch.compile(block_of, dynamic=True)(form, products, picked, 3)
        plain = block_of(form, products.clone(), picked, 3)
        for a, b in zip(fused, plain, strict=True):
            assert a.dtype == b.dtype
            rtol = 1e-5 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-6)

    @pytest.mark.parametrize("softcap", [None, 3.0])
    def test_gradcheck(self, softcap):
        head, hidden, labels, _ = problem(4, 7, width=3)
        bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
        weight, ref = head.weight.detach().clone().requires_grad_(), hidden.detach().roll(1, 0)
        frozen = copy.deepcopy(head)

        def f(hidden, weight, bias, ref_head=frozen):
            module = nn.Linear(3, 7)
            del module.weight, module.bias
            # plain tensors, as functional calls have them
            module.weight = weight
            module.bias = bias
            options = dict(ref_hidden=ref, ref_head=ref_head, form=Form(softcap, 1.5))
            out = head_log_probs(hidden, module, labels, TAGS, **options)
            return out.log_probs, out.log_tags, out.kl

        assert torch.autograd.gradcheck(f, (hidden, weight, bias))
        # in two products
        fixed = (weight.detach(), bias.detach(), None)
        assert torch.autograd.gradcheck(f, (hidden, *fixed))

    @pytest.mark.parametrize("size", [-1.0, 0.0, 1e30, -1e30])
    def test_upstream_gradients_of_any_size(self, size):
        head, hidden, labels, _ = problem(dtype=torch.float32)
        got = torch.autograd.grad(
            size * head_log_probs(hidden, head, labels, TAGS).log_probs.sum(), hidden
        )[0]
        want = torch.autograd.grad(plain(head(hidden), labels).log_probs.sum(), hidden)[0]
        torch.testing.assert_close(got, size * want, rtol=1e-4, atol=1e-5 * abs(size))

    def test_tied_embeddings_add_up(self):
        head, _, labels, _ = problem()
        table = nn.Embedding(VOCABULARY, WIDTH, dtype=torch.float64)
        head.weight = table.weight
        ids = torch.arange(ROWS)
        got, want = (
            head_log_probs(table(ids).tanh(), head, labels, TAGS),
            plain(head(table(ids).tanh()), labels),
        )
        assert_same(got, want, [table.weight])

    @pytest.mark.parametrize("part", ["weight", "bias", "hidden", "nothing"])
    def test_only_what_is_asked_for(self, part):
        head, hidden, labels, _ = problem()
        head.bias = nn.Parameter(torch.randn(VOCABULARY, dtype=torch.float64))
        inputs = {"weight": head.weight, "bias": head.bias, "hidden": hidden}
        for name, tensor in inputs.items():
            tensor.requires_grad_(name == part)
        got = head_log_probs(hidden, head, labels, TAGS)
        if part == "nothing":
            assert not got.log_probs.requires_grad and not got.log_tags.requires_grad
            hidden.requires_grad_()
            with torch.no_grad():
                assert not head_log_probs(hidden, head, labels, TAGS).log_probs.requires_grad
        else:
            assert_same(got, plain(head(hidden), labels), [inputs[part]])

    def test_the_argmax_has_no_gradient(self):
        head, hidden, labels, _ = problem()
        assert not head_log_probs(hidden, head, labels, TAGS).argmax.requires_grad


class TestNoRows:
    @pytest.mark.parametrize("kind", ["frozen", "trained", "lora", "4bit"])
    def test_zeros_connected_to_everything(self, kind):
        head, _, _, _ = problem(dtype=torch.float32, width=64)
        head = {"lora": with_lora, "4bit": in_four_bits}.get(
            kind, lambda h: h.requires_grad_(kind == "trained")
        )(head)
        hidden = torch.zeros(0, 64, requires_grad=True)
        labels = torch.zeros(0, dtype=torch.int64)
        got = head_log_probs(hidden, head, labels, TAGS, ref_hidden=hidden.detach())
        assert [x.shape for x in got] == [(0,), (3, 0), (0,), (0,)]
        loss = got.log_probs.sum() + got.log_tags.sum().float() + got.kl.sum()
        inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
        assert len(inputs) == {"frozen": 1, "trained": 2, "lora": 3, "4bit": 1}[kind]
        for p, gradient in zip(inputs, torch.autograd.grad(loss, inputs), strict=True):
            assert gradient.shape == p.shape and (gradient == 0).all()


def wrapped(head: nn.Module, **options) -> nn.Module:
    """The head of a PEFT model around nothing but it, its adapter away from its start."""
    model = nn.ModuleDict({"lm_head": head, "body": nn.Linear(2, 2)})
    head = get_peft_model(model, LoraConfig(**options)).base_model.model["lm_head"]
    generator = torch.Generator().manual_seed(1)
    for p in head.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return head


def trained(head):
    head.bias = nn.Parameter(torch.zeros_like(head.weight[:, 0]))
    return head.requires_grad_()


def with_lora(head):
    return wrapped(head, r=2, target_modules=["lm_head"])


def with_dora(head):
    return wrapped(head, r=2, target_modules=["lm_head"], use_dora=True)


def with_token_rows(head):
    return wrapped(head, r=2, target_modules=["body"], trainable_token_indices={"lm_head": [*TAGS]})


def with_copy(head):
    return wrapped(head, r=2, target_modules=["body"], modules_to_save=["lm_head"])


def with_hook(head):
    head.register_forward_hook(lambda module, args, output: output + 0.1 * output.square())
    return head.requires_grad_()


def with_forward(head):
    """As accelerate replaces it, to bring offloaded weights."""
    head.forward = lambda x, old=head.forward: 2 * old(x)
    return head.requires_grad_()


def in_four_bits(head):
    quantised = bnb.nn.Linear4bit(
        head.in_features,
        head.out_features,
        bias=False,
        compute_dtype=torch.float32,
        quant_type="nf4",
    )
    quantised.weight = bnb.nn.Params4bit(
        head.weight.data.float(), requires_grad=False, quant_type="nf4"
    )
    quantised.support_avx512bf16_for_cpu = False  # as load_model sets it
    return quantised.to("cpu")


def four_bits_and_lora(head):
    return with_lora(in_four_bits(head))


class TestModule:
    """Heads that train, or are more than one matrix."""

    @pytest.mark.parametrize("chunk_bytes", [1, 4 * 4 * VOCABULARY, 2**26])
    @pytest.mark.parametrize(
        "make",
        [trained, with_lora, with_dora, with_token_rows, with_copy, with_hook, with_forward],
    )
    def test_values_and_gradients(self, make, chunk_bytes):
        head, hidden, labels, _ = problem()
        original, head = copy.deepcopy(head), make(head)
        ref_hidden = hidden.detach()[5:] + 0.5
        ref_logits = transform(
            (head if make in (trained, with_hook, with_forward) else original)(ref_hidden), 5.0, 0.7
        ).detach()
        got = head_log_probs(
            hidden, head, labels, TAGS, ref_hidden=ref_hidden, kl_rows=torch.arange(ROWS) >= 5, form=Form(5.0, 0.7),
            chunk_bytes=chunk_bytes,
        )  # fmt: skip
        want = plain(transform(head(hidden), 5.0, 0.7), labels, TAGS, ref_logits)
        parameters = [p for p in head.parameters() if p.requires_grad]
        assert parameters and (make is trained) == torch.equal(head(hidden), original(hidden))
        tolerance = dict(rtol=1e-5, atol=1e-6) if make in (with_lora, with_dora, with_copy) else {}
        assert_same(got, want, [hidden, *parameters], **tolerance)

    @pytest.mark.parametrize("make", [in_four_bits, four_bits_and_lora])
    @pytest.mark.parametrize("chunk_bytes", [4 * 4 * VOCABULARY, 2**26])
    def test_four_bits(self, make, chunk_bytes):
        head, hidden, labels, _ = problem(width=64, dtype=torch.float32)
        head = make(head)
        got = head_log_probs(hidden, head, labels, TAGS, ref_hidden=hidden.detach()[6:] + 0.1,
                             kl_rows=torch.arange(ROWS) >= 6, chunk_bytes=chunk_bytes)  # fmt: skip
        base = getattr(head, "base_layer", head)
        want = plain(head(hidden), labels, TAGS, base(hidden.detach()[6:] + 0.1))
        parameters = [p for p in head.parameters() if p.requires_grad]
        assert len(parameters) == (2 if make is four_bits_and_lora else 0)
        assert_same(got, want, [hidden, *parameters], rtol=1e-4, atol=1e-4)

    def test_a_head_on_disk(self, tmp_path):
        """As `device_map` leaves what does not fit: accelerate's hook brings the weight, and moves the input to it."""
        head, hidden, labels, _ = problem()
        want = plain(head(hidden), labels, TAGS, head(hidden.detach()[6:] + 0.1))
        model = disk_offload(
            nn.ModuleDict({"lm_head": head}), tmp_path, execution_device=torch.device("cpu")
        )
        assert model["lm_head"].weight.is_meta
        got = head_log_probs(hidden, model["lm_head"], labels, TAGS, ref_hidden=hidden.detach()[6:] + 0.1,
                             kl_rows=torch.arange(ROWS) >= 6, chunk_bytes=4 * 4 * VOCABULARY)  # fmt: skip
        assert_same(got, want, [hidden])

    def test_dropout_is_drawn_once(self):
        """The recomputation in backward sees the same mask, so gradient and value belong together."""
        head, hidden, labels, _ = problem()
        head = nn.Sequential(nn.Dropout(0.5), head)
        torch.manual_seed(0)
        got = head_log_probs(hidden, head, labels, TAGS)
        torch.manual_seed(0)
        mask = F.dropout(torch.ones_like(hidden), 0.5)
        torch.testing.assert_close(got.log_probs, plain(head[1](hidden * mask), labels).log_probs)
        want = torch.autograd.grad(plain(head[1](hidden * mask), labels).log_probs.sum(), hidden)
        torch.testing.assert_close(torch.autograd.grad(got.log_probs.sum(), hidden), want)

    def test_logits_are_made_anew_in_backward(self):
        """Else all of them would be kept."""
        head, hidden, labels, _ = problem()
        calls = []
        head.register_forward_hook(lambda module, args, output: calls.append(len(output)))
        got = head_log_probs(hidden, head, labels, TAGS, chunk_bytes=4 * 4 * VOCABULARY)
        assert [rows for rows in calls if rows] == [4, 4, 3]  # without rows it is asked for V
        calls.clear()
        got.log_probs.sum().backward()
        assert sorted(rows for rows in calls if rows) == [3, 4, 4]

    def test_no_gradient_without_asking(self):
        head, hidden, labels, _ = problem()
        with torch.no_grad():
            assert not head_log_probs(hidden, with_lora(head), labels, TAGS).log_probs.requires_grad


class TestPrecision:
    """In half precision, an error no larger than twice the plain path's; in float32, four times; against float64."""

    @staticmethod
    def errors(dtype, spread, *, autocast=False):
        """(name, group of rows) -> error of ours and of the plain path, root mean square over entries."""
        head, hidden, labels, _ = problem(120, 2003, dtype, spread=spread, width=64)
        ref_hidden = hidden.detach()[80:] * 0.9
        exact_head, exact_hidden = (
            copy.deepcopy(head).double(),
            hidden.detach().double().requires_grad_(),
        )
        want = plain(
            exact_head(exact_hidden), labels, TAGS, exact_head(ref_hidden.double()).detach()
        )
        gradients = upstream(want)
        target = [*want, *pull(want, gradients, [exact_hidden])]
        found = []
        for ours in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                if ours:
                    got = head_log_probs(
                        hidden, head, labels, TAGS, ref_hidden=ref_hidden, kl_rows=torch.arange(120) >= 80,
                        chunk_bytes=4 * 7 * 2003,
                    )  # fmt: skip
                else:
                    got = plain(
                        head(hidden).float(), labels, TAGS, head(ref_hidden).float().detach()
                    )
            assert ours is False or (got.log_probs.dtype, got.log_tags.dtype) == (
                torch.float32,
                torch.float64,
            )
            values = [*got, *pull(got, gradients, [hidden])]
            found.append(
                [(a.detach().double() - b.detach()) for a, b in zip(values, target, strict=True)]
            )
        names = ["log_probs", "log_tags", "argmax", "kl", "d_hidden"]
        pairs = {name: pair for name, *pair in zip(names, *found, strict=True) if name != "argmax"}
        hidden_pair = pairs.pop("d_hidden")
        pairs |= {f"d_hidden {n}": [x[s] for x in hidden_pair] for n, s in
                  {"confident": slice(40), "any": slice(40, 80), "with kl": slice(80, 120)}.items()}  # fmt: skip
        return {
            name: [x.square().mean().sqrt().item() for x in pair] for name, pair in pairs.items()
        }

    @pytest.mark.parametrize("spread", [0.05, 0.5, 2.0])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_no_worse_than_twice_the_plain_path(self, dtype, spread):
        factor = (
            4 if dtype == torch.float32 else 2
        )  # float32 sums differ by the order in which threads add
        for name, (ours, theirs) in self.errors(dtype, spread).items():
            assert ours <= factor * theirs + 1e-12, (name, ours, theirs)

    @pytest.mark.parametrize("spread", [0.05, 2.0])
    def test_under_autocast(self, spread):
        for name, (ours, theirs) in self.errors(torch.float32, spread, autocast=True).items():
            assert ours <= 2 * theirs, (name, ours, theirs)
            assert ours > 1e-7, "autocast did not happen"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_a_token_that_is_all_but_certain(self, dtype):
        """Its gradient is proportional to 1 - p, and so must the error be: nothing cancels."""
        head, hidden, labels, _ = problem(40, 503, dtype, width=64)
        with torch.no_grad():
            hidden.copy_(head.weight[labels])  # z_label is about 64, the others about 0 +- 8
            hidden /= 64**0.5 / 3.2
        exact = hidden.detach().double().requires_grad_()
        log_p = plain(copy.deepcopy(head).double()(exact), labels).log_probs
        assert log_p.min() > -1e-2 and log_p.max() < 0
        want = torch.autograd.grad(log_p.sum(), exact)[0]
        got = torch.autograd.grad(
            head_log_probs(hidden, head, labels, TAGS).log_probs.sum(), hidden
        )[0]
        same = plain(head(hidden).float(), labels).log_probs
        theirs = torch.autograd.grad(same.sum(), hidden)[0]
        ours, theirs = ((x.double() - want).norm(dim=1) / want.norm(dim=1) for x in (got, theirs))
        assert ours.median() <= 2 * theirs.median() and ours.max() <= 2 * theirs.max() + 1e-3

    def test_float16_keeps_the_many_small_probabilities(self):
        """One token has .99 and 60,000 share the rest, 1.7e-7 each: float16 steps by 6e-8 there, 35 % of it."""
        vocabulary, top, label = 60_005, 3, 4
        head = nn.Linear(4, vocabulary, dtype=torch.float16).requires_grad_(False)
        head.weight.fill_(1.0)[: label + 1] = 0
        head.bias.zero_()[: label + 1] = -20
        head.bias[top] = math.log(0.99 / 0.01 * 60_000)
        hidden = torch.zeros(2, 4, dtype=torch.float16, requires_grad=True)
        got = head_log_probs(hidden, head, torch.full((2,), label), TAGS).log_probs.sum()
        exact = head.bias.double().softmax(-1)[label + 1 :].sum().item()
        gradient = torch.autograd.grad(got, hidden)[0].double()
        torch.testing.assert_close(gradient, torch.full_like(gradient, -exact), rtol=5e-3, atol=0)

    def test_backward_keeps_the_precision_of_forward(self):
        """Also where it is called under autocast."""
        head, hidden, labels, _ = problem(dtype=torch.float32)
        want = torch.autograd.grad(plain(head(hidden), labels).log_probs.sum(), hidden)[0]
        got = head_log_probs(hidden, head, labels, TAGS).log_probs.sum()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(
                torch.autograd.grad(got, hidden)[0], want, rtol=1e-4, atol=1e-5
            )

    @pytest.mark.parametrize("tag", TAGS)
    @pytest.mark.parametrize("module", [False, True])
    def test_a_tag_at_one_minus_1e_12(self, tag, module):
        head, hidden, labels, _ = problem(3, dtype=torch.float32)
        with torch.no_grad():
            head.weight.zero_()
            head.weight[tag] = 1
            hidden.fill_((math.log(1e12) + math.log(VOCABULARY - 1)) / WIDTH)
        labels.fill_(tag)
        run = nn.Sequential(head) if module else head
        got = head_log_probs(hidden, run, labels, TAGS)
        share = (VOCABULARY - 2) / (VOCABULARY - 1)
        torch.testing.assert_close(
            got.log_tags[2], torch.full((3,), math.log(1e-12 * share)).double(), rtol=1e-6, atol=0
        )
        assert (got.log_tags < 0).all() or (got.log_tags[tag - 1] > -2e-12).all()
        gradient = torch.autograd.grad(got.log_tags[2].sum(), hidden, retain_graph=True)[0]
        torch.testing.assert_close(
            gradient, torch.full_like(gradient, -1.0)
        )  # d log(1 - p) = -dz_tag
        small = torch.autograd.grad(got.log_tags[tag - 1].sum(), hidden)[0]
        torch.testing.assert_close(small, torch.full_like(small, 1e-12), rtol=1e-2, atol=0)


class Recorder(TorchDispatchMode):
    """The largest tensor made, and how many matrix products there were with the vocabulary."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.largest, self.work = vocabulary, 0, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor) and not isinstance(x, nn.Parameter):
                self.largest = max(self.largest, x.numel())
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            a, b = args[-2:]
            self.work += a.shape[-2] * a.shape[-1] * b.shape[-1]
        if func.overloadpacket is torch.ops.mkldnn._linear_pointwise:
            self.work += args[0].numel() * args[1].shape[0]
        return out


class TestCost:
    """V is the largest dimension by far, so R * V stands out among the tensors, D * V does not."""

    R, D, V = 96, 8, 2003
    BUDGET = 4 * 10 * V

    def record(self, *, trained=False, kl=0, make=None, bias=False):
        head, hidden, labels, _ = problem(self.R, self.V, torch.float32, width=self.D)
        if bias:
            head.bias = nn.Parameter(torch.zeros(self.V))
        head = make(head) if make else head.requires_grad_(trained)
        options = (
            dict(ref_hidden=hidden.detach()[:kl], kl_rows=torch.arange(self.R) < kl) if kl else {}
        )
        forward, backward = Recorder(self.V), Recorder(self.V)
        with forward:
            got = head_log_probs(hidden, head, labels, TAGS, chunk_bytes=self.BUDGET, **options)
            loss = got.log_probs.sum() + got.log_tags.sum() + (got.kl.sum() if kl else 0)
        with backward:
            loss.backward()
        return forward, backward

    def products(self, recorder: Recorder, rows: int | None = None) -> float:
        return recorder.work / ((rows or self.R) * self.D * self.V)

    def test_two_products_forward_none_backward(self):
        forward, backward = self.record()
        assert self.products(forward) == 2 and backward.work == 0

    def test_without_onednn_too(self, monkeypatch):
        monkeypatch.setattr("btsft_nb.objective.head_matrix._ONEDNN", False)
        self.test_the_kl_adds_two_on_its_rows(30)

    def test_bias_and_cap_cost_no_product(self):
        head, hidden, labels, _ = problem(self.R, self.V, torch.float32, width=self.D)
        head.bias = nn.Parameter(torch.zeros(self.V), requires_grad=False)
        with Recorder(self.V) as recorder:
            head_log_probs(
                hidden, head, labels, TAGS, form=Form(5.0, 0.5)
            ).log_probs.sum().backward()
        assert self.products(recorder) == 2

    @pytest.mark.parametrize("kl", [1, 30, 96])
    def test_the_kl_adds_two_on_its_rows(self, kl):
        forward, backward = self.record(kl=kl)
        assert forward.work == (2 * self.R + 2 * kl) * self.D * self.V and backward.work == 0

    def test_a_trained_head_takes_four(self):
        forward, backward = self.record(trained=True)
        assert self.products(forward) == 1 and self.products(backward) == 3

    @pytest.mark.parametrize("evaluation", [True, False])
    def test_without_a_gradient_by_the_hidden_states_it_takes_one(self, evaluation):
        head, hidden, labels, _ = problem(self.R, self.V, torch.float32, width=self.D)
        head.requires_grad_()
        hidden = hidden.detach()
        with torch.set_grad_enabled(not evaluation), Recorder(self.V) as recorder:
            head_log_probs(hidden, head, labels, TAGS)
        assert self.products(recorder) == 1

    @pytest.mark.parametrize("options", [
        {}, {"kl": 96}, {"trained": True}, {"trained": True, "kl": 50, "bias": True}, {"make": with_lora, "kl": 50},
        {"make": with_token_rows}, {"make": with_copy},
    ])  # fmt: skip
    def test_logits_never_exist_at_once(self, options):
        limit = max(self.BUDGET // 4, self.D * self.V)
        assert max(r.largest for r in self.record(**options)) <= limit < self.R * self.V / 5

    def test_the_recorder_sees_the_plain_path(self):
        """Else the tests above would pass on anything."""
        head, hidden, labels, _ = problem(self.R, self.V, torch.float32, width=self.D)
        with Recorder(self.V) as recorder:
            plain(head(hidden), labels).log_probs.sum().backward()
        assert recorder.largest == self.R * self.V and self.products(recorder) == 2


@pytest.mark.parametrize("factor", [-1e6, 1e-6, 0.0])
def test_weights_of_any_size_scale_the_gradient(factor):
    """Huge, tiny, negative and zero weights on tokens: the gradient is linear in them, to float32's rounding."""
    head, hidden, labels, _ = problem(dtype=torch.float32)
    output = head_log_probs(hidden, head, labels, TAGS, ref_hidden=hidden.detach() * 0.9)
    gradients = upstream(output)
    unit, scaled = (
        torch.autograd.grad(_sum(output, gradients, f), hidden, retain_graph=True)[0]
        for f in (1.0, factor)
    )
    torch.testing.assert_close(scaled, factor * unit, rtol=1e-5, atol=abs(factor) * 1e-6)


def _sum(output: HeadOutput, gradients: list[Tensor], factor: float) -> Tensor:
    outputs = (output.log_probs, output.log_tags, output.kl)
    return factor * sum((x.double() * g).sum() for x, g in zip(outputs, gradients, strict=True))
