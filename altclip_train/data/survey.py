"""What is counted in samples: languages, lengths, pictures, damage."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from altclip_train.data.importers.filters import content_digest, in_script
from altclip_train.data.samples import BadSample, decode_captions, decode_image, is_image_field
from altclip_train.data.shards import ShardReader
from altclip_train.processing import CLIPTokenizer, XLMRTokenizer

NO_LIMIT = 1 << 40


@dataclass
class Captions:
    """Captions in one language."""

    samples: int = 0
    texts: int = 0
    other_script: int = 0  # not written as the language is
    characters: Counter[int] = field(default_factory=Counter)  # texts by length
    tokens: Counter[int] = field(default_factory=Counter)  # with begin and end
    unknown: int = 0  # tokens
    with_unknown: int = 0  # texts


@dataclass
class Pictures:
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    bytes: int = 0


@dataclass
class Survey:
    """What was found in the samples looked at."""

    samples: int = 0
    labelled: int = 0  # with a class number instead of captions
    captions: dict[str, Captions] = field(default_factory=dict)
    pictures: Pictures = field(default_factory=Pictures)
    bad: Counter[str] = field(default_factory=Counter)
    bad_examples: dict[str, str] = field(default_factory=dict)
    # 64-bit digests, to count what is there twice.
    picture_digests: array[int] = field(default_factory=partial(array, "Q"))
    sample_digests: array[int] = field(default_factory=partial(array, "Q"))


class Lens(NamedTuple):
    """What every process needs to look at samples."""

    reader: ShardReader
    language: str | None
    tokenizer: XLMRTokenizer | CLIPTokenizer | None


def survey(lens: Lens, places: Sequence[tuple[int, int]]) -> Survey:
    """Look at the samples at ``places``, each a shard and a number in it."""
    found = Survey()
    for shard, sample in places:
        found.samples += 1
        try:
            _look_at(lens, lens.reader.read(shard, sample), found)
        except (BadSample, OSError) as error:
            bad = error if isinstance(error, BadSample) else BadSample("unreadable", str(error))
            found.bad[bad.reason] += 1
            where = f"{lens.reader.key(shard, sample)} in {lens.reader.shards[shard]}"
            found.bad_examples.setdefault(bad.reason, f"{where}: {bad.detail}" if bad.detail else where)
    return found


def _look_at(lens: Lens, members: dict[str, bytes], found: Survey) -> None:
    picture = next((data for name, data in members.items() if is_image_field(name)), None)
    if picture is not None:
        image = decode_image(members)
        found.pictures.formats[image.format or "unknown"] += 1
        found.pictures.modes[image.mode] += 1
        found.pictures.widths[image.width] += 1
        found.pictures.heights[image.height] += 1
        found.pictures.bytes += len(picture)
        found.picture_digests.append(content_digest({}, picture))
    if "cls" in members:
        found.labelled += 1
        return
    captions = decode_captions(members, default_language=lens.language or "und")
    for language, texts in captions.items():
        _count(found.captions.setdefault(language, Captions()), language, texts, lens.tokenizer)
    found.sample_digests.append(content_digest(captions, picture))


def _count(
    captions: Captions, language: str, texts: list[str], tokenizer: XLMRTokenizer | CLIPTokenizer | None
) -> None:
    captions.samples += 1
    captions.texts += len(texts)
    captions.characters.update(map(len, texts))
    captions.other_script += sum(not in_script(language, text) for text in texts) if language != "und" else 0
    if tokenizer is None:
        return
    unknown_id = tokenizer.SPECIAL_TOKENS.index("<unk>") if "<unk>" in tokenizer.SPECIAL_TOKENS else None
    for ids in tokenizer.encode_batch(texts, NO_LIMIT):
        captions.tokens[len(ids)] += 1
        unknown = ids.count(unknown_id) if unknown_id is not None else 0
        captions.unknown += unknown
        captions.with_unknown += unknown > 0


def add(total: Any, other: Any) -> None:
    """Add what ``other`` counted to ``total``, field by field; of examples the first stay."""
    for name, value in vars(other).items():
        mine = getattr(total, name)
        if isinstance(value, int):
            setattr(total, name, mine + value)
        elif isinstance(value, Counter):
            mine.update(value)
        elif isinstance(value, array):
            mine.extend(value)
        elif isinstance(value, dict):
            for key, one in value.items():
                if mine.setdefault(key, one) is not one and not isinstance(one, str):
                    add(mine[key], one)
        else:
            add(mine, value)
