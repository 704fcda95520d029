"""The launch files, and what several processes share: prepared data, a run that goes on after a kill, notebooks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

import btsft_nb as bt

LAUNCH = Path(bt.__file__).parent / "training" / "launch"
WORKER = Path(__file__).with_name("launch_worker.py")
TYPES = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}


def start(
    work: str, folder: Path, launcher: tuple[str, ...] = ("torch.distributed.run",)
) -> subprocess.Popen:
    """Two processes of the worker, under torchrun or accelerate launch."""
    options = {"torch.distributed.run": ["--standalone", "--nproc_per_node=2", "--max_restarts=0"]}
    command = [sys.executable, "-m", *launcher, *options.get(launcher[0], []), WORKER, work, folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["HF_DATASETS_CACHE"] = str(folder / "cache")
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-4000:]


def result(folder: Path) -> tuple[bytes, list[float]]:
    """A run's adapter, byte for byte, and the losses of its steps."""
    logs = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return (folder / "adapter_model.safetensors").read_bytes(), [
        log["loss"] for log in logs if "loss" in log
    ]


def test_no_launch_file_is_forgotten():
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_takes_each_launch_file(name):
    """Loaded by accelerate's own loader, and merged with a command line as accelerate launch does it."""
    file = str(LAUNCH / f"{name}.yaml")
    config = load_config_from_file(file)
    assert config.distributed_type.value == TYPES[name]
    line = ["--config_file", file, "--num_processes", "2", "-m", "btsft_nb", "train"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(line))
    assert arguments.num_processes == 2 and defaults.distributed_type.value == TYPES[name]
    assert (arguments.use_fsdp, arguments.use_deepspeed) == (
        name == "fsdp2",
        name.startswith("zero"),
    )
    if name == "fsdp2":
        assert (
            int(arguments.fsdp_version) == 2
            and arguments.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"
        )
    if name.startswith("zero"):
        assert arguments.zero_stage == int(name[-1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    end(
        start(
            "train",
            folder,
            (
                "accelerate.commands.launch",
                "--config_file",
                str(LAUNCH / "ddp.yaml"),
                "--num_processes",
                "2",
            ),
        )
    )
    return folder


def test_data_are_prepared_by_one_process(alone):
    """Both train on the same rows; one rendered them, the other read the cache."""
    assert sorted(path.name for path in alone.glob("rank*")) == ["rank0", "rank1"]
    made = [json.loads((alone / f"rank{rank}").read_text()) for rank in range(2)]
    assert made[0]["rendered"] > 0 and made[1]["rendered"] == 0
    assert made[0]["examples"] == made[1]["examples"] == 16


def test_a_killed_rank_ends_the_run_and_it_goes_on(tmp_path, alone):
    """Rank 1 is killed after the checkpoint of step 2: the launcher ends, and two new processes end bit-equal."""
    process = start("die", tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "SIGKILL" in output, output[-2000:]
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file()
    assert not (tmp_path / "adapter_model.safetensors").exists()
    end(start("resume", tmp_path))
    assert result(tmp_path) == result(alone)


def test_notebook_launcher(tmp_path):
    """Two processes, from one that has imported nothing but the function, as a notebook's cell does.

    debug_launcher is notebook_launcher for CPUs, which for one process only calls the function.
    """
    code = "from accelerate import debug_launcher; from launch_worker import train; "
    code += f"debug_launcher(train, {(str(tmp_path),)}, 2)"
    environment = os.environ | {"PYTHONPATH": f"{WORKER.parent}:{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert len(list(tmp_path.glob("rank*"))) == 2
