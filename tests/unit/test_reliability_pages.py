"""Every test that the pages on reliability and security name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["docs/reliability.md", "SECURITY.md"]


def named(page: str) -> list[tuple[str, str]]:
    """File and function of each test that a page names; `::name` alone is of the file before."""
    found, file = [], ""
    for before, name in re.findall(r"`([\w/]*(?:\.py)?)::(\w+)`", (ROOT / page).read_text(encoding="utf-8")):
        file = before or file
        found.append((file, name))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_a_page_names_exist(page: str):
    tests = named(page)
    assert len(tests) >= 15
    for file, name in tests:
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE), name
