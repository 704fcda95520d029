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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checks import check_number
from .data.formats import to_prompt
from .data.kinds import Kind
from .data.messages import THINK_TAGS, RowError
from .data.render import Renderer
from .evaluation.answers import Parsed, is_correct, parse
from .evaluation.diversity import copied_ngrams, run_lengths, self_bleus
from .evaluation.summary import references_of
from .models.adapters import without_old_torchao
from .models.load import BASE_FILE, load_model, load_run
from .objective.blur import draws, example_key


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

    Raises ValueError for an adapter with rows of new tokens: TRL's trainers read the head without them.
    """
    adapted = Path(run, "adapter_config.json").is_file()
    model, tokenizer = (
        load_run(run, dequantize=dequantize, trainable=True) if adapted else load_model(run)
    )
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(Renderer(tokenizer).end_id)
    if adapted:
        if model.peft_config["default"].trainable_token_indices:
            raise ValueError(
                f"{run}: its adapter has trained rows for new tokens, which TRL would leave out of the head: "
                "bt.merge(run, folder), then load_policy(folder), and give TRL's trainer a peft_config"
            )
        model.add_adapter = without_old_torchao()(model.add_adapter)  # of the reference
        model.save_pretrained = functools.partial(_save, model, Path(run, BASE_FILE).read_bytes())
    return model, tokenizer


def _save(
    model: PeftModel,
    record: bytes,
    folder: str | Path,
    *args,
    is_main_process: bool = True,
    **kwargs,
) -> None:
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
        rows: as for `sample`. answer: how answers are compared, see `metrics.is_correct`.

    Raises RowError for a malformed row, or one whose text spells a control token, which TRL would read as one;
    ValueError where only some rows have an answer, or one has none of the kind.
    """
    answers, prompts = references_of(rows, answer), [*_prompts(Renderer(tokenizer), rows)]
    return Dataset.from_dict({"prompt": prompts} | ({"answer": answers} if answers else {}))


def _prompts(renderer: Renderer, rows: Sequence[dict | str]) -> Iterator[str]:
    """The generation prompts of rows, as the texts that a tokenizer's own call turns into the right ids."""
    for i, row in enumerate(rows):
        try:
            messages = to_prompt(row)
            text, ids = renderer.prompt_text(messages), renderer.prompt_ids(messages)
            texts = (text, text.removeprefix(renderer.tokenizer.bos_token or ""))
            fitting = [one for one in texts if renderer.tokenizer(one)["input_ids"] == ids]
            if not fitting:
                raise RowError(
                    "as text, as TRL takes it, it spells a control token: take that out of the row"
                )
        except RowError as error:
            raise error.at(getattr(rows, "source", "rows"), i) from None
        yield fitting[0]


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

    Raises ValueError where `by` lacks what it needs, a sample is of no row here, or no pair is found; RowError as
    `prompt_rows`.
    """
    renderer, references = Renderer(tokenizer), references_of(rows, answer)
    prompts = [*_prompts(renderer, rows)]
    texts = [_completion(renderer, prompts, record) for record in samples]
    scores, counts = _scored(samples, references, by, answer, training)
    groups, pairs = defaultdict(list), []
    for record, score, text in zip(samples, scores, texts, strict=True):
        counts["that TRL would tokenize otherwise"] += score is not None and text is None
        groups[record["prompt"]] += [(score, text)] * (score is not None and text is not None)
    for i, group in groups.items():
        ranked = sorted(group, key=lambda one: -one[0])
        both = zip(ranked, reversed(ranked), strict=True)
        found = {(prompts[i], good, bad): None for (high, good), (low, bad) in both if high > low}
        counts["without another to differ from"] += len(group) - 2 * len(found)
        pairs += found
    what = ", ".join(f"{n} {why}" for why, n in counts.items() if n) or "none"
    said = f"{by}: {len(samples)} samples of {len(rows)} prompts -> {len(pairs)} pairs; left out: {what}"
    if not pairs:
        raise ValueError(f"{said}; sample more, or at a higher temperature")
    print(said)
    return Dataset.from_list(
        [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs]
    )


def _scored(samples, references, by: str, how: str, training) -> tuple[list[float | None], Counter]:
    """What each sample is worth; None, counted with the reason, where it takes no part."""
    if by not in ("format", "answer", "thought"):
        raise ValueError(f"by={by!r}: 'format', 'answer' or 'thought' wanted")
    if by == "answer" and not references:
        raise ValueError("by='answer' needs the field answer in the rows")
    if by == "thought" and not training:
        raise ValueError("by='thought' needs training=, the texts of the training thoughts")
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
            scores[i], thoughts[i] = (
                float(right if by == "answer" else parsed.problem is None),
                parsed.thought,
            )
    if by == "thought" and thoughts:
        for i, runs in zip(thoughts, run_lengths(list(thoughts.values()), training), strict=True):
            copied = copied_ngrams(runs)
            counts["with a thought of fewer than four words"] += copied is None
            scores[i] = None if copied is None else 1 - copied
    return scores, counts


def _completion(renderer: Renderer, prompts: list[str], record: dict) -> str | None:
    """A sample's text with its end of turn; None where that has other tokens than were sampled."""
    i, text, asked = record["prompt"], record["text"], record["question"]
    prompt = "".join(prompts[i : i + 1])
    if asked.strip() not in prompt or record["prompt_cut"] or not prompt:
        raise ValueError(
            f"a sample is of another prompt than rows[{i}]: {asked!r:.80}; give the rows it was drawn for"
        )
    for own, tag in zip(renderer.tags, THINK_TAGS, strict=True):
        text = text.replace(tag, own)
    ids, before = (renderer.tokenizer(part)["input_ids"] for part in (prompt + text, prompt))
    same = (
        ids[: len(before)] == before
        and len(ids) - len(before) == record["tokens"] - record["finished"]
    )
    return text + renderer.end_of_turn if same else None


class Rewards:
    """Reward functions in TRL's signature, for one tokenizer: `GRPOTrainer(policy, [Rewards(tokenizer).format], ...)`.

    They read the ids of a completion, since TRL's text lacks think tags that are special tokens, and its end. A prompt
    that ends in an open think tag begins the thought.

    Args:
        answer: how answers are compared, see `metrics.is_correct`.
        max_thought, slack: tokens of a thought, for `length`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        answer: str = "auto",
        max_thought: int = 512,
        slack: int = 128,
    ):
        if not 0 < slack <= max_thought:
            raise ValueError(
                f"slack={slack}, max_thought={max_thought}: 0 < slack <= max_thought wanted"
            )
        self.renderer, self.answer, self.max_thought, self.slack = (
            Renderer(tokenizer),
            answer,
            max_thought,
            slack,
        )

    def format(self, prompts: list, completion_ids: list[list[int]], **_) -> list[float]:
        """1 for a completion that ends and is in the strict think format, see `metrics.parse`; else 0."""
        return [float(found.problem is None) for found in self._parsed(prompts, completion_ids)]

    def accuracy(
        self, prompts: list, completion_ids: list[list[int]], answer: list[str], **_
    ) -> list[float]:
        """1 for a right answer, else 0; `answer` is the column of the data set."""
        pairs = zip(self._parsed(prompts, completion_ids), answer, strict=True)
        return [
            float(is_correct(found.answer, str(reference), self.answer))
            for found, reference in pairs
        ]

    def diversity(self, prompts: list, completion_ids: list[list[int]], **_) -> list[float | None]:
        """How little a thought is like the others of its prompt: 1 - its BLEU against them, see `metrics.self_bleu`.
        0 for no thought; None where no other is there to compare with. A group is compared within a process: let
        per_device_train_batch_size be a multiple of num_generations."""
        thoughts = [found.thought for found in self._parsed(prompts, completion_ids)]
        groups, rewards = defaultdict(list), [0.0] * len(thoughts)
        for i, prompt in enumerate(prompts):
            groups[str(prompt)] += [i] * bool(thoughts[i])
        for places in groups.values():
            for i, score in zip(places, self_bleus([thoughts[i] for i in places]), strict=True):
                rewards[i] = None if score is None else 1 - score
        return rewards

    def length(self, prompts: list, completion_ids: list[list[int]], **_) -> list[float]:
        """0 for a thought of up to max_thought - slack tokens, from there evenly down to -1 at max_thought. Without its
        open tag a text is no thought, so this belongs beside `format`.

        Yu et al. 2025 (DAPO), https://arxiv.org/abs/2503.14476, equation 13, of the thought in place of the completion.
        """
        pairs = zip(prompts, completion_ids, strict=True)
        tokens = np.array(
            [len(_thought(list(ids), self.renderer.tag_ids, self._opens(p))) for p, ids in pairs]
        )
        return (-np.clip((tokens - self.max_thought) / self.slack + 1, 0, 1)).tolist()

    def _opens(self, prompt: str | list[dict]) -> bool:
        """Whether a prompt, as text or as conversation, begins the thought."""
        text = (
            prompt
            if isinstance(prompt, str)
            else self.renderer.prompt_text(to_prompt({"messages": prompt}))
        )
        return self.renderer.opens(text)

    def _parsed(self, prompts: list, completion_ids: list[list[int]]) -> list[Parsed]:
        read = [self.renderer.read(list(ids), self.renderer.stop_ids) for ids in completion_ids]
        pairs = zip(read, map(self._opens, prompts), strict=True)
        return [
            parse(text, prefilled=opened, finished=stop is not None)
            for (text, stop), opened in pairs
        ]


def _thought(ids: list[int], tags: tuple[int, int], opened: bool) -> range:
    """Which tokens of a completion are thought: between its first tags, or up to its end."""
    start = 0 if opened else ids.index(tags[0]) + 1 if tags[0] in ids else len(ids)
    return range(start, ids.index(tags[1], start) if tags[1] in ids[start:] else len(ids))


class BlurredThoughts:
    """A collator of TRL's, after which blurred thought tokens count in no log-probability of the loss:
    `trainer.data_collator = BlurredThoughts(trainer.data_collator, tokenizer, threshold=0.5)`.

    For DPO and KTO. Each completion has draws of its own, the same in all epochs. ORPO's likelihood term takes the
    whole sequence, whatever is masked.

    Args:
        threshold: the share of thought tokens; 1: thoughts do not count, answers and tags alone do.

    Raises ValueError for a batch without a mask, or with log-probabilities of the reference, computed without it.
    """

    def __init__(
        self,
        collator: Callable,
        tokenizer: PreTrainedTokenizerBase,
        threshold: float,
        seed: int = 0,
    ):
        check_number("threshold", threshold, 0, 1)
        self.collator, self.tag_ids, self.threshold, self.seed = (
            collator,
            Renderer(tokenizer).tag_ids,
            threshold,
            seed,
        )

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.collator(examples)
        masks = [name for name in batch if name.endswith("completion_mask")]
        if not masks:
            raise ValueError(
                f"no completion_mask in the batch, which has {', '.join(batch)}: for DPO and KTO only"
            )
        if precomputed := [name for name in batch if name.startswith("ref_")]:
            raise ValueError(
                f"{precomputed[0]} counts the thoughts: set precompute_ref_log_probs=False"
            )
        for name in masks:
            for mask, ids in zip(
                batch[name], batch[name.replace("completion_mask", "input_ids")], strict=True
            ):
                mask[self._blurred(ids, mask)] = 0
        return batch

    def _blurred(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Where in a sequence blurred tokens stand."""
        places = mask.nonzero()[:, 0]
        own = ids[places].numpy()
        before = (
            [token for token in ids[: places.min()].tolist() if token in self.tag_ids]
            if len(places)
            else []
        )
        kinds = np.full(len(own), Kind.ANSWER)
        kinds[_thought(own.tolist(), self.tag_ids, before[-1:] == [self.tag_ids[0]])] = Kind.THINK
        return places[
            torch.from_numpy(
                draws(kinds, example_key(own.tobytes().hex()), self.seed, 0) < self.threshold
            )
        ]
