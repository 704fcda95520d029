"""Blurred-thoughts fine-tuning on one page: ten optimizer steps on one example, in plain PyTorch.

    python examples/blurred_thoughts.py            # the embedded toy model, on a CPU, in seconds
    python examples/blurred_thoughts.py MODEL      # any causal model whose tokenizer has <think> and </think>

    L = 1/N [ sum_{t not blurred} nll_t  +  anchor * sum_{t blurred} KL(p_ref || p) ]  +  beta * (1 - R)

The teacher's thought is not learnt word for word: each of its tokens is blurred with probability `threshold`, anew in
each epoch, and there the model stays near what it said before (`anchor`). R is the probability that a sample of it has
both tags where they belong (`beta`). `btsft_nb.BTSFTTrainer` computes the same, without logits.
"""

import copy
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TINY = Path(__file__).parents[1] / "btsft_nb" / "tiny" / "model"
EXAMPLE = {
    "id": "my data, row 0",
    "question": "There are 69 coins in a box. Lea takes 12. How many coins are in the box?",
    "completion": "<think>69 is 70-1. 70-12=58, 58-1=57.</think>\n\nThe answer is 57.",
}
PROMPT, TAG, THINK, ANSWER = range(4)  # the kinds of tokens


def tokenize(tokenizer, example, tags):
    """The token ids (T,) of prompt and completion, and their kinds (T,)."""
    question = [{"role": "user", "content": example["question"]}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    completion = example["completion"] + tokenizer.eos_token
    kind = ANSWER
    if prompt.rstrip().endswith("<think>"):  # the template opens the thought, the model does not
        completion = completion.removeprefix("<think>")
        kind = THINK
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    kinds = [PROMPT] * len(ids)
    for token in tokenizer(completion, add_special_tokens=False)["input_ids"]:
        ids.append(token)
        kinds.append(TAG if token in tags else kind)
        if token in tags:
            kind = THINK if token == tags[0] else ANSWER
    return torch.tensor(ids), torch.tensor(kinds)


def draw_blur(kinds, example_id, seed, epoch, threshold):
    """Which tokens are blurred: thought tokens whose uniform draw is below the threshold.

    The draws are keyed by (seed, epoch, example), so nothing else moves them, and what is blurred at .2 is at .5.
    """
    digest = hashlib.blake2b(example_id.encode(), digest_size=8).digest()
    key = np.array([(seed << 32) + epoch, int.from_bytes(digest, "little") >> 1], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    blurred = torch.zeros(len(kinds), dtype=torch.bool)
    thought = kinds == THINK
    blurred[thought] = torch.from_numpy(generator.random(int(thought.sum())) < threshold)
    return blurred


def format_reward(log_p, tags, opened):
    """R: the probability that a completion drawn position by position has one open tag, first, and one close tag.

    With o, c, n the probabilities (L,) of the tags and of anything else, from log_p (L, V):
    log R = log o_1 + sum_{t>1} log n_t + logsumexp_{j>1}(log c_j - log n_j); without o_1 where the prompt opened.
    """
    open_id, close_id = tags
    other = log_p.index_fill(1, torch.tensor(tags), -torch.inf).logsumexp(1)
    three = torch.stack([log_p[:, open_id], log_p[:, close_id], other])
    log_open, log_close, log_other = three.double().log_softmax(0)
    rest = slice(0 if opened else 1, None)  # where the close tag may stand
    log_r = log_other[rest].sum() + (log_close[rest] - log_other[rest]).logsumexp(0)
    return (log_r if opened else log_r + log_open[0]).exp()


def objective(logits, ref_logits, ids, kinds, blurred, tags, anchor, beta):
    """The three parts of one sequence's loss, from logits (T, V) of the model and of the model as it was before."""
    # only the completion is trained, and logits at t - 1 predict token t
    trained = kinds[1:] != PROMPT
    log_p = logits[:-1][trained].float().log_softmax(-1)
    log_ref = ref_logits[:-1][trained].float().log_softmax(-1)
    ids, kinds, blurred = (x[1:][trained] for x in (ids, kinds, blurred))
    n = len(ids)  # blurred or not: a blur gives the other tokens no more weight
    nll = -log_p.gather(1, ids[:, None])[:, 0]
    kl = (log_ref.exp() * (log_ref - log_p)).sum(-1)
    reward = format_reward(log_p, tags, opened=bool(kinds[0] == THINK))
    return {
        "nll": nll[~blurred].sum() / n,
        "anchor": anchor * kl[blurred].sum() / n,
        "format": beta * (1 - reward),
    }


def main(name=TINY, threshold=0.5, anchor=1.0, beta=0.5, seed=0, epochs=10):
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    reference = copy.deepcopy(model)  # with LoRA it is the model with its adapter switched off
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tags = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    ids, kinds = tokenize(tokenizer, EXAMPLE, tags)
    with torch.no_grad():
        ref_logits = reference(ids[None]).logits[0]
    for epoch in range(epochs):
        blurred = draw_blur(kinds, EXAMPLE["id"], seed, epoch, threshold)
        logits = model(ids[None]).logits[0]
        parts = objective(logits, ref_logits, ids, kinds, blurred, tags, anchor, beta)
        loss = sum(parts.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values = "  ".join(f"{part} {value:.3f}" for part, value in parts.items())
        print(f"epoch {epoch}  {blurred.sum()} blurred  loss {loss:.3f} = {values}")


if __name__ == "__main__":
    main(*sys.argv[1:])
