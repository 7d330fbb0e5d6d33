"""Token ids of words, computed once: a text's ids are those of its words laid end to end.

Both tokenizers cut a text at white space before they look for pieces, and nothing on one side of a space changes
what becomes of the other: special tokens have no space in them, a space composes with no character, and
normalisation has no rule that begins with one. So cutting at U+0020 first gives the same ids, and the words of a
language repeat. Within a word nothing may be cut or computed in another way: SentencePiece adds scores in 32 bits,
the `tokenizers` library in 64, and words as plain as "ZZZ" then come out as Z ZZ or ZZ Z.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

# So many words take about 28 MB in each process. What is longer is seldom a word that comes again, but a sentence
# of a script without spaces.
MOST_WORDS, LONGEST_WORD = 1 << 17, 20


class WordIds(dict[str, bytes]):
    """Word -> its token ids without begin and end, as int64 in bytes; absent words are encoded when asked for.

    Asking raises what ``encode`` raises for text that it cannot encode. Bounded: a full one starts again.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = array("q", self._encode(word)).tobytes()
        if len(word) <= LONGEST_WORD:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids
