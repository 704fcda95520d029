"""What TRL's trainers call while they train: rewards for GRPO and RLOO, a mask for DPO and KTO. Part of `bt.align`."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from numbers import Integral

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .checks import check_number
from .data.formats import to_prompt
from .data.kinds import Kind
from .data.render import Renderer
from .evaluation.answers import Parsed, is_correct, parse
from .evaluation.diversity import self_bleus
from .objective.blur import draws, example_key
from .objective.format_reward import is_opened, thought_tokens


class Rewards:
    """Reward functions in TRL's signature, for one tokenizer: `GRPOTrainer(policy, [Rewards(tokenizer).format], ...)`.

    They read the ids of a completion, since TRL's text lacks think tags that are special tokens, and its end. A prompt
    that ends in an open think tag begins the thought.

    Args:
        answer: how answers are compared, see `metrics.is_correct`.
        max_thought, slack: tokens of a thought, for `length`.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> ids = tokenizer("<think>2+2=4</think>4<|im_end|>")["input_ids"]
    >>> rewards = bt.align.Rewards(tokenizer)
    >>> rewards.format(["2+2?"], [ids]), rewards.accuracy(["2+2?"], [ids], answer=["5"])
    ([1.0], [0.0])
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        answer: str = "auto",
        max_thought: int = 512,
        slack: int = 128,
    ):
        check_number("slack", slack, 1, max_thought, Integral)
        self.renderer = Renderer(tokenizer)
        self.answer = answer
        self.max_thought = max_thought
        self.slack = slack

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
        thoughts = [each.thought for each in self._parsed(prompts, completion_ids)]
        groups = defaultdict(list)
        for i, prompt in enumerate(prompts):
            if thoughts[i]:
                groups[str(prompt)].append(i)
        rewards = [0.0] * len(thoughts)
        for group in groups.values():
            scores = self_bleus([thoughts[i] for i in group])
            for i, score in zip(group, scores, strict=True):
                rewards[i] = None if score is None else 1 - score
        return rewards

    def length(self, prompts: list, completion_ids: list, **_) -> list[float]:
        """TRL's soft overlong punishment of the thought alone: 0 up to max_thought - slack tokens, from there evenly
        down to -1 at max_thought. Without its open tag a text is no thought, so this belongs beside `format`."""
        from trl.rewards import get_soft_overlong_punishment

        thoughts = [
            thought_tokens(ids, self.renderer.tag_ids, self._opens(prompt))
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]
        return get_soft_overlong_punishment(self.max_thought, self.slack)(completion_ids=thoughts)

    def _opens(self, prompt: str | list[dict]) -> bool:
        """Whether a prompt, as text or as conversation, begins the thought."""
        if not isinstance(prompt, str):
            prompt = self.renderer.prompt_text(to_prompt({"messages": prompt}))
        return self.renderer.opens(prompt)

    def _parsed(self, prompts: list, completion_ids: list) -> Iterator[Parsed]:
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            text, stop = self.renderer.read(list(ids), self.renderer.stop_ids)
            yield parse(text, prefilled=self._opens(prompt), finished=stop is not None)


class BlurredThoughts:
    """A collator of TRL's, after which blurred thought tokens count in no log-probability of the loss:
    `trainer.data_collator = BlurredThoughts(trainer.data_collator, tokenizer, threshold=0.5)`.

    For DPO and KTO. Each completion has draws of its own, the same in all epochs. ORPO's likelihood term takes the
    whole sequence, whatever is masked.

    Args:
        threshold: the share of thought tokens; 1: thoughts do not count, answers and tags alone do.

    Raises:
        ValueError: a batch has no mask, or log-probabilities of the reference, computed without it.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> ids = torch.tensor([tokenizer("2+2?<think>four</think>4")["input_ids"]])
    >>> batch = {"input_ids": ids, "completion_mask": torch.ones_like(ids)}
    >>> blurred = bt.align.BlurredThoughts(lambda examples: batch, tokenizer, threshold=1.0)
    >>> tokenizer.decode(ids[blurred([])["completion_mask"] == 1])
    '2+2?<think></think>4'
    """

    def __init__(
        self,
        collator: Callable,
        tokenizer: PreTrainedTokenizerBase,
        threshold: float,
        seed: int = 0,
    ):
        check_number("threshold", threshold, 0, 1)
        self.collator = collator
        self.tag_ids = Renderer(tokenizer).tag_ids
        self.threshold = threshold
        self.seed = seed

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.collator(examples)
        masks = [name for name in batch if name.endswith("completion_mask")]
        if not masks:
            raise ValueError(f"no completion_mask in {[*batch]}: for DPO and KTO only")
        if any(name.startswith("ref_") for name in batch):
            raise ValueError(
                "the reference counts the thoughts: set precompute_ref_log_probs=False"
            )
        for name in masks:
            rows = batch[name.replace("completion_mask", "input_ids")]
            for ids, mask in zip(rows, batch[name], strict=True):
                mask[self._blurred(ids, mask)] = 0
        return batch

    def _blurred(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The positions of blurred tokens in a sequence."""
        positions = mask.nonzero()[:, 0]
        if not len(positions):
            return positions
        completion = ids[positions].numpy()
        opened = is_opened(ids[: positions[0]].tolist(), self.tag_ids)
        kinds = np.full(len(completion), Kind.ANSWER)
        kinds[thought_tokens(completion, self.tag_ids, opened)] = Kind.THINK
        # the completion is its own id
        u = draws(kinds, example_key(completion.tobytes().hex()), self.seed, 0)
        return positions[torch.from_numpy(u < self.threshold)]
