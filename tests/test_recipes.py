"""Recipes: settings files of the package, by name; the runs that belong to one; and going on from a checkpoint."""

import json

import pytest
from transformers import GenerationConfig

import btsft_nb as bt
from btsft_nb.cli.main import main
from btsft_nb.cli.settings import RECIPES
from btsft_nb.evaluation.sampling import SamplingSettings, fitting_batch

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
QUICK = dict(max_steps=2, examples=8, logging_steps=1, disable_tqdm=True, test_prompts=2, samples=1)


@pytest.fixture
def card(monkeypatch):
    """As on a card with bfloat16: recipes for one are read, not run."""
    from btsft_nb.models import hardware

    monkeypatch.setattr(hardware, "detect", lambda: hardware.Hardware("cuda", "a card"))
    monkeypatch.setattr("btsft_nb.training.config.detect", hardware.detect)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_a_whole_settings_file(name, card):
    """All of it is known, and makes its four groups; one for a card saves, and goes on from what it saved."""
    settings = bt.read_settings(name)
    assert settings.source == f"from {name}"
    assert bt.read_settings(RECIPES / f"{name}.yaml").source == f"from {RECIPES / name}.yaml"
    training, evaluation = settings.training, settings.evaluation
    assert settings.model.method == "qlora" and settings.data.data and evaluation.test
    assert (training.threshold, training.anchor, training.beta) == (0.5, 1.0, 0.5)
    assert evaluation.samples * evaluation.test_prompts * evaluation.max_new_tokens
    if training.fp16 or training.bf16:
        assert training.save_steps and training.resume_from_checkpoint == "auto"
        assert training.gradient_checkpointing
    assert bt.read_settings(RECIPES / f"{name}.yaml").values.keys() == settings.values.keys()


def test_a_recipe_is_overridden_by_keyword(tmp_path, monkeypatch):
    settings = bt.read_settings("tiny", max_steps=3).replace(threshold=0.25, lr=1e-4)
    assert settings.training.max_steps == 3 and settings.training.threshold == 0.25
    assert settings.training.learning_rate == 1e-4  # by the reference's name
    assert (
        settings.source == "from tiny; overridden: max_steps; overridden: threshold, learning_rate"
    )
    with pytest.raises(ValueError, match=r"tresholt.*did you mean 'threshold'"):
        settings.replace(tresholt=1)
    with pytest.raises(
        FileNotFoundError, match=r"tinny: no such file, and no recipe.*smollm2-cpu, tiny"
    ):
        bt.read_settings("tinny")
    # a file or folder of that name comes first
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text("model: other\n")
    assert bt.read_settings("tiny").model.model == "other"


def test_the_ways_of_a_recipe_are_a_function(tmp_path):
    assert bt.read_settings("tiny").evaluation.comparing()["way_of"] is bt.tiny.way_of
    assert bt.read_settings("smollm2-cpu").evaluation.comparing()["way_of"] is None


def test_the_command_line_takes_a_recipe(tmp_path, capsys):
    words = [f"{name}={value}" for name, value in QUICK.items()]
    assert main(["--config", "tiny", f"output_dir={tmp_path / 'run'}", *words]) == 0
    kept = bt.read_settings(tmp_path / "run")
    assert kept.evaluation.way_of == "btsft_nb.tiny:way_of" and kept.data.messy_data == "tiny/messy"
    assert main(["evaluate", str(tmp_path / "run"), "max_new_tokens=8"]) == 0
    assert "ways of thinking" in capsys.readouterr().out


def test_runs_on_other_data_are_named_and_left_out(tmp_path, capsys):
    settings = bt.read_settings("tiny", **QUICK)
    bt.finetune(settings.replace(output_dir=str(tmp_path / "mine")))
    bt.finetune(settings.replace(output_dir=str(tmp_path / "other"), data="tiny/messy"))
    capsys.readouterr()
    assert bt.find_runs(tmp_path, settings) == {"mine": tmp_path / "mine"}
    assert f"{tmp_path / 'other'} is left out: it was trained with data=tiny/messy\n" in (
        capsys.readouterr().out
    )
    both = bt.find_runs(tmp_path, settings, settings.replace(data="tiny/messy", beta=0))
    assert list(both) == ["mine", "other"] and capsys.readouterr().out == ""
    # an unfinished one has no model
    environment = tmp_path / "mine" / "environment.json"
    facts = json.loads(environment.read_text())
    environment.write_text(json.dumps(facts | {"finished": False}))
    assert bt.find_runs(tmp_path, settings) == {}
    assert "its training is not finished" in capsys.readouterr().out


def test_a_run_of_something_else_is_not_written_over(tmp_path, capsys):
    """Neither of another model nor of other data; the same anew is a run as before; --overwrite says it."""
    settings = bt.read_settings("tiny", **QUICK, output_dir=str(tmp_path / "run"))
    bt.finetune(settings)
    with pytest.raises(ValueError, match=r"run holds a run with data=tiny/teacher, not tiny/messy"):
        bt.finetune(settings.replace(data="tiny/messy"))
    with pytest.raises(ValueError, match=r"run holds a run with model=tiny, not other"):
        bt.finetune(settings.replace(model="other"))
    bt.finetune(settings.replace(threshold=0.1))
    words = [f"{name}={value}" for name, value in QUICK.items()]
    line = ["--config", "tiny", "data=tiny/messy", f"output_dir={tmp_path / 'run'}", *words]
    assert main(line) == 2
    assert main([*line, "--overwrite"]) == 0
    assert bt.read_settings(tmp_path / "run").data.data == "tiny/messy"


def test_a_run_goes_on_by_itself(tmp_path):
    """With resume_from_checkpoint=auto: from nothing, from a checkpoint, and when it is finished."""
    settings = bt.read_settings(
        "tiny", **QUICK | dict(max_steps=4), output_dir=str(tmp_path / "run")
    ).replace(save_strategy="steps", save_steps=2, resume_from_checkpoint="auto")
    first = bt.finetune(settings)
    assert first.state.global_step == 4
    checkpoint = tmp_path / "run" / "checkpoint-4"
    for file in checkpoint.iterdir():
        file.unlink()
    checkpoint.rmdir()
    (tmp_path / "run" / "adapter_model.safetensors").unlink()
    again = bt.finetune(bt.read_settings(tmp_path / "run"))
    assert again.state.global_step == 4
    want = dict(first.model.named_parameters())
    assert all((p == want[name]).all() for name, p in again.model.named_parameters())
    finished = bt.finetune(bt.read_settings(tmp_path / "run"))
    assert finished.state.global_step == 4
    assert all((p == want[name]).all() for name, p in finished.model.named_parameters())
    with pytest.raises(ValueError, match="begun with other settings: threshold"):
        bt.finetune(settings.replace(threshold=0.1))


def test_a_plan_says_how_long_sampling_takes():
    plan = bt.plan(bt.read_settings("tiny", **QUICK, max_new_tokens=4))["this run"]
    assert plan["sampling"].startswith("2 completions, 0:00:0") and plan["sampling"].endswith(
        "a model"
    )


def test_batches_follow_from_the_free_memory(monkeypatch):
    """Half the memory, half the batch; longer completions, smaller ones; what is given is taken."""
    model, _ = bt.load_model("tiny")
    jobs = [([1] * 20, {})]
    assert fitting_batch(model, jobs, SamplingSettings()) == 64

    class OnACard:
        device = type("device", (), {"type": "cuda"})
        dtype, config = model.dtype, model.config

    def batch(free, **settings):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (free, 2**40))
        return fitting_batch(OnACard, jobs, SamplingSettings(**settings))

    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 0)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda: 0)
    assert batch(2**25) == pytest.approx(2 * batch(2**24), abs=1)
    assert batch(2**25, max_new_tokens=1024) < batch(2**25, max_new_tokens=128)
    assert batch(2**10) == 1 and batch(2**40) == 512
    assert SamplingSettings(batch_size=7).batch_size == 7
    assert (
        GenerationConfig().cache_implementation is None
    )  # a cache that grows, as the size counts on
