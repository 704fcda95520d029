"""What stands around a run on a T4: packages, the names of settings, tokenizers, adapters that are merged.

The second half of the ten ways that test_t4 lists.
"""

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import bitsandbytes
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_colab import pinned
from test_t4 import base, trainer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

import btsft_nb as bt
from btsft_nb.checks import _TRANSFORMERS_4
from btsft_nb.models.config import ModelConfig
from btsft_nb.models.hardware import check_bitsandbytes
from btsft_nb.training.export import merge

ROOT = Path(__file__).parent.parent

# ---------------------------------------------------------------- 6. bitsandbytes


WITHOUT_BITSANDBYTES = """
import sys
sys.path.insert(0, sys.argv[2])
import btsft_nb as bt
from btsft_nb.models.config import ModelConfig
from test_t4 import trainer_of

try:
    bt.load_model("tiny", qlora=True)
except ImportError as error:
    print(error)
trainer_of(*bt.load_model(ModelConfig("tiny", method="lora")), sys.argv[1]).train()
bt.load_model(sys.argv[1])
"""


def test_bitsandbytes_that_cannot_be_imported_offers_lora(tmp_path):
    """And lora then trains and reloads: PEFT, left to itself, imports what is installed for plain layers, too."""
    site = tmp_path / "site"
    for path in (site / "bitsandbytes", site / "bitsandbytes-0.49.2.dist-info"):
        path.mkdir(parents=True)
    missing = "libnvJitLink.so.13: cannot open shared object file"
    (site / "bitsandbytes" / "__init__.py").write_text(f"raise ImportError({missing!r})\n")
    metadata = site / "bitsandbytes-0.49.2.dist-info" / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: bitsandbytes\nVersion: 0.49.2\n")
    command = [sys.executable, "-c", WITHOUT_BITSANDBYTES, tmp_path / "run", Path(__file__).parent]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    error = (
        f"bitsandbytes does not work here ({missing}); use method='lora', or mend it and restart"
    )
    assert error in done.stdout


def test_bitsandbytes_without_its_library_for_the_gpu_offers_lora(monkeypatch):
    """It can be imported then, with a stand-in that raises at the first weight. On a CPU there is nothing to miss."""
    missing = "libnvJitLink.so.13: cannot open shared object file"
    extension = bitsandbytes.cextension
    stand_in = extension.ErrorHandlerMockBNBNativeLibrary(missing)
    monkeypatch.setattr(extension, "lib", stand_in)
    check_bitsandbytes("qlora")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ImportError, match=rf"\({missing}\); use method='lora'"):
        check_bitsandbytes("qlora")
    check_bitsandbytes("lora")


# ---------------------------------------------------------------- 7. names of transformers 4


@pytest.mark.parametrize(
    ("name", "value", "today"),
    [
        ("evaluation_strategy", "steps", ", did you mean 'eval_strategy'?"),
        ("warmup_ratio", 0.1, ", did you mean 'warmup_steps'?"),
        ("per_gpu_train_batch_size", 4, ", did you mean 'per_device_train_batch_size'?"),
        ("logging_dir", "logs", ": it is the variable TENSORBOARD_LOGGING_DIR today"),
        (
            "group_by_length",
            True,
            ": it is train_sampling_strategy='group_by_length' today",
        ),
        ("no_cuda", True, ": it is use_cpu today"),
        ("save_safetensors", True, ": it is nothing to set today"),
    ],
)
def test_a_name_that_transformers_5_dropped_is_named(tmp_path, name, value, today):
    """In Python and in a file, with what to write in its place."""
    text = f"unknown setting {name!r}{today}"
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"model": "tiny", "data": "tiny/teacher", name: value}))
    with pytest.raises(ValueError) as error:
        bt.BTSFTConfig(str(tmp_path), **{name: value})
    assert str(error.value) == text
    with pytest.raises(ValueError) as error:
        bt.read_settings(file)
    assert str(error.value) == f"{file}: {text}"


def test_the_command_line_names_it_too():
    line = [sys.executable, "-m", "btsft_nb", "prepare", "model=tiny", "no_cuda=yes"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode and "unknown setting 'no_cuda': it is use_cpu today" in done.stderr


def test_what_stands_for_a_dropped_name_exists():
    """And the dropped name does not."""
    known = {field.name for field in fields(bt.BTSFTConfig)}
    assert not known & _TRANSFORMERS_4.keys()
    today = {text.partition("=")[0] for text in _TRANSFORMERS_4.values() if text}
    assert today - known == {"processing_class", "the variable TENSORBOARD_LOGGING_DIR"}
    config = bt.BTSFTConfig(
        "runs/x", train_sampling_strategy="group_by_length", optim="adafactor", warmup_steps=0.1
    )
    assert config.get_warmup_steps(200) == 20  # a share, as warmup_ratio was


def test_the_trainers_tokenizer_is_named(tmp_path, tiny_tokenizer):
    model, _ = bt.load_model("tiny", qlora=True)
    with pytest.raises(ValueError, match="'tokenizer': it is processing_class today"):
        bt.BTSFTTrainer(model, bt.BTSFTConfig(str(tmp_path)), None, tokenizer=tiny_tokenizer)


# ---------------------------------------------------------------- 8. the install cell


def test_nothing_asks_for_another_version_than_colab_has(shared):
    """So pip has no reason to move one: torch among them, of which test_colab's environment has another build."""
    listed = pinned((shared / "colab-pip-freeze-2026-08-19.txt").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = {canonicalize_name(r.name): r for r in map(Requirement, project["dependencies"])}
    assert {"torch", "numpy", "transformers", "peft"} <= needs.keys() & listed.keys()
    assert "torchcodec" in listed and "torchcodec" not in needs
    for name in needs.keys() & listed.keys():
        assert needs[name].specifier.contains(listed[name]), name


# ---------------------------------------------------------------- 9. tokenizers for transformers 4 and 5


def test_a_saved_tokenizer_loads_in_transformers_4_and_5(tokenizer, tmp_path):
    """Under a class that both know, and without the list at which 4 fails; 4.57.6 was tried with each of these.

    Ids, template and special tokens are as before.
    """
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert config["tokenizer_class"] in ("PreTrainedTokenizerFast", "Qwen2Tokenizer")
    assert not isinstance(config.get("extra_special_tokens"), list)
    text = " Two words,\n\t1234 café <think>x</think> ½ 你好 <|im_end|> don't"
    for again in (AutoTokenizer.from_pretrained(tmp_path), bt.load_tokenizer(tmp_path)):
        assert again(text).input_ids == tokenizer(text).input_ids
        assert again.chat_template == tokenizer.chat_template
        assert set(again.all_special_ids) == set(tokenizer.all_special_ids)


def test_what_a_run_saves_names_that_class(tmp_path):
    """The run folder, its checkpoints, and the merged model."""
    trainer_of(*bt.load_model("tiny", qlora=True), tmp_path / "run").train()
    merge(tmp_path / "run", tmp_path / "merged")
    files = [*tmp_path.glob("**/tokenizer_config.json")]
    assert {file.parent.name for file in files} == {"run", "checkpoint-1", "checkpoint-2", "merged"}
    for file in files:
        assert json.loads(file.read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


# ---------------------------------------------------------------- 10. adapters on a tied matrix


TARGETS = [["q_proj", "lm_head"], ["q_proj", "embed_tokens"], r".*(q_proj|lm_head|embed_tokens)"]
TIED, UNTIED = "qwen2", "llama"


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_an_adapter_on_a_tied_matrix_is_refused(tmp_path, targets):
    """Merged, it would change head and embeddings: logits were off by a third to twice the largest."""
    config = ModelConfig(
        str(base(tmp_path / "base", "float32", TIED, tags=True)), lora_targets=targets
    )
    with pytest.raises(ValueError, match=r"one matrix.*leave lm_head and embed_tokens out"):
        trainer_of(*bt.load_model(config), tmp_path / "run")


def test_beside_rows_of_new_tags_too(tmp_path):
    """It trained, and could not be merged at all."""
    config = ModelConfig(
        str(base(tmp_path / "base", "float32", TIED)), lora_targets=["q_proj", "lm_head"]
    )
    with pytest.raises(ValueError, match=r"one matrix.*leave lm_head and embed_tokens out"):
        trainer_of(*bt.load_model(config), tmp_path / "run")


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_an_adapter_on_a_matrix_of_its_own_merges(tmp_path, targets):
    folder = base(tmp_path / "base", "float32", UNTIED, tags=True)
    model, tokenizer = bt.load_model(ModelConfig(str(folder), lora_targets=targets))
    trainer_of(model, tokenizer, tmp_path / "run", learning_rate=0.01).train()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        want = model.eval()(input_ids=ids).logits
        with model.disable_adapter():
            before = model(input_ids=ids).logits
        merged = merge(tmp_path / "run", tmp_path / "merged", dtype="float32")
        got = AutoModelForCausalLM.from_pretrained(merged)(input_ids=ids).logits
    scale = want.abs().max()
    assert (got - want).abs().max() < 1e-5 * scale < 0.01 * (before - want).abs().max()
