"""The trainer: the batch that the model receives, the gradient under every way of batching, and what a run leaves."""

import json
import math
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback, TrainerState

import btsft_nb as bt
from btsft_nb.training.step_logs import Throughput

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
PARTS = ("loss_nll", "loss_anchor", "loss_format")


@pytest.fixture(scope="module")
def examples(tiny_tokenizer):
    return bt.prepare(bt.load_rows("tiny/teacher")[:16], tiny_tokenizer)


@pytest.fixture(scope="module")
def messy(tiny_tokenizer):
    return bt.prepare(bt.load_rows("tiny/messy")[:16], tiny_tokenizer)


def adapted_model(noise: float = 0.1):
    """The embedded model with LoRA layers that already do something: neither anchor nor format term is 0."""
    model, _ = bt.load_model("tiny", lora=LORA)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = noise * torch.randn(parameter.shape, generator=generator)
    return model


class Recorder(TrainerCallback):
    """Keeps the gradients of each optimiser step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        )


def make_trainer(folder, model, data, tokenizer, callbacks=(), **settings):
    defaults = dict(
        anchor=0,
        beta=0.05,
        max_steps=1,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        max_grad_norm=0,
    )
    config = bt.BTSFTConfig(str(folder), disable_tqdm=True, **(defaults | settings))
    return bt.BTSFTTrainer(
        model, config, data, processing_class=tokenizer, callbacks=list(callbacks)
    )


def received_batches(trainer) -> list[dict]:
    """Trains and keeps a copy of each batch as compute_loss gets it."""
    batches, compute_loss = [], trainer.compute_loss

    def keep(model, inputs, **kwargs):
        batches.append(
            {name: value.clone() for name, value in inputs.items()} | {"training": model.training}
        )
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = keep
    trainer.train()
    return batches


def blurred_by_key(batches: list[dict]) -> list[tuple[int, list[int]]]:
    """(example key, positions blurred) of every row of every batch, sorted."""
    rows = [
        (key, row)
        for batch in batches
        for key, row in zip(batch["keys"].tolist(), batch["blurred"], strict=True)
    ]
    return sorted((key, row.nonzero().flatten().tolist()) for key, row in rows)


@pytest.mark.parametrize("resample", ["epoch", "never"])
def test_the_batch_that_the_model_receives_carries_the_blur(
    tmp_path, examples, tiny_tokenizer, resample
):
    """Trap 1: in every epoch exactly the tokens whose draw is below the threshold are blurred, and no label is lost."""
    settings = dict(
        threshold=0.5,
        beta=0,
        resample=resample,
        keep_first=2,
        max_steps=-1,
        num_train_epochs=2,
        seed=7,
    )
    trainer = make_trainer(tmp_path, adapted_model(), examples, tiny_tokenizer, **settings)
    batches = received_batches(trainer)
    assert len(batches) == 4
    for epoch, chunk in enumerate((batches[:2], batches[2:])):
        drawn_in = epoch if resample == "epoch" else 0
        expected = []
        for example in examples:
            key = bt.example_key(example["id"])
            u = bt.draws(example["kinds"], key, 7, drawn_in, keep_first=2)
            expected.append((key, [i for i, draw in enumerate(u) if draw < 0.5]))
        assert blurred_by_key(chunk) == sorted(expected)
    assert all((batch["labels"][batch["weights"] != 0] != -100).all() for batch in batches)


def test_the_blur_does_not_depend_on_batching_or_workers(tmp_path, examples, tiny_tokenizer):
    """Trap 7: the same draws with other batch sizes, two worker processes, and a resumed run."""
    found = []
    for i, settings in enumerate(
        [
            dict(per_device_train_batch_size=16),
            dict(per_device_train_batch_size=4, gradient_accumulation_steps=2),
            dict(
                per_device_train_batch_size=8,
                dataloader_num_workers=2,
                dataloader_persistent_workers=True,
            ),
        ]
    ):
        settings = dict(threshold=0.4, beta=0, max_steps=-1, num_train_epochs=2) | settings
        trainer = make_trainer(
            tmp_path / str(i), adapted_model(), examples, tiny_tokenizer, **settings
        )
        found.append(blurred_by_key(received_batches(trainer)))
    assert found[0] == found[1] == found[2]


def test_evaluation_is_never_blurred(tmp_path, examples, tiny_tokenizer):
    config = bt.BTSFTConfig(
        str(tmp_path),
        threshold=1.0,
        anchor=0,
        beta=0,
        per_device_eval_batch_size=16,
        disable_tqdm=True,
    )
    trainer = bt.BTSFTTrainer(
        adapted_model(), config, examples, eval_dataset=examples, processing_class=tiny_tokenizer
    )
    loss = trainer.evaluate()["eval_loss"]
    scores = bt.score(trainer.model, tiny_tokenizer, examples)
    weights = [torch.tensor(example["weights"]) for example in examples]
    total = -sum(
        (w * torch.from_numpy(s["log_probs"])).sum() for w, s in zip(weights, scores, strict=True)
    )
    assert loss == pytest.approx(
        total.item() / sum((w != 0).sum().item() for w in weights), rel=1e-4
    )


def test_accumulation_changes_nothing(tmp_path, messy, tiny_tokenizer):
    """Trap 2: loss and gradient of 8 x 1 equal those of 4 x 2, 2 x 4 and 1 x 8, with blur, anchor and reward."""
    seen = []
    for size in (8, 4, 2, 1):
        recorder = Recorder()
        settings = dict(per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        settings |= dict(threshold=0.5, anchor=1.0, beta=0.5)
        trainer = make_trainer(
            tmp_path / str(size), adapted_model(), messy, tiny_tokenizer, [recorder], **settings
        )
        trainer.train()
        seen.append((trainer.state.log_history[0]["loss"], recorder.gradients[0]))
    loss, gradient = seen[0]
    for other_loss, other_gradient in seen[1:]:
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for name, value in gradient.items():
            scale = value.abs().max()
            assert scale > 0, name
            assert (other_gradient[name] - value).abs().max() <= 1e-4 * scale, name


def test_a_batch_with_nothing_supervised_gives_a_zero_gradient(tmp_path, examples, tiny_tokenizer):
    """Trap 4: zero, connected to every trainable parameter, and not NaN."""
    silent = examples.map(lambda example: {"weights": [0.0] * len(example["weights"])})
    recorder = Recorder()
    make_trainer(
        tmp_path, adapted_model(), silent, tiny_tokenizer, [recorder], threshold=0.5, beta=0
    ).train()
    assert recorder.gradients[0]
    assert all((gradient == 0).all() for gradient in recorder.gradients[0].values())


def test_the_dials_reach_the_gradient(tmp_path, messy, tiny_tokenizer):
    """Our reason to exist: threshold, anchor and beta each change the gradient."""
    gradients = []
    model = adapted_model(noise=0.3)
    for i, dials in enumerate(
        [
            dict(threshold=0, beta=0),
            dict(threshold=0.5, beta=0),
            dict(threshold=0.5, beta=0, anchor=1.0),
            dict(threshold=0, beta=0.5),
        ]
    ):
        recorder = Recorder()
        make_trainer(
            tmp_path / str(i), model, messy, tiny_tokenizer, [recorder], learning_rate=0, **dials
        ).train()
        gradients.append(torch.cat([g.flatten() for g in recorder.gradients[0].values()]))
    plain, blurred, anchored, rewarded = gradients
    for one, other in ((plain, blurred), (blurred, anchored), (plain, rewarded)):
        assert (one - other).norm() > 0.05 * one.norm()


def test_weights_move_tokens(tmp_path, tiny_tokenizer):
    """Trap 10: weight 1 makes a text more likely, -1 less likely, and 0 leaves it about where it was."""
    text = "Ann has a box of shells."

    def change(weight: float) -> float:
        blocks = [
            {"type": "text", "text": text, "weight": weight},
            {"type": "text", "text": " Yes."},
        ]
        turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": blocks}]
        data = bt.prepare([{"messages": turns}], tiny_tokenizer)
        chosen = [kind == bt.Kind.ANSWER for kind in data[0]["kinds"]].index(True)
        span = slice(chosen, chosen + len(tiny_tokenizer(text)["input_ids"]))
        model, _ = bt.load_model("tiny", lora=LORA)
        before = bt.score(model, tiny_tokenizer, data)[0]["log_probs"][span].sum()
        settings = dict(threshold=0, beta=0, max_steps=5, learning_rate=1e-3)
        make_trainer(tmp_path / str(weight), model, data, tiny_tokenizer, **settings).train()
        return bt.score(model, tiny_tokenizer, data)[0]["log_probs"][span].sum() - before

    up, still, down = change(1), change(0), change(-1)
    assert up > 1 and down < -1
    assert abs(still) < min(up, -down) / 2


def test_the_end_of_turn_is_learnt_where_it_is_also_the_padding(tmp_path, tiny_tokenizer):
    """Trap 6: a random model learns to stop although pad == eos."""
    tokenizer = bt.load_tokenizer("tiny")
    tokenizer.pad_token = tokenizer.eos_token
    answers = ["<think>yes.</think>ok", "<think>yes.</think>ok ok ok ok"]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{i}"},
                {"role": "assistant", "content": answers[i % 2]},
            ]
        }
        for i in range(8)
    ]
    sizes = dict(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=32,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
    data = bt.prepare(rows, tokenizer)
    settings = dict(threshold=0, beta=0, max_steps=60, learning_rate=1e-2, logging_steps=60)
    make_trainer(tmp_path, model, data, tokenizer, **settings).train()
    samples = bt.sample(model, tokenizer, rows, n=1, temperature=0, max_new_tokens=30)
    assert [s["finished"] for s in samples] == [True] * 8
    assert {s["text"] for s in samples} <= set(answers)


def test_training_after_sampling_learns_as_before(tmp_path, examples, tiny_tokenizer):
    """bitsandbytes repacks 4-bit layers on some CPUs when they run without gradients; ours must not change."""
    gradients = []
    for sampled_first in (False, True):
        model, _ = bt.load_model("tiny", qlora=True)
        if sampled_first:
            bt.sample(model, tiny_tokenizer, ["How many?"], n=2, max_new_tokens=4)
        recorder = Recorder()
        settings = dict(threshold=0.5, anchor=1.0)
        make_trainer(
            tmp_path / str(sampled_first), model, examples, tiny_tokenizer, [recorder], **settings
        ).train()
        gradients.append(torch.cat([g.flatten() for g in recorder.gradients[0].values()]))
    assert gradients[0].norm() > 0
    assert torch.equal(*gradients)


def test_a_run_reloads_bit_for_bit(tmp_path, examples, tiny_tokenizer):
    """The folder holds all that is needed, no path of this machine in the adapter, and gives the same logits."""
    model, _ = bt.load_model("tiny", qlora=True)
    settings = dict(threshold=0.5, anchor=1.0, max_steps=3, learning_rate=1e-2)
    make_trainer(tmp_path / "run", model, examples, tiny_tokenizer, **settings).train()
    again, tokenizer = bt.load_model(tmp_path / "run")
    ids = torch.tensor([examples[0]["input_ids"]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)
        with model.disable_adapter():
            assert not torch.equal(again(ids).logits, model(ids).logits)
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    assert (
        json.loads((tmp_path / "run" / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]
        == "tiny"
    )
    config = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert (config["threshold"], config["anchor"]) == (0.5, 1.0)
    assert json.loads((tmp_path / "run" / "data_report.json").read_text())["kept"] == 16


def test_logs_add_up(tmp_path, messy, tiny_tokenizer):
    """Each log has the loss in three parts that sum to it, nll by kind, the blurred share and both rewards."""
    settings = dict(
        threshold=0.5,
        anchor=1.0,
        beta=0.5,
        max_steps=4,
        logging_steps=2,
        gradient_accumulation_steps=2,
    )
    settings |= dict(per_device_train_batch_size=4)
    trainer = make_trainer(tmp_path, adapted_model(), messy, tiny_tokenizer, **settings)
    trainer.train()
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert history == trainer.state.log_history
    logs = [entry for entry in history if "loss" in entry]
    trainer.train()  # once more, as a notebook cell may be run again
    again = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [entry["step"] for entry in again[-2:]] == [2, 4]
    logs += again[-2:]
    for entry in logs:
        assert sum(entry[part] for part in PARTS) == pytest.approx(entry["loss"], rel=1e-4)
        assert all(entry[part] > 0 for part in PARTS)
        assert {"nll_tag", "nll_think", "nll_answer", "grad_norm", "learning_rate"} <= set(entry)
        assert 0.3 < entry["blurred_share"] < 0.7
        assert 0 < entry["expected_reward"] < 1 and entry["format_reward"] in [
            i / 16 for i in range(17)
        ]


def test_the_anchor_needs_adapters(tmp_path, examples, tiny_tokenizer):
    model, _ = bt.load_model("tiny")
    with pytest.raises(ValueError, match=r"anchor=1.0 needs a reference.*qlora=True"):
        make_trainer(tmp_path, model, examples, tiny_tokenizer, anchor=1.0)


def test_a_data_set_without_weights_is_refused(tmp_path, examples, tiny_tokenizer):
    with pytest.raises(ValueError, match=r"lacks the columns \['kinds', 'weights'\].*prepare"):
        data = examples.remove_columns(["weights", "kinds"])
        make_trainer(tmp_path, adapted_model(), data, tiny_tokenizer)


def test_full_fine_tuning_and_gradient_checkpointing(tmp_path, examples, tiny_tokenizer):
    """Without adapters too; gradient checkpointing gives the same gradient."""
    gradients = []
    for checkpointing in (False, True):
        model, _ = bt.load_model("tiny")
        recorder = Recorder()
        settings = dict(gradient_checkpointing=checkpointing, threshold=0.5)
        make_trainer(
            tmp_path / str(checkpointing), model, examples, tiny_tokenizer, [recorder], **settings
        ).train()
        gradients.append(recorder.gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
    again, _ = bt.load_model(tmp_path / "False")
    assert all(math.isfinite(parameter.sum()) for parameter in again.parameters())


OFFLINE = """
import sys
tried = []
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect") and "127.0.0.1" not in str(arguments):
        tried.append((event, arguments))
sys.addaudithook(watch)
import btsft_nb as bt
folder, tracker = sys.argv[1:]
how = dict(anchor=1.0, max_steps=2, logging_steps=1, per_device_train_batch_size=2, disable_tqdm=True)
how |= dict(report_to=tracker, project="mine", run_name="one")
trainer = bt.finetune(bt.read_settings(model="tiny", data="tiny/teacher", output_dir=folder, **how))
model, tokenizer = bt.load_model(folder)
bt.sample(model, tokenizer, ["How many?"], n=1, max_new_tokens=4)
bt.score(model, tokenizer, trainer.train_dataset.select(range(1)))
if tracker == "trackio":
    from trackio.sqlite_storage import SQLiteStorage
    logged = [log["train/loss"] for log in SQLiteStorage.get_logs("mine", "one") if "train/loss" in log]
    assert logged == [log["loss"] for log in trainer.state.log_history if "loss" in log], logged
assert not tried, tried
"""


def test_the_embedded_model_needs_no_network(tmp_path):
    """Load, train, save, reload and sample: not one look-up or connection, although the Hub is not switched off.

    With trackio, what was logged is read back from its store on this machine.
    """
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment["TRACKIO_DIR"] = str(tmp_path / "store")
    tracker = "trackio" if find_spec("trackio") else "none"
    command = [sys.executable, "-c", OFFLINE, str(tmp_path / "run"), tracker]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert tracker == "none" or any((tmp_path / "store").rglob("mine*"))


def test_a_model_without_trainable_parameters_is_refused(tmp_path, examples, tiny_tokenizer):
    """A run folder loads for inference; training it on needs to be asked for."""
    model = adapted_model().requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing to train.*qlora=True"):
        make_trainer(tmp_path, model, examples, tiny_tokenizer)


def test_curves_outside_a_notebook_draw_nothing(tmp_path, examples, tiny_tokenizer):
    make_trainer(
        tmp_path, adapted_model(), examples, tiny_tokenizer, [bt.LiveCurves("run")], max_steps=2
    ).train()


def test_tensorboard_writes_and_no_key_is_stored(tmp_path, monkeypatch, examples, tiny_tokenizer):
    monkeypatch.setenv("HF_TOKEN", "hf_plantedsecret")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    settings = dict(report_to="tensorboard")
    make_trainer(tmp_path / "run", adapted_model(), examples, tiny_tokenizer, **settings).train()
    assert list(tmp_path.glob("**/events.out.*"))
    assert not holds_secret(tmp_path / "run")


def test_each_training_has_a_wandb_run_of_its_own(tmp_path, monkeypatch, examples, tiny_tokenizer):
    """Though one process makes several; one in the same folder goes on in its own. Trap 16: nothing is asked for."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_TOKEN", "hf_plantedsecret")
    seen = []
    for name in ("one", "two", "two"):
        settings = dict(report_to="wandb", project="mine", run_name=name)
        make_trainer(tmp_path / name, adapted_model(), examples, tiny_tokenizer, **settings).train()
        seen.append((wandb.run.id, wandb.run.name, wandb.run.project))
    assert wandb.run.offline and list(Path(wandb.run.dir).parent.glob("*.wandb"))
    wandb.finish()
    assert [run[1:] for run in seen] == [(name, "mine") for name in ("one", "two", "two")]
    assert seen[0][0] != seen[1][0] == seen[2][0]
    assert not holds_secret(tmp_path / "one")


def holds_secret(folder: Path) -> bool:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return any(b"plantedsecret" in file.read_bytes() for file in files)


def test_a_training_ends_in_one_line(tmp_path, capsys, examples, tiny_tokenizer):
    """It names the folder, with and without a bar."""
    for quiet in (False, True):
        trainer = make_trainer(tmp_path / "run", adapted_model(), examples, tiny_tokenizer)
        trainer.args.disable_tqdm = quiet
        trainer.train()
        lines = [line for line in capsys.readouterr().out.splitlines() if "->" in line]
        loss = trainer.state.log_history[0]["loss"]
        seconds = trainer.state.log_history[-1]["train_runtime"]
        told = f"run: 1 steps, {seconds:.0f} s, loss {loss:.3g} -> {tmp_path / 'run'}"
        assert lines == [told]


def test_a_clock_that_stands_still_is_no_error(monkeypatch):
    """Windows' has not moved after a step of the tiny model (bug 18)."""
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)
    state = TrainerState(num_input_tokens_seen=10)
    throughput = Throughput(state)
    assert throughput.tokens_per_second(state) == 0
    state.num_input_tokens_seen = 30
    assert throughput.tokens_per_second(state) > 0


def test_the_clock_leaves_out_pauses(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    throughput = Throughput(TrainerState())
    throughput.pause(6)
    monkeypatch.setattr(time, "perf_counter", lambda: 110.0)
    assert throughput.tokens_per_second(TrainerState(num_input_tokens_seen=80)) == 20


def test_what_would_store_a_token_is_refused(tmp_path):
    for unsafe in (dict(hub_token="hf_secret"), dict(push_to_hub=True)):
        with pytest.raises(ValueError, match=r"push the folder.*HF_TOKEN") as caught:
            bt.BTSFTConfig(str(tmp_path), **unsafe)
        assert "hf_secret" not in str(caught.value)
