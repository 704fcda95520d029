"""Scoring the tokens of prepared examples."""

from collections.abc import Sequence
from itertools import chain

import torch
from peft import PeftModel
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokens import Encoder, tag_ids, think_tags
from ..objective.format_reward import expected_format_reward, find_completions
from ..objective.forward import HeadForward, eval_mode
from ..training.collator import Collator

_ROWS = 128  # tokens whose logits exist at a time
_TOP = 5  # alternatives to each token
_NEVER = -700.0  # nats: as good as 0, and finite


@torch.no_grad()
def tagged_log_probs(forward: HeadForward, model, pad_token_id, examples) -> torch.Tensor:
    """The log-probabilities of the tokens in examples' `tags`: (B, T), 0 for all other tokens."""
    batch = BatchEncoding(Collator(pad_token_id)(examples)).to(model.device)
    positions = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    for row, example in enumerate(examples):
        for span in example["tags"]:
            positions[row, span["start"] : span["stop"]] = True
    positions[:, 0] = False  # nothing predicts the first token
    return forward.token_values(model, batch, positions).log_probs


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[dict],
    *,
    kl: bool = False,
) -> list[dict]:
    """What a model makes of each token of prepared examples, one by one and without a gradient on the model.

    Args:
        kl: also the KL to the model with its adapters switched off.

    Returns:
        For each example: `log_probs` (T,) of its tokens; `tags` (2, T), the probabilities of the open and the close
        tag where that token stands; `expected_reward`, R of the objective; and `format_pull` (T,), how strongly the
        format term moves the distribution at each token: half the summed absolute gradient of R by the logits of
        open tag, close tag and anything else; `rank` (T,) of the token among all, from 1; `top_ids` and
        `top_log_probs` (T, 5), the most likely tokens; with `kl`, `kl` (T,), KL(p_ref || p) in nats. Values at
        position 0 are 0.

        A model without rows for the tags reads them as text. A tag's log-probability is the sum over its pieces then,
        `rank` and the alternatives are those of its first piece, and where the tag does not stand its probability
        counts as 0, so that `expected_reward` is a lower bound.

    Raises ValueError for a KL of a model without adapters, for a model whose head the objective cannot read, or for
    tokens that the model has no rows for.

    >>> model, tokenizer = bt.load_model("tiny")
    >>> examples = bt.prepare(bt.load_rows("tiny/teacher")[:1], tokenizer)
    tiny/teacher: 1 rows -> 1 examples...
    >>> values, = bt.score(model, tokenizer, examples)
    >>> len(values["log_probs"]) == len(examples[0]["input_ids"]), float(values["log_probs"][0])
    (True, 0.0)
    """
    if kl and not isinstance(model, PeftModel):
        raise ValueError("kl=True needs a reference: a model with adapters")
    ids = tag_ids(tokenizer)
    collate = Collator(tokenizer.pad_token_id)
    scores = []
    with eval_mode(model):
        rows = len(model.get_input_embeddings().weight)
        pieces = _pieces(tokenizer, ids) if max(ids) >= rows else {}
        # in pieces the tags have no id that the head knows: any two will do
        forward = HeadForward(model, (0, 1) if pieces else ids)
        for example in examples:
            if max(set(example["input_ids"]).difference(pieces)) >= rows:
                raise ValueError(
                    f"example {example['id']} is of another tokenizer than the model's; prepare it anew"
                )
            batch = BatchEncoding(collate([example])).to(model.device)
            if pieces:
                values = _spelled_values(forward, model, example["input_ids"], pieces)
            else:
                values = _token_values(forward, model, batch, kl)
            values |= _format_values(values.pop("log_tags"), find_completions(batch, ids))
            scores.append({name: value.cpu().numpy() for name, value in values.items()})
            scores[-1]["expected_reward"] = float(scores[-1]["expected_reward"])
    return scores


@torch.no_grad()
def _token_values(forward, model, batch, kl):
    """(T, ...) values of each token; 0 for the first one, which nothing predicts."""
    positions = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    positions[:, 0] = False
    hidden = forward.hidden(model, batch, positions)
    if kl:
        with model.disable_adapter():
            ref_hidden = forward.hidden(model, batch, positions)
    labels = batch["input_ids"][0, 1:, None]
    pieces = []
    for rows in torch.arange(len(labels)).split(_ROWS):
        log_probs = _log_probs(forward, hidden[rows])
        own = log_probs.gather(-1, labels[rows])
        tags = log_probs[:, list(forward.tag_ids)]
        others = log_probs.index_fill(-1, labels.new_tensor(forward.tag_ids), -torch.inf)
        top = log_probs.topk(_TOP)
        piece = {
            "log_probs": own[:, 0],
            "log_tags": torch.cat([tags, others.logsumexp(-1, keepdim=True)], -1),
            "rank": (log_probs > own).sum(-1) + 1,
            "top_ids": top.indices,
            "top_log_probs": top.values,
        }
        if kl:
            with model.disable_adapter():
                reference = _log_probs(forward, ref_hidden[rows])
            piece["kl"] = (reference.exp() * (reference - log_probs)).sum(-1)
        pieces.append(piece)
    values = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    return {name: torch.cat([torch.zeros_like(x[:1]), x]) for name, x in values.items()}


def _pieces(tokenizer, ids):
    """Id of a tag -> the tokens of its text, where a tag is text like any other."""
    encoder = Encoder(tokenizer)
    return dict(zip(ids, map(encoder.as_text, think_tags(tokenizer)), strict=True))


def _spelled_values(forward, model, ids, pieces):
    """As `_token_values`, of a model that reads the tags in pieces."""
    runs = [pieces.get(token, [token]) for token in ids]
    spelled = torch.tensor([list(chain(*runs))], device=model.device)
    values = _token_values(forward, model, {"input_ids": spelled}, kl=False)
    # what is said of a token's first piece, and the sum over all
    lengths = torch.tensor([len(run) for run in runs], device=model.device)
    first = lengths.cumsum(0) - lengths
    owner = torch.arange(len(runs), device=model.device).repeat_interleave(lengths)
    total = torch.zeros_like(values["log_probs"][first]).index_add_(0, owner, values["log_probs"])
    values = {name: value[first] for name, value in values.items()} | {"log_probs": total}
    log_tags = total.new_tensor([_NEVER, _NEVER, 0.0]).repeat(len(ids), 1)
    for column, tag in enumerate(pieces):
        places = [at for at, token in enumerate(ids) if token == tag and at]
        log_tags[places, column] = total[places]
        log_tags[places, 2] = torch.log1p(-total[places].exp())
    return values | {"log_tags": log_tags}


def _log_probs(forward, hidden):
    """(R, V) of hidden states, finite also where a model forbids tokens."""
    log_probs = forward.logits(hidden).double().log_softmax(-1)
    return log_probs.clamp(min=torch.finfo(log_probs.dtype).min)


def _format_values(log_tags, completions):
    """What the format term makes of (T, 3) log-probabilities of open tag, close tag and anything else."""
    logits = log_tags.T[:, None].clone().requires_grad_()
    reward = logits.new_ones(1)
    pull = torch.zeros_like(logits)
    if completions:
        reward = expected_format_reward(logits.log_softmax(0), completions, 1)
        (pull,) = torch.autograd.grad(reward.sum(), logits)
    tags = log_tags[:, :2].T.exp()
    tags[:, 0] = 0
    pull = pull[:, 0].abs().sum(0) / 2
    return {"tags": tags, "expected_reward": reward.sum().detach(), "format_pull": pull}
