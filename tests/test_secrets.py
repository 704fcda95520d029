"""Secrets: found where users keep them, and nowhere in what a run writes, logs or prints."""

import os
import subprocess
import sys
import types

import pytest

import btsft_nb as bt
from btsft_nb.models.keys import NAMES

SECRETS = {name: f"planted_{i}_0123456789abcdef" for i, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """No secret is set, and none stays."""
    for name in NAMES:
        monkeypatch.setenv(name, "gone")  # so that what the test leaves is undone
        monkeypatch.delenv(name)


def test_a_file_gives_known_names_and_overrides_nothing(tmp_path, monkeypatch):
    file = tmp_path / ".env"
    file.write_text(
        "# HF_TOKEN=no\nexport HF_TOKEN = 'a#b' # mine\nWANDB_API_KEY=file\nPATH=/evil\nTRACKIO_WRITE_TOKEN=\nit's\n"
    )
    monkeypatch.setenv("WANDB_API_KEY", "set before")
    before = os.environ["PATH"]
    assert bt.load_secrets(file) == ["HF_TOKEN", "WANDB_API_KEY"]
    assert (os.environ["HF_TOKEN"], os.environ["WANDB_API_KEY"]) == ("a#b", "set before")
    assert os.environ["PATH"] == before


def test_no_file_and_no_secret_are_no_error(tmp_path):
    assert bt.load_secrets(tmp_path / ".env") == []


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("WANDB_API_KEY=ab#cd", "ab#cd"),
        (r"WANDB_API_KEY=a\b", r"a\b"),
        ("\ufeffWANDB_API_KEY=a$b", "a$b"),
    ],
    ids=["hash", "backslash", "mark"],
)
def test_a_value_is_taken_whole(tmp_path, line, value):
    """shlex cut it off at a hash and lost backslashes."""
    (tmp_path / ".env").write_text(f"{line}\n", encoding="utf-8")
    assert bt.load_secrets(tmp_path / ".env") == ["WANDB_API_KEY"]
    assert os.environ["WANDB_API_KEY"] == value


def test_an_open_quote_hides_one_line_and_no_value_is_shown(tmp_path, caplog):
    (tmp_path / ".env").write_text("A=1\nHF_TOKEN='hf_abc\nWANDB_API_KEY=key\n")
    assert bt.load_secrets(tmp_path / ".env") == ["WANDB_API_KEY"]
    assert "hf_abc" not in caplog.text and "could not parse" in caplog.text


def test_colab_is_asked_for_what_is_still_missing(tmp_path, monkeypatch):
    """A stand-in for google.colab, which exists in Colab alone; one secret is absent, one is not shared."""

    class Absent(Exception):
        pass

    class Closed(Exception):
        pass

    def get(name):
        asked.append(name)
        if name == "WANDB_API_KEY":
            raise Absent
        if name == "TRACKIO_WRITE_TOKEN":
            raise Closed
        return "from colab"

    asked, userdata = (
        [],
        types.SimpleNamespace(get=get, SecretNotFoundError=Absent, NotebookAccessError=Closed),
    )
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(userdata=userdata))
    (tmp_path / ".env").write_text("HF_TOKEN=file\n")
    assert bt.load_secrets(tmp_path / ".env") == ["HF_TOKEN"] and os.environ["HF_TOKEN"] == "file"
    assert asked == ["WANDB_API_KEY", "TRACKIO_WRITE_TOKEN"]
    monkeypatch.delenv("HF_TOKEN")
    assert (
        bt.load_secrets(tmp_path / "none") == ["HF_TOKEN"]
        and os.environ["HF_TOKEN"] == "from colab"
    )


TRAIN = """
import sys
import btsft_nb as bt
names = bt.load_secrets()
assert len(names) == 3, names
model, tokenizer = bt.load_model("tiny", qlora=True)
data = bt.prepare(bt.load_rows("tiny/teacher")[:4], tokenizer)
trackers = dict(report_to=["tensorboard", "wandb"])
config = bt.BTSFTConfig("run", max_steps=2, save_steps=1, logging_steps=1, per_device_train_batch_size=2, **trackers)
track = bt.TrackSamples(["How many?"], tokenizer, every=1, n=1, max_new_tokens=2)
trainer = bt.BTSFTTrainer(model, config, data, processing_class=tokenizer, callbacks=[track])
print(config, names)
trainer.train()
run = bt.Run("run")
print(run, run._repr_html_(), run.environment, run.config)
import wandb
wandb.finish()  # returns when its service has written all
"""


def test_a_whole_training_writes_no_secret(tmp_path):
    """With TensorBoard and offline wandb: the secrets are in the environment, in .env and on the command line, and in
    no byte of the folder, of wandb's, or of what is printed; the trackers have what they were given."""
    pytest.importorskip("wandb")
    file = "".join(f"{name}={value}\n" for name, value in list(SECRETS.items())[1:])
    (tmp_path / ".env").write_text(file)
    environment = os.environ | {
        "HF_TOKEN": SECRETS["HF_TOKEN"],
        "WANDB_SILENT": "true",
        "WANDB_RUN_GROUP": "group-7",
        "WANDB_TAGS": "tag-7",
        "WANDB_JOB_TYPE": "job-7",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environment["WANDB_MODE"] = "offline"
    command = [
        sys.executable,
        "-c",
        TRAIN,
        "--hub_token",
        "hf_onthecommandline",
        "api_key=verysecret",
        f"{tmp_path}/x.yaml",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:].decode()
    (tmp_path / ".env").unlink()
    written = {
        path.relative_to(tmp_path): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert {path.parts[0] for path in written} == {"run", "wandb"}
    texts = written | {"stdout": done.stdout, "stderr": done.stderr}
    for secret in SECRETS.values():
        assert [name for name, text in texts.items() if secret.encode() in text] == []
    ours = [
        text
        for path, text in written.items()
        if path.parts[0] == "run" and "runs" not in path.parts
    ]
    assert not any(secret in text for text in ours for secret in (b"hf_onthe", b"verysecret"))
    environment = written[next(path for path in written if str(path) == "run/environment.json")]
    assert str(tmp_path).encode() not in environment
    assert b"HF_TOKEN" in done.stdout
    (log,) = [text for path, text in written.items() if path.suffix == ".wandb"]
    # a log in blocks, as LevelDB's: a record that goes beyond its block is cut by the next one's header of seven bytes
    log = b"".join(log[start + 7 : start + 32768] for start in range(0, len(log), 32768))
    assert [
        word for word in (b"group-7", b"tag-7", b"job-7", b"expected_reward") if word not in log
    ] == []
