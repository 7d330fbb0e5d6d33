"""User mistakes end a command with one line instead of a traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

_PACKAGE = Path(__file__).parent
TRACEBACK = "ALTCLIP_TRACEBACK"  # set to 1, every command shows where an error comes from


class Unreachable(Exception):  # noqa: N818 the fault is not the program's
    """Remote data that cannot be had, after all patience. No OSError, which would count as one bad sample."""


EXPLAINED = (ValueError, FileNotFoundError, FileExistsError, ModuleNotFoundError, ConnectionError, Unreachable)


@contextmanager
def short_errors() -> Iterator[None]:
    """Exit with ``error: ...`` when one of the package's own checks fails.

    Hydra and OmegaConf wrap what constructors and resolvers raise, so the whole chain is searched. Anything else,
    and everything under ALTCLIP_TRACEBACK=1 or Hydra's own HYDRA_FULL_ERROR=1, keeps its traceback.
    """
    if os.environ.get(TRACEBACK) == "1":
        os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would shorten it
    try:
        yield
    except Exception as error:
        message = _own_message(error)
        if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise SystemExit(f"error: {message}\n({TRACEBACK}=1 shows the traceback)") from None


def _own_message(error: BaseException | None) -> str | None:
    while error is not None:
        raised_in = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
        if isinstance(error, EXPLAINED) and raised_in and Path(raised_in[-1]).is_relative_to(_PACKAGE):
            # OmegaConf puts its own words around what a resolver of ours raises.
            return str(error).rpartition(" raised while resolving interpolation: ")[2].partition("\n    full_key: ")[0]
        error = error.__cause__ or error.__context__
    return None
