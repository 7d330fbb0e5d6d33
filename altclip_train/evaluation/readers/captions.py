"""Captions of a retrieval benchmark out of annotation files, and the pictures that they name."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from altclip_train.data.importers.annotations import caption_records
from altclip_train.data.importers.chinese_clip import read_text_record, split_files
from altclip_train.data.importers.tables import open_table
from altclip_train.data.samples import BadSample, decode_captions, language_spellings
from altclip_train.evaluation.readers.pictures import Pictures, PictureTable, named_pictures

TABLES = (".csv", ".tsv", ".jsonl")
IMAGE_COLUMN = "image"
CAPTION_COLUMNS = ("caption", "text")  # after a column that is named like the language


@dataclass(frozen=True, kw_only=True)
class AnnotationFiles:
    """Names of annotation files below the root of a benchmark; {language} stands for a code, such as zh or cn.

    With ``names``, a file of one picture a line, the lines of each of ``captions`` belong to its lines. ``keep``
    is a file of the names of those pictures that count.
    """

    captions: tuple[str, ...]
    names: str | None = None
    keep: str | None = None

    def found(self, root: Path, language: str) -> AnnotationFiles | None:
        """The same with paths, if all of them are there."""
        for code in language_spellings(language):
            for spelling in (code, code.upper()):
                files = AnnotationFiles(
                    captions=tuple(str(root / name.format(language=spelling)) for name in self.captions),
                    names=None if self.names is None else str(root / self.names),
                    keep=None if self.keep is None else str(root / self.keep),
                )
                if all(Path(name).is_file() for name in files):
                    return files
        return None

    def __iter__(self) -> Iterator[str]:
        yield from self.captions
        yield from (name for name in (self.names, self.keep) if name is not None)

    def __str__(self) -> str:
        return " + ".join(self)


class Annotation(NamedTuple):
    picture: str  # as the file names it
    captions: list[str]
    where: str


class CaptionedPictures(NamedTuple):
    pictures: Pictures
    captions: dict[str, list[list[str]]]  # of each picture, by language


def read_annotated(
    files: Mapping[str, AnnotationFiles], folders: Sequence[Path], *, split: str = "test", first: int | None = None
) -> CaptionedPictures:
    """Pictures and captions that annotation files give, one file or set of files by language.

    ``first`` keeps that many captions of each picture. Raises ValueError naming the line, FileNotFoundError for
    missing pictures.
    """
    by_language = {language: list(_annotations(found, language, split)) for language, found in files.items()}
    language, annotations = next(iter(by_language.items()))
    names = [annotation.picture for annotation in annotations]
    if not names:
        raise ValueError(f"{files[language]} holds no captions")
    captions: dict[str, list[list[str]]] = {}
    for other, found in by_language.items():
        of = {annotation.picture: annotation for annotation in found}
        if len(of) < len(found):
            twice = next(name for name, count in Counter(a.picture for a in found).items() if count > 1)
            raise ValueError(f"{files[other]} names picture {twice} more than once")
        if different := of.keys() ^ set(names):
            raise ValueError(
                f"{files[other]} names {len(of):,} pictures, {files[language]} names {len(names):,}; only one of them "
                f"has {min(different)}. Evaluate the languages one by one"
            )
        captions[other] = [_checked(of[name], other)[:first] for name in names]
    return CaptionedPictures(named_pictures(names, folders), captions)


def read_chinese_clip(root: Path, split: str, language: str) -> CaptionedPictures:
    """``<split>_imgs.tsv`` and ``<split>_texts.jsonl``. Raises ValueError with the line of what cannot be scored."""
    pictures_file, texts_file = split_files(root, split)
    pictures = PictureTable(pictures_file)
    captions: dict[str, list[str]] = {picture: [] for picture in pictures.ids}
    if len(captions) < len(pictures):
        raise ValueError(f"{pictures_file} has {len(pictures):,} pictures of only {len(captions):,} ids")
    with open(texts_file, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{texts_file}:{number}"
            text, image_ids = read_text_record(line, where)
            if len(image_ids) != 1 or str(image_ids[0]) not in captions:
                raise ValueError(
                    f"{where}: image_ids is {image_ids}: expected one id of a picture in {pictures_file.name}; texts "
                    "of no picture (a test set without answers) or of several (MUGE) cannot be scored"
                )
            captions[str(image_ids[0])].append(text)
    annotations = [Annotation(picture, texts, f"{texts_file}: image {picture}") for picture, texts in captions.items()]
    return CaptionedPictures(pictures, {language: [_checked(annotation, language) for annotation in annotations]})


def holds_chinese_clip(root: Path, split: str) -> bool:
    return (root / f"{split}_imgs.tsv").is_file()


def _annotations(files: AnnotationFiles, language: str, split: str) -> Iterator[Annotation]:
    if files.names is not None:
        return _aligned(Path(files.names), [Path(name) for name in files.captions])
    (file,) = map(Path, files.captions)
    if file.suffix == ".json":
        return _json(file, language, split)
    if file.suffix in TABLES and (found := _table(file, language)) is not None:
        return found
    records = caption_records("list", [file], language=language, ids=None if files.keep is None else Path(files.keep))
    return (Annotation(record["picture"], record["texts"][language], record["where"]) for record in records)


def _aligned(names: Path, captions: Sequence[Path]) -> Iterator[Annotation]:
    pictures, texts = _text_lines(names), [_text_lines(file) for file in captions]
    for file, found in zip(captions, texts, strict=True):
        if len(found) != len(pictures):
            raise ValueError(
                f"{file} has {len(found):,} lines, {names.name} has {len(pictures):,}: each line is a caption of the "
                "picture in the same line; get both files whole from one source"
            )
    for number, (picture, found) in enumerate(zip(pictures, zip(*texts, strict=True), strict=True), start=1):
        yield Annotation(picture, list(found), f"{captions[0]}:{number}")


def _text_lines(file: Path) -> list[str]:
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as opened:
        text = opened.read().decode("utf-8-sig")
    # Not splitlines(), which also breaks at separators that may stand in a caption. The last line may lack its end.
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def _json(file: Path, language: str, split: str) -> Iterator[Annotation]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    match content:
        case {"image_paths": list(paths), "annotations": list(captions)} if len(paths) == len(captions):
            # What CLIP_benchmark writes for XTD10 and Crossmodal-3600; its paths are those of another machine.
            for number, (path, caption) in enumerate(zip(paths, captions, strict=True)):
                yield Annotation(Path(path).name, [caption], f"{file}: annotations[{number}]")
        case {"images": [{"sentences": list()}, *_] as images}:
            yield from _karpathy(file, images, split)
        case {"images": list(), "annotations": list()}:
            for record in caption_records("coco", [file], language=language, ids=None):
                yield Annotation(record["picture"], record["texts"][language], record["where"])
        case _:
            raise ValueError(
                f"{file}: expected COCO's images and annotations, Karpathy's images with sentences, or "
                "CLIP_benchmark's image_paths and annotations"
            )


def _karpathy(file: Path, images: Sequence[Any], split: str) -> Iterator[Annotation]:
    for number, image in enumerate(images):
        if image["split"] == split:
            where = f"{file}: images[{number}]"
            yield Annotation(image["filename"], [sentence["raw"] for sentence in image["sentences"]], where)


def _table(file: Path, language: str) -> Iterator[Annotation] | None:
    """Rows of a table with a column of pictures; None for a list of captions without a header."""
    table = open_table(file, None)
    start = next(iter(table.positions()), None)
    first = None if start is None else next(iter(table.rows(start))).fields
    if start is None or not isinstance(first, dict):
        return None
    if "image/key" in first:  # Crossmodal-3600
        code = _one_of(language_spellings(language), first, file)
        return ((Annotation(f"{row['image/key']}.jpg", row[code]["caption"], at)) for at, row in _rows(table, start))
    if IMAGE_COLUMN not in first:
        return None
    column = _one_of([*language_spellings(language), *CAPTION_COLUMNS], first, file)
    return _grouped((row[IMAGE_COLUMN], row[column], where) for where, row in _rows(table, start))


def _rows(table: Any, start: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, fields in table.rows(start):
        if isinstance(fields, BadSample):
            raise ValueError(f"{where}: {fields}")
        yield where, fields


def _grouped(rows: Iterator[tuple[str, Any, str]]) -> Iterator[Annotation]:
    """An annotation for each picture, with the captions of all its rows."""
    found: dict[str, Annotation] = {}
    for picture, captions, where in rows:
        annotation = found.setdefault(picture, Annotation(picture, [], where))
        annotation.captions.extend(captions if isinstance(captions, list) else [captions])
    yield from found.values()


def _one_of(names: Sequence[str], columns: Mapping[str, Any], file: Path) -> str:
    column = next((name for name in names if name in columns), None)
    if column is None:
        raise ValueError(f"{file} has none of {', '.join(names)}, it has {', '.join(columns)}")
    return column


def _checked(annotation: Annotation, language: str) -> list[str]:
    """Captions as training reads them too: in NFC, without control characters."""
    try:
        fields = {"json": json.dumps({language: annotation.captions}).encode()}
        return decode_captions(fields, default_language=None, bare_punctuation=True)[language]
    except BadSample as error:
        raise ValueError(f"{annotation.where} has no usable captions ({error})") from error
