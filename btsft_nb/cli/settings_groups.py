"""The settings of data and evaluation."""

import json
from dataclasses import dataclass


@dataclass
class DataConfig:
    """Which rows, and how they become examples: arguments of `load_rows` and `prepare`.

    Attributes:
        data: Rows to train on: tiny/teacher, .json, .jsonl, .parquet, or a Hub id.
        split: Which split of data.
        data_config: Which configuration of data, on the Hub.
        eval_data: Rows for eval_loss, as data.
        eval_split: Which split of eval_data.
        eval_config: Which configuration of eval_data.
        format: Layout of the rows, by name or as a map of columns; null: told by the fields.
        response_marker: In formatted text, what begins a completion.
        template: chatml, qa, alpaca, a file, or auto: the tokenizer's, else chatml.
        max_length: Tokens that an example may have.
        too_long: Examples that have more: drop, shorten, shorten_prompt, keep_first or keep_last.
        duplicates: Examples that were there before: keep or drop.
        strict: Stop at a malformed row; false: drop and count it.
        num_proc: Processes that prepare the rows.
        examples: Train on the first so many: an overfitting check.
    """

    data: str
    split: str = "train"
    data_config: str | None = None
    eval_data: str | None = None
    eval_split: str = "test"
    eval_config: str | None = None
    format: dict[str, str] | str | None = None
    response_marker: str | None = None
    template: str = "auto"
    max_length: int = 1024
    too_long: str = "drop"
    duplicates: str = "keep"
    strict: bool = True
    num_proc: int = 1
    examples: int | None = None

    def __post_init__(self):
        # of a union HfArgumentParser takes one member, which is text here
        if isinstance(self.format, str) and self.format.startswith("{"):
            self.format = json.loads(self.format)


@dataclass
class EvaluationConfig:
    """What a trained model is asked, and how: arguments of `compare`, `sample` and `TrackSamples`.

    Attributes:
        test: Rows to sample from, with the field answer, as data.
        test_split: Which split of test.
        test_config: Which configuration of test.
        test_prompts: How many of them, from the first; null: all.
        samples: Completions of each prompt.
        temperature: Of the draws; 0 takes the most likely token.
        max_new_tokens: Cut a completion off after so many tokens.
        top_k: Draw from the so many most likely tokens.
        top_p: Draw from the likeliest tokens with this share.
        no_repeat_ngram_size: No n-gram of this size comes twice.
        max_prompt_length: Tokens of a prompt; more lose the first.
        sample_batch_size: Completions drawn at once.
        sample_seed: Of the draws.
        answer: How answers are compared; see btsft_nb.evaluate.
        text_scores: Also BLEU and ROUGE of the answers.
        report: Folder of the report; null: evaluation in the run's.
        evaluate_base: Also ask the model under the adapters.
        track_every: While training, sample the test prompts every so many steps; null: never.
    """

    test: str | None = None
    test_split: str = "test"
    test_config: str | None = None
    test_prompts: int | None = None
    samples: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 256
    top_k: int | None = None
    top_p: float | None = None
    no_repeat_ngram_size: int | None = None
    max_prompt_length: int | None = None
    sample_batch_size: int = 64
    sample_seed: int = 0
    answer: str = "auto"
    text_scores: bool = False
    report: str | None = None
    evaluate_base: bool = True
    track_every: int | None = None

    def __post_init__(self):
        if self.track_every and self.test is None:
            raise ValueError("track_every needs test=ROWS to sample from")

    def sampling(self) -> dict:
        """The arguments of `sample`."""
        return {
            "n": self.samples,
            "batch_size": self.sample_batch_size,
            "seed": self.sample_seed,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "max_prompt_length": self.max_prompt_length,
        }
