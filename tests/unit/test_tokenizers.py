"""Both tokenizers against slow references written here, their files, their errors, and their training."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from altclip_train.processing import (
    CLIPTokenizer,
    XLMRTokenizer,
    clip_files,
    load_tokenizer,
    train_clip_bpe,
    train_sentencepiece,
)
from altclip_train.types import PackedTokens

# Each word in two forms: SentencePiece's first candidates are pieces that two different words share.
TEXTS = [
    "a photo of a cat on the red sofa",
    "the dog is near the blue house",
    "two small birds sit in a tree",
    "一只猫坐在红色沙发上",
    "狗在房子旁边",
    "el gato duerme sobre la cama",
    "photos cats reds sofas dogs nears blues houses smalls birds trees gatos duermes camas",
] * 10


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sentencepiece") / "sentencepiece.bpe.model"
    train_sentencepiece(TEXTS, path, 150)
    return path


@pytest.fixture(scope="module")
def xlmr(model_file: Path) -> XLMRTokenizer:
    return XLMRTokenizer(model_file)


@pytest.fixture(scope="module")
def clip() -> CLIPTokenizer:
    return train_clip_bpe(TEXTS, 560)


def slow_bpe(word: str, vocab: dict[str, int], merges: list[tuple[str, str]]) -> list[int]:
    """BPE as its paper states it: apply the earliest merge that fits anywhere, until none fits."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = list(pairwise(parts))
        known = [merges.index(pair) for pair in pairs if pair in merges]
        if not known:
            return [vocab[part] for part in parts]
        left, right = merges[min(known)]
        joined: list[str] = []
        while parts:
            if parts[:2] == [left, right]:
                joined.append(left + right)
                parts = parts[2:]
            else:
                joined.append(parts.pop(0))
        parts = joined


def test_xlmr_ids_are_sentencepiece_ids_with_the_fairseq_offset(model_file: Path, xlmr: XLMRTokenizer) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    for text in [*TEXTS[:6], "ｆｕｌｌ　width", "  many   spaces ", "zebra 斑马"]:
        expected = [index + 1 if index else 3 for index in reference.encode(text, out_type=int)]
        assert xlmr.encode_batch([text], 77) == [[0, *expected, 2]]


def test_xlmr_special_ids_are_those_of_the_published_model(model_file: Path, xlmr: XLMRTokenizer) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file)).get_piece_size()
    assert (xlmr.bos_id, xlmr.pad_id, xlmr.eos_id) == (0, 1, 2)
    assert xlmr.vocab_size == pieces + 2  # 250,000 pieces make 250,002 ids in XLM-R
    assert xlmr.encode_batch(["<mask>"], 77) == [[0, pieces + 1, 2]]


def test_clip_ids_equal_a_slow_bpe(clip: CLIPTokenizer, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(line.split(" ")[0], line.split(" ")[1]) for line in lines]
    text = "The small DOG photo 42 unseen!"
    words = ["the", "small", "dog", "photo", "4", "2", "unseen", "!"]
    expected = [token for word in words for token in slow_bpe(word, vocab, merges)]
    assert clip.encode_batch([text], 77) == [[clip.bos_id, *expected, clip.eos_id]]


def test_clip_vocabulary_has_the_published_layout(clip: CLIPTokenizer, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    # Ids of the published CLIP vocabulary: bytes from "!" on, then the same with the end of a word.
    assert (vocab["!"], vocab["a"], vocab["!</w>"], vocab["a</w>"]) == (0, 64, 256, 320)
    assert sorted(vocab.values()) == list(range(clip.vocab_size))
    assert (clip.bos_id, clip.eos_id) == (clip.vocab_size - 2, clip.vocab_size - 1)
    assert clip.vocab_size == 560


@pytest.mark.parametrize("kind", ["xlmr", "clip"])
@pytest.mark.parametrize("length", [2, 3, 9])
def test_truncation_keeps_the_begin_and_end_tokens(kind: str, length: int, request: pytest.FixtureRequest) -> None:
    tokenizer: XLMRTokenizer | CLIPTokenizer = request.getfixturevalue(kind)
    text = "a photo of a cat " * 30
    whole = tokenizer.encode_batch([text], 10_000)[0]
    (cut,) = tokenizer.encode_batch([text], length)
    assert cut == [*whole[: length - 1], tokenizer.eos_id]


@pytest.mark.parametrize("kind", ["xlmr", "clip"])
def test_pack_lays_texts_end_to_end(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: XLMRTokenizer | CLIPTokenizer = request.getfixturevalue(kind)
    texts = ["a cat", "", "the dog is near the blue house"]
    packed = tokenizer.pack(texts, 7)
    ids = tokenizer.encode_batch(texts, 7)
    assert packed.input_ids.tolist() == ids[0] + ids[1] + ids[2]
    assert packed.lengths.tolist() == [len(one) for one in ids]
    assert len(ids[1]) == 2
    assert packed.max_length == 7


@pytest.mark.parametrize("kind", ["xlmr", "clip"])
def test_packed_texts_are_the_lists_packed(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: XLMRTokenizer | CLIPTokenizer = request.getfixturevalue(kind)
    packed, lists = tokenizer.pack(TEXTS, 9), PackedTokens.from_lists(tokenizer.encode_batch(TEXTS, 9))
    assert (packed.input_ids.dtype, packed.cumulative_lengths.dtype) == (torch.int64, torch.int32)
    assert packed.input_ids.equal(lists.input_ids)
    assert packed.cumulative_lengths.equal(lists.cumulative_lengths)
    assert packed.max_length == lists.max_length == 9
    for nothing in (lambda: tokenizer.pack([], 9), lambda: PackedTokens.from_lists([[1], []])):
        with pytest.raises(ValueError, match="cannot pack texts of"):
            nothing()


@pytest.mark.parametrize("kind", ["xlmr", "clip"])
def test_decoding_returns_the_text_without_special_tokens(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: XLMRTokenizer | CLIPTokenizer = request.getfixturevalue(kind)
    (ids,) = tokenizer.encode_batch(["the red cat 猫"], 77)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the red cat 猫"
    assert tokenizer.decode(ids) != "the red cat 猫"


@pytest.mark.parametrize("kind", ["xlmr", "clip"])
def test_saving_and_loading_changes_nothing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer: XLMRTokenizer | CLIPTokenizer = request.getfixturevalue(kind)
    tokenizer.save_pretrained(tmp_path)
    texts = ["the red cat 猫", "<s><|endoftext|>", "ｶﾞ"]
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert type(again) is type(tokenizer)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.vocab_size == tokenizer.vocab_size
        assert again.model_max_length == tokenizer.model_max_length == 77
        assert again.encode_batch(texts, 77) == tokenizer.encode_batch(texts, 77)


@pytest.mark.parametrize("kind", ["xlmr", "clip"])
def test_tokenizer_json_alone_is_enough(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer: XLMRTokenizer | CLIPTokenizer = request.getfixturevalue(kind)
    json_alone(tokenizer, tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_batch(["ｆｕｌｌ a cat"], 77) == tokenizer.encode_batch(["ｆｕｌｌ a cat"], 77)


def json_alone(tokenizer: XLMRTokenizer | CLIPTokenizer, folder: Path) -> dict[str, Any]:
    """Leave only tokenizer.json of a saved tokenizer; its content."""
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        if path.name != "tokenizer.json":
            path.unlink()
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


OLD_METASPACE = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}


@pytest.mark.parametrize("metaspace", [OLD_METASPACE, {**OLD_METASPACE, "str_rep": "▁"}])
@pytest.mark.parametrize("alone", [True, False])
def test_an_old_tokenizer_json_is_the_same_tokenizer(
    xlmr: XLMRTokenizer, tmp_path: Path, metaspace: dict[str, Any], alone: bool
) -> None:
    content = json_alone(xlmr, tmp_path)
    split = [{"type": "WhitespaceSplit"}, metaspace]
    content["pre_tokenizer"] = metaspace if alone else {"type": "Sequence", "pretokenizers": split}
    content["decoder"] = metaspace
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    content["normalizer"] = {"type": "Sequence", "normalizers": [content["normalizer"], spaces]}
    del content["model"]["type"]
    # Scores as 32-bit numbers print them, where ours have 64 bits.
    content["model"]["vocab"] = [[piece, float(f"{score:.9g}")] for piece, score in content["model"]["vocab"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == xlmr.fingerprint
    assert again.encode_batch(["ｆｕｌｌ a  cat <mask>"], 77) == xlmr.encode_batch(["ｆｕｌｌ a  cat <mask>"], 77)


def test_old_clip_merges_are_written_as_text(clip: CLIPTokenizer, tmp_path: Path) -> None:
    content = json_alone(clip, tmp_path)
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    del content["model"]["type"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_tokenizer(tmp_path).fingerprint == clip.fingerprint


def openai_file(clip: CLIPTokenizer, folder: Path, *more: str) -> Path:
    """The merges of a tokenizer as OpenAI publishes them."""
    clip.save_pretrained(folder / "saved")
    _, *merges = (folder / "saved" / "merges.txt").read_text(encoding="utf-8").splitlines()
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges, *more]
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))
    return path


def test_openais_merges_are_a_whole_clip_tokenizer(clip: CLIPTokenizer, tmp_path: Path) -> None:
    openai_file(clip, tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == clip.fingerprint
    texts = ["The small DOG photo 42 unseen! 猫", "<|endoftext|>"]
    assert again.encode_batch(texts, 77) == clip.encode_batch(texts, 77)


def test_openais_file_has_more_merges_than_clip_uses(
    clip: CLIPTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * 256 + clip_files._OPENAI_MERGES + 2 == 49408
    monkeypatch.setattr(clip_files, "_OPENAI_MERGES", clip.vocab_size - 514)
    openai_file(clip, tmp_path, "z z", "zz zz</w>")
    assert load_tokenizer(tmp_path).fingerprint == clip.fingerprint


def test_a_damaged_openai_file_is_named(clip: CLIPTokenizer, tmp_path: Path) -> None:
    whole = openai_file(clip, tmp_path).read_bytes()
    damaged = {
        whole[: len(whole) // 2]: "damaged, or no gzip file",
        whole[:30] + b"\xff" * 20 + whole[50:]: "damaged, or no gzip file",
        b"version https://git-lfs.github.com/spec/v1": "damaged, or no gzip file",
        gzip.compress(b"a b\nb c\n"): "begins with 'a b', expected a line with #version",
        gzip.compress(b"#version: 0.2\nt h\nthe\n"): "merge 1 is 'the', expected two tokens",
        gzip.compress(b"#version: 0.2\n\xff\xfe\n"): "is damaged",
    }
    for content, message in damaged.items():
        (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(content)
        with pytest.raises(ValueError, match=rf"bpe_simple_vocab_16e6\.txt\.gz.*{message}"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "\udcff"])
def test_a_damaged_tokenizer_json_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content.encode(errors="surrogateescape"))
    for load in (load_tokenizer, CLIPTokenizer.from_pretrained, XLMRTokenizer.from_pretrained):
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            load(tmp_path)


def test_the_directory_says_how_long_texts_may_be(xlmr: XLMRTokenizer, tmp_path: Path) -> None:
    xlmr.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for value, expected in ((512, 512), (512.0, 512), (int(1e30), int(1e30)), (None, 77)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": value}))
        assert load_tokenizer(tmp_path).model_max_length == expected
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": "long"}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: model_max_length is 'long'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_clip_directory_may_pad_with_another_token(clip: CLIPTokenizer, tmp_path: Path, name: str) -> None:
    clip.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / name).write_text(json.dumps({"pad_token": {"content": "!"}}))
    padded = load_tokenizer(tmp_path)
    assert padded.pad_id == 0
    assert padded(["a cat", "a"], padding=True).input_ids[1][-1] == 0
    assert padded.fingerprint != clip.fingerprint  # it cuts "cat!" differently
    padded.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").fingerprint == padded.fingerprint


def test_text_that_no_file_can_hold_is_named(xlmr: XLMRTokenizer, clip: CLIPTokenizer) -> None:
    mixed: list[Any] = ["a cat", 5]
    for tokenizer in (xlmr, clip):
        with pytest.raises(ValueError, match=r"text 1 holds .* at character 2, half of a UTF-16 pair"):
            tokenizer.encode_batch(["a cat", "a \ud83d cat"], 77)
        with pytest.raises(TypeError, match="text 1 is a int"):
            tokenizer.encode_batch(mixed, 77)


def test_fingerprints_differ_between_vocabularies(xlmr: XLMRTokenizer, clip: CLIPTokenizer, tmp_path: Path) -> None:
    train_sentencepiece(TEXTS, tmp_path / "other", 60)
    fingerprints = {
        xlmr.fingerprint,
        clip.fingerprint,
        XLMRTokenizer(tmp_path / "other").fingerprint,
        train_clip_bpe(TEXTS, 540).fingerprint,
    }
    assert len(fingerprints) == 4
    assert all(len(fingerprint) == 64 for fingerprint in fingerprints)


def test_special_tokens_in_a_text_are_special_tokens(xlmr: XLMRTokenizer, clip: CLIPTokenizer) -> None:
    assert xlmr.encode_batch(["</s>"], 77) == [[0, 2, 2]]
    end = clip.eos_id
    assert clip.encode_batch(["<|ENDOFTEXT|>"], 77) == [[clip.bos_id, end, end]]


def test_an_empty_batch_gives_no_texts(xlmr: XLMRTokenizer, clip: CLIPTokenizer) -> None:
    assert xlmr.encode_batch([], 77) == []
    assert clip.encode_batch([], 77) == []


def test_bad_arguments_are_named(xlmr: XLMRTokenizer, clip: CLIPTokenizer) -> None:
    with pytest.raises(ValueError, match="max_length=1"):
        clip.encode_batch(["a cat"], 1)
    with pytest.raises(TypeError, match="a list of texts"):
        xlmr.encode_batch("a cat", 77)
    with pytest.raises(ValueError, match=r"the special tokens \['to fill'\] hold a space"):
        CLIPTokenizer({**clip._vocab, "to fill": clip.vocab_size}, clip._merges, pad_token="to fill")


def test_missing_files_are_named_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for load, wanted in (
        (XLMRTokenizer.from_pretrained, "sentencepiece.bpe.model"),
        (CLIPTokenizer.from_pretrained, "vocab.json and merges.txt"),
        (load_tokenizer, "vocab.json"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"{wanted}.*found config\.json"):
            load(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a directory"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"absent\.model"):
        XLMRTokenizer(tmp_path / "absent.model")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\nsize 5069051\n", b"\0" * 40])
def test_a_damaged_model_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.model .*not a SentencePiece model"):
        XLMRTokenizer(tmp_path / "broken.model")


def test_a_sentencepiece_model_of_another_layout_is_refused(tmp_path: Path) -> None:
    common = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    layouts: dict[str, dict[str, Any]] = {
        "pads": {**common, "pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3},
        "bpe": {**common, "model_type": "bpe"},
    }
    for name, settings in layouts.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS[:3]), model_prefix=str(tmp_path / name), **settings
        )
        with pytest.raises(ValueError, match="XLM-R's layout"):
            XLMRTokenizer(tmp_path / f"{name}.model")


def test_the_other_tokenizers_json_is_refused(xlmr: XLMRTokenizer, clip: CLIPTokenizer, tmp_path: Path) -> None:
    xlmr.save_pretrained(tmp_path / "xlmr")
    clip.save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="Unigram model, a CLIP tokenizer is BPE"):
        CLIPTokenizer.from_pretrained(tmp_path / "xlmr")
    with pytest.raises(ValueError, match="not XLM-R's"):
        XLMRTokenizer.from_pretrained(tmp_path / "clip")


def test_a_clip_vocabulary_without_special_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="endoftext"):
        CLIPTokenizer({"a": 0, "<|startoftext|>": 1}, [])


def test_training_is_the_same_in_every_process(tmp_path: Path, xlmr: XLMRTokenizer, clip: CLIPTokenizer) -> None:
    program = (
        "import sys; from altclip_train.processing import *\n"
        f"texts = {TEXTS!r}\n"
        "train_sentencepiece(texts, sys.argv[1], 150)\n"
        "print(XLMRTokenizer(sys.argv[1]).fingerprint, train_clip_bpe(texts, 560).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "model")]
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == [xlmr.fingerprint, clip.fingerprint]


def test_training_keeps_every_character_and_long_text(tmp_path: Path) -> None:
    rare = "鱻"
    train_sentencepiece([*TEXTS, "a cat " * 2000 + rare], tmp_path / "model", 150)
    tokenizer = XLMRTokenizer(tmp_path / "model")
    assert tokenizer.decode(tokenizer.encode_batch([rare], 77)[0], skip_special_tokens=True) == rare


def test_training_reports_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text was given"):
        train_sentencepiece(["", " "], tmp_path / "model", 100)
    with pytest.raises(ValueError, match=r"cannot train 9 entries .* different characters"):
        train_sentencepiece(["abcdefgh ijklmnop"] * 3, tmp_path / "model", 9)
    with pytest.raises(ValueError, match="vocab_size=513"):
        train_clip_bpe(TEXTS, 513)


def test_vocabulary_sizes_are_upper_bounds(tmp_path: Path) -> None:
    train_sentencepiece(TEXTS, tmp_path / "model", 30_000)
    assert XLMRTokenizer(tmp_path / "model").vocab_size < 300
    assert 514 < train_clip_bpe(TEXTS, 30_000).vocab_size < 1000
    assert train_clip_bpe([], 600).vocab_size == 514
