"""From a BT-SFT run to TRL (>= 1.8), which does what comes after: preferences (DPO, ORPO, KTO, a reward model) and
on-policy training (GRPO, RLOO). Nothing of that is here, only the way there:

    policy, tokenizer = bt.align.load_policy("runs/bt-sft")
    pairs = bt.align.preference_pairs(samples, rows, tokenizer, by="answer")
    DPOTrainer(policy, args=DPOConfig("runs/dpo"), train_dataset=pairs, processing_class=tokenizer).train()

    rewards, prompts = bt.align.Rewards(tokenizer), bt.align.prompt_rows(rows, tokenizer)
    GRPOTrainer(policy, [rewards.format, rewards.accuracy], config, prompts, processing_class=tokenizer).train()

Prompts and completions go to TRL as text, which it tokenizes; they are held against the ids that the model was trained
on and samples with. As conversations they would go through the chat template again, and many drop thoughts.
"""

import functools
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .adapters import without_old_torchao
from .answers import Parsed, is_correct, parse
from .blur import Kind, draws, example_key
from .config import check_number
from .diversity import copied_ngrams, run_lengths, self_bleus
from .evaluate import references_of
from .formats import to_prompt
from .messages import THINK_TAGS, RowError
from .models import RECORD, load_model, load_run
from .render import Renderer


def load_policy(
    run: str | Path, *, dequantize: bool = False
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A run's model and tokenizer, to be trained on by TRL's trainers; no peft_config, no ref_model is needed.

    The run's adapter is what trains on, on the base as it is. Trainers with a reference take a frozen copy of the
    adapter for it, so the reference is the run's model, not its base. What they save is a run folder again, which
    `load_model`, `compare` and `merge` read. The tokenizer's `eos_token` is the end of a turn, where TRL stops.

    Args:
        run: a run folder; one with a whole model gives that, and TRL loads the reference from there.
        dequantize: take the numbers that quantised weights stand for in place of them. TRL trains adapters on
            quantised weights in bfloat16, on others in float32.

    Raises ValueError for an adapter with rows of new tokens: TRL's trainers read the head without them.
    """
    adapted = Path(run, "adapter_config.json").is_file()
    model, tokenizer = load_run(run, dequantize=dequantize, trainable=True) if adapted else load_model(run)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(Renderer(tokenizer).end_id)
    if adapted:
        if model.peft_config["default"].trainable_token_indices:
            raise ValueError(
                f"{run}: its adapter has trained rows for new tokens, which TRL would leave out of the head: "
                "bt.merge(run, folder), then load_policy(folder), and give TRL's trainer a peft_config"
            )
        model.add_adapter = without_old_torchao()(model.add_adapter)  # of the reference
        model.save_pretrained = functools.partial(_save, model, Path(run))
    return model, tokenizer


def _save(model: PeftModel, run: Path, folder: str | Path, **kwargs) -> None:
    """The policy's adapter alone, and what it takes to load it on its base."""
    only = {"selected_adapters": ["default"], "save_embedding_layers": False}
    PeftModel.save_pretrained(model, folder, **kwargs | only)
    shutil.copy(run / RECORD, folder)


def prompt_rows(rows: Sequence[dict | str], tokenizer: PreTrainedTokenizerBase, *, answer: str = "auto") -> Dataset:
    """Rows -> what GRPO and RLOO sample from: `prompt`, and `answer` where rows have one.

    Args:
        rows: as for `sample`. answer: how answers are compared, see `metrics.is_correct`.

    Raises RowError for a malformed row, or one whose text spells a control token, which TRL would read as one;
    ValueError where only some rows have an answer, or one has none of the kind.
    """
    answers = references_of(rows, answer)
    return Dataset.from_dict({"prompt": _prompts(Renderer(tokenizer), rows)} | ({"answer": answers} if answers else {}))


def _prompts(renderer: Renderer, rows: Sequence[dict | str]) -> list[str]:
    """The generation prompts of rows, as the texts that a tokenizer's own call turns into the right ids."""
    prompts = []
    for i, row in enumerate(rows):
        try:
            messages = to_prompt(row)
            text, ids = renderer.prompt_text(messages), renderer.prompt_ids(messages)
            texts = (text, text.removeprefix(renderer.tokenizer.bos_token or ""))
            fitting = [one for one in texts if renderer.tokenizer(one)["input_ids"] == ids]
            if not fitting:
                raise RowError("as text, as TRL takes it, the prompt has other tokens: a turn spells a control token")
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
    became of all samples is printed. A sample that was cut off takes no part: TRL would have it end there.

    Args:
        samples: of these rows, as `sample` returns them.
        by: what is preferred: "format", a completion that complies with it; "answer", a right one, among those that
            comply; "thought", one that copies less of `training` (its word 4-grams), among those that comply and, where
            rows have answers, are right.
        answer: how answers are compared, see `metrics.is_correct`.
        training: the texts of training thoughts.

    Returns:
        `prompt`, `chosen` and `rejected`, texts with their end of turn.

    Raises ValueError where `by` lacks what it needs, or no pair is found; RowError as `prompt_rows`.
    """
    renderer = Renderer(tokenizer)
    prompts, references = _prompts(renderer, rows), references_of(rows, answer)
    scores, counts = _scored(samples, references, by, answer, training)
    groups, pairs = defaultdict(list), []
    for record, score in zip(samples, scores, strict=True):
        if score is not None:
            text = _completion(renderer, prompts[record["prompt"]], record["text"])
            counts["whose first token merges with the prompt's last"] += text is None
            groups[record["prompt"]] += [(score, text)] * (text is not None)
    for i, group in groups.items():
        ranked = sorted(group, key=lambda one: -one[0])
        both = zip(ranked, reversed(ranked), strict=True)
        found = {(prompts[i], good, bad): None for (high, good), (low, bad) in both if high > low}
        counts["of prompts whose samples do not differ"] += len(group) * (not found)
        pairs += found
    what = ", ".join(f"{n} {why}" for why, n in counts.items() if n) or "none"
    said = f"{by}: {len(samples)} samples of {len(rows)} prompts -> {len(pairs)} pairs; left out: {what}"
    if not pairs:
        raise ValueError(f"{said}; sample more, or at a higher temperature")
    print(said)
    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs])


def _scored(samples, references, by: str, how: str, training) -> tuple[list[float | None], Counter]:
    """What each sample is worth; None, counted with the reason, where it takes no part."""
    needed = {"format": True, "answer": references, "thought": training}
    if by not in needed:
        raise ValueError(f"by={by!r}: 'format', 'answer' or 'thought' wanted")
    if not needed[by]:
        lacking = "the field answer in the rows" if by == "answer" else "training=, the texts of the training thoughts"
        raise ValueError(f"by={by!r} needs {lacking}")
    scores, counts, thoughts = [None] * len(samples), Counter(), {}
    for i, record in enumerate(samples):
        parsed = parse(record["text"], prefilled=record["prefilled"], finished=record["finished"])
        right = references is None or is_correct(parsed.answer, references[record["prompt"]], how)
        if not record["finished"]:
            counts["cut off"] += 1
        elif by != "format" and parsed.problem:
            counts["against the format"] += 1
        elif by == "thought" and not right:
            counts["wrong"] += 1
        else:
            scores[i], thoughts[i] = float(right if by == "answer" else parsed.problem is None), parsed.thought
    if by == "thought" and thoughts:
        runs = run_lengths(list(thoughts.values()), training)
        for i, found in zip(thoughts, runs, strict=True):
            scores[i] = 1 - (copied_ngrams(found) or 0.0)
    return scores, counts


def _completion(renderer: Renderer, prompt: str, text: str) -> str | None:
    """A sample's text with its end of turn; None where its first token would merge with the prompt's last."""
    for own, tag in zip(renderer.tags, THINK_TAGS, strict=True):
        text = text.replace(tag, own)
    text += renderer.end_of_turn
    ids, before = (renderer.tokenizer(part)["input_ids"] for part in (prompt + text, prompt))
    return text if ids[: len(before)] == before else None


class Rewards:
    """Reward functions in TRL's signature, for one tokenizer: `Rewards(tokenizer).format` and so on.

    They read the ids of a completion, since TRL's text lacks think tags that are special tokens, and its end. A prompt
    that ends in an open think tag begins the thought.

    Args:
        answer: how answers are compared, see `metrics.is_correct`.
        max_thought, slack: tokens of a thought, for `length`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, answer: str = "auto", max_thought: int = 512, slack: int = 128
    ):
        if not 0 < slack <= max_thought:
            raise ValueError(f"slack={slack}, max_thought={max_thought}: 0 < slack <= max_thought wanted")
        self.renderer, self.answer, self.max_thought, self.slack = Renderer(tokenizer), answer, max_thought, slack

    def format(self, prompts: list, completion_ids: list[list[int]], **_) -> list[float]:
        """1 for a completion in the strict think format, see `metrics.parse`, which ends; else 0."""
        return [float(found.problem is None) for found in self._parsed(prompts, completion_ids)]

    def accuracy(self, prompts: list, completion_ids: list[list[int]], answer: list[str], **_) -> list[float]:
        """1 for a right answer, else 0; `answer` is the column of the data set."""
        pairs = zip(self._parsed(prompts, completion_ids), answer, strict=True)
        return [float(is_correct(found.answer, reference, self.answer)) for found, reference in pairs]

    def diversity(self, prompts: list, completion_ids: list[list[int]], **_) -> list[float]:
        """How little a thought is like the others of its prompt: 1 - its BLEU against them, see `metrics.self_bleu`.
        0 where there is no thought, and where no other has one."""
        thoughts, groups, found = self._parsed(prompts, completion_ids), defaultdict(list), [0.0] * len(prompts)
        for i, prompt in enumerate(prompts):
            groups[str(prompt)].append(i)
        for places in groups.values():
            for i, score in zip(places, self_bleus([thoughts[i].thought for i in places]), strict=True):
                found[i] = 0.0 if score is None else 1 - score
        return found

    def length(self, prompts: list, completion_ids: list[list[int]], **_) -> list[float]:
        """0 for a thought of up to max_thought - slack tokens, from there evenly down to -1 at max_thought.

        Yu et al. 2025 (DAPO), https://arxiv.org/abs/2503.14476, equation 13, of the thought in place of the completion.
        """
        pairs = zip(prompts, completion_ids, strict=True)
        tokens = np.array([len(_thought(list(ids), self.renderer.tag_ids, self._opens(p))) for p, ids in pairs])
        return (-np.clip((tokens - self.max_thought) / self.slack + 1, 0, 1)).tolist()

    def _opens(self, prompt: str | list[dict]) -> bool:
        """Whether a prompt, as text or as conversation, begins the thought."""
        text = prompt if isinstance(prompt, str) else self.renderer.prompt_text(to_prompt({"messages": prompt}))
        return text.rstrip().endswith(self.renderer.tags[0])

    def _parsed(self, prompts: list, completion_ids: list[list[int]]) -> list[Parsed]:
        found = []
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            text, stop = self.renderer.read(list(ids), self.renderer.stop_ids)
            found.append(parse(text, prefilled=self._opens(prompt), finished=stop is not None))
        return found


def _thought(ids: list[int], tags: tuple[int, int], opened: bool) -> range:
    """Which tokens of a completion are thought: between its first tags, or up to its end."""
    start = 0 if opened else ids.index(tags[0]) + 1 if tags[0] in ids else len(ids)
    return range(start, ids.index(tags[1], start) if tags[1] in ids[start:] else len(ids))


class BlurredThoughts:
    """A collator of TRL's, after which blurred thought tokens count in no log-probability of the loss:
    `trainer.data_collator = BlurredThoughts(trainer.data_collator, tokenizer, threshold=0.5)`.

    For DPO, KTO (`completion_mask`) and ORPO (`labels`). Each completion has draws of its own, the same in all epochs.

    Args:
        threshold: the share of thought tokens; 1: thoughts do not count, answers and tags alone do.
    """

    def __init__(self, collator: Callable, tokenizer: PreTrainedTokenizerBase, threshold: float, seed: int = 0):
        check_number("threshold", threshold, 0, 1)
        self.collator, self.tag_ids, self.threshold, self.seed = collator, Renderer(tokenizer).tag_ids, threshold, seed

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.collator(examples)
        names = [name for name in batch if name.endswith(("completion_mask", "labels"))]
        if not names:
            raise ValueError(f"neither completion_mask nor labels in the batch, which has {', '.join(batch)}")
        for name in names:
            nothing = 0 if name.endswith("mask") else -100
            ids = batch[name.removesuffix("completion_mask").removesuffix("labels") + "input_ids"]
            for row, own in zip(batch[name], ids, strict=True):
                row[self._blurred(own, row != nothing)] = nothing
        return batch

    def _blurred(self, ids: torch.Tensor, completion: torch.Tensor) -> torch.Tensor:
        """Where in a sequence blurred tokens stand."""
        places = completion.nonzero()[:, 0]
        own = ids[places].numpy()
        before = [token for token in ids[: places[0] if len(places) else 0].tolist() if token in self.tag_ids]
        opened = before[-1:] == [self.tag_ids[0]]
        kinds = np.full(len(own), Kind.ANSWER)
        kinds[_thought(own.tolist(), self.tag_ids, opened)] = Kind.THINK
        u = draws(kinds, example_key(own.tobytes().hex()), self.seed, 0)
        return places[torch.from_numpy(u < self.threshold)]
