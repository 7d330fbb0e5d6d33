"""Fixtures that several folders share."""

from __future__ import annotations

import pytest

from tests.workspace import Workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A tiny starter build and a tiny CLIP, made once for all tests."""
    return Workspace(tmp_path_factory.mktemp("workspace"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="where the browser tests keep pictures of the pages")
