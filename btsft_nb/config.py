"""The configuration of a training run: transformers' TrainingArguments and the dials of the objective."""

import difflib
import math
import os
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from .blur import UNITS
from .hardware import check_bf16, detect


@dataclass
class BTSFTConfig(TrainingArguments):
    """`BTSFTConfig("runs/demo", threshold=0.5)`; every TrainingArguments field works as well.

    The defaults of the dials come from what benchmarks/evidence.py measured, see notebook 06: an anchor, without which
    blur changes nothing; a threshold that keeps most of what the data teach; a beta that holds the format and costs
    nothing where the data hold it already; no kept first tokens, which would choose the way of the thought. `unit` and
    `resample` made no difference: the finest unit, drawn anew, leaves no token without loss in all epochs.

    Raises ValueError for a dial out of its range, an unknown key, or a tracker that would have to ask for a key.
    """

    threshold: float = field(default=0.2, metadata={"help": "Share of thought tokens that are blurred, 0 to 1."})
    beta: float = field(default=0.5, metadata={"help": "Weight of the format term, 1 - expected reward."})
    anchor: float = field(
        default=1.0,
        metadata={"help": "Weight of the KL to the model without adapters, on blurred tokens. 0: plain blur."},
    )
    resample: str = field(
        default="epoch", metadata={"help": "'epoch' draws the blur anew each epoch, 'never' draws it once."}
    )
    keep_first: int = field(
        default=0, metadata={"help": "How many tokens at the start of a thought are never blurred."}
    )
    unit: str = field(
        default="token", metadata={"help": "What shares one draw of the blur: token, word, sentence or thought."}
    )
    threshold_end: float | None = field(
        default=None, metadata={"help": "The threshold of the last step, approached linearly; None: no change."}
    )
    negative: str = field(
        default="nll",
        metadata={
            "help": "The loss of tokens with a negative weight: 'nll' (without a lower bound), 'unlikelihood' "
            "(-log(1 - p), at least 0) or 'floor' (nll up to negative_floor)."
        },
    )
    negative_floor: float = field(
        default=10.0, metadata={"help": "negative='floor': nats of nll beyond which a token is left alone."}
    )
    padding_free: bool = field(
        default=False, metadata={"help": "Lay the examples of a batch end to end in one row, without padding."}
    )
    report_to: str | list[str] = field(
        default="none", metadata={"help": "Trackers: none, tensorboard, wandb, wandb-offline, trackio, or a list."}
    )
    run_group: str | None = field(default=None, metadata={"help": "wandb: the group of the run."})
    run_tags: list[str] = field(default_factory=list, metadata={"help": "wandb: tags of the run."})
    job_type: str | None = field(default=None, metadata={"help": "wandb: the type of job of the run."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Stays False: the weights and kinds are columns that no model knows."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory; only a GPU gains from it."}
    )
    use_cpu: bool = field(
        default_factory=torch.backends.mps.is_available,
        metadata={"help": "Train on the CPU; default on Apple GPUs, which have neither 4-bit weights nor float64."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps, or every such share."})

    def __new__(cls, *args, **kwargs):
        """Names the closest known key for an unknown one, before the generated __init__ sees it."""
        known = [f.name for f in fields(cls) if f.init]
        for key in kwargs:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=3)
                hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see help(BTSFTConfig)"
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
        _check_choice("resample", self.resample, ("epoch", "never"))
        _check_choice("unit", self.unit, UNITS)
        _check_choice("negative", self.negative, ("nll", "unlikelihood", "floor"))
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor: the objective has no label smoothing; leave it 0")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would remove the token weights and kinds; leave it False")
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
            project = os.environ.get("WANDB_PROJECT", self.project) if self.project == "huggingface" else self.project
            mode, about = "offline" if self._wandb_offline else None, dict(name=self.run_name, group=self.run_group)
            wandb.init(project=project, mode=mode, **about, tags=self.run_tags or None, job_type=self.job_type)


@dataclass
class ModelConfig:
    """Which model, and what of it is trained; `load_model` makes it so.

    Raises ValueError for a setting out of its range, or one that the method has no use for.
    """

    model: str = field(metadata={"help": "tiny, the id of a model on the Hub, a model's folder, or a run folder."})
    tokenizer: str | None = field(default=None, metadata={"help": "Where it is not the model's own: as for model."})
    method: str = field(
        default="qlora",
        metadata={"help": "qlora: adapters on quantised weights; lora: on the weights as they are; full: all weights."},
    )
    bits: int = field(default=4, metadata={"help": "qlora: bits of a weight, 4 (NF4, double quantisation) or 8."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=32, metadata={"help": "Their scale is lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters, 0 to 1."})
    lora_targets: str | list[str] = field(
        default="all-linear", metadata={"help": "Layers with adapters: all-linear, or the ends of their names."}
    )
    dora: bool = field(default=False, metadata={"help": "Train magnitude and direction apart (DoRA)."})
    rslora: bool = field(default=False, metadata={"help": "Scale by lora_alpha / sqrt(lora_r) (rsLoRA)."})
    freeze: list[str] = field(
        default_factory=list,
        metadata={"help": "full: parts that stay: embeddings, norms, attention, feed_forward, other."},
    )
    layers_not_to_freeze: list[int] = field(
        default_factory=list, metadata={"help": "full: layers, from 0, that freeze leaves out."}
    )
    dtype: str = field(
        default="auto", metadata={"help": "float32, bfloat16, float16, or auto: what the hardware computes best."}
    )
    attention: str = field(
        default="auto", metadata={"help": "eager, sdpa, flash_attention_2, or auto: what the hardware has."}
    )
    device_map: str | None = field(
        default=None, metadata={"help": "As accelerate's, to spread a model over devices: auto, balanced, sequential."}
    )
    max_memory: dict[str, str] | None = field(
        default=None, metadata={"help": 'With device_map, what each device may hold: {"0": "14GiB", "cpu": "30GiB"}.'}
    )

    def __post_init__(self):
        _check_choice("method", self.method, ("qlora", "lora", "full"))
        _check_choice("bits", self.bits, (4, 8))
        _check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        check_number("lora_r", self.lora_r, 1, math.inf, Integral)
        check_number("lora_alpha", self.lora_alpha, 0, math.inf)
        check_number("lora_dropout", self.lora_dropout, 0, 1)
        of = {"full": ("freeze", "layers_not_to_freeze"), "qlora": ("bits",)}
        adapters = [f.name for f in fields(self) if f.name.startswith("lora_")] + ["dora", "rslora"]
        idle = [name for method, names in of.items() if method != self.method for name in names]
        for f in (f for f in fields(self) if f.name in idle + adapters * (self.method == "full")):
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if getattr(self, f.name) != default:
                raise ValueError(f"{f.name}={getattr(self, f.name)!r} does nothing with method={self.method!r}")
        if self.max_memory and not self.device_map:
            raise ValueError(f"max_memory={self.max_memory} does nothing without device_map: set device_map='auto'")


@dataclass
class DataConfig:
    """Which rows, and how they become examples: arguments of `load_rows` and `prepare`."""

    data: str = field(metadata={"help": "Rows to train on: tiny/teacher, .json, .jsonl, .parquet, or a Hub id."})
    split: str = field(default="train", metadata={"help": "Which split of data."})
    data_config: str | None = field(default=None, metadata={"help": "Which configuration of data, on the Hub."})
    eval_data: str | None = field(default=None, metadata={"help": "Rows for eval_loss, as data."})
    eval_split: str = field(default="test", metadata={"help": "Which split of eval_data."})
    eval_config: str | None = field(default=None, metadata={"help": "Which configuration of eval_data."})
    format: str | dict[str, str] | None = field(
        default=None, metadata={"help": "Layout of the rows, by name or as a map of columns; null: told by the fields."}
    )
    response_marker: str | None = field(default=None, metadata={"help": "In formatted text, what begins a completion."})
    template: str = field(
        default="auto", metadata={"help": "chatml, qa, alpaca, a file, or auto: the tokenizer's, else chatml."}
    )
    max_length: int = field(default=1024, metadata={"help": "Tokens that an example may have."})
    too_long: str = field(
        default="drop",
        metadata={"help": "Examples that have more: drop, shorten, shorten_prompt, keep_first or keep_last."},
    )
    duplicates: str = field(default="keep", metadata={"help": "Examples that were there before: keep or drop."})
    strict: bool = field(default=True, metadata={"help": "Stop at a malformed row; false: drop and count it."})
    num_proc: int = field(default=1, metadata={"help": "Processes that prepare the rows."})
    examples: int | None = field(default=None, metadata={"help": "Train on the first so many: an overfitting check."})


@dataclass
class EvaluationConfig:
    """What a trained model is asked, and how: arguments of `compare`, `sample` and `TrackSamples`."""

    test: str | None = field(default=None, metadata={"help": "Rows to sample from, with the field answer, as data."})
    test_split: str = field(default="test", metadata={"help": "Which split of test."})
    test_config: str | None = field(default=None, metadata={"help": "Which configuration of test."})
    test_prompts: int | None = field(default=None, metadata={"help": "How many of them, from the first; null: all."})
    samples: int = field(default=8, metadata={"help": "Completions of each prompt."})
    temperature: float = field(default=1.0, metadata={"help": "Of the draws; 0 takes the most likely token."})
    max_new_tokens: int = field(default=256, metadata={"help": "Cut a completion off after so many tokens."})
    top_k: int | None = field(default=None, metadata={"help": "Draw from the so many most likely tokens."})
    top_p: float | None = field(default=None, metadata={"help": "Draw from the likeliest tokens with this share."})
    no_repeat_ngram_size: int | None = field(default=None, metadata={"help": "No n-gram of this size comes twice."})
    max_prompt_length: int | None = field(default=None, metadata={"help": "Tokens of a prompt; more lose the first."})
    sample_batch_size: int = field(default=64, metadata={"help": "Completions drawn at once."})
    sample_seed: int = field(default=0, metadata={"help": "Of the draws."})
    answer: str = field(default="auto", metadata={"help": "How answers are compared; see btsft_nb.evaluate."})
    text_scores: bool = field(default=False, metadata={"help": "Also BLEU and ROUGE of the answers."})
    report: str | None = field(default=None, metadata={"help": "Folder of the report; null: evaluation in the run's."})
    evaluate_base: bool = field(default=True, metadata={"help": "Also ask the model under the adapters."})
    track_every: int | None = field(
        default=None, metadata={"help": "While training, sample the test prompts every so many steps; null: never."}
    )

    def __post_init__(self):
        if self.track_every and self.test is None:
            raise ValueError(f"track_every={self.track_every} needs test=ROWS to sample from")

    def sampling(self) -> dict:
        """The arguments of `sample`."""
        names = ("temperature", "max_new_tokens", "top_k", "top_p", "no_repeat_ngram_size", "max_prompt_length")
        how = {name: getattr(self, name) for name in names}
        return {"n": self.samples, "batch_size": self.sample_batch_size, "seed": self.sample_seed} | how


def check_number(name: str, value: object, low: float, high: float, kind: type = Real) -> None:
    """Raises ValueError, by name, for a number out of its range, or not of its kind: Real or Integral."""
    if isinstance(value, bool) or not isinstance(value, kind) or not (low <= value <= high and math.isfinite(value)):
        upper = "" if math.isinf(high) else f" to {high}"
        noun = "whole number" if kind is Integral else "number"
        raise ValueError(f"{name}={value!r}: a {noun} from {low}{upper} wanted")


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}: {', '.join(map(repr, known[:-1]))} or {known[-1]!r} wanted")


def _trackers(names: str | list[str] | None) -> tuple[list[str], bool]:
    """Tracker names as transformers takes them, and whether wandb shall be offline.

    wandb without a key would stop and ask for one: refused by name.
    """
    names = [names] if isinstance(names, str) else list(names or ["none"])
    known = ["none", "wandb-offline", *INTEGRATION_TO_CALLBACK]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"report_to={unknown[0]!r}: name the trackers; known are {', '.join(known)}")
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
