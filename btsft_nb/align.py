"""From a BT-SFT run to TRL (>= 1.8), which does what comes after: preferences (DPO, ORPO, KTO, a reward model) and
on-policy training (GRPO, RLOO). Nothing of that is here, only the way there:

    policy, tokenizer = bt.align.load_policy("runs/bt-sft")
    pairs = bt.align.preference_pairs(samples, rows, tokenizer, by="answer")
    DPOTrainer(policy, args=DPOConfig("runs/dpo"), train_dataset=pairs, processing_class=tokenizer).train()

Prompts and completions go to TRL as text, which it tokenizes; they are held against the ids that the model was trained
on and samples with. As conversations they would go through the chat template again, and many drop thoughts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checks import check_choice
from .data.errors import RowError
from .data.formats import to_prompt
from .data.render import Renderer
from .data.think import CLOSE, OPEN
from .evaluation.answers import is_correct, parse, parse_record
from .evaluation.diversity import self_bleus
from .evaluation.summary import references_of
from .models.adapters import without_old_torchao
from .models.load import BASE_FILE, load_model, load_run


def load_policy(
    run: str | Path, *, dequantize: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A run's model and tokenizer, to be trained on by TRL's trainers; no peft_config, no ref_model is needed.

    The run's adapter is what trains on, on the base as it is. Trainers with a reference take a frozen copy of the
    adapter for it, so the reference is the run's model, not its base. What they save is a run folder again, which
    `load_model`, `compare` and `merge` read. The tokenizer's `eos_token` is the end of a turn, where TRL stops.

    Args:
        run: a run folder. One with a whole model gives that, from where TRL takes the reference too; what is saved
            then is a model's folder.
        dequantize: take the numbers that quantised weights stand for in place of them. TRL trains adapters on
            quantised weights in bfloat16, on others in float32.

    Raises:
        ValueError: the adapter has rows of new tokens, and TRL's trainers read the head without them.

    >>> policy, tokenizer = bt.align.load_policy("tiny")
    >>> tokenizer.eos_token
    '<|im_end|>'
    """
    if Path(run, "adapter_config.json").is_file():
        model, tokenizer = load_run(run, dequantize=dequantize, trainable=True)
        if model.peft_config["default"].trainable_token_indices:
            raise ValueError(
                f"{run} trained rows of new tokens, which TRL's head lacks: bt.merge it, give peft_config"
            )
        # TRL adds the reference
        model.add_adapter = without_old_torchao()(model.add_adapter)
        record = Path(run, BASE_FILE).read_bytes()
        model.save_pretrained = partial(_save, model, record)
    else:
        model, tokenizer = load_model(run)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(Renderer(tokenizer).end_id)
    return model, tokenizer


def _save(model, record, folder, *args, is_main_process=True, **kwargs):
    """As PeftModel's, by default of the policy's adapter alone; and what it takes to load that on its base."""
    kwargs = {"selected_adapters": ["default"], "save_embedding_layers": False} | kwargs
    PeftModel.save_pretrained(model, folder, *args, is_main_process=is_main_process, **kwargs)
    if is_main_process:
        Path(folder, BASE_FILE).write_bytes(record)


def prompt_rows(
    rows: Sequence[dict | str], tokenizer: PreTrainedTokenizerBase, *, answer: str = "auto"
) -> Dataset:
    """Rows -> what GRPO and RLOO sample from: `prompt`, and `answer` where rows have one.

    Args:
        rows: as for `sample`.
        answer: how answers are compared, see `metrics.is_correct`.

    Raises:
        RowError: a row is malformed, or its text spells a control token, which TRL would read as one.
        ValueError: only some rows have an answer, or one has none of the kind.

    >>> rows = bt.align.prompt_rows([{"question": "2+2?", "answer": "4"}], bt.load_tokenizer("tiny"))
    >>> rows[0]
    {'prompt': '<|im_start|>user\\n2+2?<|im_end|>\\n<|im_start|>assistant\\n', 'answer': '4'}
    """
    answers = references_of(rows, answer)
    columns = {"prompt": _prompts(Renderer(tokenizer), rows)}
    if answers:
        columns["answer"] = answers
    return Dataset.from_dict(columns)


def _prompts(renderer, rows):
    """The generation prompts of rows, as the texts that a tokenizer's own call turns into the right ids."""
    tokenizer = renderer.tokenizer
    prompts = []
    for i, row in enumerate(rows):
        try:
            messages = to_prompt(row)
            text = renderer.prompt_text(messages)
            ids = renderer.prompt_ids(messages)
            if tokenizer(text)["input_ids"] != ids:
                # the call may add a start of text of its own
                text = text.removeprefix(tokenizer.bos_token or "")
            if tokenizer(text)["input_ids"] != ids:
                raise RowError("as text, as TRL takes it, it spells a control token")
        except RowError as error:
            raise error.at(getattr(rows, "source", "rows"), i) from None
        prompts.append(text)
    return prompts


def preference_pairs(
    samples: list[dict],
    rows: Sequence[dict | str],
    tokenizer: PreTrainedTokenizerBase,
    by: str,
    *,
    answer: str = "auto",
) -> Dataset:
    """Samples -> pairs of completions of a prompt, for DPO, ORPO, KTO (which takes them apart) and a reward model.

    The best of a prompt is paired with its worst, the second with the second worst, and so on while they differ. What
    became of all samples is printed. A sample that was cut off takes no part, as TRL would have it end there; nor does
    one whose text TRL would turn into other tokens than were sampled.

    Args:
        samples: of these rows, as `sample` returns them.
        by: what is preferred: "format", a completion that complies with it; "answer", a right one, among those that
            comply.
        answer: how answers are compared, see `metrics.is_correct`.

    Returns:
        `prompt`, `chosen` and `rejected`, texts with their end of turn.

    Raises:
        ValueError: `by` lacks what it needs, a sample is of no row here, or no pair is found.
        RowError: as `prompt_rows`.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> sample = {"prompt": 0, "question": "2+2?", "prefilled": False, "finished": True, "prompt_cut": 0}
    >>> texts = ["<think>2+2=4</think>4", "It is 4."]
    >>> samples = [sample | {"text": text, "tokens": len(tokenizer(text)["input_ids"]) + 1} for text in texts]
    >>> pairs = bt.align.preference_pairs(samples, ["2+2?"], tokenizer, by="format")
    format: 2 samples of 1 prompts -> 1 pairs; left out: none
    >>> pairs[0]["chosen"], pairs[0]["rejected"]
    ('<think>2+2=4</think>4<|im_end|>', 'It is 4.<|im_end|>')
    """
    check_choice("by", by, ("format", "answer"))
    references = references_of(rows, answer)
    if by == "answer" and not references:
        raise ValueError("by='answer' needs rows with the field answer")
    renderer = Renderer(tokenizer)
    prompts = _prompts(renderer, rows)
    judged = []
    for sample in samples:
        text = _completion(renderer, prompts, sample)
        judged.append(_judged(sample, text, references, by, answer))
    frame = pd.DataFrame(judged, columns=["prompt", "text", "score", "fault"])
    pairs = []
    for number, group in frame[frame["fault"].isna()].groupby("prompt"):
        ranked = group.sort_values("score", ascending=False, kind="stable")
        # the best with the worst, the second with the second worst, and so on
        for good, bad in zip(ranked.itertuples(), ranked[::-1].itertuples(), strict=True):
            if good.score > bad.score:
                pairs.append({"prompt": prompts[number], "chosen": good.text, "rejected": bad.text})
    pairs = pd.DataFrame(pairs).drop_duplicates()

    counts = frame["fault"].value_counts()
    counts["without another to differ from"] = len(samples) - counts.sum() - 2 * len(pairs)
    left_out = ", ".join(f"{count} {fault}" for fault, count in counts.items() if count) or "none"
    found = f"{len(samples)} samples of {len(rows)} prompts -> {len(pairs)} pairs"
    report = f"{by}: {found}; left out: {left_out}"
    if pairs.empty:
        raise ValueError(f"{report}; sample more, or at a higher temperature")
    print(report)
    return Dataset.from_pandas(pairs, preserve_index=False)


def _judged(sample, text, references, by, answer):
    """A sample's prompt, its text, what it is worth, and the fault for which it takes no part, or None."""
    number = sample["prompt"]
    parsed = parse_record(sample)
    score = not parsed.problem
    if by == "answer":
        score = is_correct(parsed.answer, references[number], answer)
    faults = {
        "cut off": not sample["finished"],
        "against the format": by == "answer" and parsed.problem,
        "that TRL would tokenize otherwise": text is None,
    }
    fault = next((name for name, is_so in faults.items() if is_so), None)
    return {"prompt": number, "text": text, "score": score, "fault": fault}


def _completion(renderer, prompts, sample):
    """A sample's text with its end of turn; None where that has other tokens than were sampled."""
    number = sample["prompt"]
    prompt = prompts[number] if number < len(prompts) else ""
    if not prompt or sample["question"].strip() not in prompt or sample["prompt_cut"]:
        raise ValueError(f"a sample is of another prompt than rows[{number}]: {sample!r:.300}")
    opening, closing = renderer.tags
    text = sample["text"].replace(OPEN, opening).replace(CLOSE, closing)
    before = renderer.tokenizer(prompt)["input_ids"]
    ids = renderer.tokenizer(prompt + text)["input_ids"]
    own = len(ids) - len(before) + sample["finished"]  # with the end of turn
    is_same = ids[: len(before)] == before and own == sample["tokens"]
    return text + renderer.end_of_turn if is_same else None


@dataclass
class Rewards:
    """Reward functions in TRL's signature, for one tokenizer: `GRPOTrainer(policy, [Rewards(tokenizer).format], ...)`.

    They read the ids of a completion, since TRL's text lacks think tags that are special tokens, and its end. A prompt
    that ends in an open think tag begins the thought.

    Args:
        answer: how answers are compared, see `metrics.is_correct`.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> ids = tokenizer("<think>2+2=4</think>4<|im_end|>")["input_ids"]
    >>> rewards = bt.align.Rewards(tokenizer)
    >>> rewards.format(["2+2?"], [ids]), rewards.accuracy(["2+2?"], [ids], answer=["5"])
    ([1.0], [0.0])
    """

    tokenizer: PreTrainedTokenizerBase
    answer: str = "auto"

    def __post_init__(self):
        self._renderer = Renderer(self.tokenizer)

    def format(self, prompts: list, completion_ids: list, **_) -> list[float]:
        """1 for a completion that ends and is in the strict think format, see `metrics.parse`; else 0."""
        return [float(not each.problem) for each in self._parsed(prompts, completion_ids)]

    def accuracy(self, prompts: list, completion_ids: list, answer: list, **_) -> list[float]:
        """1 for a right answer, else 0; `answer` is the column of the data set."""
        pairs = zip(self._parsed(prompts, completion_ids), answer, strict=True)
        return [float(is_correct(each.answer, str(right), self.answer)) for each, right in pairs]

    def diversity(self, prompts: list, completion_ids: list, **_) -> list[float | None]:
        """How little a thought is like the others of its prompt: 1 - its BLEU against them, see `metrics.self_bleu`.
        0 for no thought; None where no other is there to compare with. A group is compared within a process: let
        per_device_train_batch_size be a multiple of num_generations."""
        thoughts = pd.Series([each.thought for each in self._parsed(prompts, completion_ids)])
        rewards = [0.0] * len(thoughts)
        for _, group in thoughts.groupby([str(prompt) for prompt in prompts]):
            for i, score in zip(group.index, self_bleus(list(group)), strict=True):
                if thoughts[i]:
                    rewards[i] = None if score is None else 1 - score
        return rewards

    def _parsed(self, prompts, completion_ids):
        """Each completion as `parse` returns it."""
        renderer = self._renderer
        parsed = []
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            if not isinstance(prompt, str):  # a conversation
                prompt = renderer.prompt_text(to_prompt({"messages": prompt}))
            text, stop = renderer.read(list(ids), renderer.stop_ids())
            parsed.append(parse(text, prefilled=renderer.opens(prompt), finished=stop is not None))
        return parsed
