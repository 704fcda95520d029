"""Loading: the embedded model, folders and Hub ids, in 4 bits; what is missing is named."""

import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer

import btsft_nb as bt
from btsft_nb.models import TINY


def test_the_embedded_model_is_small_and_solves_its_problems():
    """Under 2 MB with its tokenizer of at most 600 tokens; greedy accuracy on the test set as claimed."""
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 2_000_000
    model, tokenizer = bt.load_model("tiny")
    assert len(tokenizer) <= 600 and model.num_parameters() == pytest.approx(0.8e6, rel=0.1)
    assert [tokenizer.tokenize(tag) for tag in ("<think>", "</think>")] == [["<think>"], ["</think>"]]
    assert len(tokenizer.tokenize("1234567")) == 7
    problems = bt.load_rows("tiny/test")
    samples = bt.sample(model, tokenizer, problems, n=1, temperature=0, max_new_tokens=96, batch_size=200)
    summary = bt.evaluate(samples, [row["answer"] for row in problems])
    assert summary["metrics"]["accuracy"]["value"] >= 0.95
    assert summary["metrics"]["compliance"]["value"] == 1.0


def test_the_embedded_model_thinks_in_four_ways():
    """Each way is at least a tenth of the samples."""
    model, tokenizer = bt.load_model("tiny")
    problems = bt.load_rows("tiny/test")[:100]
    samples = bt.sample(model, tokenizer, problems, n=4, max_new_tokens=96, batch_size=400)
    ways = bt.evaluate(samples, [row["answer"] for row in problems], bt.tiny.way_of)["ways"]
    assert all(ways[way] >= len(samples) / 10 for way in bt.tiny.WAYS), ways


def test_sampling_is_seeded_and_leaves_the_global_state():
    model, tokenizer = bt.load_model("tiny")
    state = torch.get_rng_state()
    one, again, other = (bt.sample(model, tokenizer, ["How many?"], n=4, seed=s, max_new_tokens=20) for s in (0, 0, 1))
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_cut_off_sample_says_so():
    model, tokenizer = bt.load_model("tiny")
    problem = bt.load_rows("tiny/test")[:1]
    (short,), (whole,) = (bt.sample(model, tokenizer, problem, n=1, max_new_tokens=m) for m in (5, 96))
    assert (short["finished"], short["tokens"]) == (False, 5)
    assert whole["finished"] and "<|im_end|>" not in whole["text"]
    assert bt.metrics.parse(short["text"], finished=False).problem == "cut off"


def test_qlora_quantises_all_linear_layers_but_the_head():
    model, _ = bt.load_model("tiny", qlora=True)
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if not list(module.children())}
    base = [name for name in kinds if name.endswith("base_layer")]
    assert len(base) == 4 * 7 and {kinds[name] for name in base} == {"Linear4bit"}
    state = model.get_submodule(base[0]).weight.quant_state
    assert state.quant_type == "nf4" and state.nested
    trainable = {name.split(".")[-3] for name, parameter in model.named_parameters() if parameter.requires_grad}
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


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    """Trap 8: tokenizer_config.json alone would load as a tokenizer of some 20 tokens."""
    (tmp_path / "tokenizer_config.json").write_text((TINY / "tokenizer_config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer; one of tokenizer.json"):
        bt.load_tokenizer(tmp_path)


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
    with pytest.raises(ValueError, match="with its own adapter"):
        bt.load_model(tmp_path, lora=LoraConfig())


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_a_tokenizer_is_what_its_file_says(request, shared, name):
    """Trap 8: whatever class a library version picks, the ids are those of tokenizer.json."""
    loaded = request.getfixturevalue(name)
    file = Tokenizer.from_file(f"{loaded.name_or_path}/tokenizer.json")
    for text in (" Two words,\n\n1234", "<think>caf\u00e9</think>\n\nx", "\u4e1c\u4eac  \t x"):
        assert loaded(text, add_special_tokens=False)["input_ids"] == file.encode(text, add_special_tokens=False).ids
        assert loaded.decode(loaded(text, add_special_tokens=False)["input_ids"]) == text
