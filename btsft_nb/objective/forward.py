"""A causal language model's forward pass that ends in `head_log_probs` instead of logits, for chosen positions only.

The pass runs inside the model's own `forward`: PEFT, DDP, FSDP, autocast and torch.compile see the call they wrap.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from .head import HeadOutput, head_log_probs
from .objective import TokenValues

# what models multiply or divide their logits by, under its names in their configs (Cohere, Granite, Falcon-H1)
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")


class HeadForward:
    """Gives hidden states, or what the head says of them, at the positions before given tokens.

    Args:
        model: a causal language model, with or without adapters.
        tag_ids: the ids of the open and the close tag.
        padding_free: whether it shall take sequences laid end to end.

    How the model makes logits of its last hidden states is read from its config and checked once against the model
    itself. Raises ValueError, with what was found, for a model that does anything else.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tag_ids: tuple[int, int],
        *,
        padding_free: bool = False,
    ):
        self.base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.tag_ids = tag_ids
        self.name = type(self.base).__name__
        self._replacement = self._forward  # one object: torch.compile would trace a new one anew
        if getattr(self.base.config, "output_router_logits", False):
            raise ValueError(
                f"{self.name}: the objective has no router loss; set config.output_router_logits=False"
            )
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "DeepSpeed ZeRO-3 divides the head, which the objective reads whole: take FSDP2, or ZeRO-2"
            )
        was_training = self.base.training
        self.base.eval()
        with torch.no_grad():
            self.scale, self.softcap = self._probe_head()
            if padding_free:
                self._probe_padding_free()
        self.base.train(was_training)

    @property
    def head(self) -> nn.Module:
        return self.base.get_output_embeddings()

    def hidden(self, model: nn.Module, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
        """(R, D) without gradient: the hidden states before the tokens at positions (B, T), R of them True."""
        with torch.no_grad(), self._installed():
            return model(**_text(inputs), positions=positions)

    def token_values(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        positions: Tensor,
        *,
        ref_hidden: Tensor | None = None,
        ref_head: nn.Module | None = None,
    ) -> TokenValues:
        """What a model says of the tokens at positions (B, T) bool; with ref_hidden, KL at the blurred among them.

        Args:
            model: the model, or what wraps it.
            inputs: `input_ids`, `blurred`, and `attention_mask` or `position_ids`, each (B, T).
            ref_hidden, ref_head: as for `head_log_probs`, the rows those of blurred tokens.
        """
        arguments = {"positions": positions, "targets": inputs["input_ids"][positions]}
        if ref_hidden is not None:
            arguments |= {
                "ref_hidden": ref_hidden,
                "ref_head": ref_head,
                "kl_rows": inputs["blurred"][positions],
            }
        with self._installed():
            head = model(**_text(inputs), **arguments)
        zeros = torch.zeros(positions.shape, dtype=head.log_probs.dtype, device=positions.device)
        uniform = torch.full(
            (3, *positions.shape), -math.log(3), dtype=torch.float64, device=positions.device
        )
        return TokenValues(
            zeros.masked_scatter(positions, head.log_probs),
            uniform.masked_scatter(positions, head.log_tags),
            torch.full_like(inputs["input_ids"], -1).masked_scatter(positions, head.argmax),
            None if ref_hidden is None else zeros.masked_scatter(inputs["blurred"], head.kl),
        )

    @contextmanager
    def _installed(self) -> Iterator[None]:
        """Within, the model takes the arguments of `_forward` and returns what it returns."""
        before = vars(self.base).get("forward")
        try:
            self.base.forward = self._replacement
            yield
        finally:
            vars(self.base).pop("forward", None)
            if before is not None:
                self.base.forward = before

    def _forward(
        self, positions: Tensor, targets: Tensor | None = None, **inputs
    ) -> HeadOutput | Tensor:
        """positions (B, T) bool, R of them True: the tokens to predict. targets (R,): their ids. A reference comes as
        `head_log_probs` takes it, all else is the model's.

        Returns the head's output for R rows, or, without targets, their hidden states (R, D).
        """
        reference = {
            name: inputs.pop(name)
            for name in ("ref_hidden", "ref_head", "kl_rows")
            if name in inputs
        }
        inputs = {
            name: value for name, value in inputs.items() if value is not None
        }  # PEFT passes many None
        hidden = self.base.base_model(**inputs, use_cache=False).last_hidden_state
        hidden = hidden[:, -positions.shape[1] : -1][
            positions[:, 1:]
        ]  # virtual tokens of PEFT stand before
        if targets is None:
            return hidden
        how = {"softcap": self.softcap, "scale": self.scale}
        return _head_log_probs(hidden, self.head, targets, self.tag_ids, **how, **reference)

    def _probe_head(self) -> tuple[float, float | None]:
        """Scale and soft cap of the logits, found by giving the model a ramp in place of its head's output."""
        config, seen = self.base.config.get_text_config(), []

        def ramp(module, arguments, output):
            seen.append(arguments[0])
            return torch.linspace(
                -50, 50, output.shape[-1], device=output.device, dtype=output.dtype
            ).expand_as(output)

        ids = torch.arange(4, device=self.base.device)[None]
        hidden = self.base.base_model(input_ids=ids, use_cache=False).last_hidden_state
        hook = self.head.register_forward_hook(ramp)
        try:
            logits = self.base(input_ids=ids, use_cache=False).logits[0, 0].double()
        finally:
            hook.remove()
        if not seen or not _close(seen[0], hidden):
            raise ValueError(
                f"{self.name}: its head does not take its backbone's last hidden states; not supported"
            )
        cap = getattr(config, "final_logit_softcapping", None)
        named = [value for name in _SCALES if (value := getattr(config, name, None))]
        product = torch.linspace(-50, 50, len(logits), dtype=torch.float64, device=logits.device)
        for scale in (1.0, *named, *(1 / value for value in named)):
            z = product * scale
            if _close(logits, z if cap is None else cap * torch.tanh(z / cap)):
                return float(scale), cap
        raise ValueError(
            f"{self.name}: its logits are not softcap * tanh(scale * head / softcap) with what its config says of "
            f"final_logit_softcapping and {', '.join(_SCALES)}; not supported"
        )

    def _probe_padding_free(self) -> None:
        """The same sequence after two others, and alone."""
        ids = torch.arange(4, device=self.base.device)[None]  # and their positions

        def after(*others: Tensor) -> Tensor:
            tokens, places = torch.cat([*others, ids], 1), ids.repeat(1, len(others) + 1)
            hidden = self.base.base_model(
                input_ids=tokens, position_ids=places, use_cache=False
            ).last_hidden_state
            return hidden[:, -4:]

        one, other, alone = after(ids), after(ids.flip(1)), after()
        if not (_close(one, other, 1e-6) and _close(one, alone)):
            raise ValueError(
                f"{self.name} lets sequences in one row see each other, with attn_implementation="
                f"{self.base.config._attn_implementation!r}: set padding_free=False"
            )


def _text(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: inputs[name]
        for name in ("input_ids", "attention_mask", "position_ids")
        if name in inputs
    }


# its loops over blocks are not for torch.compile, which would unroll them
_head_log_probs = torch.compiler.disable(head_log_probs)


def _close(a: Tensor, b: Tensor, tolerance: float = 0.02) -> bool:
    """Equal but for rounding, by default that of half precision."""
    return a.shape == b.shape and bool(
        (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max()
    )
