"""The tokenizer of a directory, whichever kind it holds."""

from __future__ import annotations

from pathlib import Path

from altclip_train.hub import model_directory
from altclip_train.processing.clip_bpe import CLIPTokenizer
from altclip_train.processing.clip_files import OPENAI_FILE
from altclip_train.processing.tokenizer_files import missing, read_model
from altclip_train.processing.tokenizer_guard import check_same_tokenizer, trained_tokenizer
from altclip_train.processing.xlm_roberta import SENTENCEPIECE_FILE, XLMRTokenizer


def load_tokenizer(path_or_id: str | Path) -> XLMRTokenizer | CLIPTokenizer:
    """The tokenizer whose files lie in a directory, or behind a hub id.

    Raises FileNotFoundError when there is neither kind, ValueError for damaged files and when weights in the
    same directory were trained with another tokenizer.
    """
    folder = model_directory(path_or_id)
    tokenizer = _kind(folder).from_pretrained(folder)
    check_same_tokenizer(tokenizer, trained_tokenizer(folder), weights=f"the weights in {folder}")
    return tokenizer


def _kind(folder: Path) -> type[XLMRTokenizer] | type[CLIPTokenizer]:
    if (folder / SENTENCEPIECE_FILE).is_file():
        return XLMRTokenizer
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return CLIPTokenizer
    if (folder / "tokenizer.json").is_file():
        _, kind = read_model(folder / "tokenizer.json")
        return XLMRTokenizer if kind == "Unigram" else CLIPTokenizer
    if (folder / OPENAI_FILE).is_file():
        return CLIPTokenizer
    wanted = f"{SENTENCEPIECE_FILE} (XLM-R), vocab.json + merges.txt or {OPENAI_FILE} (CLIP), or tokenizer.json"
    raise missing(folder, wanted, "tokenizer")
