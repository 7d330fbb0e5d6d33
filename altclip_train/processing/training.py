"""Train the two tokenizers on a list of texts; equal texts in equal order give equal vocabularies."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, trainers

from altclip_train.processing.clip_bpe import CLIPTokenizer, clip_normalizer, clip_pre_tokenizer
from altclip_train.processing.clip_files import byte_characters, clip_vocabulary


def train_sentencepiece(texts: Iterable[str], model_file: str | Path, vocab_size: int) -> None:
    """Train a Unigram SentencePiece model in XLM-R's layout and write it to ``model_file``.

    ``vocab_size`` counts the tokenizer's ids, that is with ``<pad>`` and ``<mask>``, and is an upper bound:
    texts with few different words give fewer. Raises ValueError when it is too small for the characters.
    """
    import sentencepiece

    # One line per sentence is the trainer's format.
    sentences = [text.replace("\n", " ").strip() for text in texts]
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise ValueError("cannot train a SentencePiece model: no text was given, or all are empty")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size - 2,  # XLM-R adds <pad> and <mask>
            hard_vocab_limit=False,
            character_coverage=1.0,
            byte_fallback=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            normalization_rule_name="nmt_nfkc",
            # Longer lines would be dropped in silence; 10 is the least that the trainer takes.
            max_sentence_length=max(10, *(len(sentence.encode()) + 1 for sentence in sentences)),
            num_threads=1,  # more threads sum in another order, and the scores would differ
            minloglevel=2,
        )
    except RuntimeError as error:
        characters = len({character for sentence in sentences for character in sentence})
        raise ValueError(
            f"SentencePiece cannot train {vocab_size} entries on {len(sentences)} texts with {characters} "
            f"different characters: {error}. Raise vocab_size well above the number of characters"
        ) from error
    path = Path(model_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def train_clip_bpe(texts: Iterable[str], vocab_size: int) -> CLIPTokenizer:
    """Train a CLIP tokenizer in CLIP's layout: 256 bytes, 256 with ``</w>``, merges, begin and end of text.

    ``vocab_size`` is an upper bound.
    Raises ValueError below 514, the size without any merge.
    """
    if vocab_size < 514:
        raise ValueError(f"vocab_size={vocab_size} is below 514 = 2 x 256 bytes + begin and end of text")
    alphabet = byte_characters()
    base = [*alphabet, *(f"{character}</w>" for character in alphabet)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = clip_normalizer()
    tokenizer.pre_tokenizer = clip_pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        # The trainer numbers these first and breaks ties between equally frequent pairs by number; without
        # them it numbers the characters in the random order of a hash map.
        special_tokens=base,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = _learned_merges(tokenizer)
    return CLIPTokenizer(clip_vocabulary(merges), merges)


def _learned_merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]
