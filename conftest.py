"""The examples in docstrings run in a folder of their own, with the package as `bt`."""

import pytest


@pytest.fixture(autouse=True)
def folder_for_an_example(request, tmp_path, monkeypatch):
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def names_for_an_example(doctest_namespace):
    import btsft_nb as bt

    doctest_namespace["bt"] = bt
