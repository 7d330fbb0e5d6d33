"""Damaged inputs cost no more than what is damaged, and the page on them says what happens now."""

from pathlib import Path

import pytest

from tests.faults.damaged_inputs import table

PAGE = Path(__file__).parents[2] / "docs" / "damaged-inputs.md"

pytestmark = pytest.mark.faults


def test_page_on_damaged_inputs_is_up_to_date():
    assert table() == PAGE.read_text(encoding="utf-8"), "python -m tests.faults.damaged_inputs > docs/damaged-inputs.md"
