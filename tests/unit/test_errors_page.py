"""docs/errors.md speaks of messages that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
CATALOGUE = PAGE[PAGE.index("| message |") :]
MESSAGES = re.findall(r"^\| `([^`]+)` \|", CATALOGUE, re.MULTILINE)
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "altclip_train").rglob("*.py"))


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_one_of_the_package(message: str):
    assert message in SOURCE


def test_every_row_says_what_to_do():
    rows = [line for line in CATALOGUE.splitlines()[2:] if line.startswith("|")]
    assert len(rows) == len(MESSAGES) > 20
    assert all(all(cell.strip() for cell in row.strip("|").split("|")) for row in rows)
