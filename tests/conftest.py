"""Fixtures that several folders share."""

from __future__ import annotations

import os

import pytest
import torch

from tests.workspace import Workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A tiny starter build and a tiny CLIP, made once for all tests."""
    return Workspace(tmp_path_factory.mktemp("workspace"))


def pytest_configure() -> None:
    # With -n, workers are the parallelism: threads in each of them, and in what they start, would wait for each other.
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="where the browser tests keep pictures of the pages")
