"""Pictures in one folder per class: ImageNet's synsets, or ImageNet-V2's class numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from altclip_train.evaluation.readers.pictures import PictureFiles, Pictures

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class LabelledPictures(NamedTuple):
    pictures: Pictures
    labels: list[int]


def read_class_folders(root: Path, folders: Sequence[str], classes: Sequence[str]) -> LabelledPictures:
    """Pictures of the classes, whose label is the place of their folder's name in ``classes``.

    The class folders lie in the first of ``folders`` below ``root`` that has one. Raises FileNotFoundError where
    there are none, ValueError for a folder that is no class: labels counted over folders would all be shifted.
    """
    label = {name: number for number, name in enumerate(classes)}
    folder = next((root / name for name in folders if any((root / name / known).is_dir() for known in label)), None)
    if folder is None:
        found = sorted(path.name for path in root.iterdir())
        loose = sum(name.lower().endswith(SUFFIXES) for name in found)
        hint = (
            f"; its {loose:,} pictures have no labels: sort them into synset folders, as ImageNet's valprep.sh does"
            if loose
            else ""
        )
        raise FileNotFoundError(
            f"{root} has no class folders such as {classes[0]}, neither itself nor in {', '.join(folders[1:])}; "
            f"it holds {', '.join(found[:6]) or 'nothing'}{', …' if len(found) > 6 else ''}{hint}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for name in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."):
        if name not in label:
            raise ValueError(
                f"{folder / name} is none of the {len(classes):,} classes, such as {classes[0]}; remove it"
            )
        names = sorted(entry.name for entry in os.scandir(folder / name))
        pictures = [folder / name / file for file in names if file.lower().endswith(SUFFIXES) and file[0] != "."]
        paths += pictures
        labels += [label[name]] * len(pictures)
    if not paths:
        raise ValueError(f"{folder} has class folders, but no pictures in them")
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    return LabelledPictures(PictureFiles(paths, names), labels)
