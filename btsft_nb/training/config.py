"""The configuration of a training run: transformers' TrainingArguments and the dials of the objective."""

import difflib
import math
import os
from dataclasses import dataclass, field, fields
from numbers import Integral
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..checks import check_choice, check_number
from ..models.hardware import check_bf16, detect
from ..objective.blur import UNITS


@dataclass
class BTSFTConfig(TrainingArguments):
    """`BTSFTConfig("runs/demo", threshold=0.5)`; every TrainingArguments field works as well.

    The defaults of the dials come from what benchmarks/evidence.py measured, see notebook 06: an anchor, without which
    blur changes nothing; a threshold that keeps most of what the data teach; a beta that holds the format and costs
    nothing where the data hold it already; no kept first tokens, which would choose the way of the thought. `unit` and
    `resample` made no difference: the finest unit, drawn anew, leaves no token without loss in all epochs.

    Raises ValueError for a dial out of its range, an unknown key, or a tracker that would have to ask for a key.
    """

    threshold: float = field(
        default=0.2, metadata={"help": "Share of thought tokens that are blurred, 0 to 1."}
    )
    beta: float = field(
        default=0.5, metadata={"help": "Weight of the format term, 1 - expected reward."}
    )
    anchor: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the KL to the model without adapters, on blurred tokens. 0: plain blur."
        },
    )
    resample: str = field(
        default="epoch",
        metadata={"help": "'epoch' draws the blur anew each epoch, 'never' draws it once."},
    )
    keep_first: int = field(
        default=0, metadata={"help": "How many tokens at the start of a thought are never blurred."}
    )
    unit: str = field(
        default="token",
        metadata={"help": "What shares one draw of the blur: token, word, sentence or thought."},
    )
    threshold_end: float | None = field(
        default=None,
        metadata={"help": "The threshold of the last step, approached linearly; None: no change."},
    )
    negative: str = field(
        default="nll",
        metadata={
            "help": "The loss of tokens with a negative weight: 'nll' (without a lower bound), 'unlikelihood' "
            "(-log(1 - p), at least 0) or 'floor' (nll up to negative_floor)."
        },
    )
    negative_floor: float = field(
        default=10.0,
        metadata={"help": "negative='floor': nats of nll beyond which a token is left alone."},
    )
    padding_free: bool = field(
        default=False,
        metadata={"help": "Lay the examples of a batch end to end in one row, without padding."},
    )
    report_to: str | list[str] = field(
        default="none",
        metadata={"help": "Trackers: none, tensorboard, wandb, wandb-offline, trackio, or a list."},
    )
    run_group: str | None = field(default=None, metadata={"help": "wandb: the group of the run."})
    run_tags: list[str] = field(default_factory=list, metadata={"help": "wandb: tags of the run."})
    job_type: str | None = field(
        default=None, metadata={"help": "wandb: the type of job of the run."}
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Stays False: the weights and kinds are columns that no model knows."},
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available,
        metadata={"help": "Pin batches in memory; only a GPU gains from it."},
    )
    use_cpu: bool = field(
        default_factory=torch.backends.mps.is_available,
        metadata={
            "help": "Train on the CPU; default on Apple GPUs, which have neither 4-bit weights nor float64."
        },
    )
    logging_steps: float = field(
        default=10, metadata={"help": "Log every so many steps, or every such share."}
    )

    def __new__(cls, *args, **kwargs):
        """Names the closest known key for an unknown one, before the generated __init__ sees it."""
        known = [f.name for f in fields(cls) if f.init]
        for key in kwargs:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=3)
                hint = (
                    f"did you mean {' or '.join(map(repr, close))}?"
                    if close
                    else "see help(BTSFTConfig)"
                )
                raise ValueError(f"unknown configuration key {key!r}; {hint}")
        return super().__new__(cls)

    def __post_init__(self):
        check_number("threshold", self.threshold, 0, 1)
        check_number("beta", self.beta, 0, math.inf)
        check_number("anchor", self.anchor, 0, math.inf)
        check_number("keep_first", self.keep_first, 0, math.inf, Integral)
        check_number("negative_floor", self.negative_floor, 0, math.inf)
        if self.threshold_end is not None:
            check_number("threshold_end", self.threshold_end, 0, 1)
        check_choice("resample", self.resample, ("epoch", "never"))
        check_choice("unit", self.unit, UNITS)
        check_choice("negative", self.negative, ("nll", "unlikelihood", "floor"))
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor: the objective has no label smoothing; leave it 0"
            )
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True would remove the token weights and kinds; leave it False"
            )
        if self.hub_token or self.push_to_hub:
            raise ValueError(
                "push_to_hub, hub_token: a run folder keeps its arguments, a token too; leave them out, and push the "
                "folder when the run is finished, with the token in HF_TOKEN, see load_secrets"
            )
        if self.bf16:
            check_bf16(detect())
        self.label_names = ["labels"] if self.label_names is None else self.label_names
        self.report_to, self._wandb_offline = _trackers(self.report_to)
        super().__post_init__()

    def start_wandb(self) -> None:
        """Where wandb is a tracker, begins its run, which transformers' callback then logs to.

        That would know nothing of group, tags and job type, and log to the run of an earlier training in this process:
        one of another folder ends here.
        """
        if "wandb" not in self.report_to or self.process_index:
            return
        import wandb

        if wandb.run and wandb.run.config.get("output_dir", self.output_dir) != self.output_dir:
            wandb.run.finish()
        if not wandb.run:
            project = (
                os.environ.get("WANDB_PROJECT", self.project)
                if self.project == "huggingface"
                else self.project
            )
            mode, about = (
                "offline" if self._wandb_offline else None,
                dict(name=self.run_name, group=self.run_group),
            )
            wandb.init(
                project=project,
                mode=mode,
                **about,
                tags=self.run_tags or None,
                job_type=self.job_type,
            )


def _trackers(names: str | list[str] | None) -> tuple[list[str], bool]:
    """Tracker names as transformers takes them, and whether wandb shall be offline.

    wandb without a key would stop and ask for one: refused by name.
    """
    names = [names] if isinstance(names, str) else list(names or ["none"])
    known = ["none", "wandb-offline", *INTEGRATION_TO_CALLBACK]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"report_to={unknown[0]!r}: name the trackers; known are {', '.join(known)}"
        )
    offline = "wandb-offline" in names
    if "wandb" in names and os.environ.get("WANDB_MODE", "online") == "online":
        netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        stored = netrc.is_file() and "api.wandb.ai" in netrc.read_text(encoding="utf-8")
        if not os.environ.get("WANDB_API_KEY") and not stored:
            raise ValueError(
                "report_to='wandb' needs a key and a notebook must not ask for one: set WANDB_API_KEY in the "
                "environment, or take report_to='wandb-offline'"
            )
    return ["wandb" if name == "wandb-offline" else name for name in names], offline
