"""The way from a run to TRL's trainers and back, and what they get: policy, reference, pairs, rewards.

`test_align_oldest.py` runs all of it with the oldest TRL that is supported as well.
"""

import itertools
import math
import os
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from test_answers import ADVERSARIAL
from test_architectures import without_tags
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

import btsft_nb as bt
from btsft_nb.align import Rewards, load_policy, preference_pairs, prompt_rows
from btsft_nb.data.formats import to_prompt
from btsft_nb.models.config import ModelConfig
from conftest import TOKENIZERS

trl = pytest.importorskip("trl", minversion="1.8")

from trl import (  # noqa: E402
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)  # fmt: skip
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402
from trl.rewards import accuracy_reward, think_format_reward  # noqa: E402

LORA = {"method": "lora"}
RUNS = {"4 bits": {}, "plain": LORA, "dora": LORA | {"dora": True}, "whole": {"method": "full"}}
IDS = torch.arange(5, 45)[None]
COMMON = dict(
    bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1
)
COMMON |= dict(disable_tqdm=True, lr_scheduler_type="constant", use_cpu=True)
ROWS = [{"question": "2+2?", "answer": "4"}, {"question": "3+4?", "answer": "7"}]
GOOD, BAD = "<think>Just 2+2, that is 4.</think>\n\nThe answer is 4.", "Just 2+2. The answer is 4."
WRONG = "<think>Guess 5. Back: 5-2=3. No.</think>\n\nThe answer is 5."
OTHER = "<think>Count: 2, 3, 4. So four it is.</think>\n\nThe answer is 4."
EMPTY, UNTIDY = "<think></think>4", "<think>Step by step: 2, 3, 4.</think></think>4"
CONFIGS = {DPOTrainer: DPOConfig, KTOTrainer: KTOConfig, ORPOTrainer: ORPOConfig}


def test_the_version_is_the_one_that_is_asked_for():
    """Of the job with the oldest TRL; without one any will do."""
    assert trl.__version__.startswith(os.environ.get("BTSFT_TRL", ""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder for each of RUNS, its model a few large steps away from its base."""
    made = {}

    def make(name: str):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name
            model, tokenizer = bt.load_model(ModelConfig("tiny", **RUNS[name]))
            settings = dict(
                max_steps=3,
                learning_rate=1e-2 if name != "whole" else 1e-3,
                lr_scheduler_type="constant",
            )
            settings |= dict(
                anchor=0.0, threshold=0.0, per_device_train_batch_size=4, save_strategy="no"
            )
            examples = bt.prepare(bt.load_rows("tiny/teacher")[:16], tokenizer)
            config = bt.BTSFTConfig(str(made[name]), **settings)
            bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()
        return made[name]

    return make


def sampled(tokenizer, *texts: str, prompt: int = 0, finished: bool = True, **others) -> list[dict]:
    """Records as `sample` returns them, of one prompt of ROWS."""
    renderer, question = bt.Renderer(tokenizer), ROWS[prompt]["question"]
    opened = renderer.prompt_text(to_prompt(question)).rstrip().endswith("<think>")
    common = {
        "prompt": prompt,
        "question": question,
        "prefilled": opened,
        "finished": finished,
        "prompt_cut": 0,
    }
    counts = [
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) + finished for text in texts
    ]
    rows = zip(range(len(texts)), texts, counts, strict=True)
    return [common | {"sample": i, "text": text, "tokens": n} | others for i, text, n in rows]


def pairs_of(tokenizer) -> Dataset:
    records = sampled(tokenizer, GOOD, BAD) + sampled(tokenizer, OTHER, EMPTY, UNTIDY, prompt=1)
    return preference_pairs(records, ROWS, tokenizer, "format")


def trainer_of(kind, model, tokenizer, output, **settings):
    """A trainer of TRL on two pairs."""
    settings = dict(max_steps=1, per_device_train_batch_size=2, max_length=256) | COMMON | settings
    if kind is ORPOTrainer:
        settings["remove_unused_columns"] = False
    args = CONFIGS[kind](str(output), **settings)
    return kind(model, args=args, train_dataset=pairs_of(tokenizer), processing_class=tokenizer)


def logged(trainer, name: str) -> float:
    """What a trainer logged of its first step."""
    return next(log[name] for log in trainer.state.log_history if name in log)


# ---------------------------------------------------------------------------------------------- policy and reference


@pytest.mark.parametrize("name", RUNS)
def test_the_policy_is_the_runs_model(folder, name):
    """Bit for bit; what trains is what trained there, and its adapter stays one."""
    model, tokenizer = load_policy(folder(name))
    with torch.no_grad():
        assert torch.equal(
            model(input_ids=IDS).logits, bt.load_model(folder(name))[0](input_ids=IDS).logits
        )
    trained = {n for n, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and isinstance(model, PeftModel) == (name != "whole")
    assert name == "whole" or all("lora_" in n for n in trained)
    assert tokenizer.eos_token == "<|im_end|>" == tokenizer.decode(bt.Renderer(tokenizer).end_id)


def test_dequantized_weights_are_the_numbers_that_the_quantised_stand_for(folder):
    model, _ = load_policy(folder("4 bits"), dequantize=True)
    with torch.no_grad():
        got, want = (m(input_ids=IDS).logits for m in (model, bt.load_model(folder("4 bits"))[0]))
    assert not getattr(model, "is_loaded_in_4bit", False)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, DPOTrainer) for name in RUNS), ("4 bits", KTOTrainer)]
)
def test_the_reference_is_the_runs_model_and_not_its_base(folder, tmp_path, name, kind):
    """So at the first step no completion is more or less likely than in the reference: the loss is log 2 in DPO.

    On quantised weights TRL trains the adapter in bfloat16, and the reference stays as it was.
    """
    model, tokenizer = load_policy(folder(name))
    trainer = trainer_of(kind, model, tokenizer, tmp_path, learning_rate=0.0)
    trainer.train()
    tolerance = 0.02 if name == "4 bits" else 1e-5
    assert logged(trainer, "rewards/chosen") == pytest.approx(0, abs=tolerance)
    if kind is DPOTrainer:
        assert logged(trainer, "loss") == pytest.approx(math.log(2), abs=tolerance)


@pytest.mark.parametrize(("kind", "config"), [(RLOOTrainer, RLOOConfig), (GRPOTrainer, GRPOConfig)])
def test_the_reference_of_on_policy_training_is_the_runs_model(folder, tmp_path, kind, config):
    model, tokenizer = load_policy(folder("plain"))
    settings = dict(
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        beta=0.1,
    )
    args = config(str(tmp_path), learning_rate=0.0, **settings, **COMMON)
    rewards, prompts = [Rewards(tokenizer).format], prompt_rows(ROWS, tokenizer)
    trainer = kind(model, rewards, args=args, train_dataset=prompts, processing_class=tokenizer)
    trainer.train()
    assert logged(trainer, "kl") == pytest.approx(0, abs=1e-6)


def test_rows_of_new_tags_are_merged_first(tmp_path):
    """TRL reads the head without them, so such an adapter is refused; merged by the user's word it goes on."""
    model, tokenizer = bt.load_model("tiny")
    model.save_pretrained(tmp_path / "base")
    without_tags(tokenizer).save_pretrained(tmp_path / "base")
    model, tokenizer = bt.load_model(ModelConfig(str(tmp_path / "base"), lora_r=4))
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    bt.models.load.record_base(tmp_path / "run", model)
    with pytest.raises(ValueError, match=r"run trained rows of new tokens.*bt\.merge"):
        load_policy(tmp_path / "run")
    bt.merge(tmp_path / "run", tmp_path / "merged", dtype="float32")
    policy, tokenizer = load_policy(tmp_path / "merged")
    args, lora = (
        DPOConfig(str(tmp_path), max_steps=1, learning_rate=0.0, **COMMON),
        LoraConfig(task_type="CAUSAL_LM"),
    )
    pairs = pairs_of(tokenizer)
    trainer = DPOTrainer(
        policy, args=args, train_dataset=pairs, processing_class=tokenizer, peft_config=lora
    )
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_what_trl_trains_comes_back_as_a_run(folder, tmp_path, name):
    """The policy alone, on the base of the run; it can be merged and goes on in TRL."""
    model, tokenizer = load_policy(folder(name))
    trainer = trainer_of(
        DPOTrainer, model, tokenizer, tmp_path / "dpo", learning_rate=1e-2, max_steps=2
    )
    trainer.train()
    trainer.save_model()
    again, loaded = bt.load_model(tmp_path / "dpo")
    with torch.no_grad():
        want, got = (m.eval()(input_ids=IDS).logits for m in (trainer.model, again))
        before = bt.load_model(folder(name))[0](input_ids=IDS).logits
    tolerance = 0.05 if name == "4 bits" else 1e-5  # adapters in bfloat16 there, in float32 here
    assert (got - want).abs().max() < tolerance * want.abs().max()
    assert (got - before).abs().max() > 2 * tolerance * want.abs().max()
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.eos_token == "<|im_end|>"
    if name != "whole":
        assert not (tmp_path / "dpo" / "ref").exists()
        assert bt.Run(tmp_path / "dpo").base == bt.Run(folder(name)).base
        assert (bt.merge(tmp_path / "dpo", tmp_path / "merged") / "model.safetensors").is_file()
        assert load_policy(tmp_path / "dpo")[0].peft_config.keys() == {"default"}


def test_a_checkpoint_is_a_run_and_is_gone_on_from(folder, tmp_path):
    """Bit for bit as a training that nobody stopped; the run folder is no longer needed."""
    shutil.copytree(folder("plain"), tmp_path / "run")
    made = []
    for name, steps in (("whole", 4), ("half", 2)):
        model, tokenizer = load_policy(tmp_path / "run")
        settings = dict(learning_rate=1e-3, save_strategy="steps", save_steps=2, max_steps=steps)
        made.append((model, trainer_of(DPOTrainer, model, tokenizer, tmp_path / name, **settings)))
    shutil.rmtree(tmp_path / "run")
    (whole, trainer), (half, stopped) = made
    trainer.train()
    stopped.train()
    assert (
        sorted(path.name for path in (tmp_path / "half" / "checkpoint-2").glob("*")).count("ref")
        == 0
    )
    assert bt.Run(tmp_path / "half" / "checkpoint-2").base["base_model"] == "tiny"
    stopped.args.max_steps = 4
    stopped.train(resume_from_checkpoint=True)
    assert all(
        torch.equal(one, other)
        for one, other in zip(whole.parameters(), half.parameters(), strict=True)
    )


def test_save_pretrained_keeps_its_contract(folder, tmp_path):
    model, _ = load_policy(folder("plain"))
    model.save_pretrained(tmp_path / "other", True, is_main_process=False)
    assert not (tmp_path / "other" / "btsft_base.json").exists()
    model.add_adapter("more", model.peft_config["default"])
    model.save_pretrained(tmp_path / "more", selected_adapters=["more"])
    assert (tmp_path / "more" / "more" / "adapter_config.json").is_file()


# ---------------------------------------------------------------------------------------------- prompts and pairs


def random_model(tokenizer):
    """A small model for any vocabulary."""
    sizes = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=16,
    )
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes))


@pytest.fixture(scope="module")
def opened():
    """A tokenizer whose generation prompt opens the thought, as R1's newer templates do."""
    tokenizer = bt.load_tokenizer("tiny")
    prompt = "<|im_start|>assistant\n' }}{%- endif %}"
    assert tokenizer.chat_template.endswith(prompt)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        prompt, prompt.replace("\n'", "\n<think>\n'")
    )
    return tokenizer


@pytest.fixture(scope="module", params=[*TOKENIZERS, "opened"])
def as_policy(request):
    """Each tokenizer as `load_policy` gives it: its end of text is the end of a turn."""
    tokenizer = request.getfixturevalue(request.param)
    renderer = bt.Renderer(tokenizer)
    before, tokenizer.eos_token = (
        tokenizer.eos_token,
        tokenizer.convert_ids_to_tokens(renderer.end_id),
    )
    yield tokenizer
    tokenizer.eos_token = before


def test_trl_makes_of_the_texts_what_the_model_samples(as_policy, tmp_path, monkeypatch):
    """In DPO, KTO, ORPO, the reward model and GRPO: prompt ids are the renderer's, a completion ends in one end of
    turn, and its tags are single tokens."""
    # names of cache files; datasets would pickle a vocabulary of 150,000 for each, and these rows have no file
    fingerprints = map(str, itertools.count())
    for module in ("fingerprint", "arrow_dataset"):
        name = f"datasets.{module}.update_fingerprint"
        monkeypatch.setattr(name, lambda *_, **__: next(fingerprints))
    tokenizer, renderer = as_policy, bt.Renderer(as_policy)
    prompt = renderer.prompt_ids(to_prompt(ROWS[0]))
    prefilled = bt.tag_ids(renderer.tokenizer)[0] in prompt
    good, bad = (
        (GOOD.removeprefix("<think>"), "never</think></think> ends") if prefilled else (GOOD, BAD)
    )
    pairs = preference_pairs(sampled(tokenizer, good, bad), ROWS, tokenizer, "format")
    model, given = random_model(tokenizer), dict(train_dataset=pairs, processing_class=tokenizer)
    args, reference = DPOConfig(str(tmp_path), max_length=None, **COMMON), random_model(tokenizer)
    (row,) = DPOTrainer(model, reference, args, **given).train_dataset
    assert row["prompt_ids"] == prompt
    for name, text in (("chosen", good), ("rejected", bad)):
        ids = row[f"{name}_ids"]
        assert tokenizer.decode(ids) == text + renderer.end_of_turn
        assert ids[-1] == renderer.end_id and ids.count(renderer.end_id) == 1
        assert all(
            ids.count(tag) == text.count(own)
            for tag, own in zip(bt.tag_ids(renderer.tokenizer), renderer.tags, strict=True)
        )
    whole = [row["prompt_ids"] + row[f"{name}_ids"] for name in ("chosen", "rejected")]
    kto = KTOTrainer(
        model, reference, KTOConfig(str(tmp_path), max_length=None, **COMMON), **given
    ).train_dataset
    assert [one["prompt_ids"] + one["completion_ids"] for one in kto] == whole and kto["label"] == [
        True,
        False,
    ]
    args = ORPOConfig(str(tmp_path), remove_unused_columns=False, **COMMON)
    assert ORPOTrainer(model, args=args, **given).train_dataset[0]["chosen_input_ids"] == whole[0]
    model.config.num_labels = 1
    judge = Qwen3ForSequenceClassification(model.config)
    reward = RewardTrainer(
        judge, RewardConfig(str(tmp_path), max_length=None, **COMMON), **given
    ).train_dataset[0]
    assert [reward[f"{name}_ids"] for name in ("chosen", "rejected")] == whole
    prompts = prompt_rows(ROWS, tokenizer)
    args = GRPOConfig(str(tmp_path), num_generations=2, per_device_train_batch_size=2, **COMMON)
    grpo = GRPOTrainer(model, Rewards(tokenizer).format, args, prompts, processing_class=tokenizer)
    assert grpo._tokenize_prompts(list(prompts["prompt"]))[0][0] == prompt


def test_prompts_come_with_their_answers(tiny_tokenizer):
    rows = prompt_rows(ROWS, tiny_tokenizer)
    assert rows["answer"] == ["4", "7"] and rows[0]["prompt"].endswith(
        "2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt_rows(["2+2?"], tiny_tokenizer).column_names == ["prompt"]


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (["fine", "a<|im_end|>b"], bt.RowError, r"rows, row 1: as text.*spells a control token"),
        ([{"question": "2+2?"}], bt.RowError, r"rows, row 0.*"),
        ([ROWS[0], "2+2?"], ValueError, r"rows: 1 of 2 rows have no answer, the first is row 1"),
        ([{"question": "2+2?", "answer": " "}], ValueError, r"row 0.*has no answer of the kind"),
    ],
    ids=["control token", "malformed", "some answers", "no answer"],
)
def test_prompts_that_trl_would_read_otherwise_are_refused(tiny_tokenizer, rows, error, words):
    with pytest.raises(error, match=words):
        prompt_rows(rows, tiny_tokenizer)


@pytest.mark.parametrize(
    ("by", "pairs", "left_out"),
    [
        (
            "format",
            [(GOOD, EMPTY), (WRONG, BAD)],
            {"1 cut off", "3 without another to differ from"},
        ),
        (
            "answer",
            [(GOOD, WRONG)],
            {"1 cut off", "2 against the format", "3 without another to differ from"},
        ),
    ],
)
def test_pairs_are_of_what_is_asked(tiny_tokenizer, capsys, by, pairs, left_out):
    """By hand: six samples of one prompt, and two of another that are the same, and right there. All are counted."""
    records = sampled(tiny_tokenizer, GOOD, WRONG, BAD, EMPTY, OTHER) + sampled(
        tiny_tokenizer, GOOD, finished=False
    )
    records += sampled(tiny_tokenizer, WRONG, WRONG, prompt=1)
    rows = [ROWS[0], ROWS[1] | {"answer": "5"}]
    found = preference_pairs(records, rows, tiny_tokenizer, by)
    assert [(row["chosen"], row["rejected"]) for row in found] == [
        tuple(f"{t}<|im_end|>" for t in p) for p in pairs
    ]
    assert {row["prompt"] for row in found} == {prompt_rows(rows, tiny_tokenizer)[0]["prompt"]}
    said = capsys.readouterr().out.strip()
    assert said.startswith(f"{by}: 8 samples of 2 prompts -> {len(pairs)} pairs; left out: ")
    reasons = said.partition("left out: ")[2].split(", ")
    assert set(reasons) == left_out
    assert 2 * len(pairs) + sum(int(reason.partition(" ")[0]) for reason in reasons) == len(records)


def test_no_samples_give_no_pairs(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"format: 0 samples of .* -> 0 pairs"):
        preference_pairs([], ROWS, tiny_tokenizer, "format")


def test_an_equal_pair_comes_once(tiny_tokenizer):
    records = sampled(tiny_tokenizer, GOOD, BAD, BAD, GOOD)
    assert len(preference_pairs(records, ROWS[:1], tiny_tokenizer, "format")) == 1


@pytest.mark.parametrize("name", ["qwen3", "phi-3-mini"])
def test_what_trl_would_tokenize_otherwise_is_left_out(shared, capsys, name):
    """Qwen's prompt ends in a line break, and three are one token; SentencePiece puts a space before what follows a
    tag, which the text of sampled ids has already."""
    tokenizer = bt.load_tokenizer(shared / "tokenizers" / name)
    bt.add_tags(tokenizer)
    renderer = bt.Renderer(tokenizer)
    records = sampled(tokenizer, GOOD, BAD)
    if name == "qwen3":
        records += sampled(tokenizer, "\n\n" + GOOD)
    else:
        (example,) = renderer.examples(bt.to_messages(ROWS[0] | {"answer": GOOD}), "")
        ids = example.input_ids[len(renderer.prompt_ids(to_prompt(ROWS[0]))) :]
        text, _ = renderer.read(ids, renderer.stop_ids())
        records += sampled(tokenizer, text, tokens=len(ids))
    preference_pairs(records, ROWS[:1], tokenizer, "format")
    assert "1 that TRL would tokenize otherwise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("by", "rows", "words"),
    [
        ("rank", ROWS, "by.*'rank'"),
        ("answer", ["2+2?", "3+4?"], "by='answer' needs rows with the field answer"),
        (
            "format",
            ROWS,
            "format: 2 samples of 2 prompts -> 0 pairs; left out: 2 without another.*sample more",
        ),
        ("format", ROWS[1:], r"a sample is of another prompt than rows\[0\]: .*'2\+2\?'"),
    ],
)
def test_what_gives_no_pairs_is_named(tiny_tokenizer, by, rows, words):
    with pytest.raises(ValueError, match=words):
        preference_pairs(sampled(tiny_tokenizer, GOOD, GOOD), rows, tiny_tokenizer, by)


def test_a_sample_of_no_row_is_named(tiny_tokenizer):
    records = sampled(tiny_tokenizer, GOOD, BAD, prompt=1)
    for wrong in (records, [record | {"prompt": 0, "prompt_cut": 2} for record in records]):
        with pytest.raises(ValueError, match="a sample is of another prompt"):
            preference_pairs(
                wrong, ROWS[:1] if wrong is records else ROWS[1:], tiny_tokenizer, "format"
            )


# ---------------------------------------------------------------------------------------------- rewards


def ids_of(tokenizer, text: str, finished: bool = True) -> list[int]:
    return (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        + [bt.Renderer(tokenizer).end_id] * finished
    )


@pytest.mark.parametrize(
    ("text", "options", "problem", "_", "trls"), ADVERSARIAL.values(), ids=ADVERSARIAL
)
def test_the_format_reward_is_strict_where_trls_is_not(
    tiny_tokenizer, text, options, problem, _, trls
):
    """TRL's sees no end, takes an empty thought, no answer and a second close tag, and no open tag in a prompt."""
    prompt = "Q" + "<think>\n" * options.get("prefilled", False)
    ids = ids_of(tiny_tokenizer, text, options.get("finished", True))
    assert Rewards(tiny_tokenizer).format(
        prompts=[prompt], completions=[text], completion_ids=[ids], more=[1]
    ) == [float(problem is None)]
    assert think_format_reward([[{"content": text}]]) == [trls]


def test_conversations_and_tags_that_are_special_tokens(opened, tiny_tokenizer):
    """TRL's text of a completion lacks such tags; a prompt may open the thought."""
    tokenizer = bt.load_tokenizer("tiny")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    ids = ids_of(tokenizer, GOOD)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert think_format_reward([[{"content": text}]]) == [0] and "<think>" not in text
    assert Rewards(tokenizer).format(prompts=["Q"], completion_ids=[ids]) == [1]
    turns = [[{"role": "user", "content": "2+2?"}]]
    rest, whole = GOOD.removeprefix("<think>"), GOOD
    for own, fits, breaks in ((opened, rest, whole), (tiny_tokenizer, whole, rest)):
        assert Rewards(own).format(prompts=turns, completion_ids=[ids_of(own, fits)]) == [1]
        assert Rewards(own).format(prompts=turns, completion_ids=[ids_of(own, breaks)]) == [0]


ANSWERS = {  # completion, reference, ours, TRL's
    "boxed": (r"<think>a</think>\boxed{12}", "12", 1, 1),
    "boxed fraction": (r"<think>a</think>So \boxed{\frac{1}{2}}.", r"\frac{1}{2}", 1, 1),
    "boxed, wrong": (r"<think>a</think>\boxed{13}", "12", 0, 0),
    "a plain number": ("<think>a</think>The answer is 12.", "12", 1, 0),  # TRL's wants LaTeX
    "right in the thought alone": (
        r"<think>\boxed{12}</think>It is 13.",
        "12",
        0,
        1,
    ),  # TRL's takes the first box
    "an equal expression": (
        r"<think>a</think>\boxed{\sqrt{2}/2}",
        r"$\frac{\sqrt{2}}{2}$",
        1,
        1,
    ),
    "text": ("<think>a</think>Paris", "Paris", 1, None),  # TRL's passes over what is no mathematics
}


@pytest.mark.parametrize(("text", "reference", "ours", "trls"), ANSWERS.values(), ids=ANSWERS)
def test_the_accuracy_reward_beside_trls(tiny_tokenizer, text, reference, ours, trls):
    pytest.importorskip("math_verify")
    ids = ids_of(tiny_tokenizer, text)
    assert Rewards(tiny_tokenizer).accuracy(
        prompts=["Q"], completion_ids=[ids], answer=[reference]
    ) == [ours]
    assert accuracy_reward([[{"content": text}]], [reference]) == [trls]


def test_the_diversity_reward_is_within_a_group(tiny_tokenizer):
    """Two alike and one that shares no word, an empty thought, and one alone in its group, which has nothing to be
    compared with: None, which TRL takes for not applicable."""
    texts = [
        f"<think>{thought}</think>4"
        for thought in ("1+1=2 ok", "1+1=2 ok", "Guess four. Yes", "", "1+1=2 ok")
    ]
    prompts, ids = ["Q"] * 4 + ["P"], [ids_of(tiny_tokenizer, text) for text in texts]
    found = Rewards(tiny_tokenizer).diversity(prompts=prompts, completion_ids=ids)
    assert found[0] == found[1] == pytest.approx(0) and found[2] > 0.9 and found[3:] == [0, None]


def test_rewards_in_a_real_on_policy_run(folder, tmp_path):
    """Logged under their names; what TRL hands over are the ids that were sampled, and the column of answers."""
    model, tokenizer = load_policy(folder("4 bits"), dequantize=True)
    rewards, seen = Rewards(tokenizer), []

    def spy(prompts, completion_ids, answer, **_):
        seen.append((prompts, completion_ids, answer))
        return [0.0] * len(prompts)

    settings = dict(
        max_steps=1,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=64,
        beta=0.0,
    )
    funcs = [rewards.format, rewards.accuracy, rewards.diversity, spy]
    args = GRPOConfig(str(tmp_path), **settings, **COMMON)
    rows = prompt_rows(bt.load_rows("tiny/test")[:4], tokenizer)
    trainer = GRPOTrainer(model, funcs, args, rows, processing_class=tokenizer)
    trainer.train()
    ((prompts, ids, answers),) = seen
    assert len(ids) == 8 and set(prompts) <= set(rows["prompt"])
    ended = [own for own in ids if tokenizer.eos_token_id in own]
    assert ended and all(own.index(tokenizer.eos_token_id) == len(own) - 1 for own in ended)
    for func in funcs[:3]:
        wanted = func(prompts=prompts, completion_ids=ids, answer=answers)
        assert logged(trainer, f"rewards/{func.__name__}/mean") == pytest.approx(
            sum(wanted) / 8, abs=1e-6
        )
