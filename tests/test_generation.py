"""Sampling and scoring on the embedded model."""

import copy

import numpy as np
import pytest
import torch
from batching_worker import adapted_model

import btsft_nb as bt
from btsft_nb.evaluation import sampling, scoring
from btsft_nb.objective.format_reward import expected_format_reward, find_completions
from btsft_nb.objective.full_logits import reference_head


def tag_log_probs(logits: torch.Tensor, ids: tuple[int, int]) -> torch.Tensor:
    """(3, 1, T) of open tag, close tag and anything else, from the full logits (1, T, V) of one example."""
    labels = torch.zeros(logits.shape[1] - 1, dtype=torch.int64)
    log_tags = reference_head(logits[0, :-1], labels, ids).log_tags
    return torch.cat([torch.full((3, 1), -np.log(3)), log_tags], 1)[:, None]


@pytest.fixture(scope="module")
def tiny():
    return bt.load_model("tiny")


def test_a_sample_does_not_depend_on_its_batch(tiny):
    """Greedy completions of prompts of unequal length are the same alone and padded together, in prompt order."""
    problems = bt.load_rows("tiny/test")[:6]
    alone, together = (
        bt.sample(*tiny, problems, n=1, temperature=0, batch_size=size) for size in (1, 6)
    )
    assert alone == together
    assert [record["prompt"] for record in together] == list(range(6))
    assert [record["question"] for record in together] == [
        row["messages"][-1]["content"] for row in problems
    ]


def test_every_sample_of_every_prompt_is_there_once(tiny):
    records = bt.sample(
        *tiny, ["How many?", {"messages": [{"role": "user", "content": "Ann?"}]}], n=3, batch_size=4
    )
    assert [(record["prompt"], record["sample"]) for record in records] == [
        (p, k) for p in (0, 1) for k in (0, 1, 2)
    ]


def test_a_prompt_that_opens_the_thought_is_told(tiny):
    """The record says so, and parsing takes it into account."""
    model, tokenizer = tiny
    opened = copy.deepcopy(tokenizer)
    opened.chat_template = tokenizer.chat_template.replace(
        "assistant\n' }}", "assistant\n<think>' }}"
    )
    problem = bt.load_rows("tiny/test")[:1]
    (record,) = bt.sample(model, opened, problem, n=1, temperature=0, max_new_tokens=96)
    assert record["prefilled"] and not record["text"].startswith("<think>")
    assert bt.metrics.parse(record["text"], prefilled=True).problem is None
    assert bt.metrics.parse(record["text"]).problem == "no open tag"


def test_a_malformed_prompt_is_named(tiny):
    with pytest.raises(
        bt.RowError, match=r"problems, row 1: field messages\[0\].role: .*'narrator'"
    ):
        rows = bt.Rows(
            ["How many?", {"messages": [{"role": "narrator", "content": "x"}]}], "problems"
        )
        bt.sample(*tiny, rows, n=1)


def test_scores_are_those_of_the_model(tiny):
    """Log-probabilities and tag probabilities by plain softmax in float64; the reward as in the objective."""
    model, tokenizer = tiny
    example = bt.prepare(bt.load_rows("tiny/messy")[:4], tokenizer)[1]
    (score,) = bt.score(model, tokenizer, [example])
    ids = torch.tensor([example["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits.double()
    log_probs = logits[0, :-1].log_softmax(-1)
    wanted = log_probs.gather(1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(score["log_probs"][1:], wanted, atol=1e-4)
    np.testing.assert_allclose(
        score["tags"][:, 1:], log_probs[:, list(bt.tag_ids(tokenizer))].T.exp(), atol=1e-5
    )
    kinds = torch.tensor([example["kinds"]])
    batch = {
        "input_ids": ids,
        "kinds": kinds,
        "weights": (kinds > 0).float(),
        "sequence": torch.zeros_like(ids),
    }
    completions = find_completions(batch, bt.tag_ids(tokenizer))
    reward = expected_format_reward(tag_log_probs(logits, bt.tag_ids(tokenizer)), completions, 1)
    assert score["expected_reward"] == pytest.approx(reward.item(), rel=1e-4)


def test_the_pull_of_the_format_is_the_gradient_of_the_reward(tiny):
    """Half the summed absolute gradient by open, close and all other logits, by autograd through the full logits."""
    model, tokenizer = tiny
    example = bt.prepare(bt.load_rows("tiny/messy")[:4], tokenizer)[1]
    assert "untagged" in example["flags"]
    noisy = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    (score,) = bt.score(noisy, tokenizer, [example])
    ids, kinds, tags = (
        torch.tensor([example["input_ids"]]),
        torch.tensor([example["kinds"]]),
        bt.tag_ids(tokenizer),
    )
    with torch.no_grad():
        logits = noisy(ids).logits.double()
    logits.requires_grad_()
    batch = {
        "input_ids": ids,
        "kinds": kinds,
        "weights": (kinds > 0).float(),
        "sequence": torch.zeros_like(ids),
    }
    expected_format_reward(
        tag_log_probs(logits, tags), find_completions(batch, tags), 1
    ).sum().backward()
    gradient = logits.grad[0, :-1]
    rest = gradient.sum(-1) - gradient[:, tags[0]] - gradient[:, tags[1]]
    pull = (gradient[:, tags[0]].abs() + gradient[:, tags[1]].abs() + rest.abs()) / 2
    assert pull.max() > 0
    np.testing.assert_allclose(
        score["format_pull"][1:], pull, rtol=1e-2, atol=float(pull.max()) * 1e-3
    )


def test_scores_come_from_a_few_logits_at_a_time(tiny, monkeypatch):
    """In any number of pieces the values are those of all logits at once; none holds more rows than it may."""
    model, tokenizer = tiny
    examples = list(bt.prepare(bt.load_rows("tiny/messy")[:2], tokenizer))
    whole = bt.score(model, tokenizer, examples)
    rows = []
    logits = scoring.HeadForward.logits

    def counted(self, hidden):
        rows.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(scoring.HeadForward, "logits", counted)
    monkeypatch.setattr(scoring, "_ROWS", 7)
    pieces = bt.score(model, tokenizer, examples)
    assert max(rows) == 7 and sum(rows) == sum(len(e["input_ids"]) - 1 for e in examples)
    for one, other in zip(whole, pieces, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-5, atol=1e-6)


def test_the_kl_is_that_of_full_logits():
    """To the model without its adapters."""
    adapted, tokenizer = adapted_model(noise=0.1)
    base, _ = bt.load_model("tiny")
    example = bt.prepare(bt.load_rows("tiny/teacher")[:1], tokenizer)[0]
    (score,) = bt.score(adapted, tokenizer, [example], kl=True)
    ids = torch.tensor([example["input_ids"]])
    with torch.no_grad():
        log_p = adapted(ids).logits[0, :-1].double().log_softmax(-1)
        log_q = base(ids).logits[0, :-1].double().log_softmax(-1)
    wanted = (log_q.exp() * (log_q - log_p)).sum(-1)
    assert wanted.max() > 1e-3
    np.testing.assert_allclose(score["kl"][1:], wanted, rtol=1e-3, atol=1e-6)


def test_scoring_that_is_interrupted_leaves_the_mode(tiny):
    model, tokenizer = tiny
    example = bt.prepare(bt.load_rows("tiny/teacher")[:1], tokenizer)[0]
    model.train()
    with pytest.raises(KeyError, match="kinds"):
        bt.score(
            model, tokenizer, [{name: example[name] for name in ("id", "input_ids", "weights")}]
        )
    assert model.training
    model.eval()


def test_samples_are_of_the_models_own_distribution(tiny):
    """What a model's generation_config holds, as Hub models' do, changes nothing."""
    model, tokenizer = tiny
    problem = bt.load_rows("tiny/test")[:2]
    plain = bt.sample(model, tokenizer, problem, n=2)
    changed = copy.deepcopy(model)
    changed.generation_config.repetition_penalty = 50.0
    changed.generation_config.suppress_tokens = [bt.tag_ids(tokenizer)[0]]
    changed.generation_config.top_k = 1
    assert bt.sample(changed, tokenizer, problem, n=2) == plain


# ------------------------------------------------------------------------------------------- draws and their file


def test_draws_do_not_depend_on_the_batch(tiny):
    """Prompts of unequal length, alone and together; more samples, or a longer limit, go on from the same ones."""
    problems = bt.load_rows("tiny/test")[:4]
    alone, some, together = (
        bt.sample(*tiny, problems, n=3, batch_size=size, seed=5) for size in (1, 5, 12)
    )
    assert alone == some == together
    assert len({record["text"] for record in together}) > 6
    more = bt.sample(*tiny, problems[:2], n=5, seed=5)
    assert [r for r in more if r["sample"] < 3] == [r for r in together if r["prompt"] < 2]
    short = bt.sample(*tiny, problems, n=3, max_new_tokens=9, seed=5)
    assert all(
        whole["text"].startswith(part["text"]) for whole, part in zip(together, short, strict=True)
    )
    assert bt.sample(*tiny, problems, n=3, seed=6) != together


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_from_the_models_distribution(tiny, temperature):
    """The first tokens of 2,000 samples: chi-square against softmax(logits / temperature), seven standard errors."""
    model, tokenizer = tiny
    noisy = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        noisy.lm_head.weight.copy_(0.1 * torch.randn_like(noisy.lm_head.weight))
    prompt = bt.Renderer(tokenizer).prompt_ids(bt.to_prompt("How many?"))
    with torch.no_grad():
        p = (noisy(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1).numpy()
    kept, ids = (
        [],
        dict(zip((tokenizer.decode([i]) for i in range(len(p))), range(len(p)), strict=True)),
    )
    for record in bt.sample(noisy, tokenizer, ["How many?"], n=2000, max_new_tokens=1, temperature=temperature,
                            batch_size=1000):  # fmt: skip
        kept.append(ids[record["text"]] if not record["finished"] else -1)
    told = np.array(
        [ids[tokenizer.decode([i])] == i for i in range(len(p))]
    )  # not single bytes, which read alike
    common = np.flatnonzero(told & (p * 2000 > 10))
    counts = np.array([kept.count(i) for i in common])
    wanted = p[common] * 2000
    assert (
        len(common) >= 5
        and abs(((counts - wanted) ** 2 / wanted).sum() - len(common))
        < 7 * (2 * len(common)) ** 0.5
    )


def test_global_random_states_and_the_mode_stay(tiny):
    model, tokenizer = tiny
    model.train()
    torch.manual_seed(3), np.random.seed(3)
    wanted = torch.rand(3), np.random.random(3)
    torch.manual_seed(3), np.random.seed(3)
    bt.sample(model, tokenizer, ["How many?"], n=2, max_new_tokens=4)
    assert model.training
    assert torch.equal(torch.rand(3), wanted[0]) and (np.random.random(3) == wanted[1]).all()
    model.eval()


def test_the_base_under_its_adapters():
    """One loaded model gives both; a model without adapters refuses."""
    adapted, tokenizer = adapted_model(noise=0.1)
    base, _ = bt.load_model("tiny")
    problems = bt.load_rows("tiny/test")[:4]
    under, over = (
        bt.sample(adapted, tokenizer, problems, n=2, adapters=on) for on in (False, True)
    )
    assert under == bt.sample(base, tokenizer, problems, n=2) != over
    with pytest.raises(ValueError, match="adapters=False: the model has no adapters"):
        bt.sample(base, tokenizer, problems, adapters=False)


def test_a_stopped_call_goes_on(tiny, tmp_path, monkeypatch):
    """What was drawn stays as it is, a torn line goes, and the end is that of a call left alone."""
    path = tmp_path / "new" / "samples.jsonl"
    problems = bt.load_rows("tiny/test")[:8]
    generate = sampling._generate
    batches = []

    def stopped(*arguments):
        batches.append(path.read_bytes())
        if len(batches) == 3:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(sampling, "_generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        bt.sample(*tiny, problems, n=4, batch_size=4, path=path)
    drawn = path.read_bytes()
    assert [batch.count(b"\n") for batch in batches] == [0, 4, 8] and drawn == batches[-1]
    path.write_bytes(drawn + drawn[:70])
    records = bt.sample(*tiny, problems, n=4, path=path)
    assert records == bt.sample(*tiny, problems, n=4)
    lines = path.read_bytes()
    assert lines.startswith(drawn) and lines.count(b"\n") == 32
    assert bt.sample(*tiny, problems, n=4, path=path) == records and path.read_bytes() == lines


def test_prompts_of_like_length_go_together(tiny, monkeypatch):
    """Whatever their order, in which the records come back; and alone each gives the same."""
    short, long = (
        "How many?",
        "There are 14 coins in a box. Lea adds 18. How many coins are in the box?",
    )
    widths = []
    generate = sampling._generate

    def spy(model, renderer, jobs, settings):
        widths.append({len(ids) for ids, _ in jobs})
        return generate(model, renderer, jobs, settings)

    monkeypatch.setattr(sampling, "_generate", spy)
    records = bt.sample(*tiny, [long, short, long, short], n=1, batch_size=2, max_new_tokens=8)
    assert [len(width) for width in widths] == [1, 1]
    assert [record["prompt"] for record in records] == [0, 1, 2, 3]


REFUSED = "samples.jsonl holds other lines than the samples of this call; delete it"


def test_a_file_of_other_samples_is_refused(tiny, tmp_path):
    """Each setting, set of prompts or model for itself, and what is none of ours; what is there is not touched."""
    model, tokenizer = tiny
    path, problems = tmp_path / "samples.jsonl", bt.load_rows("tiny/test")[:2]
    call = dict(model=model, tokenizer=tokenizer, prompts=problems, n=2, path=path)
    records = bt.sample(**call)
    before = path.read_bytes()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.model.layers[2].mlp.up_proj.weight.mul_(1.01)
    other = [
        dict(seed=1),
        dict(temperature=0.5),
        dict(max_new_tokens=99),
        dict(top_k=5),
        dict(top_p=0.5),
        dict(no_repeat_ngram_size=2),
        dict(max_prompt_length=89),
        dict(prompts=problems[::-1]),
        dict(n=1),
        dict(n=3),
        dict(model=changed),
    ]
    for change in other:
        with pytest.raises(ValueError, match=REFUSED):
            bt.sample(**call | change)
    for content in (before + b"[]\n", b"\n" + before, b"notes\n", b"without a line end", b"{}\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=REFUSED):
            bt.sample(**call)
        assert path.read_bytes() == content
    path.write_bytes(before)
    assert bt.sample(**call, top_k=None, batch_size=1, temperature=1) == records
    assert path.read_bytes() == before


def test_adapters_tell_models_apart_in_a_file(tmp_path):
    """The base under adapters that changed is the same model; the adapted one is not."""
    problems = bt.load_rows("tiny/test")[:2]
    for on in (False, True):
        path = tmp_path / f"{on}-samples.jsonl"
        bt.sample(*adapted_model(noise=0), problems, n=1, adapters=on, path=path)
        if on:
            with pytest.raises(ValueError, match=REFUSED):
                bt.sample(*adapted_model(noise=0.1), problems, n=1, adapters=on, path=path)
        else:
            bt.sample(*adapted_model(noise=0.1), problems, n=1, adapters=on, path=path)


def test_the_name_of_an_adapter_says_nothing(tmp_path):
    """The same adapter under another name, beside a second one that is off, is the same model."""
    model, tokenizer = adapted_model(noise=0.1)
    problems, path = bt.load_rows("tiny/test")[:2], tmp_path / "samples.jsonl"
    records = bt.sample(model, tokenizer, problems, n=1, path=path)
    model.save_pretrained(tmp_path / "adapter")
    other, _ = adapted_model(noise=0.3)
    other.load_adapter(tmp_path / "adapter", adapter_name="again")
    other.set_adapter("again")
    assert bt.sample(other, tokenizer, problems, n=1, path=path) == records
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "setting", [dict(n=0), dict(batch_size=0), dict(batch_size=-1), dict(max_new_tokens=0), dict(seed=-1), dict(n=True),
                dict(temperature=-1), dict(temperature=float("nan")), dict(max_new_tokens=1.5), dict(top_k=0),
                dict(top_p=1.2), dict(top_p="0.9"), dict(no_repeat_ngram_size=1), dict(max_prompt_length=0.5),
                dict(temperature=None), dict(n=None)],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(tiny, setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=name) as error:
        bt.sample(*tiny, ["How many?"], **setting)
    assert repr(value) in str(error.value)


def test_a_misspelt_setting_is_named(tiny):
    with pytest.raises(TypeError, match="'top_q'"):
        bt.sample(*tiny, ["How many?"], top_q=0.9)


def test_the_models_own_end_ends_a_completion(tiny):
    """A token that only its generation_config calls an end: nothing runs on behind it."""
    model, tokenizer = tiny
    (whole,) = bt.sample(model, tokenizer, ["How many?"], n=1, temperature=0)
    space = tokenizer.encode(whole["text"], add_special_tokens=False)[3]
    changed = copy.deepcopy(model)
    changed.generation_config.eos_token_id = [tokenizer.eos_token_id, space]
    (record,) = bt.sample(changed, tokenizer, ["How many?"], n=1, temperature=0)
    assert record["finished"] and record["tokens"] <= 4 and whole["text"].startswith(record["text"])


# ------------------------------------------------------------------------------------------- top-k, top-p, n-grams


@pytest.fixture(scope="module")
def noisy(tiny):
    """The embedded model with a random head: many tokens are likely."""
    model = copy.deepcopy(tiny[0])
    torch.manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight.copy_(0.2 * torch.randn_like(model.lm_head.weight))
    return model


@pytest.mark.parametrize(
    "settings",
    [
        dict(top_k=5),
        dict(top_p=0.4),
        dict(no_repeat_ngram_size=2),
        dict(temperature=0.7, top_k=9, top_p=0.8, no_repeat_ngram_size=2),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_those_that_transformers_keeps(tiny, noisy, settings):
    """The first tokens of 1,500 samples are of the set that its own sampling leaves, all of that, in its shares."""
    tokenizer = tiny[1]
    prompt = torch.tensor([bt.Renderer(tokenizer).prompt_ids(bt.to_prompt("How many?"))])
    theirs = (
        dict(top_k=0, pad_token_id=0) | settings
    )  # unlike ours, generate has a top_k of 50 unless told
    out = noisy.generate(
        prompt,
        do_sample=True,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
        **theirs,
    )
    p = out.scores[0][0].softmax(-1).numpy()
    assert 1 < (p > 0).sum() < len(p)
    texts = {}  # single bytes read alike
    for token in np.flatnonzero(p):
        text = "" if token == tokenizer.eos_token_id else tokenizer.decode([token])
        texts[text] = texts.get(text, 0) + p[token] * 1500
    drawn = bt.sample(
        noisy, tokenizer, ["How many?"], n=1500, max_new_tokens=1, batch_size=1000, **settings
    )
    counts = {text: [record["text"] for record in drawn].count(text) for text in texts}
    assert sum(counts.values()) == 1500, "none of another token"
    assert all(counts[text] for text, wanted in texts.items() if wanted > 20)
    assert all(abs(counts[text] - wanted) < 6 * wanted**0.5 + 3 for text, wanted in texts.items())


@pytest.mark.parametrize("size", [2, 3])
def test_ngrams_are_banned_as_in_transformers(tiny, size):
    """Greedy completions are those of `generate`; of the one most likely token, those at temperature 1, too."""
    model, tokenizer = tiny
    problems = bt.load_rows("tiny/test")[:4]
    greedy = bt.sample(
        model, tokenizer, problems, n=1, temperature=0, no_repeat_ngram_size=size, max_new_tokens=30
    )
    assert greedy != bt.sample(model, tokenizer, problems, n=1, temperature=0, max_new_tokens=30)
    assert greedy == bt.sample(
        model, tokenizer, problems, n=1, top_k=1, no_repeat_ngram_size=size, max_new_tokens=30
    )
    for problem, record in zip(problems, greedy, strict=True):
        prompt = torch.tensor([bt.Renderer(tokenizer).prompt_ids(bt.to_prompt(problem))])
        options = dict(do_sample=False, no_repeat_ngram_size=size, max_new_tokens=30)
        whole = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[
            0, prompt.shape[1] :
        ]
        assert tokenizer.decode(whole).removesuffix(tokenizer.eos_token) == record["text"]


def test_padding_is_in_no_ngram(tiny):
    """Prompts of unequal length, alone and together, where the token that pads also ends a completion."""
    model, tokenizer = tiny[0], copy.deepcopy(tiny[1])
    tokenizer.pad_token = tokenizer.eos_token
    prompts = [
        "Ann?",
        *bt.load_rows("tiny/test")[:3],
        "How many pens does Ben have, and how many has Tom?",
    ]
    settings = dict(n=2, no_repeat_ngram_size=2, top_k=20, top_p=0.9, max_new_tokens=40)
    alone, together = (
        bt.sample(model, tokenizer, prompts, batch_size=b, **settings) for b in (1, 10)
    )
    assert alone == together


def test_a_long_prompt_loses_the_first_of_its_text(tiny, caplog):
    """Sampled from what a shorter question would give; template whole; counted, logged and in each record."""
    model, tokenizer = tiny
    long, short = "Ivo? Tom? Ann has 3 pens. How many?", "? Ann has 3 pens. How many?"
    ids = [bt.Renderer(tokenizer).prompt_ids(bt.to_prompt(text)) for text in (long, short)]
    settings = dict(n=2, temperature=0, max_prompt_length=len(ids[1]))
    found = bt.sample(model, tokenizer, [long, "Ann?"], **settings)
    assert caplog.messages == ["1 of 2 prompts were cut to max_prompt_length"]
    assert [record["prompt_cut"] for record in found] == [len(ids[0]) - len(ids[1])] * 2 + [0] * 2
    wanted = bt.sample(model, tokenizer, [short, "Ann?"], n=2, temperature=0)
    assert [record["text"] for record in found] == [record["text"] for record in wanted]
    assert found[0]["question"] == long and len(caplog.messages) == 1
    with pytest.raises(
        bt.RowError, match=r"prompts, row 0: max_prompt_length=8 leaves nothing of the prompt"
    ):
        bt.sample(model, tokenizer, [long], max_prompt_length=8)
