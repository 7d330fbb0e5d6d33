"""A smaller XLM-R vocabulary: which pieces stay, and the vocabulary that holds them alone.

Unigram segmentation takes the best path over the pieces that fit. Dropping pieces off that path leaves it the
best one, also where two paths score the same (the first of equals wins, and dropping others keeps it first),
as long as no way around becomes cheaper. There is one: an unknown character scores a fixed penalty below the
lowest score of the vocabulary. So the piece with the lowest score always stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np

from altclip_train.processing.protobuf import fields
from altclip_train.processing.unigram import UnigramVocabulary
from altclip_train.processing.xlm_roberta import XLMRTokenizer

# Field numbers of sentencepiece_model.proto, and its type of an ordinary piece.
_PIECES, _TRAINER_SPEC, _SELF_TEST = 1, 2, 4
_PIECE_TYPE = 3
_VOCAB_SIZE = 4
_NORMAL = 1

DROPPED = -1  # in place of a new id


def kept_pieces(
    tokenizer: XLMRTokenizer, counts: Sequence[int] | np.ndarray, *, min_count: int = 1, characters: bool = True
) -> list[int]:
    """Ids that stay, ascending, given how often each id is used.

    These are special tokens, byte pieces and whatever else is no ordinary piece, the piece with the lowest
    score, pieces used at least ``min_count`` times, and single characters: those that are used at all, with
    ``characters`` all of them.
    """
    vocabulary = tokenizer.vocabulary
    lowest = min(range(len(vocabulary.pieces)), key=lambda index: vocabulary.pieces[index][1])
    always = {lowest, *_extraordinary(vocabulary)}
    kept = []
    for index, (piece, _) in enumerate(vocabulary.pieces):
        is_character = len(piece) == 1
        enough = counts[index] >= (1 if is_character else min_count)
        if enough or (is_character and characters) or piece in tokenizer.SPECIAL_TOKENS or index in always:
            kept.append(index)
    return kept


def trim_tokenizer(tokenizer: XLMRTokenizer, kept: Sequence[int]) -> XLMRTokenizer:
    """A tokenizer with the ids ``kept`` alone (ascending, with all special tokens); scores and order stay."""
    vocabulary = tokenizer.vocabulary
    pieces = [vocabulary.pieces[index] for index in kept]
    data = vocabulary.model_data
    model = None if data is None else _trim_model(data, set(kept))
    trimmed = XLMRTokenizer.from_vocabulary(UnigramVocabulary(pieces, vocabulary.character_map, model))
    trimmed.model_max_length = tokenizer.model_max_length
    return trimmed


def new_ids(kept: Sequence[int], size: int) -> list[int]:
    """New id of each of ``size`` old ids; ``DROPPED`` for those not kept."""
    ids = [DROPPED] * size
    for new_id, old_id in enumerate(kept):
        ids[old_id] = new_id
    return ids


def _extraordinary(vocabulary: UnigramVocabulary) -> set[int]:
    """Ids of control, user-defined, unused and byte pieces."""
    if vocabulary.model_data is None:
        return set()  # a tokenizer.json does not say
    pieces = (value for field, value in fields(vocabulary.model_data) if field == _PIECES)
    types = [dict(fields(piece)).get(_PIECE_TYPE, _NORMAL) for piece in pieces]
    # Below 3 are <unk>, <s> and </s>, which XLM-R numbers in its own way.
    return {index + 1 for index, kind in enumerate(types) if kind != _NORMAL and index >= 3}


def _trim_model(data: bytes, kept: set[int]) -> bytes:
    """A SentencePiece file without the pieces whose XLM-R id is not kept."""
    message = list(fields(data))
    numbers = count()  # SentencePiece's ids: XLM-R's are one higher from 3 on
    stays = [
        record for record in message if record[0] != _PIECES or (number := next(numbers)) < 3 or number + 1 in kept
    ]
    size = sum(field == _PIECES for field, _ in stays)
    parts = []
    for field, value in stays:
        if field == _SELF_TEST:  # segmentations by the old pieces, which SentencePiece may check when it loads
            continue
        if field == _TRAINER_SPEC:  # of a field given twice the last one counts
            value += _key(_VOCAB_SIZE, 0) + _to_varint(size)
        parts.append(_key(field, 2) + _to_varint(len(value)) + value)
    return b"".join(parts)


def _key(field: int, wire_type: int) -> bytes:
    return _to_varint(field << 3 | wire_type)


def _to_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
