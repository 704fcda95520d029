"""A causal language model's forward pass that ends in `head_log_probs` instead of logits, for chosen positions only.

The pass runs inside the model's own `forward`: PEFT, DDP, FSDP, autocast and torch.compile see the call they wrap.
"""

from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from .full_logits import Form
from .head import head_log_probs
from .objective import TokenValues

# what models multiply or divide their logits by, under its names in their configs (Cohere, Granite, Falcon-H1)
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")


@contextmanager
def eval_mode(model):
    """Within, the model does not train; then it is in the mode in which it was, whatever happened."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class HeadForward:
    """Gives hidden states, or what the head says of them, at the positions before given tokens.

    Args:
        model: a causal language model, with or without adapters.
        tag_ids: the ids of the open and the close tag.
        padding_free: whether it shall take sequences laid end to end.

    How the model makes logits of its last hidden states, its `form`, is read from its config and checked once against
    the model itself. Raises ValueError for a model that does anything else.
    """

    def __init__(self, model, tag_ids, padding_free=False):
        self.base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.tag_ids = tag_ids
        self._replacement = self._forward  # one object: torch.compile would trace a new one anew
        name = type(self.base).__name__
        if getattr(self.base.config, "output_router_logits", False):
            raise ValueError(f"{name}: router losses need output_router_logits=False in its config")
        if is_deepspeed_zero3_enabled():
            raise ValueError("DeepSpeed ZeRO-3 shards the head; use FSDP2 or ZeRO-2")
        # dropout would hide what the probes look for
        with torch.no_grad(), eval_mode(self.base):
            self.form = self._probe_head(name)
            if padding_free:
                self._probe_padding_free(name)

    @property
    def head(self) -> nn.Module:
        return self.base.get_output_embeddings()

    def hidden(self, model, inputs, positions):
        """(R, D) without gradient: the hidden states before the tokens at positions (B, T), R of them True."""
        with torch.no_grad():
            return self._call(model, inputs, positions=positions)

    def token_values(self, model, inputs, positions, *, ref_hidden=None, ref_head=None):
        """What a model says of the tokens at positions (B, T) bool; with ref_hidden, KL at the blurred among them.

        Args:
            model: the model, or what wraps it.
            inputs: `input_ids`, `blurred`, and `attention_mask` or `position_ids`, each (B, T).
            ref_hidden, ref_head: as for `head_log_probs`, the rows those of blurred tokens.
        """
        targets = inputs["input_ids"][positions]
        reference = {"ref_hidden": ref_hidden, "ref_head": ref_head}
        # the KL is wanted at blurred tokens alone
        if ref_hidden is not None:
            reference["kl_rows"] = inputs["blurred"][positions]
        head = self._call(model, inputs, positions=positions, targets=targets, reference=reference)
        # back to (B, T)
        zeros = torch.zeros_like(positions, dtype=head.log_probs.dtype)
        no_tags = torch.zeros_like(zeros.expand(3, -1, -1), dtype=torch.float64)
        none = torch.full_like(inputs["input_ids"], -1)
        return TokenValues(
            log_probs=zeros.masked_scatter(positions, head.log_probs),
            log_tags=no_tags.masked_scatter(positions, head.log_tags),
            argmax=none.masked_scatter(positions, head.argmax),
            kl=None if ref_hidden is None else zeros.masked_scatter(inputs["blurred"], head.kl),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, V) in float32 or float64, of hidden states (R, D) as `hidden` gives them, for few rows at a time."""
        return self.form.logits(self.head(hidden))

    def _call(self, model, inputs, **arguments):
        """What `_forward` returns, called through whatever wraps the model."""
        for name in ("input_ids", "attention_mask", "position_ids"):
            if name in inputs:
                arguments[name] = inputs[name]
        before = vars(self.base).get("forward")
        self.base.forward = self._replacement
        try:
            return model(**arguments)
        finally:
            del self.base.forward
            if before is not None:
                self.base.forward = before

    def _forward(self, positions, targets=None, reference=None, **inputs):
        """Stands in for the model's own forward.

        Args:
            positions: (B, T) bool, R of them True: the tokens to predict.
            targets: (R,), their ids (PEFT would take `labels` for itself); without them hidden states are returned.
            reference: what `head_log_probs` takes of it.
            inputs: the model's.

        Returns:
            The head's output for R rows, or their hidden states (R, D).
        """
        # PEFT passes many None
        inputs = {name: value for name, value in inputs.items() if value is not None}
        hidden = self.base.base_model(**inputs, use_cache=False).last_hidden_state
        # the state before each token but the first; virtual tokens of PEFT stand in front
        hidden = hidden[:, -positions.shape[1] : -1][positions[:, 1:]]
        if targets is None:
            return hidden
        return head_log_probs(hidden, self.head, targets, self.tag_ids, form=self.form, **reference)

    def _probe_head(self, name) -> Form:
        """The form of the logits, by giving the model a ramp in place of its head's output."""
        config = self.base.config.get_text_config()
        head_inputs = []

        # small logits would not show a soft cap
        def ramp(module, arguments, output):
            head_inputs.append(arguments[0])
            return torch.linspace(-50, 50, output.shape[-1]).to(output).expand_as(output)

        ids = torch.arange(4, device=self.base.device)[None]
        hidden = self.base.base_model(input_ids=ids, use_cache=False).last_hidden_state
        if hidden.isnan().any():
            raise FloatingPointError(f"{name}: hidden states are NaN: the model has diverged")
        hook = self.head.register_forward_hook(ramp)
        try:
            logits = self.base(input_ids=ids, use_cache=False).logits[0, 0].double()
        finally:
            hook.remove()
        # a model that scales hidden states first is not read rightly
        takes_hidden = bool(head_inputs) and _is_close(head_inputs[0], hidden)
        # each number of the config that could be a scale
        softcap = getattr(config, "final_logit_softcapping", None)
        named = [getattr(config, key, None) or 1.0 for key in _SCALES]
        product = torch.linspace(-50, 50, len(logits)).to(logits)
        for scale in (1.0, *named, *(1 / value for value in named)):
            form = Form(softcap, float(scale))
            if takes_hidden and _is_close(logits, form.logits(product)):
                return form
        raise ValueError(
            f"{name}: its logits are not softcap * tanh(scale * head(last hidden states) / softcap)"
        )

    def _probe_padding_free(self, name):
        """The same sequence after two others: what comes before may change nothing."""
        ids = torch.arange(4, device=self.base.device)[None]  # and their positions
        ends = []
        for other in (ids, ids.flip(1)):
            output = self.base.base_model(
                input_ids=torch.cat([other, ids], 1),
                position_ids=ids.repeat(1, 2),
                use_cache=False,
            )
            ends.append(output.last_hidden_state[:, -4:])
        if not _is_close(*ends, 1e-6):
            attention = self.base.config._attn_implementation
            raise ValueError(
                f"{name} with {attention} attention mixes sequences in a row: set padding_free=False"
            )


def _is_close(a, b, tolerance=0.02):
    """Equal but for rounding, by default that of half precision."""
    difference = (a - b).abs().max() if a.shape == b.shape else torch.inf
    return bool(difference <= tolerance * b.abs().max())
