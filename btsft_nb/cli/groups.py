"""Which rows, and what a trained model is asked: the two groups of settings that no other room has."""

import json
from dataclasses import dataclass, fields
from pkgutil import resolve_name


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
        messy_data: Rows that often break the think format, as data, for the notebooks' part on beta.
        format: Layout of the rows, by name or as a map of columns; null: told by the fields.
        response_marker: In formatted text, what begins a completion.
        template: chatml, qa, alpaca, a file, or auto: the tokenizer's, else chatml.
        max_length: Tokens that an example may have.
        too_long: Examples that have more: drop, shorten or shorten_prompt.
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
    messy_data: str | None = None
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
        sample_batch_size: Completions drawn at once; null: as many as the free memory holds.
        sample_seed: Of the draws.
        answer: How answers are compared; see btsft_nb.evaluate.
        way_of: A function that tells the way of a thought, or null for none, as module:function.
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
    sample_batch_size: int | None = None
    sample_seed: int = 0
    answer: str = "auto"
    way_of: str | None = None
    text_scores: bool = False
    report: str | None = None
    evaluate_base: bool = True
    track_every: int | None = None

    def __post_init__(self):
        if self.track_every and self.test is None:
            raise ValueError("track_every needs test=ROWS to sample from")

    def prompts(self):
        """The test rows that are asked."""
        from ..data.rows import load_rows

        return load_rows(self.test, self.test_split, self.test_config)[: self.test_prompts]

    def comparing(self):
        """The arguments of `compare` beside runs, prompts and folder."""
        return {
            "answer": self.answer,
            "text_scores": self.text_scores,
            "way_of": self.way_of and resolve_name(self.way_of),
            "base": self.evaluate_base,
            **self.sampling(),
        }

    def sampling(self):
        """The arguments of `sample`."""
        from ..evaluation.sampling import SamplingSettings

        ours = {"n": "samples", "seed": "sample_seed", "batch_size": "sample_batch_size"}
        names = [field.name for field in fields(SamplingSettings)]
        return {name: getattr(self, ours.get(name, name)) for name in names}
