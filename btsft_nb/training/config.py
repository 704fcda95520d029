"""The configuration of a training run: transformers' TrainingArguments and the dials of the objective."""

import math
import os
from contextlib import suppress
from dataclasses import dataclass, field, fields
from netrc import NetrcParseError, netrc
from numbers import Integral
from urllib.parse import urlsplit

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import TrainingArguments

from ..checks import check_choice, check_keys, check_number
from ..models.hardware import check_bf16, detect
from ..objective import BETA, THRESHOLD
from ..objective.blur import UNITS


@dataclass
class BTSFTConfig(TrainingArguments):
    """What a training run does: the dials of the objective, and every field of TrainingArguments.

    The defaults of the dials come from what benchmarks/evidence.py measured, see notebook 06: an anchor, without which
    blur changes nothing; a threshold that keeps most of what the data teach; a beta that holds the format and costs
    nothing where the data hold it already; no kept first tokens, which would choose the way of the thought. `unit` and
    `resample` made no difference: the finest unit, drawn anew, leaves no token without loss in all epochs.

    Attributes:
        threshold: Share of thought tokens to blur, 0 to 1.
        beta: Weight of the format term, 1 - expected reward.
        anchor: Weight of the KL to the model without adapters, on blurred tokens. 0: plain blur.
        resample: epoch draws the blur anew each epoch, never draws it once.
        keep_first: How many tokens at the start of a thought are never blurred.
        unit: What shares one draw of the blur: token, word, sentence or thought.
        threshold_end: The threshold of the last step, approached linearly; null: no change.
        negative: Loss of tokens with a negative weight: nll, without a lower bound; unlikelihood, -log(1 - p), at least
            0; floor, nll up to negative_floor.
        negative_floor: With negative=floor, the nats of nll beyond which a token is left alone.
        padding_free: Lay the examples of a batch end to end in one row, without padding.
        report_to: Trackers: none, tensorboard, wandb (without an account by WANDB_MODE=offline), trackio, or a list.
        remove_unused_columns: Must stay false: no model has the columns weights and kinds.
        dataloader_pin_memory: Pin batches in memory; default on a GPU.
        use_cpu: Train on the CPU; default on Apple GPUs, which have neither 4-bit weights nor float64.
        logging_steps: Log every so many steps, or every such share of all steps.
        logging_nan_inf_filter: Leave an infinite or NaN loss out of the log; here it stops the run, so this only costs
            a look at each batch.

    Raises:
        ValueError: a dial out of its range, an unknown key, or a tracker that would have to ask for a key.

    >>> config = bt.BTSFTConfig("runs/demo", threshold=0.5, num_train_epochs=2)
    >>> config.threshold, config.anchor, config.beta
    (0.5, 1.0, 0.5)
    >>> bt.BTSFTConfig("runs/demo", treshold=0.5)
    Traceback (most recent call last):
    ValueError: unknown setting 'treshold', did you mean 'threshold'?
    """

    threshold: float = THRESHOLD
    beta: float = BETA
    anchor: float = 1.0
    resample: str = "epoch"
    keep_first: int = 0
    unit: str = "token"
    threshold_end: float | None = None
    negative: str = "nll"
    negative_floor: float = 10.0
    padding_free: bool = False
    report_to: str | list[str] = "none"
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    use_cpu: bool = field(default_factory=torch.backends.mps.is_available)
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False

    def __new__(cls, *args, **settings):
        """Refuses a misspelt key with the nearest one, before the generated __init__ sees it."""
        check_keys(settings, [f.name for f in fields(cls)])
        return super().__new__(cls)

    def __post_init__(self):
        check_number("threshold", self.threshold, 0, 1)
        if self.threshold_end is not None:
            check_number("threshold_end", self.threshold_end, 0, 1)
        for name in ("beta", "anchor", "negative_floor"):
            check_number(name, getattr(self, name), 0, math.inf)
        check_number("keep_first", self.keep_first, 0, math.inf, Integral)
        check_choice("resample", self.resample, ("epoch", "never"))
        check_choice("unit", self.unit, UNITS)
        check_choice("negative", self.negative, ("nll", "unlikelihood", "floor"))
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor must be 0: the objective has none")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: it would drop weights and kinds")
        if self.hub_token or self.push_to_hub:
            # a run folder keeps its arguments, so it would keep the token
            raise ValueError("no hub_token, no push_to_hub: push the folder, with HF_TOKEN set")
        if self.bf16 or self.bf16_full_eval:
            check_bf16(detect())
        self.label_names = self.label_names or ["labels"]
        super().__post_init__()
        if "wandb" in self.report_to:
            _check_wandb_key()
        # torch's DataParallel would call the model past the head: of several GPUs a process uses one
        self._n_gpu = min(self.n_gpu, 1)

    @property
    def is_anchored(self):
        """Whether a token can be blurred and anchored, which takes a reference."""
        return self.anchor and (self.threshold or self.threshold_end)

    def check_fits(self, model, ref_model, tag_ids, data_sets):
        """Raises ValueError if a model cannot be trained on data sets with this configuration."""
        for data in filter(None, data_sets):
            lacks = {"id", "input_ids", "weights", "kinds"}.difference(data.column_names)
            if lacks:
                raise ValueError(
                    f"the data set lacks the columns {sorted(lacks)}; prepare makes it"
                )
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("nothing to train: freeze less, or load with qlora=True or lora=...")
        for name, parameter in model.named_parameters():
            # half precision loses small updates, and the loss scaling of fp16 refuses it
            if parameter.requires_grad and parameter.dtype.itemsize < 4:
                raise ValueError(f"{name} trains in {parameter.dtype}; load it in torch.float32")
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        adapted = any(isinstance(layer, LoraLayer) for layer in ends)
        # merged, the adapter of one would change the other, too
        if adapted and model.config.get_text_config().tie_word_embeddings:
            raise ValueError(
                "head and embeddings are one matrix, so an adapter on either cannot be merged; "
                "leave lm_head and embed_tokens out of lora_targets"
            )
        rows = len(model.get_input_embeddings().weight)
        if max(tag_ids) >= rows:
            raise ValueError(f"the model has {rows} token rows, too few for the tags {tag_ids}")
        if self.is_anchored and ref_model is None and not isinstance(model, PeftModel):
            raise ValueError(f"anchor={self.anchor} needs a reference: qlora=True, or ref_model")


def _check_wandb_key():
    """Raises ValueError where wandb would stop and ask for a key."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    has_key = os.environ.get("WANDB_API_KEY")
    with suppress(OSError, NetrcParseError):
        has_key = has_key or netrc(os.environ.get("NETRC")).authenticators(host)
    if not has_key and os.environ.get("WANDB_MODE", "online") == "online":
        raise ValueError("report_to='wandb' needs WANDB_API_KEY, or WANDB_MODE=offline")
