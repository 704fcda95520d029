"""What has to hold on a GPU, marked gpu, and benchmarks/gpu.py, which runs these there, and here at a small size."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import btsft_nb as bt
from btsft_nb.objective.full_logits import reference_head
from btsft_nb.objective.head import head_log_probs

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(FOLDER))
import gpu  # noqa: E402
import sections  # noqa: E402

SECTIONS = ["head", "step", "sampling", "recipe", "equality", "tests"]
TAGS = (1, 2)


def script(*arguments: str | Path) -> subprocess.CompletedProcess:
    """benchmarks/gpu.py, run."""
    command = [sys.executable, FOLDER / "gpu.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, dict]:
    """What the script writes with --cpu: its sections by name."""
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    done = script("--cpu", "--out", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def rows_of(report: dict, section: str, key: str) -> dict[str, dict]:
    """The rows of a section by one of their entries."""
    return {row[key]: row for row in report[section]["rows"]}


def test_each_section_says_what_was_run_where_and_with_what(report):
    assert list(report) == SECTIONS
    for section in report.values():
        assert section["error"] is None and section["rows"] and section["what"]
        assert section["gpu"] is None and section["processor"] and section["date"]
        assert section["versions"]["torch"] == torch.__version__
        assert "benchmarks/gpu.py --cpu --out" in section["command"]


def test_the_head_is_measured_beside_its_products_and_its_peers(report):
    rows = rows_of(report, "head", "method")
    assert rows["ours"]["over_ours"] == rows["products"]["over_products"] == 1
    assert rows["ours"]["over_products"] == rows["ours"]["seconds"] / rows["products"]["seconds"]
    assert rows["liger"]["not_run"] == "RuntimeError: its Triton kernels need a GPU"
    assert "seconds" in rows["anchored"] and "seconds" in rows["full_logits"]
    for name in ("full_logits", "trl_same_rows", "trl_trainer"):
        assert rows[name].get("gradient_difference", 0) < 1e-5


def test_the_trainers_are_measured_where_they_train_the_same(report):
    rows = rows_of(report, "step", "method")
    assert list(rows) == ["plain SFT", "all dials", "SFTTrainer"]
    ours, theirs = rows["plain SFT"]["losses"], rows["SFTTrainer"]
    assert rows["all dials"]["losses"] != ours
    if "not_run" in theirs:
        assert theirs["not_run"].startswith("ModuleNotFoundError: No module named 'trl'")
    else:
        assert theirs["losses"] == pytest.approx(ours, rel=1e-4)


def test_sampling_is_measured_by_batch(report):
    rows = report["sampling"]["rows"]
    assert [(row["batch"], row["method"]) for row in rows] == [
        (batch, method) for batch in (1, 4) for method in ("sample", "generate")
    ]
    for row in rows:  # none of 8 random tokens ends a turn
        assert row["tokens_per_s"] == pytest.approx(8 * row["completions_per_s"])


def test_the_recipe_learns_and_resumes(report):
    whole, resumed = report["recipe"]["rows"]
    assert len(whole["losses"]) == 20 and resumed["losses"] == whole["losses"]
    assert sum(whole["losses"][-5:]) < sum(whole["losses"][:5])
    assert whole["trainable"] == resumed["trainable"] == ["float32"]
    assert resumed["adapter_difference"] == 0  # on a CPU


def test_loss_and_gradients_are_compared_with_every_dial(report):
    rows = rows_of(report, "equality", "dials")
    assert list(rows) == ["plain SFT", "threshold", "threshold and anchor", "beta", "all"]
    assert len({row["loss_value"] for row in rows.values()}) == len(rows)
    for row in rows.values():
        assert 0 < row["gradient"] < row["gradient_tolerance"]
        assert row["loss"] < row["loss_tolerance"]


def test_the_tests_marked_gpu_are_run_and_skip_by_name(report):
    (row,) = report["tests"]["rows"]
    assert re.match(r"\d+ skipped, \d+ deselected in", row["result"])
    assert any("needs a CUDA GPU" in line for line in row["output"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_what_would_do():
    done = script()
    assert done.returncode == 1 and "--cpu runs the same at a small size" in done.stderr


# ------------------------------------------------------------------ sections that fail


def fails():
    yield {"n": 1}
    raise ValueError("a reason")


def dies():
    yield {"n": 1}
    os.write(1, b"last words")
    os.kill(os.getpid(), signal.SIGKILL)


def hangs():
    yield {"pid": subprocess.Popen(["sleep", "600"]).pid}
    time.sleep(600)


@pytest.mark.parametrize(
    ("rows", "reason"), [(fails, "ValueError: a reason"), (dies, "its process ended: -9")]
)
def test_a_section_that_fails_keeps_its_rows_and_says_why(rows, reason):
    section = sections.run(rows, 60, ("torch",))
    assert section["rows"] == [{"n": 1}] and reason in section["error"]
    assert section["versions"]["torch"] == torch.__version__ and sections.failed(section)
    assert "FAILED" in sections.table(section)
    assert section["output"] == (["last words"] if rows is dies else [])


def test_a_section_that_runs_over_is_stopped_with_all_that_it_started():
    section = sections.run(hangs, 8, ())
    assert section["error"] == "stopped after its 8 seconds"
    stat = Path(f"/proc/{section['rows'][0]['pid']}/stat")
    for _ in range(100):
        is_alive = stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
        time.sleep(0.1 * is_alive)
    assert not is_alive


def good(sizes, folder):
    """One that does not fail."""
    yield {"time": time.time()}


def bad(sizes, folder):
    """One that does."""
    yield from fails()


def test_a_failure_is_the_exit_status_and_one_section_can_be_renewed(tmp_path, monkeypatch):
    path = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "SECTIONS", {"good": (good, 60), "bad": (bad, 60)})
    for name in ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE"):  # main sets them
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--cpu", "--out", str(path), *arguments])
        with pytest.raises(SystemExit) as end:
            gpu.main()
        return end.value.code, json.loads(path.read_text())

    status, before = main()
    assert status == 1 and before["good"]["error"] is None
    assert before["bad"]["rows"] == [{"n": 1}] and "a reason" in before["bad"]["error"]
    status, after = main("--only", "good")
    assert status == 0 and after["bad"] == before["bad"]
    assert after["good"]["rows"] != before["good"]["rows"]


def test_a_row_of_ours_that_fails_is_an_error_and_a_peers_is_not():
    def broken():
        raise ValueError("a reason\nand more")

    ours = sections.attempt({"n": 1}, broken)
    peer = sections.attempt({"n": 1}, broken, is_peer=True)
    assert "Traceback" in ours["error"] and peer == {"n": 1, "not_run": "ValueError: a reason"}
    assert sections.failed({"error": None, "rows": [peer, ours]})
    assert not sections.failed({"error": None, "rows": [peer]})


# ------------------------------------------------------------------ on a GPU

DEVICE = "cuda"


def head_problem(dtype: torch.dtype, rows=96, vocabulary=5_000, width=64):
    """A head, hidden states, reference states of every other row, and labels, of which some are tags."""
    torch.manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
    head.weight.normal_(0, 2 / width**0.5)
    hidden = torch.randn(rows, width)
    reference = hidden[::2] + 0.3 * torch.randn(rows // 2, width)
    labels = torch.randint(vocabulary, (rows,), device=DEVICE)
    labels[:2] = torch.tensor(TAGS)
    return *(x.to(DEVICE, dtype) for x in (head, hidden, reference)), labels


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)],
    ids=str,
)
def test_the_head_gives_the_values_and_gradients_of_full_logits(dtype, tolerance):
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    head, hidden, reference, labels = head_problem(dtype)
    has_kl = torch.arange(len(labels), device=DEVICE) % 2 == 0
    rows, exact = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    options = {"ref_hidden": reference, "kl_rows": has_kl}
    ours = head_log_probs(rows, head, labels, TAGS, **options)
    weight = head.weight.double()
    options = {"ref_logits": reference.double() @ weight.T, "kl_rows": has_kl}
    wanted = reference_head(exact @ weight.T, labels, TAGS, **options)
    for output in (ours, wanted):
        nll = -output.log_probs[~has_kl].sum()
        (nll + output.kl.sum() + 0.1 * output.log_tags.sum()).backward()
    for name in ("log_probs", "log_tags", "kl"):
        a, b = getattr(ours, name).double(), getattr(wanted, name).double()
        assert (a - b).abs().max() < 4 * tolerance * b.abs().max(), name
    assert (rows.grad.double() - exact.grad).norm() < tolerance * exact.grad.norm()


@pytest.mark.gpu
def test_the_head_never_holds_the_logits():
    head, hidden, _, labels = head_problem(torch.float16, 4_096, 100_000)
    hidden.requires_grad_()
    for _ in range(2):  # the first call compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        head_log_probs(hidden, head, labels, TAGS).log_probs.sum().backward()
    logits = len(labels) * 100_000 * 4
    assert torch.cuda.max_memory_allocated() - before < logits / 3


@pytest.mark.gpu
def test_a_model_in_float16_holds_no_bfloat16_and_trains_float32():
    model, _ = bt.load_model(bt.ModelConfig("tiny", dtype="float16"))
    tensors = [*model.parameters(), *model.buffers()]
    assert {x.device.type for x in tensors} == {DEVICE}
    assert torch.bfloat16 not in {x.dtype for x in tensors}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    quantised = [x.quant_state for x in tensors if hasattr(x, "quant_state")]
    assert quantised and {state.dtype for state in quantised} == {torch.float16}


@pytest.mark.gpu
def test_training_in_float16_learns(tmp_path):
    model, tokenizer = bt.load_model(bt.ModelConfig("tiny", dtype="float16"))
    examples = bt.prepare(bt.load_rows("tiny/teacher")[:80], tokenizer)
    settings = dict(fp16=True, max_steps=20, learning_rate=1e-3, logging_steps=10)
    config = bt.BTSFTConfig(str(tmp_path), per_device_train_batch_size=8, **settings)
    trainer = bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer)
    trainer.train()
    first, last = [log["loss"] for log in trainer.state.log_history if "loss_nll" in log]
    assert last < first and trainer.accelerator.scaler.get_scale() > 1


@pytest.mark.gpu
def test_completions_are_those_of_the_cpu_whatever_the_batch():
    problems = bt.load_rows("tiny/test")[:16]
    options = {"n": 2, "max_new_tokens": 96, "progress": False}
    texts = []
    for device, batch_size in (("cpu", 32), (DEVICE, 32), (DEVICE, 5)):
        model, tokenizer = bt.load_model("tiny")
        model.to(device, torch.float32)
        records = bt.sample(model, tokenizer, problems, batch_size=batch_size, **options)
        texts.append([record["text"] for record in records])
    for others in texts[1:]:  # a draw may fall on another side of a rounded logit
        assert sum(a == b for a, b in zip(texts[0], others, strict=True)) >= 30


@pytest.mark.gpu
def test_scores_are_those_of_the_cpu():
    model, tokenizer = bt.load_model("tiny")
    examples = bt.prepare(bt.load_rows("tiny/messy")[:4], tokenizer)
    here, there = (
        bt.score(model.to(device, torch.float32), tokenizer, examples) for device in (DEVICE, "cpu")
    )
    for a, b in zip(here, there, strict=True):
        assert a["log_probs"] == pytest.approx(b["log_probs"], rel=1e-4, abs=1e-4)
        assert a["expected_reward"] == pytest.approx(b["expected_reward"], rel=1e-4)
