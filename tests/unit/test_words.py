"""Texts encoded word by word have the ids that the library gives to the whole text."""

from __future__ import annotations

import pickle
import random
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from altclip_train.processing import CLIPTokenizer, XLMRTokenizer, train_clip_bpe, train_sentencepiece, words
from altclip_train.processing.tokenizer import NO_LIMIT, TextTokenizer

TEXTS = [
    "a photo of a cat on the red sofa",
    "The dog's ball isn't here; they're playing in 2024!",
    "ein großer Hund läuft über die Straße",
    "一只猫坐在沙发上，一条狗在旁边。",
    "赤いソファーの上にねこがいます。ガラスとパン",
    "고양이가 소파에 앉아 있다",
    "बिल्ली सोफे पर बैठी है",
] * 10

# Words of the vocabulary, special tokens and their parts, what joins or parts its neighbours, and any text.
PARTS = st.one_of(
    st.sampled_from([word for text in TEXTS[:7] for word in text.split()]),
    st.sampled_from(["<s>", "</s>", "<mask>", "<|endoftext|>", "<|STARTOFTEXT|>", "</w>", "<", "▁", "'s", "ZZZ"]),
    st.sampled_from([" ", "  ", "\n", "\u3000", "\u00a0", "\u0085", "\u200b", "\u0301", "\uff9e", "\u0600", "\u200d"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)


@pytest.fixture(scope="module")
def xlmr(tmp_path_factory: pytest.TempPathFactory) -> XLMRTokenizer:
    path = tmp_path_factory.mktemp("sentencepiece") / "model"
    train_sentencepiece(TEXTS, path, 300)
    return XLMRTokenizer(path)


@pytest.fixture(scope="module", params=["xlmr", "clip"])
def tokenizer(request: pytest.FixtureRequest, xlmr: XLMRTokenizer) -> XLMRTokenizer | CLIPTokenizer:
    return xlmr if request.param == "xlmr" else train_clip_bpe(TEXTS, 700)


def assert_whole_texts_have_these_ids(tokenizer: TextTokenizer, texts: list[str]) -> None:
    whole = tokenizer._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for text, ids, expected in zip(texts, tokenizer.encode_batch(texts, NO_LIMIT), whole, strict=True):
        assert ids[1:-1] == expected.ids, [f"U+{ord(character):04X}" for character in text]


def around_spaces(characters: Iterable[str]) -> list[str]:
    """Texts of 16 characters, each at the end of a word, at the beginning of one, alone, and alone twice."""
    around = [f"a{one} {one}b {one} {one}{one}" for one in characters]
    return [" ".join(around[start : start + 16]) for start in range(0, len(around), 16)]


def characters_of(*categories: str, but: bool = False) -> list[str]:
    return [chr(code) for code in range(0x110000) if (unicodedata.category(chr(code)) in categories) != but]


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.lists(PARTS, max_size=12).map("".join), min_size=1, max_size=8))
def test_any_text(tokenizer: TextTokenizer, texts: list[str]) -> None:
    assert_whole_texts_have_these_ids(tokenizer, texts)


def test_no_mark_reaches_over_a_space(tokenizer: TextTokenizer) -> None:
    marks = characters_of("Mn", "Mc", "Me", "Lm", "Sk", "Cc", "Cf", "Zs", "Zl", "Zp")
    joined_to_the_next = ["\u0d4e", "\U000111c2", "\U0001193f", "\U00011a84", "\U00011d46", "\U00011f02"]  # letters
    assert_whole_texts_have_these_ids(tokenizer, around_spaces([*marks, *joined_to_the_next]))
    pairs = [f"{before} {mark}" for before in ("\u0600", "\u0d4e", "e") for mark in marks]
    assert_whole_texts_have_these_ids(tokenizer, around_spaces(pairs))


@pytest.mark.slow
def test_no_character_reaches_over_a_space(tokenizer: TextTokenizer) -> None:
    assert_whole_texts_have_these_ids(tokenizer, around_spaces(characters_of("Cs", "Co", "Cn", but=True)))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"])
def test_no_rule_of_sentencepiece_reaches_over_a_space(rule: str, tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / rule),
        normalization_rule_name=rule,
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = XLMRTokenizer(tmp_path / f"{rule}.model")
    assert_whole_texts_have_these_ids(tokenizer, around_spaces(characters_of("Cs", "Co", "Cn", "Lo", but=True)))


@pytest.mark.slow
def test_random_mixtures(tokenizer: TextTokenizer) -> None:
    draw = random.Random(0)
    parts = [*"abcsz ,.'▁猫　ｶﾞー", "  ", "\u0301", "\u0600", "\u200d", "\u00a0", "<s>", "<mask>", "<|endoftext|>"]
    parts += [*TEXTS[:7], *(chr(code) for code in range(0xA0, 0x3000, 7))]
    for _ in range(100):
        texts = ["".join(draw.choices(parts, k=draw.randint(1, 40))) for _ in range(256)]
        assert_whole_texts_have_these_ids(tokenizer, texts)


def test_remembered_words_are_bounded_and_not_pickled(xlmr: XLMRTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_WORDS", 8)
    tokenizer: XLMRTokenizer = pickle.loads(pickle.dumps(xlmr))
    for text in TEXTS[:7]:
        assert_whole_texts_have_these_ids(tokenizer, [text])
        assert 0 < len(tokenizer._words) <= 8
    short, long = "x" * words.LONGEST_WORD, "x" * (words.LONGEST_WORD + 1)
    assert_whole_texts_have_these_ids(tokenizer, [short, long])
    assert short in tokenizer._words
    assert long not in tokenizer._words
    assert not pickle.loads(pickle.dumps(tokenizer))._words
