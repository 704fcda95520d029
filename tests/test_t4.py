"""Ten ways in which fine-tuning breaks on a free T4 elsewhere, and the test that holds each here.

1. What trains is in half precision, and fp16 refuses to unscale it: here, and
   test_models::test_adapters_are_float32_on_weights_in_half_precision.
2. bfloat16 is left in a float16 model: here.
3. An infinite loss goes on, and the log leaves it out: here.
4. The card claims bfloat16, emulated: here; what follows from it: test_hardware.
5. torchao 0.10 beside PEFT: here, to the merge; the real one: test_colab.
6. bitsandbytes does not load: test_t4_setup.
7. Settings that transformers 5 dropped: test_t4_setup.
8. The install cell moves torch, numpy or transformers: test_colab::test_the_install_cell_moves_nothing, where torch is
   not Colab's; for that one test_t4_setup.
9. A tokenizer's class that only transformers 5 knows: test_t4_setup.
10. An adapter on a tied matrix, merged: test_t4_setup; rows of new tags in one: "smollm" and "gemma2" of
    test_architectures::test_what_was_trained_is_what_is_reloaded_and_merged.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_architectures import FAMILIES, SMALL, without_tags
from transformers import AutoModelForCausalLM, Qwen3_5TextConfig
from transformers.trainer_utils import get_last_checkpoint

import btsft_nb as bt
from btsft_nb.models import load
from btsft_nb.models.config import ModelConfig
from btsft_nb.models.hardware import Hardware, choose_dtype, detect
from btsft_nb.models.tokenizer import TINY

T4 = Hardware("cuda", "Tesla T4", bf16=False)
HALF = ["float16", "bfloat16"]
# Qwen3.5 has layers of another kind, in which bfloat16 met float16 elsewhere
HEADS = {"linear_num_key_heads": 4, "linear_num_value_heads": 4}
LINEAR = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_hidden_layers": 4} | HEADS
FAMILIES = FAMILIES | {"qwen3.5": (Qwen3_5TextConfig, SMALL | LINEAR)}


def base(folder: Path, dtype: str, family: str = "smollm", tags: bool = False) -> Path:
    """A small model as one comes from the Hub, by default without think tags."""
    config, sizes, *_ = FAMILIES[family]
    tokenizer = bt.load_tokenizer("tiny")
    if not tags:
        tokenizer = without_tags(tokenizer)
    torch.manual_seed(0)
    ids = dict(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=None, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config(**sizes, **ids), dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trainer_of(model, tokenizer, folder, rows=4, **settings):
    examples = bt.prepare(bt.load_rows("tiny/teacher")[:rows], tokenizer)
    defaults = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 2}
    config = bt.BTSFTConfig(str(folder), **defaults | {"disable_tqdm": True} | settings)
    return bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer)


def trained_dtypes(model) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}


def dtypes(model) -> set[torch.dtype]:
    """Of all tensors, and of what 4-bit weights are to be computed in."""
    tensors = [*model.parameters(), *model.buffers()]
    quantised = [tensor.quant_state for tensor in tensors if hasattr(tensor, "quant_state")]
    return {tensor.dtype for tensor in tensors} | {state.dtype for state in quantised}


# ---------------------------------------------------------------- 1. what trains is float32


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
@pytest.mark.parametrize("dtype", HALF)
def test_what_trains_is_float32_at_the_start_and_after_a_resume(tmp_path, dtype, method):
    """On weights in half precision, from a checkpoint in half precision, and in a run folder that is trained on."""
    settings = {"anchor": 0.0} if method == "full" else {}
    config = ModelConfig(str(base(tmp_path / "base", dtype)), method=method)
    if method != "full":
        config.dtype = dtype
    trainer = trainer_of(*bt.load_model(config), tmp_path / "run", **settings)
    assert trained_dtypes(trainer.model) == {torch.float32}
    trainer.train()
    name = "model" if method == "full" else "adapter_model"
    for place in ("run", "run/checkpoint-1"):
        file = tmp_path / place / f"{name}.safetensors"
        half = {key: value.to(getattr(torch, dtype)) for key, value in load_file(file).items()}
        save_file(half, file, {"format": "pt"})
    again = trainer_of(*bt.load_model(config), tmp_path / "run", **settings)
    again.train(str(tmp_path / "run" / "checkpoint-1"))
    assert again.state.global_step == 2 and trained_dtypes(again.model) == {torch.float32}
    run = ModelConfig(str(tmp_path / "run"), method=method)
    assert trained_dtypes(bt.load_model(run)[0]) == {torch.float32}


@pytest.mark.parametrize("dtype", HALF)
def test_weights_that_would_train_in_half_precision_are_refused(tmp_path, tiny_tokenizer, dtype):
    """Of a model that was loaded elsewhere; transformers 5 takes the checkpoint's type."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=getattr(torch, dtype))
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    words = rf"weight trains in torch\.{dtype}; load it in torch\.float32"
    with pytest.raises(ValueError, match=words):
        trainer_of(model, tiny_tokenizer, tmp_path, anchor=0.0)
    with pytest.raises(ValueError, match=words):
        adapted = get_peft_model(model, lora, autocast_adapter_dtype=False)
        trainer_of(adapted, tiny_tokenizer, tmp_path)
    with pytest.raises(ValueError, match=rf"^dtype='{dtype}' cannot hold small updates"):
        choose_dtype(dtype, detect(), "full")


# ---------------------------------------------------------------- 2. no bfloat16 in a float16 model


@pytest.mark.parametrize("method", ["qlora", "lora"])
@pytest.mark.parametrize("family", ["smollm", "qwen3", "qwen3.5", "gemma2"])
def test_no_bfloat16_is_left_on_a_card_without_it(tmp_path, monkeypatch, family, method):
    """From a checkpoint in bfloat16, to train and to sample, and in a run that was trained in bfloat16."""
    folder = base(tmp_path / "base", "bfloat16", family)
    config = ModelConfig(str(folder), method=method, dtype="bfloat16")
    model, tokenizer = bt.load_model(config)
    assert torch.bfloat16 in dtypes(model)
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    load.record_base(tmp_path / "run", model)
    monkeypatch.setattr(load, "detect", lambda: T4)
    for name in (ModelConfig(str(folder), method=method), folder, tmp_path / "run"):
        model, _ = bt.load_model(name)
        assert torch.bfloat16 not in dtypes(model) and torch.float16 in dtypes(model)
        assert model.config.dtype == torch.float16
        with torch.no_grad(), torch.autocast("cpu", torch.float16):
            assert model(input_ids=torch.arange(9)[None]).logits.isfinite().all()


# ---------------------------------------------------------------- 3. an infinite loss


def spoil(model, examples, row, value):
    """From now on one row's hidden states are `value`: what an overflow in float16 leaves."""
    ids = examples[row]["input_ids"]

    def hook(module, arguments, output):
        same = [row[: len(ids)] == ids for row in arguments[0].tolist()]
        return output.masked_fill(torch.tensor(same)[:, None, None], value)

    model.get_input_embeddings().register_forward_hook(hook)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("row", [4, 6])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, row, value):
    """With the step and the rows of its micro-batch, the first or the last of the step, before the weights change."""
    model, tokenizer = bt.load_model("tiny", qlora=True)
    order = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": 2}
    trainer = trainer_of(model, tokenizer, tmp_path, rows=8, **order)
    examples = trainer.train_dataset
    spoil(model, examples, row, value)
    names = ", ".join(examples["id"][row : row + 2])
    words = f"^step 2: the loss is infinite or NaN in a batch of the rows {names}; lower "
    with pytest.raises(FloatingPointError, match=words):
        trainer.train()
    saved = load_file(Path(get_last_checkpoint(tmp_path), "adapter_model.safetensors"))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, saved[name.replace(".default", "")])
    assert trainer.state.global_step == 1


def test_a_gradient_that_overflows_does_not_stop_a_run(tmp_path):
    """The loss scaling of fp16 begins so: it leaves out the step, and halves its scale."""
    trainer = trainer_of(*bt.load_model("tiny", qlora=True), tmp_path, max_steps=3)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    adapter = next(p for p in trainer.model.parameters() if p.requires_grad)
    steps = []

    def hook(gradient):
        steps.append(trainer.state.global_step)
        return gradient * torch.inf if len(steps) == 1 else gradient

    adapter.register_hook(hook)
    trainer.train()
    assert steps == [0, 1, 2] and trainer.accelerator.scaler.get_scale() == 2.0**15
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


TWO_PROCESSES = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
import btsft_nb as bt
from test_t4 import spoil, trainer_of

torch.set_num_threads(1)
model, tokenizer = bt.load_model("tiny", qlora=True)
one = {"use_cpu": True, "per_device_train_batch_size": 1, "max_steps": 3}
one["train_sampling_strategy"] = "sequential"
trainer = trainer_of(model, tokenizer, sys.argv[1], rows=8, **one)
spoil(model, trainer.train_dataset, 5, torch.inf)
try:
    trainer.train()
except FloatingPointError as error:
    rank = trainer.args.process_index
    open(f"{sys.argv[1]}/rank{rank}", "w").write(f"{trainer.train_dataset['id'][5]} | {error}")
"""


def test_all_processes_stop_and_name_the_row(tmp_path):
    """The one of them that has it, and the other."""
    (tmp_path / "worker.py").write_text(TWO_PROCESSES)
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [
        sys.executable,
        "-m",
        *launch,
        tmp_path / "worker.py",
        tmp_path,
        Path(__file__).parent,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    texts = [(tmp_path / f"rank{rank}").read_text() for rank in range(2)]
    row, _, error = texts[0].partition(" | ")
    assert error.startswith("step 3: ") and f" in a batch of the rows {row}; lower " in error
    assert texts[1] == texts[0]


# ---------------------------------------------------------------- 4. a card that emulates bfloat16


def test_a_card_that_only_emulates_bfloat16_is_not_given_it(tmp_path, monkeypatch):
    """As torch speaks of a T4: bfloat16 is supported, unless emulation does not count."""
    cuda = {
        "is_available": lambda: True,
        "get_device_name": lambda: "Tesla T4",
        "is_bf16_supported": lambda including_emulation=True: including_emulation,
    }
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
    for method in ("qlora", "lora", None):
        assert choose_dtype("auto", detect(), method, torch.bfloat16) == torch.float16
    for name in ("bf16", "bf16_full_eval"):
        with pytest.raises(ValueError, match=r"^bf16=True: Tesla T4 has no bfloat16"):
            bt.BTSFTConfig(str(tmp_path), **{name: True})


# ---------------------------------------------------------------- 5. an old torchao


BESIDE_TORCHAO = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
from peft.import_utils import is_torchao_available
import btsft_nb as bt
from btsft_nb.models.config import ModelConfig
from btsft_nb.training.export import merge
from test_t4 import trainer_of

try:
    sys.exit(f"PEFT takes it: {is_torchao_available()}")
except ImportError as error:
    print(error)
config = ModelConfig("tiny", method="lora", lora_r=4)
folder = sys.argv[1] + "/run"
trainer_of(*bt.load_model(config), folder).train()
trainer_of(*bt.load_model(config), folder).train(folder + "/checkpoint-1")
ids = torch.arange(5, 45)[None]
want = bt.load_model(folder)[0](input_ids=ids).logits
got = bt.load_model(merge(folder, sys.argv[1] + "/merged", dtype="float32"))[0](input_ids=ids).logits
torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
"""


def test_a_torchao_that_peft_refuses_stops_no_resume_reload_or_merge(tmp_path):
    """0.10, as it stands in Colab, where PEFT asks for a newer one."""
    info = tmp_path / "site" / "torchao-0.10.0.dist-info"
    for path in (info, tmp_path / "site" / "torchao"):
        path.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n")
    (tmp_path / "site" / "torchao" / "__init__.py").write_text("__version__ = '0.10.0'\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", BESIDE_TORCHAO, tmp_path, Path(__file__).parent]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "incompatible version of torchao" in done.stdout, done.stderr
