"""What the arguments of a run do: references, schedules, units, precision, compilation, noise, optimisers, logs."""

import copy
import math

import pytest
import torch
from batching_worker import LORA, Recorder, adapted_model, examples_of
from torch import Tensor

import btsft_nb as bt

PARTS = ("loss_nll", "loss_anchor", "loss_format")


@pytest.fixture(scope="module")
def messy(tiny_tokenizer):
    return examples_of("messy", tiny_tokenizer)


def trained(folder, data, tokenizer, *, model=None, ref_model=None, eval_dataset=None, **settings):
    """One trainer after its run, with the gradients of the last step as trainer.recorder.gradients."""
    defaults = dict(
        threshold=0.5,
        anchor=1.0,
        beta=0.5,
        per_device_train_batch_size=8,
        max_steps=1,
        logging_steps=1,
    )
    defaults |= dict(save_strategy="no", max_grad_norm=0, disable_tqdm=True, use_cpu=True)
    model = adapted_model()[0] if model is None else model
    config, recorder = bt.BTSFTConfig(str(folder), **(defaults | settings)), Recorder()
    trainer = bt.BTSFTTrainer(
        model,
        config,
        data,
        eval_dataset,
        processing_class=tokenizer,
        ref_model=ref_model,
        callbacks=[recorder],
    )
    trainer.train()
    trainer.recorder = recorder
    return trainer


@pytest.fixture(scope="module")
def plain(tmp_path_factory, messy, tiny_tokenizer):
    """A trainer after one step of `trained` as it is."""
    return trained(tmp_path_factory.mktemp("plain"), messy, tiny_tokenizer)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, wanted in other.items():
        assert (one[name] - wanted).norm() <= tolerance * wanted.norm(), name


# ------------------------------------------------------------------------------------------------ the reference


def test_an_explicit_reference_is_what_switched_off_adapters_are(
    tmp_path, plain, messy, tiny_tokenizer
):
    base, _ = bt.load_model("tiny")
    given = trained(tmp_path, messy, tiny_tokenizer, ref_model=base)
    assert losses(plain) == pytest.approx(losses(given), rel=1e-6)
    assert plain.state.log_history[0]["loss_anchor"] > 1e-5
    assert_close(given.recorder.gradients, plain.recorder.gradients, 1e-5)
    assert all(p.grad is None for p in base.parameters())


def test_full_fine_tuning_anchors_to_an_explicit_reference(tmp_path, messy, tiny_tokenizer):
    base, _ = bt.load_model("tiny")
    moved = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.03 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(0)
            )
    entry = trained(tmp_path, messy, tiny_tokenizer, model=moved, ref_model=base).state.log_history[
        0
    ]
    assert entry["loss_anchor"] > 1e-3


def test_a_reference_may_be_of_another_width(tmp_path, messy, tiny_tokenizer):
    model, _ = adapted_model()
    config = copy.deepcopy(model.config)
    config.hidden_size = 64
    other = type(model.get_base_model())(config)
    trainer = trained(tmp_path, messy, tiny_tokenizer, model=model, ref_model=other)
    assert trainer.state.log_history[0]["loss_anchor"] > 1e-3


# ------------------------------------------------------------------------------------------------ the blur


def blurred_texts(trainer, data, tokenizer) -> list[list[tuple[str, bool]]]:
    """The thought of each example: text and fate of each token, as the trainer draws it now."""
    batch = trainer.data_collator(list(data))
    fate, found = trainer.blur(batch), []
    for ids, kinds, row in zip(batch["input_ids"], batch["kinds"], fate, strict=True):
        at = (kinds == bt.Kind.THINK).nonzero()[:, 0]
        found.append(
            list(zip(bt.token_texts(tokenizer, ids[at].tolist()), row[at].tolist(), strict=True))
        )
    return found


@pytest.mark.parametrize("unit", ["token", "word", "sentence", "thought"])
def test_a_unit_shares_its_fate(tmp_path, tiny_tokenizer, unit):
    """The words, sentences and thoughts of the text are blurred whole or not at all; over many, the share is right."""
    data = bt.prepare(bt.load_rows("tiny/teacher")[:300], tiny_tokenizer)
    trainer = trained(tmp_path, data, tiny_tokenizer, threshold=0.4, unit=unit)
    thoughts = blurred_texts(trainer, data, tiny_tokenizer)
    mixed, units = 0, []
    for thought in thoughts:
        text, fates = "", {}
        for piece, fate in thought:
            end = (
                len((text + piece).rstrip()) - 1
            )  # the last character that is no space says where the token belongs
            text += piece
            key = {
                "token": len(text),
                "word": text[:end].count(" "),
                "sentence": text[:end].count(". "),
                "thought": 0,
            }
            fates.setdefault(key[unit], set()).add(fate)
        mixed += sum(len(found) > 1 for found in fates.values())
        units += [found.copy().pop() for found in fates.values()]
    assert mixed == 0 if unit != "sentence" else mixed <= len(thoughts)
    assert abs(sum(units) / len(units) - 0.4) < 4 * math.sqrt(0.24 / len(units))


def test_the_threshold_moves_linearly_to_its_end(tmp_path, messy, tiny_tokenizer):
    """Logged per step, in effect in the batch, and nested: what was blurred at the lower threshold stays blurred."""
    settings = dict(threshold=0.1, threshold_end=0.9, max_steps=5, resample="never")
    trainer = trained(tmp_path, messy, tiny_tokenizer, per_device_train_batch_size=16, **settings)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["threshold"] for entry in logs] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    shares = [entry["blurred_share"] for entry in logs]
    assert shares == sorted(shares) and shares[0] < 0.25 and shares[-1] > 0.75


# ------------------------------------------------------------------------------------------------ negative weights


@pytest.mark.parametrize("negative", ["nll", "unlikelihood", "floor"])
def test_negative_weights_make_text_less_likely(tmp_path, messy, tiny_tokenizer, negative):
    """Trap 10: in every form; the bounded ones stay above their bounds."""
    data = messy.map(
        lambda example: {"weights": [-1.0 * (kind == bt.Kind.ANSWER) for kind in example["kinds"]]}
    )
    trainer = trained(
        tmp_path,
        data,
        tiny_tokenizer,
        threshold=0,
        anchor=0,
        beta=0,
        max_steps=5,
        learning_rate=1e-2,
        negative=negative,
        negative_floor=4.0,
    )
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["nll_answer"] > logs[0]["nll_answer"] + 1
    bound = {"nll": -math.inf, "unlikelihood": 0.0, "floor": -4.0}[negative]
    assert all(entry["loss"] >= bound for entry in logs)


# ------------------------------------------------------------------------------------------------ ways to train


def test_bfloat16_autocast_is_near_float32(tmp_path, plain, messy, tiny_tokenizer):
    half = trained(tmp_path, messy, tiny_tokenizer, bf16=True)
    assert losses(half) == pytest.approx(losses(plain), rel=0.05) and losses(half) != losses(plain)
    assert_close(half.recorder.gradients, plain.recorder.gradients, 0.2)


def test_full_fine_tuning_under_autocast(tmp_path, messy, tiny_tokenizer):
    """Here accelerate wraps the forward of the very model that ends in our head."""
    model, _ = bt.load_model("tiny")
    plain = trained(tmp_path / "a", messy, tiny_tokenizer, model=copy.deepcopy(model), anchor=0)
    half = trained(tmp_path / "b", messy, tiny_tokenizer, model=model, anchor=0, bf16=True)
    assert losses(half) == pytest.approx(losses(plain), rel=0.05) and losses(half) != losses(plain)
    ids = torch.tensor([messy[0]["input_ids"]])
    assert model(input_ids=ids).logits.shape[:2] == ids.shape


@pytest.mark.parametrize("adapted", [True, False])
def test_a_compiled_model_computes_the_same(tmp_path, messy, tiny_tokenizer, adapted):
    """One layer is enough, and quick to trace."""
    runs = []
    for settings in ({}, dict(torch_compile=True, torch_compile_backend="eager")):
        model = adapted_model()[0] if adapted else bt.load_model("tiny")[0]
        layers = model.get_base_model().model.layers if adapted else model.model.layers
        del layers[1:]
        settings["anchor"] = 1.0 if adapted else 0.0
        runs.append(trained(tmp_path, messy, tiny_tokenizer, model=model, **settings))
    plain, compiled = runs
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    assert_close(compiled.recorder.gradients, plain.recorder.gradients, 1e-4)


def test_noise_on_embeddings_reaches_the_loss_and_not_the_reference(
    tmp_path, messy, tiny_tokenizer
):
    """NEFTune; with adapters that do nothing yet, the anchor is 0 unless the noise moves policy and reference apart."""
    model, _ = bt.load_model("tiny", lora=LORA)
    plain = trained(
        tmp_path / "a", messy, tiny_tokenizer, model=copy.deepcopy(model)
    ).state.log_history[0]
    noisy = trained(
        tmp_path / "b", messy, tiny_tokenizer, model=model, neftune_noise_alpha=5.0
    ).state.log_history[0]
    assert plain["loss_anchor"] == pytest.approx(0, abs=1e-6) and noisy["loss_anchor"] > 1e-5
    assert noisy["loss_nll"] != plain["loss_nll"]


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "adamw_8bit", "lion_8bit"])
def test_optimisers_of_transformers_learn(tmp_path, messy, tiny_tokenizer, optim):
    model, _ = bt.load_model("tiny", lora=LORA)
    rate = 1.0 if optim == "sgd" else 1e-2
    settings = dict(optim=optim, max_steps=8, learning_rate=rate, threshold=0, beta=0, anchor=0)
    found = losses(trained(tmp_path, messy, tiny_tokenizer, model=model, **settings))
    assert sum(found[-3:]) < sum(found[:3])


@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [
        ("linear", [0.0, 1.0, 2 / 3, 1 / 3]),
        ("cosine", None),
    ],
)
def test_schedulers_of_transformers_run(tmp_path, messy, tiny_tokenizer, scheduler, rates):
    settings = dict(
        lr_scheduler_type=scheduler, warmup_steps=1, max_steps=4, learning_rate=1.0, optim="sgd"
    )
    logs = trained(
        tmp_path, messy, tiny_tokenizer, threshold=0, beta=0, anchor=0, **settings
    ).state.log_history
    found = [entry["learning_rate"] for entry in logs if "loss" in entry]
    assert found == pytest.approx(rates) if rates else found[1] > found[2] > found[3] > 0


# ------------------------------------------------------------------------------------------------ logs and evaluation


def test_logs_are_what_the_scores_of_the_model_say(tmp_path, messy, tiny_tokenizer):
    """nll by kind, probabilities of the tags, expected reward and tokens seen, against `score` before the step."""
    model, _ = adapted_model()
    scores = bt.score(model, tiny_tokenizer, list(messy))
    trainer = trained(
        tmp_path, messy, tiny_tokenizer, model=model, per_device_train_batch_size=4, max_steps=4
    )
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    lengths = sum(len(example["input_ids"]) for example in messy)
    assert logs[-1]["tokens_seen"] == lengths and all(
        entry["tokens_per_second"] > 0 for entry in logs
    )
    whole = trained(
        tmp_path, messy, tiny_tokenizer, per_device_train_batch_size=16
    ).state.log_history[0]
    open_id, close_id = bt.tag_ids(tiny_tokenizer)
    by_kind, by_tag = {kind: [] for kind in bt.Kind}, {open_id: [], close_id: []}
    for example, score in zip(messy, scores, strict=True):
        for token, kind, log_p in zip(
            example["input_ids"], example["kinds"], score["log_probs"], strict=True
        ):
            by_kind[kind].append(-log_p)
            if kind == bt.Kind.TAG:
                by_tag[token].append(math.exp(log_p))
    for kind in (bt.Kind.TAG, bt.Kind.THINK, bt.Kind.ANSWER):
        assert whole[f"nll_{kind.name.lower()}"] == pytest.approx(
            sum(by_kind[kind]) / len(by_kind[kind]), rel=1e-4, abs=1e-7
        )
    for token, name in ((open_id, "p_open"), (close_id, "p_close")):
        assert whole[name] == pytest.approx(sum(by_tag[token]) / len(by_tag[token]), rel=1e-4)
    rewards = [score["expected_reward"] for score in scores]
    assert whole["expected_reward"] == pytest.approx(sum(rewards) / len(rewards), rel=1e-4)


def test_evaluation_is_over_the_whole_set(tmp_path, messy, tiny_tokenizer):
    """The same for every batch size, also where batches have unequal counts: not a mean of means."""
    trainer = trained(tmp_path, messy, tiny_tokenizer, eval_dataset=messy)
    results = []
    for size in (16, 3, 1):
        trainer.args.per_device_eval_batch_size = size
        results.append(trainer.evaluate())
    timing = {name for name in results[0] if "second" in name or "time" in name}
    for other in results[1:]:
        for name in set(results[0]) - timing:
            assert other[name] == pytest.approx(results[0][name], rel=1e-5), name
    first = results[0]
    assert first["eval_loss"] == pytest.approx(first["eval_loss_nll"] + first["eval_loss_format"])
    assert (
        first["eval_blurred_share"] == 0
        and first["eval_nll_think"] > 0
        and first["eval_expected_reward"] < 1
    )
