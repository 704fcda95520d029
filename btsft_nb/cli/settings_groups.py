"""The settings of data and evaluation."""

from dataclasses import dataclass, field


@dataclass
class DataConfig:
    """Which rows, and how they become examples: arguments of `load_rows` and `prepare`."""

    data: str = field(
        metadata={"help": "Rows to train on: tiny/teacher, .json, .jsonl, .parquet, or a Hub id."}
    )
    split: str = field(default="train", metadata={"help": "Which split of data."})
    data_config: str | None = field(
        default=None, metadata={"help": "Which configuration of data, on the Hub."}
    )
    eval_data: str | None = field(default=None, metadata={"help": "Rows for eval_loss, as data."})
    eval_split: str = field(default="test", metadata={"help": "Which split of eval_data."})
    eval_config: str | None = field(
        default=None, metadata={"help": "Which configuration of eval_data."}
    )
    format: str | dict[str, str] | None = field(
        default=None,
        metadata={
            "help": "Layout of the rows, by name or as a map of columns; null: told by the fields."
        },
    )
    response_marker: str | None = field(
        default=None, metadata={"help": "In formatted text, what begins a completion."}
    )
    template: str = field(
        default="auto",
        metadata={"help": "chatml, qa, alpaca, a file, or auto: the tokenizer's, else chatml."},
    )
    max_length: int = field(default=1024, metadata={"help": "Tokens that an example may have."})
    too_long: str = field(
        default="drop",
        metadata={
            "help": "Examples that have more: drop, shorten, shorten_prompt, keep_first or keep_last."
        },
    )
    duplicates: str = field(
        default="keep", metadata={"help": "Examples that were there before: keep or drop."}
    )
    strict: bool = field(
        default=True, metadata={"help": "Stop at a malformed row; false: drop and count it."}
    )
    num_proc: int = field(default=1, metadata={"help": "Processes that prepare the rows."})
    examples: int | None = field(
        default=None, metadata={"help": "Train on the first so many: an overfitting check."}
    )


@dataclass
class EvaluationConfig:
    """What a trained model is asked, and how: arguments of `compare`, `sample` and `TrackSamples`."""

    test: str | None = field(
        default=None, metadata={"help": "Rows to sample from, with the field answer, as data."}
    )
    test_split: str = field(default="test", metadata={"help": "Which split of test."})
    test_config: str | None = field(default=None, metadata={"help": "Which configuration of test."})
    test_prompts: int | None = field(
        default=None, metadata={"help": "How many of them, from the first; null: all."}
    )
    samples: int = field(default=8, metadata={"help": "Completions of each prompt."})
    temperature: float = field(
        default=1.0, metadata={"help": "Of the draws; 0 takes the most likely token."}
    )
    max_new_tokens: int = field(
        default=256, metadata={"help": "Cut a completion off after so many tokens."}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Draw from the so many most likely tokens."}
    )
    top_p: float | None = field(
        default=None, metadata={"help": "Draw from the likeliest tokens with this share."}
    )
    no_repeat_ngram_size: int | None = field(
        default=None, metadata={"help": "No n-gram of this size comes twice."}
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Tokens of a prompt; more lose the first."}
    )
    sample_batch_size: int = field(default=64, metadata={"help": "Completions drawn at once."})
    sample_seed: int = field(default=0, metadata={"help": "Of the draws."})
    answer: str = field(
        default="auto", metadata={"help": "How answers are compared; see btsft_nb.evaluate."}
    )
    text_scores: bool = field(
        default=False, metadata={"help": "Also BLEU and ROUGE of the answers."}
    )
    report: str | None = field(
        default=None, metadata={"help": "Folder of the report; null: evaluation in the run's."}
    )
    evaluate_base: bool = field(
        default=True, metadata={"help": "Also ask the model under the adapters."}
    )
    track_every: int | None = field(
        default=None,
        metadata={
            "help": "While training, sample the test prompts every so many steps; null: never."
        },
    )

    def __post_init__(self):
        if self.track_every and self.test is None:
            raise ValueError(f"track_every={self.track_every} needs test=ROWS to sample from")

    def sampling(self) -> dict:
        """The arguments of `sample`."""
        names = (
            "temperature",
            "max_new_tokens",
            "top_k",
            "top_p",
            "no_repeat_ngram_size",
            "max_prompt_length",
        )
        how = {name: getattr(self, name) for name in names}
        return {
            "n": self.samples,
            "batch_size": self.sample_batch_size,
            "seed": self.sample_seed,
        } | how
