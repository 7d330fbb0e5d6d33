"""What `altclip doctor` looks at, and a run when it starts: each check says what it found and what to do."""

from __future__ import annotations

import locale
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

# Releases that steal credentials when they are imported: GHSA-w37p-236h-pfx3.
MALICIOUS = {name: ("2.6.2", "2.6.3") for name in ("lightning", "pytorch-lightning")}
NEEDED = {"torch": (2, 6), "lightning": (2, 6, 6), "hydra-core": (1, 3, 8)}
GIGABYTE = 1e9


class Finding(NamedTuple):
    check: str
    level: str  # ok, warning or error
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:8}{self.check}: {self.found}" + (f"\n        {self.advice}" if self.advice else "")


Check = Callable[[], Iterator[Finding]]


def run_checks(checks: Sequence[Check]) -> list[Finding]:
    """All findings; a check that fails by itself is an error too."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            findings.append(Finding(check.__name__, "error", f"{type(error).__name__}: {error}", "mend this first"))
    return findings


def check_start(directory: Path, *, rank: int = 0) -> None:
    """The checks that take no time, before a run imports what they are about. Raises ValueError for an error.

    Rank 0 alone prints warnings.
    """
    findings = run_checks([packages, text_encoding, shared_memory, lambda: disk(directory)])
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise ValueError("\n".join(f"{error.check}: {error.found}; {error.advice}" for error in errors))
    if rank == 0:
        for warning in findings:
            if warning.level == "warning":
                print(f"warning: {warning.check}: {warning.found}; {warning.advice}", file=sys.stderr)


def packages() -> Iterator[Finding]:
    """Versions, by their metadata alone: importing a malicious one would be too late."""
    for name, bad in MALICIOUS.items():
        if (found := _version(name)) in bad:
            yield Finding(
                "packages",
                "error",
                f"{name} {found} is a malicious release that steals credentials when it is imported",
                f"pip uninstall {name}, change every key and password that this machine knew, install 2.6.6 or newer",
            )
    for name, least in NEEDED.items():
        found = _version(name)
        numbers = tuple(int(part) for part in (found or "0").split("+")[0].split(".") if part.isdigit())
        wanted = ".".join(map(str, least))
        if numbers < least:
            yield Finding("packages", "error", f"{name} {found or 'is missing'}", f"install {name}>={wanted}")
        else:
            yield Finding("packages", "ok", f"{name} {found}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def text_encoding() -> Iterator[Finding]:
    """Texts and paths of any language need UTF-8."""
    names, texts = sys.getfilesystemencoding(), locale.getpreferredencoding(False)
    wrong = [f"{what} are {found}" for what, found in (("file names", names), ("texts", texts)) if not _is_utf8(found)]
    if wrong:
        yield Finding("locale", "warning", ", ".join(wrong), "export PYTHONUTF8=1, or LC_ALL=C.UTF-8")
    else:
        yield Finding("locale", "ok", "file names and texts are UTF-8")


def _is_utf8(name: str) -> bool:
    return name.lower().replace("-", "") == "utf8"


def shared_memory(place: Path = Path("/dev/shm"), least: float = GIGABYTE) -> Iterator[Finding]:
    """Loader processes hand their batches over through it."""
    if not place.is_dir():
        return
    usage = shutil.disk_usage(place)
    found = f"{usage.free / GIGABYTE:.1f} of {usage.total / GIGABYTE:.1f} GB free in {place}"
    if usage.free < least:
        yield Finding("shared memory", "warning", found, "docker run --shm-size=16g, or data.num_workers=0")
    else:
        yield Finding("shared memory", "ok", found)


def disk(directory: Path) -> Iterator[Finding]:
    """Whether runs can be written there, for how long, and whether its clock is this machine's."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / GIGABYTE
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            skew = abs(os.stat(file.name).st_mtime - time.time())
    except OSError as error:
        yield Finding("disk", "error", f"{existing} cannot be written: {error}", "give outputs=DIR that can")
        return
    if free < 1:
        yield Finding("disk", "error", f"{free:.2f} GB free in {existing}", "make room, or give outputs=DIR elsewhere")
    elif free < 30:
        advice = "a checkpoint of the paper's model has 7 GB, and two are kept"
        yield Finding("disk", "warning", f"{free:.1f} GB free in {existing}", advice)
    else:
        yield Finding("disk", "ok", f"{free:.0f} GB free in {existing}")
    if skew > 5:
        advice = "run an NTP client on both: runs are ordered by their dates"
        yield Finding("clock", "warning", f"the file system of {existing} is {skew:.0f} s apart", advice)


def clock() -> Iterator[Finding]:
    """A machine that was never set begins in 1970; certificates then fail."""
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    if time.time() < 1.7e9:
        yield Finding("clock", "error", f"it is {now}", "set the clock, or run an NTP client")
    else:
        yield Finding("clock", "ok", now)


def devices() -> Iterator[Finding]:
    """What torch can compute on."""
    import torch
    from torch.cuda import nccl

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
            found = f"{torch.cuda.get_device_name(number)}, {bf16}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
            yield Finding(f"cuda:{number}", "ok" if free > total / 2 else "warning", found)
        yield Finding("nccl", "ok", ".".join(map(str, nccl.version())))
    elif any(Path("/dev").glob("nvidia[0-9]*")):
        found = f"there is an NVIDIA GPU, but torch {torch.__version__} sees none"
        yield Finding("devices", "error", found, "install torch's CUDA build for this driver (nvidia-smi shows it)")
    else:
        bf16 = "with" if torch.cpu._is_avx512_bf16_supported() else "without"
        yield Finding("devices", "ok", f"CPU only: {os.cpu_count()} cores, {bf16} native bf16")


def shards(urls: Sequence[str], most: int = 64) -> Iterator[Finding]:
    """Whether shards can be opened: the first, the last and some between."""
    from altclip_train.data.shards import ShardReader
    from altclip_train.data.urls import expand_urls

    for url in urls:
        try:
            found = expand_urls(url)
            some = [
                found[i * (len(found) - 1) // max(1, min(most, len(found)) - 1)] for i in range(min(most, len(found)))
            ]
            reader = ShardReader(some)
        except (OSError, ValueError) as error:
            yield Finding(
                "shards", "error", str(error), "look at the place, its permissions, and `altclip data verify`"
            )
            continue
        text = f"{len(found)} in {url}; {sum(reader.counts)} samples in the {len(some)} looked at"
        if reader.problems:
            yield Finding("shards", "warning", f"{text}; {reader.problems[0]}", "altclip data verify says more")
        else:
            yield Finding("shards", "ok", text)
