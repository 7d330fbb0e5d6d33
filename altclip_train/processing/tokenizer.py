"""What both tokenizers share: texts to ids and inputs, ids to texts.

Both encode with the `tokenizers` library, set up as `transformers` sets it up, so that ids are the same on
every string, including the corners where that library and SentencePiece's own normaliser disagree
(half-width katakana with a voicing mark, U+0085, text that looks like a special token). Each word is encoded once.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, processors

from altclip_train.processing.outputs import ProcessorOutput
from altclip_train.processing.tokenizer_files import DEFAULT_MAX_LENGTH, write_json
from altclip_train.processing.words import WordIds
from altclip_train.types import PackedTokens

NO_LIMIT = int(1e30)  # the model_max_length that transformers writes where there is none
ID_BYTES = 8

_PAD_LONGEST, _PAD_TO_MAX, _PAD_NOT = (True, "longest"), ("max_length",), (False, "do_not_pad")
_CUT, _CUT_NOT = (True, "longest_first", "only_first"), (False, None, "do_not_truncate")


class TextTokenizer:
    """Texts with a begin and an end token, in batches, packed, or as the documented padded inputs."""

    model_input_names = ("input_ids", "attention_mask")

    bos_id: int
    eos_id: int
    pad_id: int
    vocab_size: int
    fingerprint: str  # SHA-256 of the vocabulary, the same whichever files it was read from
    model_max_length: int
    name_or_path: str = ""  # the directory that it was read from
    _tokenizer: Tokenizer
    _words: WordIds

    def _adopt(self, tokenizer: Tokenizer, special: list[AddedToken], *, bos: str, eos: str, pad: str) -> None:
        with_space = [token.content for token in special if " " in token.content]
        if with_space:  # texts are encoded word by word
            raise ValueError(f"the special tokens {with_space} hold a space: no CLIP or XLM-R tokenizer has such")
        # Loader workers are the parallelism: a thread pool in each of them oversubscribes the machine, and
        # a pool that was started before a fork makes the library complain. The user's own setting wins.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer.add_special_tokens(special)
        self._tokenizer, self._words = tokenizer, WordIds(self._word_ids)
        self.model_max_length = DEFAULT_MAX_LENGTH
        self.bos_id, self.eos_id, self.pad_id = (_token_id(tokenizer, token) for token in (bos, eos, pad))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A", eos],
            pair=[bos, "$A", eos, eos, "$B", eos],
            special_tokens=[(bos, self.bos_id), (eos, self.eos_id)],
        )
        self.vocab_size = tokenizer.get_vocab_size()

    @property
    def bos_token_id(self) -> int:
        return self.bos_id

    @property
    def eos_token_id(self) -> int:
        return self.eos_id

    @property
    def pad_token_id(self) -> int:
        return self.pad_id

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> ProcessorOutput:
        """``input_ids`` and ``attention_mask`` (B, L); of a single text without ``return_tensors``, two flat lists.

        Args:
            padding: True or "longest" fills to the longest text, "max_length" to ``max_length``, False not at all.
            truncation: True or "longest_first" cuts to ``max_length``, False not at all; None cuts where
                ``max_length`` is given and ``padding`` is False.
            max_length: tokens with begin and end; None takes the tokenizer's ``model_max_length``.
            return_tensors: "pt", "np", or None for lists.

        Raises ValueError for unknown options, no texts, and texts of unequal length as tensors.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("no text given: the list of texts is empty")
        if padding not in (*_PAD_LONGEST, *_PAD_TO_MAX, *_PAD_NOT):
            raise ValueError(f"padding={padding!r}: expected True, False, 'longest', 'max_length' or 'do_not_pad'")
        if truncation not in (*_CUT, *_CUT_NOT):
            raise ValueError(f"truncation={truncation!r}: expected True, False, 'longest_first' or 'do_not_truncate'")
        if truncation is None and max_length is not None:
            truncation = padding is False
        limit = self.model_max_length if max_length is None else max_length
        ids = self.encode_batch(texts, limit if truncation in _CUT else NO_LIMIT)
        lengths = [len(one) for one in ids]
        width = 0 if padding in _PAD_NOT else max(lengths)
        if padding in _PAD_TO_MAX:  # a longer text stays longer than the others
            width = limit if limit < NO_LIMIT else 0
        ids = [one + [self.pad_id] * (width - len(one)) for one in ids]
        mask = [[1] * length + [0] * (len(one) - length) for length, one in zip(lengths, ids, strict=True)]
        if isinstance(text, str) and return_tensors is None:
            return ProcessorOutput(input_ids=ids[0], attention_mask=mask[0])
        return ProcessorOutput(input_ids=as_batch(ids, return_tensors), attention_mask=as_batch(mask, return_tensors))

    def encode_batch(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of each text with begin and end token, cut to ``max_length`` tokens in all.

        The end token survives the cut: text towers pool there. Raises ValueError when ``max_length`` < 2 and for
        text that UTF-8 cannot hold, TypeError when ``texts`` is a single string or holds anything else than text.
        """
        return [memoryview(row).cast("q").tolist() for row in self._rows(texts, max_length)]

    def pack(self, texts: Sequence[str], max_length: int) -> PackedTokens:
        """The B texts laid end to end without padding; cut and raising as ``encode_batch`` does."""
        rows = self._rows(texts, max_length)
        lengths = np.fromiter(map(len, rows), np.int32, len(rows)) // ID_BYTES
        return PackedTokens.from_flat(np.frombuffer(bytearray().join(rows), np.int64), lengths)

    def _rows(self, texts: Sequence[str], max_length: int) -> list[bytes]:
        """The ids of each text as ``encode_batch`` gives them, int64 in bytes."""
        if isinstance(texts, str):
            raise TypeError(f"encode_batch takes a list of texts, got one string {texts[:40]!r}: put it in a list")
        if max_length < 2:
            raise ValueError(f"max_length={max_length} leaves no room for the begin and end tokens: use 2 or more")
        begin, end = (array("q", [token_id]).tobytes() for token_id in (self.bos_id, self.eos_id))
        kept = (max_length - 2) * ID_BYTES
        ids_of = self._words.__getitem__
        try:
            return [begin + b"".join(map(ids_of, text.split(" ")))[:kept] + end for text in texts]
        except (AttributeError, TypeError, UnicodeEncodeError) as error:
            raise _no_text(texts) from error

    def _word_ids(self, word: str) -> Sequence[int]:
        """Ids of a word, without begin and end."""
        (encoding,) = self._tokenizer.encode_batch_fast([word], add_special_tokens=False)
        return encoding.ids

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """Text of one row of ids, a list of texts for several; ids as integers, lists, arrays or tensors."""
        ids = token_ids.tolist() if isinstance(token_ids, torch.Tensor | np.ndarray) else token_ids
        ids = list(ids) if isinstance(ids, Iterable) else [ids]
        if ids and isinstance(ids[0], Sequence | torch.Tensor | np.ndarray):
            return [str(self.decode(one, skip_special_tokens)) for one in ids]
        return self._decode([int(one) for one in ids], skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """A list of texts, also of one row of ids."""
        texts = self.decode(sequences, skip_special_tokens)
        return [texts] if isinstance(texts, str) else texts

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def _save_json(self, directory: str | Path, settings: dict[str, Any]) -> Path:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", {**settings, "model_max_length": self.model_max_length})
        return folder


def as_batch(rows: list[list[int]], return_tensors: str | None) -> Any:
    """Rows as a (B, L) int64 tensor or array, or as they are. Raises ValueError when they do not fit in one."""
    if return_tensors is None:
        return rows
    if return_tensors not in ("pt", "np"):
        raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt', 'np' or None")
    if len({len(row) for row in rows}) > 1:
        raise ValueError("texts of unequal length do not fit in one tensor: use padding=True")
    return torch.tensor(rows) if return_tensors == "pt" else np.array(rows)


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"the vocabulary lacks {token}")
    return token_id


def _no_text(texts: Sequence[Any]) -> TypeError | ValueError:
    """Why the library refused these texts."""
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            return TypeError(f"text {index} is a {type(text).__name__}, expected a string: {text!r:.60}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return ValueError(
                f"text {index} holds {text[error.start]!r} at character {error.start}, half of a UTF-16 pair, which "
                "no UTF-8 file can: read the text with errors='replace'"
            )
    return TypeError("the texts cannot be encoded")
