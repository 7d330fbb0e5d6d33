"""`altclip trim`: an AltCLIP whose vocabulary is what given texts need, proven to treat those texts as before.

The texts are read twice and never held: once to count how often each piece is used, once to compare the ids of
every text before and after. Features are compared on a sample. Nothing is written unless both agree.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from altclip_train.data.texts import expand_texts, read_texts
from altclip_train.export import new_directory
from altclip_train.models import AltCLIPConfig, AltCLIPModel
from altclip_train.models.checkpoint import Checkpoint, open_checkpoint
from altclip_train.processing import ImageTransform, XLMRTokenizer, load_tokenizer
from altclip_train.processing.trim import DROPPED, kept_pieces, new_ids, trim_tokenizer
from altclip_train.training.runs import MODEL

TOLERANCE = 1e-6  # largest difference between features of the same text
UNLIMITED = 10**9  # ids are compared whole, whatever max_length cuts them to later
TEXTS_AT_ONCE, FEATURES_AT_ONCE, ROWS_AT_ONCE = 2048, 32, 4096
UNKNOWN = 3  # id of <unk>, before and after


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How texts come out under the old and the new vocabulary; pairs are (before, after)."""

    texts: int
    changed: int  # texts that hold a dropped piece, and so are cut into others
    tokens: tuple[int, int]
    unknown: tuple[int, int]  # <unk> among the tokens

    def __str__(self) -> str:
        length = [tokens / max(self.texts, 1) for tokens in self.tokens]
        unknown = [unknown / max(tokens, 1) for unknown, tokens in zip(self.unknown, self.tokens, strict=True)]
        return (
            f"{self.changed:,} of {self.texts:,} texts cut differently ({self.changed / max(self.texts, 1):.2%}), "
            f"tokens per text {length[0]:.2f} -> {length[1]:.2f}, <unk> {unknown[0]:.3%} -> {unknown[1]:.3%} of them"
        )


@dataclass(frozen=True, kw_only=True)
class TrimReport:
    """What was trimmed and what was proven; pairs are (before, after)."""

    rows: tuple[int, int]
    used: int  # rows that the texts use
    row_bytes: int
    parameters: tuple[int, int]
    given: Comparison
    sampled: int  # texts whose features were compared
    difference: float  # largest between their features
    held_out: Comparison | None

    def lines(self) -> list[str]:
        """For people, one fact each."""
        before, after = (f"{rows * self.row_bytes / 1e6:,.1f}" for rows in self.rows)
        same = self.given.texts - self.given.changed
        lines = [
            f"word embeddings: {self.rows[0]:,} -> {self.rows[1]:,} rows, {before} -> {after} MB; "
            f"the texts use {self.used:,} of them",
            f"parameters: {self.parameters[0]:,} -> {self.parameters[1]:,}",
            f"ids: {same:,} of {self.given.texts:,} texts consist of the same pieces as before",
            f"features: largest difference {self.difference:.1e} over {self.sampled:,} different texts of these",
        ]
        named = {"given texts": self.given if self.given.changed else None, "held-out texts": self.held_out}
        return [*lines, *(f"{name}: {comparison}" for name, comparison in named.items() if comparison)]


def trim(
    checkpoint: str | Path,
    directory: str | Path,
    texts: Sequence[str | Path],
    *,
    languages: Sequence[str] | None = None,
    min_count: int = 1,
    characters: bool = True,
    sample: int = 1000,
    check: Sequence[str | Path] = (),
) -> TrimReport:
    """Write the AltCLIP of ``checkpoint``, a model directory, run or hub id, with fewer rows to the new ``directory``.

    Args:
        texts: files whose texts keep their pieces; ``languages`` limits which captions of them count.
        min_count: pieces of several characters that are used less often are dropped too; texts that hold
            one are cut differently, and only counted.
        characters: keep every single character, so that new texts do not turn into ``<unk>``.
        sample: at most so many different texts have their features compared.
        check: files of held-out texts, for the report.

    Raises ValueError, FileNotFoundError or FileExistsError, and writes nothing, for a model of another kind, for
    texts that cannot be read or hold nothing, and when the proof fails.
    """
    if min_count < 1 or sample < 1:
        raise ValueError(f"min_count={min_count} and sample={sample} must both be at least 1")
    with new_directory(Path(directory)) as incomplete:
        found = open_checkpoint(_model_directory(checkpoint))
        rows = _altclip_config(found).text_config.vocab_size
        image_transform = ImageTransform.from_pretrained(found.directory)
        old = _tokenizer(found.directory, rows)
        files, held_out_files = expand_texts(texts), expand_texts(check)

        counts, chosen = count_pieces(old, read_texts(files, languages), sample)
        if not chosen:
            raise ValueError(f"no text to keep pieces for in {', '.join(map(str, files[:3]))}")
        kept = kept_pieces(old, counts, min_count=min_count, characters=characters)
        new, ids = trim_tokenizer(old, kept), new_ids(kept, len(old))
        given = compare_ids(old, new, ids, read_texts(files, languages))
        if given.changed and min_count == 1:
            raise ValueError("the texts changed while they were read: start again when nothing writes to them")
        held_out = compare_ids(old, new, ids, read_texts(held_out_files, languages)) if check else None

        model = AltCLIPModel.from_checkpoint(found)
        parameters = model.num_parameters()
        unchanged = [text for text in chosen if not compare_ids(old, new, ids, [text]).changed]
        difference = cut_embeddings(model, old, new, kept, unchanged)
        model.to(_stored_dtype(found))
        report = TrimReport(
            rows=(rows, len(kept)),
            used=int((counts > 0).sum()),
            row_bytes=model.config.text_config.hidden_size * model.dtype.itemsize,
            parameters=(parameters, model.num_parameters()),
            given=given,
            sampled=len(unchanged),
            difference=difference,
            held_out=held_out,
        )
        image_transform.save_pretrained(incomplete)
        _save(model, new, _card(found.directory, report), incomplete)
    return report


def count_pieces(tokenizer: XLMRTokenizer, texts: Iterable[str], sample: int) -> tuple[np.ndarray, list[str]]:
    """How often each id is used, and the ``sample`` different texts with the smallest hashes: any order gives these."""
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    chosen: list[tuple[int, str]] = []  # a heap, the largest hash on top
    hashes: set[int] = set()
    for batch in _batches(texts, TEXTS_AT_ONCE):
        ids = tokenizer.encode_batch(batch, UNLIMITED)
        counts += np.bincount(np.concatenate(ids), minlength=len(counts))
        for text in batch:
            number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
            if number in hashes or (len(chosen) == sample and -number < chosen[0][0]):
                continue
            hashes.add(number)
            heapq.heappush(chosen, (-number, text))
            if len(chosen) > sample:
                hashes.remove(-heapq.heappop(chosen)[0])
    return counts, [text for _, text in sorted(chosen, reverse=True)]


def compare_ids(old: XLMRTokenizer, new: XLMRTokenizer, ids: Sequence[int], texts: Iterable[str]) -> Comparison:
    """Compare both on texts; ``ids`` are the new ids of the old ones.

    Raises ValueError when a text that holds no dropped piece has other ids than those.
    """
    number = changed = 0
    tokens, unknown = [0, 0], [0, 0]
    for batch in _batches(texts, TEXTS_AT_ONCE):
        number += len(batch)
        pairs = zip(old.encode_batch(batch, UNLIMITED), new.encode_batch(batch, UNLIMITED), strict=True)
        for text, (before, after) in zip(batch, pairs, strict=True):
            for side, tokenized in enumerate((before, after)):
                tokens[side] += len(tokenized)
                unknown[side] += tokenized.count(UNKNOWN)
            expected = [ids[index] for index in before]
            if DROPPED in expected:
                changed += 1
            elif expected != after:
                raise ValueError(f"the proof failed, nothing is written: {text!r} has ids {after}, not {expected}")
    return Comparison(texts=number, changed=changed, tokens=(tokens[0], tokens[1]), unknown=(unknown[0], unknown[1]))


def cut_embeddings(
    model: AltCLIPModel, old: XLMRTokenizer, new: XLMRTokenizer, kept: Sequence[int], texts: Sequence[str]
) -> float:
    """Leave the model the rows ``kept`` (ascending); the largest difference that this makes to features of texts.

    Raises ValueError when it is above the tolerance.
    """
    before = _features(model, old, texts)
    embeddings = model.text_model.embeddings.word_embeddings
    rows = embeddings.weight.detach()  # (V, W)
    # In place, because a second table may be another GB. Ids ascend: no row is overwritten before it has moved.
    for start in range(0, len(kept), ROWS_AT_ONCE):
        moved = kept[start : start + ROWS_AT_ONCE]
        rows[start : start + len(moved)] = rows[list(moved)]
    embeddings.weight = nn.Parameter(rows[: len(kept)])
    embeddings.num_embeddings = model.config.text_config.vocab_size = len(kept)
    after = _features(model, new, texts)
    difference = float((before - after).abs().max()) if texts else 0.0
    if not difference <= TOLERANCE:
        raise ValueError(f"the proof failed, nothing is written: features differ by {difference}, not {TOLERANCE}")
    return difference


@torch.inference_mode()
def _features(model: AltCLIPModel, tokenizer: XLMRTokenizer, texts: Sequence[str]) -> Tensor:
    """(B, D), before normalisation; texts are cut where the tower must."""
    limit = model.config.text_config.max_tokens
    batches = _batches(texts, FEATURES_AT_ONCE)
    features = [model.encode_text(tokenizer.pack(batch, limit)) for batch in batches]
    return torch.cat(features) if features else torch.empty(0)


def _model_directory(checkpoint: str | Path) -> str | Path:
    """A run stands for the model that it ended with."""
    model = Path(checkpoint, MODEL)
    return model if (model / "config.json").is_file() else checkpoint


def _altclip_config(found: Checkpoint) -> AltCLIPConfig:
    """Raises ValueError for a model whose vocabulary cannot be trimmed."""
    if found.model_type == "clip":
        raise ValueError(
            f"{found.directory} is a CLIP, whose text tower reads byte pairs: each is built of others, so that none "
            "can go alone. Only the XLM-R vocabulary of an AltCLIP can be trimmed"
        )
    return found.config(AltCLIPConfig)


def _stored_dtype(found: Checkpoint) -> torch.dtype:
    """The type that all weights are stored in, float32 where there are several."""
    dtypes = {stored.dtype for stored in found.tensors.values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _tokenizer(directory: Path, rows: int) -> XLMRTokenizer:
    """Raises ValueError for ids without a row; rows without an id, as in padded tables, are no harm."""
    tokenizer = load_tokenizer(directory)
    if not isinstance(tokenizer, XLMRTokenizer) or len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer in {directory} is a {type(tokenizer).__name__} of {len(tokenizer)} ids, expected XLM-R's "
            f"with at most vocab_size={rows} of config.json: put the tokenizer files of this model there"
        )
    return tokenizer


def _save(model: AltCLIPModel, tokenizer: XLMRTokenizer, card: str, directory: Path) -> None:
    model.tokenizer_sha256 = tokenizer.fingerprint
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text(card, encoding="utf-8")
    load_tokenizer(directory)  # reads what was written, and compares it with the header of the weights


def _card(source: Path, report: TrimReport) -> str:
    """The card of the model before, if it has one, and a section on what was trimmed."""
    card = source / "README.md"
    before = card.read_text(encoding="utf-8").rstrip() if card.is_file() else "# AltCLIP"
    facts = "\n".join(f"- {line}" for line in report.lines())
    return (
        f"{before}\n\n## Trimmed vocabulary\n\n`altclip trim` left out pieces of the vocabulary that given texts do "
        f"not use; sizes further up are those before it. Nothing else changed.\n\n{facts}\n"
    )


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch
