"""What all tests share: no network, no tracker, few threads, and the real tokenizers where they are at hand."""

import os
import shutil
import tempfile

os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="btsft_tests_")  # prepared sets, too
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

import btsft_nb as bt

pytest_plugins = ["browser"]

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
settings.register_profile(
    "repeatable", deadline=None, max_examples=40, derandomize=True, database=None
)
settings.register_profile("explore", deadline=None, max_examples=300, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


TOKENIZERS = ("tiny_tokenizer", "qwen3", "r1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real tokenizers, templates and data sets; it is not part of the project."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return bt.load_tokenizer("tiny")


@pytest.fixture(scope="session")
def qwen3(shared):
    return bt.load_tokenizer(shared / "tokenizers" / "qwen3")


@pytest.fixture(scope="session")
def r1(shared):
    return bt.load_tokenizer(shared / "tokenizers" / "deepseek-r1-distill-qwen")


@pytest.fixture(scope="session", params=TOKENIZERS)
def tokenizer(request):
    """Each tokenizer in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def renderer(tokenizer) -> bt.Renderer:
    """The renderer of each tokenizer in turn; its slow parts are built once."""
    return bt.Renderer(tokenizer)
