"""Merging an adapter into its base, and the way to the Hub and back, by a stand-in for it."""

import json
import shutil

import pytest
import torch
from hub import Hub
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

import btsft_nb as bt
from btsft_nb.models.config import ModelConfig
from btsft_nb.models.tokenizer import TINY
from btsft_nb.training.export import merge

THERE_AND_BACK = """
import sys
from huggingface_hub import HfApi, snapshot_download
from transformers import AutoModelForCausalLM

folder = sys.argv[1]
for name in ("run", "whole"):
    HfApi().create_repo(name)
    HfApi().upload_folder(
        repo_id=f"someone/{name}", folder_path=f"{folder}/{name}", ignore_patterns=["checkpoint-*", "*.bin"]
    )
    snapshot_download(f"someone/{name}", local_dir=f"{folder}/{name} again")
print(type(AutoModelForCausalLM.from_pretrained("someone/whole")).__name__)
"""
IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Adapters that change something, on weights of 4, 8 and 32 bits."""
    folders = {}
    for name, settings in {"4": {}, "8": {"bits": 8}, "plain": {"method": "lora"}}.items():
        folders[name] = tmp_path_factory.mktemp("run") / name
        model, tokenizer = bt.load_model(ModelConfig("tiny", lora_r=4, **settings))
        examples = bt.prepare(bt.load_rows("tiny/teacher")[:4], tokenizer)
        config = bt.BTSFTConfig(
            str(folders[name]), max_steps=1, save_steps=1, per_device_train_batch_size=2
        )
        trainer = bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.02)
        trainer.train()
    return folders


@pytest.mark.parametrize(("name", "tolerance"), [("plain", 1e-5), ("4", 1e-5), ("8", 0.05)])
def test_a_merged_model_is_the_adapter_on_its_base(runs, tmp_path, name, tolerance):
    """With transformers alone, relative to the largest logit. LLM.int8 rounds the inputs of layers, merged does not."""
    with torch.no_grad():
        want = bt.load_model(runs[name])[0](input_ids=IDS).logits
        base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)(input_ids=IDS).logits
        merge(runs[name], tmp_path / "merged", dtype="float32")
        got = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", use_safetensors=True)(
            input_ids=IDS
        ).logits
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < tolerance * want.abs().max() < (base - want).abs().max()


def test_a_merged_model_comes_with_all_it_takes_to_chat(runs, tmp_path):
    """In the type its base was published in, without a trace of 4 bits; it stops where a turn ends."""
    merge(runs["4"], tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "float16" and "quantization_config" not in config
    model, tokenizer = bt.load_model(tmp_path / "merged")
    ours = bt.load_tokenizer("tiny")
    assert (
        tokenizer.chat_template == AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    )
    assert tokenizer.chat_template == ours.chat_template
    assert ours.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert card.data.library_name == "transformers" and "lora" not in card.data.tags
    assert (
        "A model, made of tiny" in card.text
        and "- `model.safetensors`" in card.text
        and "adapter" not in card.text
    )


def test_a_type_that_is_none_is_refused_before_anything_is_written(runs, tmp_path):
    """getattr(torch, "fp16") was an AttributeError."""
    with pytest.raises(ValueError, match=r"dtype.*fp16"):
        merge(runs["4"], tmp_path / "merged", dtype="fp16")
    assert not (tmp_path / "merged").exists()


def test_only_a_run_with_an_adapter_is_merged_and_nothing_overwritten(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no btsft_base.json"):
        merge(TINY, tmp_path / "merged")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        merge(runs["4"], tmp_path)


def test_what_is_uploaded_comes_back_and_loads(runs, tmp_path):
    """As the README says: a run without its checkpoints and pickles, and a merged model."""
    run = tmp_path / "run"
    shutil.copytree(runs["4"], run)
    merge(run, tmp_path / "whole")
    with Hub() as hub:
        done = hub.run(THERE_AND_BACK, tmp_path / "home", tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "Qwen3ForCausalLM"
        uploaded = set(hub.repositories["someone/run"])
    assert {
        "README.md",
        "adapter_model.safetensors",
        "btsft_base.json",
        "tokenizer.json",
    } < uploaded
    assert not any("/" in file or file.endswith(".bin") for file in uploaded)
    again, _ = bt.load_model(tmp_path / "run again")
    assert torch.equal(again(input_ids=IDS).logits, bt.load_model(run)[0](input_ids=IDS).logits)
