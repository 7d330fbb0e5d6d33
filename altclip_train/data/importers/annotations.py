"""Annotation files that give captions apart from their pictures: one JSONL record per picture.

COCO JSON, and the caption lists of Flickr30k-CN and COCO-CN (also Flickr8k-CN). They hold at most a few hundred
thousand captions, which are grouped in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from altclip_train.data.samples import BadSample

# 1000092795.jpg#zhb#0 caption | 1000092795#0<tab>caption | COCO_val2014_000000000042#0<tab>caption
NUMBERED = re.compile(r"([^#\s]+)(?:#[A-Za-z]+)?#\w+\s+(.*)")
# 1000092795.jpg,caption
SEPARATED = re.compile(r"([^,\t]+\.(?:jpg|jpeg|png|webp))[,\t](.*)", re.IGNORECASE)
HEADERS = {"image,caption", "image\tcaption", "image_name,caption"}
TAGGED = re.compile(r"[^\s:]+:[a-z]{1,3}\d?(\s+[^\s:]+:[a-z]{1,3}\d?)+")  # 两个:m 年轻:a 人:n

Annotation = tuple[str, str, str]  # picture, caption, where it stands


def caption_records(kind: str, files: Sequence[Path], *, language: str, ids: Path | None) -> Iterator[dict[str, Any]]:
    """A record ``{picture, texts, where}`` per picture, in the order of first mention.

    ``ids`` is a file of picture names or ids, one per line, to keep. Raises ValueError with file and line.
    """
    wanted = None if ids is None else {Path(line).stem for line in ids.read_text(encoding="utf-8").split()}
    grouped: dict[str, tuple[str, list[str]]] = {}
    for file in files:
        annotations = list(_coco(file) if kind == "coco" else _caption_lines(file))
        _refuse_tags(file, annotations)
        for picture, caption, where in annotations:
            if wanted is None or Path(picture).stem in wanted:
                grouped.setdefault(picture, (where, []))[1].append(caption)
    for picture, (where, captions) in grouped.items():
        yield {"picture": picture, "texts": {language: captions}, "where": where}


def _coco(file: Path) -> Iterator[Annotation]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for number, annotation in enumerate(content["annotations"]):
            where = f"{file}: annotations[{number}]"
            if annotation["image_id"] not in names:
                raise ValueError(f"{where} is of image {annotation['image_id']}, which images does not list")
            yield names[annotation["image_id"]], annotation["caption"], where
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file}: {type(error).__name__}: {error}: expected COCO's captions_*.json with images (id, file_name) "
            "and annotations (image_id, caption)"
        ) from None


def _caption_lines(file: Path) -> Iterator[Annotation]:
    with open(file, encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            line = line.strip()
            if not line or (number == 1 and line.lower() in HEADERS):
                continue
            match = NUMBERED.fullmatch(line) or SEPARATED.fullmatch(line)
            if match is None:
                raise ValueError(
                    f"{file}:{number}: {line[:80]!r}: expected NAME#NUMBER caption, or NAME.jpg and a caption "
                    "separated by a comma or tab"
                )
            name, caption = match.groups()
            yield name if Path(name).suffix else f"{name}.jpg", caption, f"{file}:{number}"


def _refuse_tags(file: Path, annotations: Sequence[Annotation]) -> None:
    tagged = [(where, caption) for _, caption, where in annotations if TAGGED.fullmatch(str(caption).strip())]
    if len(tagged) > len(annotations) / 20:
        where, caption = tagged[0]
        raise ValueError(
            f"{where}: {caption[:60]!r}: {len(tagged)} of {len(annotations)} captions of {file.name} are words with "
            "part-of-speech tags, on which models fail; use the untagged captions (COCO-CN: the file without "
            "'bosonseg'; Flickr30k-CN: flickr30k_cn_test.txt of CLIP_benchmark's pull request 101)"
        )


def find_picture(folder: Path, name: str) -> Path:
    """The file of picture ``name`` in ``folder``; COCO's pictures may also lie in train2014/ and the like.

    Raises BadSample for one that is missing or outside the folder.
    """
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadSample("picture_path", f"{name!r} leads out of {folder}")
    coco = re.match(r"COCO_(\w+?)_\d+", Path(name).name)
    for candidate in [path, *([folder / coco[1] / name] if coco else [])]:
        if candidate.is_file():
            return candidate
    raise BadSample("picture_missing", f"{path} does not exist")
