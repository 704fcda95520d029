"""Where the rows of new think tags start: from the data, so that a model expects its tags before the first step.

A new row is the mean of all others. From there a tag costs some 20 nats, the format reward is about e^-40 with a
gradient as small, and neither dial moves for many steps. So a tag's row begins as the mean r of the rows of its own
pieces (`<`, `think`, `>`), and in the head as r + c d. With m the mean hidden state before the tag, and S the mean of
h h^T over the states h before other supervised tokens, d = (S + a I)^-1 m: of all directions that raise the tag's logit
at its places as much, the one that moves it least elsewhere, in mean square (ridge regression; a is the mean of S's
diagonal). c is such that the logit stands 2 above the logsumexp of all others at its places, on average: p = .88.
"""

import logging

import torch

from ..data.tokens import Encoder, think_tags
from ..objective.forward import eval_mode
from .collator import Collator

_EXAMPLES = 16  # to start from
_ABOVE = 2.0  # nats


@torch.no_grad()
def start_tag_rows(trainer):
    """Starts the trained rows of tags that no one has trained yet from the first examples, and says so in one line.

    Rows of the reference, and those that are trained already, stay as they are.
    """
    tokenizer = trainer.processing_class
    forward = trainer.head_forward
    embeddings = forward.base.get_input_embeddings()
    tags = trainer.tag_ids
    new = [tag for tag in tags if _is_new(embeddings, tag, tags)]
    if not new:
        return
    encoder = Encoder(tokenizer)
    for tag in new:
        pieces = encoder.as_text(think_tags(tokenizer)[tags.index(tag)])
        for layer in (embeddings, forward.head):
            _row(layer, tag).copy_(layer.weight[pieces].float().mean(0))
    data = trainer.train_dataset
    examples = data.select(range(min(_EXAMPLES, len(data))))
    costs = []
    with trainer.accelerator.autocast(), eval_mode(trainer.model):
        before_tags, moment = _hidden_states(trainer, examples)
        for tag in new:
            if len(before_tags[tag]):
                nll = _turn(forward, tag, tags, before_tags[tag], moment)
                costs.append(f"{tokenizer.decode([tag])} costs {nll:.2f} nats there")
    text = f"the rows of new tags start from {len(examples)} examples; {', '.join(costs) or 'none has a tag'}"
    logging.getLogger(__name__).warning(text)


def _is_new(embeddings, tag, tags):
    """Whether a tag's row trains and is as `load_model` left it."""
    row = _row(embeddings, tag)
    adapter = getattr(embeddings, "token_adapter", None)
    if row is None:
        return False
    if adapter is None:
        # new rows are the same mean
        return torch.equal(*embeddings.weight[list(tags)])
    name = adapter.active_adapters[0]
    place = adapter.token_indices[name].index(tag)
    return torch.equal(row, adapter.trainable_tokens_original[name][place].to(row))


def _row(layer, tag):
    """The trained row of a token in embeddings or head, to be written; None where it does not train."""
    adapter = getattr(layer, "token_adapter", None)
    if adapter is None:
        return layer.weight.data[tag] if layer.weight.requires_grad else None
    name = adapter.active_adapters[0]
    tokens = adapter.token_indices[name]
    rows = adapter.trainable_tokens_delta[name].data
    return rows[tokens.index(tag)] if tag in tokens else None


def _hidden_states(trainer, examples):
    """Of supervised tokens: tag -> (n, D), the states before it; and (D, D), the mean of h h^T before all others."""
    tags = trainer.tag_ids
    collate = Collator(trainer.processing_class.pad_token_id)
    before = {tag: [] for tag in tags}
    total = 0.0
    count = 0
    for example in examples:
        batch = collate([example])
        batch = {name: value.to(trainer.model.device) for name, value in batch.items()}
        positions = batch["weights"] != 0
        hidden = trainer.head_forward.hidden(trainer.model, batch, positions).float()
        tokens = batch["input_ids"][positions].to(hidden.device)
        for tag in tags:
            before[tag].append(hidden[tokens == tag])
        others = hidden[(tokens != tags[0]) & (tokens != tags[1])]
        total = total + others.T @ others
        count += len(others)
    return {tag: torch.cat(states) for tag, states in before.items()}, total / max(count, 1)


def _turn(forward, tag, tags, hidden, moment):
    """Adds c d to a tag's row of the head. Returns what the tag costs at its places then, in nats."""
    mean = hidden.mean(0)
    ridge = torch.eye(len(moment), device=moment.device) * moment.diagonal().mean()
    direction = torch.linalg.solve(moment + ridge, mean)
    row = _row(forward.head, tag)
    hidden = hidden.to(forward.head.weight)
    for _ in range(3):  # one step would do, were it not for a soft cap
        logits = forward.logits(hidden)
        others = logits.index_fill(1, torch.tensor(tags, device=logits.device), -torch.inf)
        missing = (others.logsumexp(1) + _ABOVE - logits[:, tag]).mean()
        row += (missing.to(direction) / (forward.form.scale * (mean @ direction)) * direction).to(
            row
        )
    return -forward.logits(hidden).log_softmax(1)[:, tag].mean()
