"""The dials and their ranges, unknown keys, and trackers that must not ask for a key."""

import builtins
import copy
import dataclasses
import getpass
import pickle

import pytest

from btsft_nb import BTSFTConfig

WANDB = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC")


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """A machine without any wandb key; asking for one fails the test. Changes to the environment are undone."""
    for name in WANDB:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def ask(*args, **kwargs):
        pytest.fail("asked for a key")

    monkeypatch.setattr(builtins, "input", ask)
    monkeypatch.setattr(getpass, "getpass", ask)
    return monkeypatch


def test_defaults_are_those_of_the_documentation():
    """Those that notebook 06 gives reasons for; no tracker, and columns that stay."""
    config = BTSFTConfig("runs/x")
    assert (config.threshold, config.beta, config.anchor) == (0.2, 0.5, 1.0)
    assert (config.resample, config.keep_first, config.unit) == ("epoch", 0, "token")
    assert (
        config.report_to == []
        and config.remove_unused_columns is False
        and config.label_names == ["labels"]
    )
    assert config.output_dir == "runs/x"


@pytest.mark.parametrize(
    ("dial", "values"),
    [("threshold", [0, 0.0, 0.5, 1]), ("beta", [0, 0.5, 100]), ("anchor", [0, 1.5]), ("keep_first", [0, 5]),
     ("resample", ["epoch", "never"]), ("seed", [7]), ("learning_rate", [1e-4])],
)  # fmt: skip
def test_dials_take_their_range(dial, values):
    """Ends included; and the fields of TrainingArguments work as they do there."""
    for value in values:
        assert getattr(BTSFTConfig("runs/x", **{dial: value}), dial) == value


@pytest.mark.parametrize("value", [-0.1, -1, float("nan"), "0.5", None, True, [0.5]])
@pytest.mark.parametrize("dial", ["threshold", "beta", "anchor", "keep_first"])
def test_a_dial_out_of_range_is_named(dial, value):
    """With the value and the range."""
    with pytest.raises(ValueError, match=rf"{dial} must be a (whole )?number") as error:
        BTSFTConfig("runs/x", **{dial: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [1.0001, 2, float("inf")])
def test_a_threshold_above_one_is_refused(value):
    """A share has an upper end."""
    with pytest.raises(ValueError, match="threshold must be a number between 0 and 1"):
        BTSFTConfig("runs/x", threshold=value)


@pytest.mark.parametrize(
    ("dial", "value"),
    [
        ("beta", float("inf")),
        ("anchor", float("inf")),
        ("keep_first", 2.5),
        ("keep_first", float("inf")),
    ],
)
def test_a_dial_that_no_run_can_use_is_refused(dial, value):
    """An infinite weight makes every loss infinite or NaN; a fraction of a token cannot be kept."""
    with pytest.raises(ValueError, match=dial):
        BTSFTConfig("runs/x", **{dial: value})


@pytest.mark.parametrize("value", ["always", "Epoch", "", None, 1])
def test_resample_names_its_two_values(value):
    """Nothing else is understood."""
    with pytest.raises(ValueError, match="resample must be one of 'epoch', 'never'"):
        BTSFTConfig("runs/x", resample=value)


def test_remove_unused_columns_is_refused():
    """It would remove weights and kinds."""
    with pytest.raises(ValueError, match="remove_unused_columns must be False"):
        BTSFTConfig("runs/x", remove_unused_columns=True)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("treshold", "threshold"), ("betta", "beta"), ("learning_rates", "learning_rate"), ("max_step", "max_steps"),
     ("evaluation_strategy", "eval_strategy"), ("resampling", "resample")],
)  # fmt: skip
def test_an_unknown_key_suggests_the_right_one(key, meant):
    """And is never swallowed."""
    with pytest.raises(ValueError, match=rf"unknown setting '{key}', did you mean '{meant}'\?"):
        BTSFTConfig("runs/x", **{key: 1})


def test_an_unknown_key_like_none_is_named():
    with pytest.raises(ValueError, match=r"unknown setting 'zzzzzz'$"):
        BTSFTConfig("runs/x", zzzzzz=1)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))]
)
def test_a_configuration_survives_copying(again):
    """The trainer pickles it into each checkpoint."""
    config = BTSFTConfig("runs/x", threshold=0.7, keep_first=3)
    assert again(config).to_dict() == config.to_dict()


@pytest.mark.parametrize("names", ["wandb", ["wandb"], ["tensorboard", "wandb"]])
def test_wandb_without_a_key_is_refused(no_key, names):
    """With both ways out, and without a question."""
    with pytest.raises(ValueError, match=r"WANDB_API_KEY.*WANDB_MODE=offline"):
        BTSFTConfig("runs/x", report_to=names)


@pytest.mark.parametrize("names", ["all", ["all"]])
def test_all_trackers_do_not_bring_wandb_without_a_key(no_key, names):
    """Refused, or without wandb."""
    try:
        config = BTSFTConfig("runs/x", report_to=names)
    except ValueError:
        return
    assert "wandb" not in config.report_to


def test_an_empty_netrc_is_no_key(no_key, tmp_path):
    """Nor is one of another host."""
    (tmp_path / "netrc").write_text("machine example.com login a password b\n")
    with pytest.raises(ValueError, match="WANDB_API_KEY"):
        BTSFTConfig("runs/x", report_to="wandb")


def test_wandb_takes_a_key_from_the_environment(no_key):
    """Nothing is asked."""
    no_key.setenv("WANDB_API_KEY", "x" * 40)
    assert BTSFTConfig("runs/x", report_to="wandb").report_to == ["wandb"]


def test_wandb_takes_a_key_from_netrc(no_key, tmp_path):
    """As `wandb login` leaves it."""
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password 0123\n")
    assert BTSFTConfig("runs/x", report_to="wandb").report_to == ["wandb"]


def test_wandb_takes_the_key_of_its_own_server(no_key, tmp_path):
    """Of a self-hosted one (bug 11), and not that of another."""
    (tmp_path / "netrc").write_text("machine wandb.example.org:8080 login user password 0123\n")
    no_key.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert BTSFTConfig("runs/x", report_to="wandb").report_to == ["wandb"]
    no_key.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    with pytest.raises(ValueError, match="WANDB_API_KEY"):
        BTSFTConfig("runs/x", report_to="wandb")


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_needs_no_key_where_it_is_not_online(no_key, mode):
    """The user's own setting."""
    no_key.setenv("WANDB_MODE", mode)
    config = BTSFTConfig("runs/x", report_to="wandb")
    again = dataclasses.replace(config, threshold=0.3)  # made of another one (bug 11)
    assert (again.threshold, again.report_to) == (0.3, ["wandb"])


def test_a_key_does_not_reach_the_configuration(no_key):
    """What is saved beside a run holds no secret."""
    no_key.setenv("WANDB_API_KEY", "s3cr3t" * 7)
    assert "s3cr3t" not in str(BTSFTConfig("runs/x", report_to="wandb").to_dict())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            dict(unit="letter"),
            "unit must be one of 'token', 'word', 'sentence', 'thought', got 'letter'",
        ),
        (
            dict(negative="clip"),
            "negative must be one of 'nll', 'unlikelihood', 'floor', got 'clip'",
        ),
        (dict(negative_floor=-1.0), "negative_floor must be a number of at least 0, got -1.0"),
        (dict(threshold_end=1.5), "threshold_end must be a number between 0 and 1, got 1.5"),
        (
            dict(label_smoothing_factor=0.1),
            "label_smoothing_factor must be 0",
        ),
    ],
)
def test_settings_of_the_objective_name_what_would_do(setting, message):
    with pytest.raises(ValueError, match=message):
        BTSFTConfig("runs/x", **setting)


def test_a_process_uses_one_of_several_gpus(monkeypatch):
    """torch's DataParallel, which Trainer would wrap the model in, passes the head by."""
    monkeypatch.setattr(BTSFTConfig, "n_gpu", property(lambda config: 2))
    assert BTSFTConfig("runs/x")._n_gpu == 1
