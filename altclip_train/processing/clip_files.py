"""CLIP's vocabulary and merges out of each of the three forms in which they are published."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import pre_tokenizers

from altclip_train.files import read_json
from altclip_train.processing.tokenizer_files import missing, read_model

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"
OPENAI_FILE = "bpe_simple_vocab_16e6.txt.gz"

Merge = tuple[str, str]
# OpenAI's file goes on after the merges that CLIP uses: 49,408 = 2 x 256 bytes + these + 2 special tokens.
_OPENAI_MERGES = 48894


def read_clip_vocabulary(folder: Path) -> tuple[dict[str, int], list[Merge]]:
    """Ids of all tokens, and the merges by rank, from the first of the three forms that the directory has.

    Raises FileNotFoundError listing what is there without any, ValueError naming a damaged file.
    """
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        lines = _text(folder / "merges.txt", (folder / "merges.txt").read_bytes()).split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        return read_json(folder / "vocab.json"), _pairs(folder / "merges.txt", merges)
    if (folder / "tokenizer.json").is_file():
        content, kind = read_model(folder / "tokenizer.json")
        if kind != "BPE":
            raise ValueError(
                f"{folder / 'tokenizer.json'} holds a {kind} model, a CLIP tokenizer is BPE: "
                "point to the CLIP directory"
            )
        return content["model"]["vocab"], _pairs(folder / "tokenizer.json", content["model"]["merges"])
    if (folder / OPENAI_FILE).is_file():
        merges = _openai_merges(folder / OPENAI_FILE)
        return clip_vocabulary(merges), merges
    raise missing(folder, f"vocab.json and merges.txt, tokenizer.json or {OPENAI_FILE}", "CLIP tokenizer")


def clip_vocabulary(merges: Iterable[Merge]) -> dict[str, int]:
    """Ids in CLIP's order: 256 bytes, the same at the end of a word, merges by rank, begin and end of text.

    The end of text has the highest id, as CLIP's pooling expects.
    """
    alphabet = byte_characters()
    tokens = [*alphabet, *(f"{character}</w>" for character in alphabet)]
    tokens += [left + right for left, right in merges]
    tokens += [START_OF_TEXT, END_OF_TEXT]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def byte_characters() -> list[str]:
    """The printable character that stands for each byte, in CLIP's order: printable bytes first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    if set(characters) != set(pre_tokenizers.ByteLevel.alphabet()):
        raise RuntimeError("the tokenizers library maps bytes to other characters than CLIP does")
    return characters


def _openai_merges(path: Path) -> list[Merge]:
    """Merges of OpenAI's file: a line with the version, then one merge a line."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged, or no gzip file: {error}. Fetch it again") from error
    version, *lines = _text(path, data).split("\n")
    if "#version" not in version:
        raise ValueError(f"{path} begins with {version[:40]!r}, expected a line with #version: not CLIP's merges")
    return _pairs(path, [line for line in lines if line][:_OPENAI_MERGES])


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _pairs(path: Path, merges: Sequence[str | Sequence[str]]) -> list[Merge]:
    """Merges as pairs, whether they are written as "a b" or as ["a", "b"]."""
    pairs: list[Merge] = []
    for number, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if len(parts) != 2:
            raise ValueError(f"{path}: merge {number} is {merge!r:.60}, expected two tokens: the file is damaged")
        pairs.append((parts[0], parts[1]))
    return pairs
