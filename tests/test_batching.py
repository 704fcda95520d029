"""Loss, gradients and blur are the same under every way of batching: sizes, padding, packing, order, processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from batching_worker import step

WORKER = Path(__file__).with_name("batching_worker.py")
ALL = dict(per_device_train_batch_size=16)
WAYS = {
    "8 x 2": dict(per_device_train_batch_size=8, gradient_accumulation_steps=2),
    "2 x 8": dict(per_device_train_batch_size=2, gradient_accumulation_steps=8),
    "1 x 16": dict(per_device_train_batch_size=1, gradient_accumulation_steps=16),
    "length-grouped": dict(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        train_sampling_strategy="group_by_length",
    ),
    "random": dict(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        train_sampling_strategy="random",
    ),
    "packed": dict(ALL, padding_free=True),
    "packed, 2 x 8": dict(
        per_device_train_batch_size=2, gradient_accumulation_steps=8, padding_free=True
    ),
    "workers": dict(
        per_device_train_batch_size=4, gradient_accumulation_steps=4, dataloader_num_workers=2
    ),
    "checkpointed": dict(ALL, gradient_checkpointing=True),
}
FSDP = dict(fsdp=True, fsdp_config={"transformer_layer_cls_to_wrap": "Qwen3DecoderLayer"})
PROCESSES = {
    "2 processes": dict(per_device_train_batch_size=2, gradient_accumulation_steps=4),
    "2 processes, packed": dict(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, padding_free=True
    ),
    "2 processes, 1 each": dict(per_device_train_batch_size=1, gradient_accumulation_steps=8),
    "FSDP2": dict(per_device_train_batch_size=4, gradient_accumulation_steps=2) | FSDP,
    "FSDP2, 1 each": dict(per_device_train_batch_size=1, gradient_accumulation_steps=8) | FSDP,
}


# some micro-batches of `silent` have no target
CASES = [("messy", way) for way in WAYS]
CASES += [("silent", way) for way in ("2 x 8", "1 x 16", "packed, 2 x 8")]


@pytest.fixture(scope="module")
def data(request):
    return request.param


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """All examples in one padded micro-batch."""
    return step(str(tmp_path_factory.mktemp(data)), data, ALL)


def assert_same(found: dict, whole: dict) -> None:
    """Relative 1e-5 in float32, parameter by parameter; every log but the speed; the same tokens blurred."""
    assert set(found["gradients"]) == set(whole["gradients"])
    for name, wanted in whole["gradients"].items():
        assert wanted.norm() > 0, name
        assert (found["gradients"][name] - wanted).norm() <= 1e-5 * wanted.norm(), name
    for name, value in whole["log"].items():
        if name != "tokens_per_second":
            assert found["log"][name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(("data", "way"), CASES, indirect=["data"])
def test_batching_changes_nothing(tmp_path, data, whole, way):
    found = step(str(tmp_path), data, WAYS[way])
    assert_same(found, whole)
    assert found["blurred"] == whole["blurred"] and any(map(any, whole["blurred"].values()))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """By rank, what two processes under torchrun with gloo found in each way: they take long to start."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        WORKER,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, folder, json.dumps(PROCESSES)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("data", ["silent"], indirect=True)
@pytest.mark.parametrize("way", PROCESSES)
def test_processes_change_nothing(ranks, data, whole, way):
    """They have unequal counts, and micro-batches with none."""
    blurred = [rank[way]["blurred"] for rank in ranks]
    for rank in ranks:
        assert_same(rank[way], whole)
        assert rank[way]["sharded"] == ("fsdp" in PROCESSES[way])
    assert not set(blurred[0]) & set(blurred[1])
    assert blurred[0] | blurred[1] == whole["blurred"]
