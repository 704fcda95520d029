"""From a BT-SFT run to TRL (>= 1.8), which does what comes after: preferences (DPO, ORPO, KTO, a reward model) and
on-policy training (GRPO, RLOO). Nothing of that is here, only the way there:

    policy, tokenizer = bt.align.load_policy("runs/bt-sft")
    pairs = bt.align.preference_pairs(samples, rows, tokenizer, by="answer")
    DPOTrainer(policy, args=DPOConfig("runs/dpo"), train_dataset=pairs, processing_class=tokenizer).train()

Prompts and completions go to TRL as text, which it tokenizes; they are held against the ids that the model was trained
on and samples with. As conversations they would go through the chat template again, and many drop thoughts.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .align_trainers import BlurredThoughts, Rewards
from .checks import check_choice
from .data.errors import RowError
from .data.formats import to_prompt
from .data.render import Renderer
from .data.think import CLOSE, OPEN
from .evaluation.answers import is_correct, parse
from .evaluation.diversity import copied_ngrams
from .evaluation.summary import references_of
from .models.adapters import without_old_torchao
from .models.load import BASE_FILE, load_model, load_run

__all__ = ["BlurredThoughts", "Rewards", "load_policy", "preference_pairs", "prompt_rows"]


def load_policy(
    run: str | Path, *, dequantize: bool = False
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
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
                f"{run} has trained rows for new tokens, which TRL would leave out of the head: "
                "bt.merge it, load that, and give TRL's trainer a peft_config"
            )
        # TRL adds the reference
        model.add_adapter = without_old_torchao()(model.add_adapter)
        record = Path(run, BASE_FILE).read_bytes()
        model.save_pretrained = functools.partial(_save, model, record)
    else:
        model, tokenizer = load_model(run)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(Renderer(tokenizer).end_id)
    return model, tokenizer


def _save(model: PeftModel, record: bytes, folder, *args, is_main_process=True, **kwargs) -> None:
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


def _prompts(renderer: Renderer, rows: Sequence[dict | str]) -> list[str]:
    """The generation prompts of rows, as the texts that a tokenizer's own call turns into the right ids."""
    tokenizer = renderer.tokenizer
    prompts = []
    for i, row in enumerate(rows):
        try:
            messages = to_prompt(row)
            text = renderer.prompt_text(messages)
            # the call may add a start of text of its own
            texts = [text, text.removeprefix(tokenizer.bos_token or "")]
            ids = renderer.prompt_ids(messages)
            fitting = [text for text in texts if tokenizer(text)["input_ids"] == ids]
            if not fitting:
                raise RowError("as text, as TRL takes it, it spells a control token")
        except RowError as error:
            raise error.at(getattr(rows, "source", "rows"), i) from None
        prompts.append(fitting[0])
    return prompts


def preference_pairs(
    samples: list[dict],
    rows: Sequence[dict | str],
    tokenizer: PreTrainedTokenizerBase,
    by: str,
    *,
    answer: str = "auto",
    training: Sequence[str] | None = None,
) -> Dataset:
    """Samples -> pairs of completions of a prompt, for DPO, ORPO, KTO (which takes them apart) and a reward model.

    The best of a prompt is paired with its worst, the second with the second worst, and so on while they differ. What
    became of all samples is printed. A sample that was cut off takes no part, as TRL would have it end there; nor does
    one whose text TRL would turn into other tokens than were sampled.

    Args:
        samples: of these rows, as `sample` returns them.
        by: what is preferred: "format", a completion that complies with it; "answer", a right one, among those that
            comply; "thought", one that copies less of `training` (its word 4-grams), among those that comply and, where
            rows have answers, are right.
        answer: how answers are compared, see `metrics.is_correct`.
        training: the texts of training thoughts.

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
    check_choice("by", by, ("format", "answer", "thought"))
    references = references_of(rows, answer)
    if by == "answer" and not references:
        raise ValueError("by='answer' needs rows with the field answer")
    renderer = Renderer(tokenizer)
    prompts = _prompts(renderer, rows)
    texts = [_completion(renderer, prompts, sample) for sample in samples]
    left_out = Counter()
    groups = defaultdict(list)
    for candidate in _candidates(samples, texts, references, by, answer, training or (), left_out):
        groups[candidate.prompt].append(candidate)

    pairs = []
    for number, group in groups.items():
        paired = _paired(group)
        left_out["without another to differ from"] += len(group) - 2 * len(paired)
        pairs += [{"prompt": prompts[number], **pair} for pair in paired]
    reasons = [f"{count} {reason}" for reason, count in left_out.items() if count]
    report = (
        f"{by}: {len(samples)} samples of {len(rows)} prompts -> {len(pairs)} pairs; "
        f"left out: {', '.join(reasons) or 'none'}"
    )
    if not pairs:
        raise ValueError(f"{report}; sample more, or at a higher temperature")
    print(report)
    return Dataset.from_list(pairs)


class _Candidate(NamedTuple):
    """A completion that may stand in a pair."""

    prompt: int
    text: str
    score: float


def _candidates(samples, texts, references, by, answer, training, left_out) -> list[_Candidate]:
    """The samples that take part, each with what it is worth; the others are counted in `left_out`."""
    parsed = [parse(each["text"], prefilled=each["prefilled"]) for each in samples]
    copied = [0.0] * len(samples)
    if by == "thought":
        copied = copied_ngrams([each.thought for each in parsed], training)
    candidates = []
    for sample, text, each, share in zip(samples, texts, parsed, copied, strict=True):
        number = sample["prompt"]
        is_right = not references or is_correct(each.answer, references[number], answer)
        if not sample["finished"]:
            left_out["cut off"] += 1
        elif by != "format" and each.problem:
            left_out["against the format"] += 1
        elif by == "thought" and not is_right:
            left_out["wrong"] += 1
        elif share is None:
            left_out["with a thought of fewer than four words"] += 1
        elif text is None:
            left_out["that TRL would tokenize otherwise"] += 1
        else:
            scores = {"format": not each.problem, "answer": is_right, "thought": -share}
            candidates.append(_Candidate(number, text, scores[by]))
    return candidates


def _paired(group: list[_Candidate]) -> list[dict[str, str]]:
    """The best with the worst, the second with the second worst, and so on; the same pair once."""
    ranked = sorted(group, key=lambda candidate: -candidate.score)
    pairs = []
    for good, bad in zip(ranked, reversed(ranked), strict=True):
        pair = {"chosen": good.text, "rejected": bad.text}
        if good.score > bad.score and pair not in pairs:
            pairs.append(pair)
    return pairs


def _completion(renderer: Renderer, prompts: list[str], sample: dict) -> str | None:
    """A sample's text with its end of turn; None where that has other tokens than were sampled."""
    number = sample["prompt"]
    prompt = prompts[number] if number < len(prompts) else ""
    question = sample["question"].strip()
    if not prompt or question not in prompt or sample["prompt_cut"]:
        raise ValueError(f"a sample is of another prompt than rows[{number}]: {question!r:.80}")
    opening, closing = renderer.tags
    text = sample["text"].replace(OPEN, opening).replace(CLOSE, closing)
    before = renderer.tokenizer(prompt)["input_ids"]
    ids = renderer.tokenizer(prompt + text)["input_ids"]
    end = len(ids) + sample["finished"]  # and an end of turn
    is_same = ids[: len(before)] == before and end - len(before) == sample["tokens"]
    return text + renderer.end_of_turn if is_same else None
