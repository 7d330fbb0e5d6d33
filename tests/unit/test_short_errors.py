"""One variable shows the traceback of any command's mistake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from altclip_train.cli import main
from altclip_train.errors import short_errors


def test_tool_names_a_variable_that_shows_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALTCLIP_TRACEBACK", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    arguments = ["export", str(tmp_path / "nowhere"), str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    _, hint = str(exit_.value.code).splitlines()
    assert hint == "(ALTCLIP_TRACEBACK=1 shows the traceback)"
    monkeypatch.setenv("ALTCLIP_TRACEBACK", "1")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that it is put back
    with pytest.raises(FileNotFoundError, match="does not exist"):
        main(arguments)


def test_hydra_shows_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALTCLIP_TRACEBACK", "1")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with short_errors():
        assert os.environ["HYDRA_FULL_ERROR"] == "1"  # all that Hydra looks at
