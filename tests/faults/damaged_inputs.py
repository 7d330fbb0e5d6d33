"""Every kind of damaged input, made from a sound shard, read as training reads it, and written down in a table.

    python -m tests.faults.damaged_inputs > docs/damaged-inputs.md

Ten samples 000 to 009, each with a picture and captions in English and Chinese. What a case expects is stated
beside it and checked; the table is made of what was observed.
"""

from __future__ import annotations

import io
import logging
import pickle
import re
import struct
import sys
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from altclip_train.data.dataset import PairDataset
from altclip_train.data.decoders import ImageTextDecoder
from altclip_train.processing.images import ImageTransform, to_rgb
from altclip_train.types import PackedTokens

KEYS = [f"{n:03d}" for n in range(10)]
GREY = (127, 127, 127)
BLOCK = 512
Members = list[tuple[str, bytes]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault: ``make(directory)`` writes it and returns the urls to read.

    ``lost`` are the keys that are not delivered, ``lost_member`` is what a delivered sample has lost, ``reasons`` why
    samples were skipped. ``damage`` matches what the index reports, ``error`` the message when nothing is read.
    ``seen`` is how sample 003 looks.
    """

    name: str
    make: Callable[[Path], str]
    lost: frozenset[str] = frozenset()
    lost_member: str | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    damage: str | None = None
    error: str | None = None
    seen: tuple[int, ...] | None = None  # width, height, mean colour
    remark: str = ""


@dataclass(frozen=True)
class Outcome:
    """What reading a case gave."""

    delivered: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    members: frozenset[str] = frozenset()
    problems: list[str] = field(default_factory=list)
    error: str | None = None
    seen: tuple[int, ...] | None = None

    @property
    def lost(self) -> list[str]:
        return sorted(set(KEYS) - set(self.delivered))


class Bytes:
    """A tokenizer that gives utf-8 bytes."""

    def pack(self, texts: list[str], max_length: int) -> PackedTokens:
        return PackedTokens.from_lists([list(text.encode())[:max_length] for text in texts])


class SizeAndColour(ImageTransform):
    """Of a picture no pixels, but its size and mean colour."""

    def cropped(self, image: Image.Image) -> np.ndarray:
        rgb = to_rgb(image)
        mean = np.asarray(rgb, dtype=np.float64).mean((0, 1)).round().astype(int)
        return np.array([*rgb.size, *mean])


def read(case: Case, directory: Path) -> Outcome:
    """Visit every planned sample of a case once, as training does."""
    try:
        decoder = ImageTextDecoder(tokenizer=Bytes(), image_transform=SizeAndColour(size=1, crop_size=1), max_length=77)
        dataset = PairDataset(sources=[case.make(directory)], plan_seed=0, decoder=decoder)
        delivered: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        seen = None
        for position in range(len(dataset)):
            (record,), bad = dataset.records([position])
            skipped.update(sample.reason for sample in bad)
            if not bad:
                delivered[record.key] += 1
                seen = tuple(record.pixels.tolist()) if record.key == "003" else seen
    except (ValueError, FileNotFoundError) as error:
        return Outcome(error=_without_place(error, directory))
    problems = [_without_place(problem, directory) for problem in dataset.reader.problems]
    reader = dataset.reader
    found = [(reader.key(0, n), reader.read(0, n)) for n in range(reader.counts[0])]
    present = frozenset(f"{key}.{kind}" for key, fields in found for kind in fields)
    return Outcome(delivered, skipped, present, problems, None, seen)


def _without_place(text: object, directory: Path) -> str:
    return str(text).replace(f"{directory}/", "").replace(str(directory), "DIR")


def check(case: Case, outcome: Outcome) -> None:
    """Raise AssertionError unless the outcome is the expected one, and nothing beyond it was lost."""
    if case.error is not None:
        assert outcome.error is not None, f"{case.name}: it was read"
        assert re.search(case.error, outcome.error), f"{case.name}: {outcome.error}"
        return
    assert outcome.error is None, f"{case.name}: {outcome.error}"
    assert set(outcome.lost) == case.lost, f"{case.name}: lost {outcome.lost}"
    assert outcome.skipped == case.reasons, f"{case.name}: skipped {dict(outcome.skipped)}"
    assert case.lost_member not in outcome.members, f"{case.name}: {case.lost_member} was read"
    if case.damage is not None:
        others = {name for name, _ in sound() if name[:3] not in case.lost} - {case.lost_member}
        assert others <= outcome.members, f"{case.name}: lost {others - outcome.members} too"
    problems = "; ".join(outcome.problems)
    assert bool(problems) == (case.damage is not None), f"{case.name}: {problems or 'no damage reported'}"
    assert case.damage is None or re.search(case.damage, problems), f"{case.name}: {problems}"
    assert max(outcome.delivered.values()) == 1, f"{case.name}: delivered twice"
    if case.seen is not None:
        near = outcome.seen is not None and np.abs(np.subtract(outcome.seen, case.seen)).max() <= 2
        assert near, f"{case.name}: seen as {outcome.seen}, expected {case.seen}"


# Sound parts, and ways to damage them


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(kind: str = "PNG", colour: tuple[int, ...] = GREY, mode: str = "RGB", **options: Any) -> bytes:
    return encoded(Image.new(mode, (8, 6), colour), kind, **options)


def noise(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def sound() -> Members:
    return [
        member
        for key in KEYS
        for member in (
            (f"{key}.png", picture()),
            (f"{key}.en.txt", f"picture {key}".encode()),
            (f"{key}.zh.txt", f"图 {key}".encode()),
        )
    ]


def tar_bytes(members: Members, extra: list[tarfile.TarInfo] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info in extra or []:
            tar.addfile(info)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def replaced(**fields: bytes | None) -> Members:
    """The sound members with those of sample 003 replaced; None takes one away, a new one is added after them."""
    names = {name.replace("_", "."): data for name, data in fields.items()}
    members = []
    for name, data in sound():
        key, _, kind = name.partition(".")
        if key == "003" and kind in names:
            if names[kind] is not None:
                members.append((name, names[kind]))
        else:
            members.append((name, data))
        if name == "003.zh.txt":
            new = [kind for kind in names if kind not in ("png", "en.txt", "zh.txt")]
            members += [(f"003.{kind}", names[kind]) for kind in new]
    return members


def members(change: Callable[[], Members]) -> Callable[[Path], str]:
    return raw(lambda: tar_bytes(change()))


def raw(content: Callable[[], bytes]) -> Callable[[Path], str]:
    def make(directory: Path) -> str:
        (directory / "0.tar").write_bytes(content())
        return str(directory / "0.tar")

    return make


def header_of(name: str) -> int:
    """Offset of a member's header in the sound tar."""
    with tarfile.open(fileobj=io.BytesIO(tar_bytes(sound()))) as tar:
        return tar.getmember(name).offset


def cut(name: str, offset: int) -> Callable[[Path], str]:
    return raw(lambda: tar_bytes(sound())[: header_of(name) + offset])


def flipped(name: str, offset: int) -> Callable[[Path], str]:
    def content() -> bytes:
        data = bytearray(tar_bytes(sound()))
        data[header_of(name) + offset] ^= 0x80
        return bytes(data)

    return raw(content)


def flipped_picture(kind: str, field_name: str) -> Callable[[Path], str]:
    data = bytearray(noise(kind))
    data[len(data) // 2] ^= 1
    return shown(bytes(data), field_name)


def caption(data: bytes) -> Callable[[Path], str]:
    return members(lambda: replaced(en_txt=data, zh_txt=None))


def captions_json(text: str) -> Callable[[Path], str]:
    return members(lambda: replaced(en_txt=None, zh_txt=None, json=text.encode()))


def shown(data: bytes, kind: str = "png") -> Callable[[Path], str]:
    return members(lambda: replaced(**{"png": None, kind: data}) if kind != "png" else replaced(png=data))


def png_of_size(width: int, height: int, extra: bytes = b"") -> bytes:
    """A small file that says it is a large picture."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", zlib.compress(b"\0")) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Payload:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(PICKLE_MARKER), "w")


PICKLE_MARKER = Path(tempfile.gettempdir()) / "altclip_train-damaged-inputs-unpickled"


def with_pickles(directory: Path) -> str:
    PICKLE_MARKER.unlink(missing_ok=True)
    payload = pickle.dumps(Payload())
    return members(lambda: replaced(pyd=payload, pkl=payload, pickle=payload, pth=payload))(directory)


def piped(directory: Path) -> str:
    return f"pipe:touch {directory}/ran"


def odd_names(directory: Path) -> str:
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("device.png")
    device.type = tarfile.CHRTYPE
    outside = [("../../outside.png", picture()), ("../../outside.en.txt", b"outside")]
    outside += [("/tmp/absolute.png", picture()), ("/tmp/absolute.en.txt", b"absolute")]
    return raw(lambda: tar_bytes(sound() + outside, [link, device]))(directory)


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return picture("JPEG", exif=exif)


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.full((6, 8), 127 * 257, dtype=np.uint16)), "PNG")


def frames(kind: str) -> bytes:
    pictures = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=50)


def two_halves() -> Members:
    """All pictures first, then all captions."""
    return sorted(sound(), key=lambda member: not member[0].endswith("png"))


def empty_directory(directory: Path) -> str:
    (directory / "empty").mkdir()
    return str(directory / "empty")


ONE = frozenset({"003"})
LAST = frozenset({"009"})

CASES = [
    # 8: shards that end early or are no shards
    Case(
        name="cut off inside the data of the last picture", make=cut("009.png", BLOCK + 20), lost=LAST, damage="cut off"
    ),
    Case(
        name="cut off between a picture and its captions",
        make=cut("009.en.txt", 0),
        lost=LAST,
        reasons={"caption_missing": 1},
        damage="may be cut off",
    ),
    Case(
        name="cut off inside a header",
        make=cut("009.en.txt", 100),
        lost=LAST,
        reasons={"caption_missing": 1},
        damage="no tar header",
    ),
    Case(
        name="zeros from the middle on (a download that stopped)",
        make=raw(lambda: tar_bytes(sound())[: header_of("009.png")] + bytes(2 << 20)),
        lost=LAST,
        damage="bytes of zeros",
    ),
    Case(name="file of 0 bytes", make=raw(lambda: b""), error="not a readable tar file"),
    Case(
        name="HTML error page instead of a tar",
        make=raw(lambda: b"<!DOCTYPE html><title>404</title>" * 50),
        error="not a readable tar file",
    ),
    Case(
        name="tar compressed with gzip",
        make=raw(lambda: b"\x1f\x8b\x08" + bytes(1000)),
        error="compressed with gzip.*decompress it",
    ),
    Case(
        name="byte flipped in the first header",
        make=flipped("000.png", 10),
        lost=frozenset({"000"}),
        reasons={"image_missing": 1},
        damage="no tar header at byte 0",
    ),
    # 9: bytes flipped in the middle
    Case(
        name="byte flipped in the header of a picture",
        make=flipped("003.png", 10),
        lost=ONE,
        reasons={"image_missing": 1},
        damage="no tar header at byte",
    ),
    Case(
        name="byte flipped in the header of a caption",
        make=flipped("003.zh.txt", 10),
        lost_member="003.zh.txt",
        damage="no tar header at byte",
        remark="the other language is used",
    ),
    Case(
        name="byte flipped in the data of a PNG",
        make=flipped_picture("PNG", "png"),
        lost=ONE,
        reasons={"image_damaged": 1},
    ),
    Case(
        name="byte flipped in the data of a JPEG",
        make=flipped_picture("JPEG", "jpg"),
        remark="JPEG has no checksum: a picture with a blemish is used",
    ),
    Case(
        name="byte flipped in the data of a caption",
        make=flipped("003.en.txt", BLOCK + 2),
        lost=ONE,
        reasons={"caption_encoding": 1},
    ),
    # 10-12: how members are named and ordered
    Case(
        name="member given twice in a row",
        make=members(lambda: [m for m in sound() for _ in range(2 if m[0] == "003.png" else 1)]),
        reasons={"caption_missing": 1},
        damage="2 samples have the key '003'",
        remark="the second picture has the captions",
    ),
    Case(
        name="key that comes again at the end",
        make=members(lambda: [*sound(), ("003.png", picture())]),
        reasons={"caption_missing": 1},
        damage="2 samples have the key '003'",
    ),
    Case(
        name="members not adjacent (all pictures, then all captions)",
        make=members(two_halves),
        error="no sample that can be used",
    ),
    Case(
        name="dots in the name of a sample",
        make=members(lambda: [(name.replace("003.", "003.v1."), data) for name, data in sound()]),
        lost=ONE,
        reasons={"caption_missing": 1},
        remark="the key ends at the first dot",
    ),
    # 13: captions
    Case(name="caption that is not UTF-8", make=caption(b"\xff\xfe cat"), lost=ONE, reasons={"caption_encoding": 1}),
    Case(name="empty caption", make=caption(b" \n"), lost=ONE, reasons={"caption_empty": 1}),
    Case(name="caption of 30,000 characters", make=caption(b"a" * 30_000), lost=ONE, reasons={"caption_long": 1}),
    Case(name="caption of 2 MB", make=caption(b"a\n" * 1_000_000), lost=ONE, reasons={"caption_long": 1}),
    Case(name="NUL in a caption", make=caption(b"a\0cat"), lost=ONE, reasons={"caption_encoding": 1}),
    Case(
        name="lone surrogate in a JSON caption",
        make=captions_json('{"en": "a\\ud800 cat"}'),
        lost=ONE,
        reasons={"caption_encoding": 1},
    ),
    Case(name="JSON that ends early", make=captions_json('{"en": "a c'), lost=ONE, reasons={"caption_json": 1}),
    Case(name="JSON nested 100,000 deep", make=captions_json("[" * 100_000), lost=ONE, reasons={"caption_json": 1}),
    Case(
        name="caption in the wrong language",
        make=caption("一只猫".encode()),
        remark="not noticed in training; `altclip data import` has a filter by script",
    ),
    # 15: decompression bombs
    Case(
        name="PNG of 15,000 x 15,000 pixels in a few bytes",
        make=shown(png_of_size(15_000, 15_000)),
        lost=ONE,
        reasons={"image_pixels": 1},
        remark="refused from its header, before anything is decoded",
    ),
    Case(
        name="PNG with a compressed text of 100 MB",
        make=shown(png_of_size(8, 6, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000))))),
        lost=ONE,
        reasons={"image_damaged": 1},
    ),
    # 16: odd pictures
    Case(name="16-bit PNG", make=shown(sixteen_bits()), seen=(8, 6, *GREY)),
    Case(name="CMYK JPEG", make=shown(picture("JPEG", (0, 255, 255, 0), "CMYK"), "jpg"), seen=(8, 6, 254, 0, 0)),
    Case(name="grey PNG with alpha, half transparent", make=shown(picture("PNG", (0, 128), "LA")), seen=(8, 6, *GREY)),
    Case(
        name="fully transparent PNG over hidden red",
        make=shown(picture("PNG", (255, 0, 0, 0), "RGBA")),
        seen=(8, 6, 255, 255, 255),
    ),
    Case(
        name="PNG with a palette",
        make=shown(encoded(Image.new("RGB", (8, 6), GREY).quantize(), "PNG")),
        seen=(8, 6, *GREY),
    ),
    Case(name="1-bit PNG", make=shown(encoded(Image.new("1", (8, 6), 1), "PNG")), seen=(8, 6, 255, 255, 255)),
    Case(name="animated WebP", make=shown(frames("WEBP"), "webp"), seen=(8, 6, 255, 0, 0), remark="its first frame"),
    Case(name="JPEG with EXIF rotation", make=shown(orientation(6), "jpg"), seen=(6, 8, *GREY), remark="upright"),
    Case(name="picture of 1 x 1", make=shown(encoded(Image.new("RGB", (1, 1), GREY), "PNG")), seen=(1, 1, *GREY)),
    Case(
        name="picture of 5,000 x 1",
        make=shown(encoded(Image.new("RGB", (5000, 1), GREY), "PNG")),
        seen=(5000, 1, *GREY),
    ),
    Case(
        name="float TIFF named png",
        make=shown(encoded(Image.new("F", (8, 6), 0.5), "TIFF")),
        lost=ONE,
        reasons={"image_type": 1},
    ),
    Case(name="animated GIF named png", make=shown(frames("GIF")), lost=ONE, reasons={"image_type": 1}),
    Case(
        name="AVIF named jpg",
        make=shown(b"\0\0\0\x1cftypavif" + bytes(40), "jpg"),
        lost=ONE,
        reasons={"image_type": 1},
    ),
    Case(
        name="SVG named png",
        make=shown(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        lost=ONE,
        reasons={"image_type": 1},
    ),
    # 17: pictures that end early
    Case(name="JPEG that ends early", make=shown(noise("JPEG")[:-200], "jpg"), lost=ONE, reasons={"image_damaged": 1}),
    Case(name="PNG that ends early", make=shown(noise("PNG")[:-200]), lost=ONE, reasons={"image_damaged": 1}),
    # 18, 19, 22: hostile inputs
    Case(name="pickles in .pyd, .pkl, .pickle and .pth", make=with_pickles, remark="never read, never unpickled"),
    Case(name="`pipe:` url", make=piped, error="run a shell command and are refused", remark="not run"),
    Case(
        name="names that climb out, absolute names, links, devices",
        make=odd_names,
        remark="nothing is ever extracted; links and devices are no members",
    ),
    # 31: nothing there
    Case(name="tar without members", make=members(list), error="has no samples"),
    Case(name="directory without shards", make=empty_directory, error="no shard matches"),
]


def outcomes() -> Iterator[tuple[Case, Outcome]]:
    """Each case with what came of it, checked."""
    logging.disable(logging.WARNING)  # each case warns of what the table says
    try:
        for case in CASES:
            with tempfile.TemporaryDirectory() as directory:
                outcome = read(case, Path(directory))
                check(case, outcome)
                assert not PICKLE_MARKER.exists(), "a pickle was run"
                assert not (Path(directory) / "ran").exists(), "a shell command was run"
                yield case, outcome
    finally:
        logging.disable(logging.NOTSET)


def table() -> str:
    """The page docs/damaged-inputs.md."""
    rows = [row(case, outcome) for case, outcome in outcomes()]
    return "\n".join([HEAD, *rows]) + "\n"


def row(case: Case, outcome: Outcome) -> str:
    if outcome.error is not None:
        counted, lost = f"error: {outcome.error}", "nothing: the run does not start"
        happened = "refused"
    else:
        happened = f"{len(set(outcome.delivered) & set(KEYS))} of 10 samples used"
        if case.seen is not None and outcome.seen is not None:
            width, height, *colour = outcome.seen
            happened += f"; seen as {width} x {height}, mean colour {tuple(colour)}"
        skipped = [f"{reason} {count}" for reason, count in sorted(outcome.skipped.items())]
        counted = "; ".join([*skipped, *outcome.problems]) or "-"
        lost = ", ".join(f"sample {key}" for key in outcome.lost) or case.lost_member or "nothing"
    happened += f"; {case.remark}" if case.remark else ""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (case.name, happened, counted, lost)) + " |"


HEAD = """# Damaged inputs

Each fault was made in a shard of ten samples, 000 to 009 (a picture, an English and a Chinese caption each), which was
then read as training reads it: once through the planned order. Where a fault is in one sample it is in 003. A sample
that cannot be used is replaced by another one, so that every rank keeps its number of steps; it is counted by its
reason and listed in `bad_samples.jsonl`. Damage of a shard itself is found when it is indexed; it is in the log of
every run and in the report of `altclip data index`. `python -m tests.faults.damaged_inputs` makes this page, and a
test compares it.

| Fault | What happened | Counted as | Lost |
|---|---|---|---|"""


if __name__ == "__main__":
    sys.stdout.write(table())
