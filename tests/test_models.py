"""Loading: the embedded model, folders and Hub ids, in 4 bits; what is missing is named."""

import json
import pickle
import shutil

import pytest
import torch
from hub import Hub
from peft import LoraConfig
from peft.tuners.lora import torchao as peft_torchao
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import btsft_nb as bt
from btsft_nb.models.config import ModelConfig
from btsft_nb.models.load import record_base
from btsft_nb.models.tokenizer import TINY


def test_the_embedded_model_is_small_and_solves_its_problems():
    """Under 2 MB with its tokenizer of at most 600 tokens; greedy accuracy on the test set as claimed."""
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 2_000_000
    model, tokenizer = bt.load_model("tiny")
    assert len(tokenizer) <= 600 and model.num_parameters() == pytest.approx(0.8e6, rel=0.1)
    assert [tokenizer.tokenize(tag) for tag in ("<think>", "</think>")] == [
        ["<think>"],
        ["</think>"],
    ]
    assert len(tokenizer.tokenize("1234567")) == 7
    problems = bt.load_rows("tiny/test")
    samples = bt.sample(
        model, tokenizer, problems, n=1, temperature=0, max_new_tokens=96, batch_size=200
    )
    summary = bt.evaluate(samples, [row["answer"] for row in problems])
    assert summary["metrics"]["accuracy"]["value"] >= 0.95
    assert summary["metrics"]["compliance"]["value"] == 1.0


def test_the_embedded_model_thinks_in_four_ways():
    """Each way is at least a tenth of the samples."""
    model, tokenizer = bt.load_model("tiny")
    problems = bt.load_rows("tiny/test")[:50]
    samples = bt.sample(model, tokenizer, problems, n=4, max_new_tokens=96, batch_size=200)
    ways = bt.evaluate(samples, [row["answer"] for row in problems], bt.tiny.way_of)["ways"]
    assert all(ways[way] >= len(samples) / 10 for way in bt.tiny.WAYS), ways


def test_sampling_is_seeded_and_leaves_the_global_state():
    model, tokenizer = bt.load_model("tiny")
    state = torch.get_rng_state()
    one, again, other = (
        bt.sample(model, tokenizer, ["How many?"], n=4, seed=s, max_new_tokens=20)
        for s in (0, 0, 1)
    )
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_cut_off_sample_says_so():
    model, tokenizer = bt.load_model("tiny")
    problem = bt.load_rows("tiny/test")[:1]
    (short,), (whole,) = (
        bt.sample(model, tokenizer, problem, n=1, max_new_tokens=m) for m in (5, 96)
    )
    assert (short["finished"], short["tokens"]) == (False, 5)
    assert whole["finished"] and "<|im_end|>" not in whole["text"]
    assert bt.metrics.parse(short["text"], finished=False).problem == "cut off"


def test_qlora_quantises_all_linear_layers_but_the_head():
    model, _ = bt.load_model("tiny", qlora=True)
    kinds = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if not list(module.children())
    }
    base = [name for name in kinds if name.endswith("base_layer")]
    assert len(base) == 4 * 7 and {kinds[name] for name in base} == {"Linear4bit"}
    state = model.get_submodule(base[0]).weight.quant_state
    assert state.quant_type == "nf4" and state.nested
    trainable = {
        name.split(".")[-3]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert trainable == {"lora_A", "lora_B"}


def test_the_start_of_lora_depends_on_its_seed_alone():
    torch.manual_seed(1)
    one, _ = bt.load_model("tiny", qlora=True)
    torch.manual_seed(2)
    two, _ = bt.load_model("tiny", qlora=True)
    other, _ = bt.load_model("tiny", qlora=True, seed=1)
    name = next(name for name, _ in one.named_parameters() if "lora_A" in name)
    assert torch.equal(one.get_parameter(name), two.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


def test_a_torchao_that_peft_refuses_does_not_stop_adapters(tmp_path, monkeypatch):
    """As in Colab, where PEFT raises at the first plain layer; test_colab has the real versions."""

    def refuse():
        raise ImportError("Found an incompatible version of torchao")

    monkeypatch.setattr(peft_torchao, "is_torchao_available", refuse)
    model, tokenizer = bt.load_model(ModelConfig("tiny", method="lora", lora_r=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    record_base(tmp_path, model)
    ids = torch.arange(5, 45)[None]
    again, _ = bt.load_model(tmp_path)
    assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert peft_torchao.is_torchao_available is refuse


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    """Trap 8: tokenizer_config.json alone would load as a tokenizer of some 20 tokens."""
    for _ in ("an empty folder", "tokenizer_config.json"):
        with pytest.raises(FileNotFoundError, match=r"no tokenizer.json and no other vocabulary"):
            bt.load_tokenizer(tmp_path)
        text = (TINY / "tokenizer_config.json").read_text()
        (tmp_path / "tokenizer_config.json").write_text(text)


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text((TINY / "tokenizer.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text((TINY / "tokenizer_config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        bt.load_model(tmp_path)


def test_an_unknown_model_is_named():
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing: neither a folder.*spelling"):
        bt.load_model("nobody/nothing")


def test_a_run_folder_keeps_its_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="has its own adapter"):
        bt.load_model(tmp_path, lora=LoraConfig())


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_a_tokenizer_is_what_its_file_says(request, shared, name):
    """Trap 8: whatever class a library version picks, the ids are those of tokenizer.json."""
    loaded = request.getfixturevalue(name)
    file = Tokenizer.from_file(f"{loaded.name_or_path}/tokenizer.json")
    for text in (" Two words,\n\n1234", "<think>caf\u00e9</think>\n\nx", "\u4e1c\u4eac  \t x"):
        assert (
            loaded(text, add_special_tokens=False)["input_ids"]
            == file.encode(text, add_special_tokens=False).ids
        )
        assert loaded.decode(loaded(text, add_special_tokens=False)["input_ids"]) == text


class Planted:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def adapter_run(folder, **settings):
    """A run of one step; its model and tokenizer."""
    model, tokenizer = bt.load_model(ModelConfig("tiny", **settings))
    examples = bt.prepare(bt.load_rows("tiny/teacher")[:2], tokenizer)
    config = bt.BTSFTConfig(str(folder), max_steps=1, save_steps=1, per_device_train_batch_size=2)
    trainer = bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer)
    trainer.train()
    return trainer


def test_a_configuration_says_it_all():
    """As adapters of their own; nothing can be said beside it."""
    config = ModelConfig(
        "tiny", lora_r=3, lora_alpha=5, lora_targets=["up_proj"], rslora=True, dora=True
    )
    lora = bt.load_model(config)[0].peft_config["default"]
    assert (
        (lora.r, lora.lora_alpha, lora.target_modules) == (3, 5, {"up_proj"})
        and lora.use_rslora
        and lora.use_dora
    )
    with pytest.raises(ValueError, match="its own adapter"):
        bt.load_model(config, qlora=True)
    one, two = bt.load_model("tiny", qlora=True)[0], bt.load_model(ModelConfig("tiny"))[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_model_that_only_writes_keeps_its_tokenizer(tmp_path):
    """Tags are added to what is to be trained, and to nothing else."""
    plain = untagged(tmp_path)
    model, tokenizer = bt.load_model(plain)
    assert len(tokenizer) == len(model.get_input_embeddings().weight) == 449
    model, tokenizer = bt.load_model(ModelConfig(str(plain), method="full"))
    assert bt.tag_ids(tokenizer) == (449, 450) and len(model.get_input_embeddings().weight) == 451
    with pytest.raises(
        ValueError,
        match=r"freeze: the embeddings must train, since the tokens \[449, 450\] are new",
    ):
        bt.load_model(ModelConfig(str(plain), method="full", freeze=["embeddings"]))


def untagged(folder):
    """The embedded model without its last two tokens, which are the think tags."""
    model, tokenizer = bt.load_model("tiny")
    model.resize_token_embeddings(449)
    model.save_pretrained(folder / "plain")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [
        token for token in state["added_tokens"] if "think" not in token["content"]
    ]
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>"
    )
    plain.save_pretrained(folder / "plain")
    return folder / "plain"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adapters_are_float32_on_weights_in_half_precision(tmp_path, dtype):
    """The rows of new tokens as well; and the run is reloaded in the same type."""
    config = ModelConfig(str(untagged(tmp_path)), method="lora", dtype=dtype)
    model, _ = bt.load_model(config)
    kinds = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert kinds == {True: torch.float32, False: getattr(torch, dtype)}
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {
        torch.float32
    }
    model.save_pretrained(tmp_path / "run")
    record_base(tmp_path / "run", model)
    bt.load_tokenizer(tmp_path / "plain").save_pretrained(tmp_path / "run")
    again, _ = bt.load_model(tmp_path / "run")
    ids = torch.arange(9)[None]
    assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert again.get_base_model().dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    "where", [{"device_map": "cpu"}, {"device_map": "auto", "max_memory": {"cpu": "1GiB"}}], ids=str
)
def test_a_device_map_changes_nothing_but_the_place(where):
    ids = torch.arange(9)[None]
    for method in ("qlora", "full"):
        one, two = (
            bt.load_model(ModelConfig("tiny", method=method, **more))[0] for more in ({}, where)
        )
        assert {parameter.device.type for parameter in two.parameters()} == {"cpu"}
        assert torch.equal(one(input_ids=ids).logits, two(input_ids=ids).logits)


def test_an_alpha_that_is_no_number_is_named():
    for alpha in (float("nan"), -5, "32"):
        with pytest.raises(ValueError, match="lora_alpha must be a number of at least 0"):
            ModelConfig("tiny", lora_alpha=alpha)


def test_a_target_that_does_not_exist_is_named_with_the_closest():
    words = r"LoRA target 'q_pro': .* did you mean 'q_proj'\?"
    for targets in (["v_proj", "q_pro"], "q_pro"):
        with pytest.raises(ValueError, match=words):
            bt.load_model(ModelConfig("tiny", lora_targets=targets))
    with pytest.raises(ValueError, match=r"not found in the base model"):
        bt.load_model(ModelConfig("tiny", lora_targets=r".*\.q_pro"))


@pytest.mark.parametrize("targets", [r".*\.[qk]_proj", [r".*\.[qk]_proj"]], ids=["text", "list"])
def test_one_target_may_be_a_regular_expression(targets):
    """The command line gives a list of one."""
    model, _ = bt.load_model(ModelConfig("tiny", lora_targets=targets))
    assert {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name} == {
        "q_proj",
        "k_proj",
    }


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    with pytest.raises(ValueError, match=r"no end token; set tokenizer.eos_token"):
        bt.load_tokenizer(tmp_path)


def test_weights_in_a_pickle_are_refused_and_do_not_run(tmp_path):
    """A model's, an adapter's, and an optimizer's, from which a run would go on."""
    model, other = tmp_path / "model", tmp_path / "other"
    shutil.copytree(TINY, model)
    shutil.copytree(TINY, other)
    (model / "model.safetensors").unlink()
    (other / "adapter_config.json").write_text("{}")
    (other / "btsft_base.json").write_text('{"base_model": "tiny"}')
    for file in (model / "pytorch_model.bin", other / "adapter_model.bin"):
        file.write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
        with pytest.raises(
            FileNotFoundError,
            match=r"no (adapter_)?model.safetensors; pickles can run code and are not read",
        ):
            bt.load_model(file.parent)
    trainer = adapter_run(tmp_path / "run")
    optimizer = tmp_path / "run" / "checkpoint-1" / "optimizer.pt"
    assert optimizer.is_file()
    torch.save(Planted(tmp_path / "ran"), optimizer)
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
        trainer.train(resume_from_checkpoint=True)
    assert not (tmp_path / "ran").exists()
    torch.load(optimizer, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_does_not_run(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    config = json.loads((TINY / "config.json").read_text()) | {"model_type": "mine"}
    config["auto_map"] = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "mine.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n"
    )
    with pytest.raises(ValueError, match="trust_remote_code"):
        bt.load_model(tmp_path / "model")
    assert not (tmp_path / "ran").exists()


GATED = """
import sys
import btsft_nb as bt
for name in sys.argv[1:]:
    try:
        bt.load_model(name)
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_a_gated_model_says_what_to_do(tmp_path):
    """Without a token 401, with one whose account did not accept 403; a name that does not exist is another matter."""
    with Hub() as hub:
        hub.gated |= {"meta": 403, "google": 401}
        done = hub.run(GATED, tmp_path, "meta/llama", "google/gemma", "nobody/nothing")
    forbidden, unknown, missing = (line for line in done.stdout.splitlines() if "Error" in line)
    for line, name, status in ((forbidden, "meta/llama", 403), (unknown, "google/gemma", 401)):
        assert line.startswith(f"PermissionError {name}: ") and f"HTTP {status}" in line, (
            done.stderr
        )
        assert "licence" in line and f"https://huggingface.co/{name}" in line and "HF_TOKEN" in line
    assert missing.startswith("FileNotFoundError nobody/nothing") and "spelling" in missing
