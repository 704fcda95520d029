"""For nbval: where TRL, an extra, is not installed, the cells of the chapter that needs it are skipped and say so."""

from importlib.util import find_spec

import pytest


def pytest_collection_modifyitems(items):
    if find_spec("trl") is None:
        for item in items:
            if item.path.name == "08_after_sft.ipynb":
                item.add_marker(pytest.mark.skip(reason="TRL is not installed: pip install 'trl>=1.8'"))
