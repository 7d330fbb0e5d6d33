"""`altclip trim`: kept pieces against SentencePiece itself, the proof, what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from altclip_train import hub, trimming
from altclip_train.cli import main
from altclip_train.models import AltCLIPModel, build_text_student
from altclip_train.processing import XLMRTokenizer, load_tokenizer, train_sentencepiece
from altclip_train.processing.trim import kept_pieces, new_ids, trim_tokenizer
from altclip_train.processing.unigram import UnigramVocabulary
from tests.parallel_texts import CHINESE, ENGLISH, SPANISH, text_file
from tests.tiny_models import TEXT_FIELDS, save_altclip, tiny_clip

WORDS = sorted({word for text in [*ENGLISH, *CHINESE, *SPANISH] for word in text.split()})
WEIGHTS = "text_model.roberta.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> XLMRTokenizer:
    path = tmp_path_factory.mktemp("sentencepiece") / "model"
    compounds = [left + right for left in WORDS for right in WORDS]
    train_sentencepiece([*ENGLISH, *CHINESE, *SPANISH, *compounds], path, 300)
    return XLMRTokenizer(path)


@pytest.fixture(scope="module")
def checkpoint(tokenizer: XLMRTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_altclip(tmp_path_factory.mktemp("model") / "altclip", tokenizer)


def features(directory: Path, texts: list[str]) -> torch.Tensor:
    model, tokenizer = AltCLIPModel.from_pretrained(directory), load_tokenizer(directory)
    with torch.inference_mode():
        return model.encode_text(tokenizer.pack(texts, 77))


def trimmed_to(tokenizer: XLMRTokenizer, texts: list[str], **options: Any) -> tuple[XLMRTokenizer, list[int]]:
    counts, _ = trimming.count_pieces(tokenizer, texts, 1)
    kept = kept_pieces(tokenizer, counts, **options)
    return trim_tokenizer(tokenizer, kept), kept


def segmenter(tokenizer: XLMRTokenizer) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.vocabulary.model_data)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.lists(st.sampled_from([*WORDS, "<s>", "cats", "?", "é", "猫狗"]) | st.text("abcot 猫狗ñ", max_size=6)).map(
            " ".join
        ),
        min_size=1,
        max_size=6,
    ),
    characters=st.booleans(),
)
def test_any_texts_keep_their_pieces_and_their_ids_in_order(
    tokenizer: XLMRTokenizer, texts: list[str], characters: bool
) -> None:
    new, kept = trimmed_to(tokenizer, texts, characters=characters)
    assert kept == sorted(set(kept))
    ids = new_ids(kept, len(tokenizer))
    for text, before, after in zip(texts, tokenizer.encode_batch(texts, 99), new.encode_batch(texts, 99), strict=True):
        assert [ids[index] for index in before] == after
        assert new.decode(after) == tokenizer.decode(before)
        if "<s>" not in text:  # SentencePiece itself, on the rewritten file; to it this is no special token
            assert segmenter(new).encode(text, out_type=str) == segmenter(tokenizer).encode(text, out_type=str)


def test_special_tokens_stay_where_they_are(tokenizer: XLMRTokenizer) -> None:
    new, kept = trimmed_to(tokenizer, ["cat"], characters=False)
    assert kept[:4] == [0, 1, 2, 3]
    assert kept[-1] == len(tokenizer) - 1
    assert new.encode_batch(["<s><pad></s><unk><mask>"], 99) == [[0, 0, 1, 2, 3, len(new) - 1, 2]]
    assert len(new) < len(tokenizer) / 4


def test_new_texts_of_known_characters_have_no_unknown_ones(tokenizer: XLMRTokenizer) -> None:
    (with_characters, _), (without, _) = (
        trimmed_to(tokenizer, ENGLISH, characters=characters) for characters in (True, False)
    )
    assert 3 not in with_characters.encode_batch(["沙发"], 99)[0]
    assert 3 in without.encode_batch(["沙发"], 99)[0]


def test_equal_scores_and_unknown_characters_decide_as_before() -> None:
    """ab + c scores what a + bc does; y alone is unknown, x the piece that an unknown one is scored from."""
    pieces = [("▁", -1.0), ("ab", -2.0), ("c", -2.0), ("bc", -2.0), ("a", -2.0), ("yx", -9.0), ("x", -30.0)]
    specials = [(piece, 0.0) for piece in XLMRTokenizer.SPECIAL_TOKENS]
    old = XLMRTokenizer.from_vocabulary(UnigramVocabulary([*specials[:4], *pieces, specials[4]], b"", None))
    for texts in (["abc"], ["yx"], ["abc", "yx x", "zz"], ["y"]):
        new, kept = trimmed_to(old, texts, characters=False)
        ids = new_ids(kept, len(old))
        expected = [[ids[index] for index in one] for one in old.encode_batch(texts, 99)]
        assert new.encode_batch(texts, 99) == expected


def test_without_the_piece_of_the_lowest_score_unknown_characters_would_become_cheap() -> None:
    """Why it is kept: an unknown character scores 10 below it, here -40, and -11 without it."""
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [("▁", -1.0), ("ab", -25.0), ("q", -30.0), ("<mask>", 0.0)]
    old = XLMRTokenizer.from_vocabulary(UnigramVocabulary(pieces, b"", None))
    assert old.encode_batch(["ab"], 9) == [[0, 4, 5, 2]]
    _, kept = trimmed_to(old, ["ab"], characters=False)
    assert 6 in kept
    without = trim_tokenizer(old, [index for index in kept if index not in (5, 6)])
    assert without.encode_batch(["ab"], 9) == [[0, 4, 3, 2]]


def test_rewritten_file_says_its_size_and_drops_the_self_test(tokenizer: XLMRTokenizer) -> None:
    model_pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    message = model_pb2.ModelProto.FromString(tokenizer.vocabulary.model_data)
    message.pieces[-1].type = message.pieces[-1].USER_DEFINED
    self_test = bytes([4 << 3 | 2, 10, 1 << 3 | 2, 8]) + b"\x0a\x01a\x12\x03\xe2\x96\x81"  # a text and its pieces
    changed = UnigramVocabulary(
        tokenizer.vocabulary.pieces, tokenizer.vocabulary.character_map, message.SerializeToString() + self_test
    )
    new, kept = trimmed_to(XLMRTokenizer.from_vocabulary(changed), ["two"], characters=False)
    written = model_pb2.ModelProto.FromString(new.vocabulary.model_data)
    assert written.trainer_spec.vocab_size == len(written.pieces) == len(new) - 2
    assert len(message.pieces) in kept  # the user-defined piece, under XLM-R's id
    assert self_test not in new.vocabulary.model_data
    assert written.normalizer_spec == message.normalizer_spec
    expected = [message.pieces[index - 1 if index > 3 else index] for index in kept[4:-1]]
    assert list(written.pieces)[3:] == expected


def test_trimmed_directory_has_the_same_features_and_other_weights(checkpoint: Path, tmp_path: Path) -> None:
    texts = [*ENGLISH, "", "  ", *CHINESE]
    report = trimming.trim(checkpoint, tmp_path / "small", [text_file(tmp_path / "texts.txt", texts)])
    assert torch.equal(features(tmp_path / "small", [*ENGLISH, *CHINESE]), features(checkpoint, [*ENGLISH, *CHINESE]))
    before, after = (load_file(path / "model.safetensors") for path in (checkpoint, tmp_path / "small"))
    rows, kept = before.pop(WEIGHTS), after.pop(WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert report.rows == (len(rows), len(kept))
    assert report.parameters[0] - report.parameters[1] == (len(rows) - len(kept)) * TEXT_FIELDS["hidden_size"]
    assert {tuple(row) for row in kept.tolist()} < {tuple(row) for row in rows.tolist()}
    assert (report.given.texts, report.given.changed, report.difference, report.sampled) == (6, 0, 0.0, 6)
    config = json.loads((tmp_path / "small/config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["vocab_size"] == len(kept)
    assert not list(tmp_path.glob("*.incomplete"))


def test_weights_name_the_new_tokenizer_and_keep_their_type(tokenizer: XLMRTokenizer, tmp_path: Path) -> None:
    source = save_altclip(tmp_path / "altclip", tokenizer)
    AltCLIPModel.from_pretrained(source).to(torch.bfloat16).save_pretrained(source)
    trimming.trim(source, tmp_path / "small", [text_file(tmp_path / "texts.txt", ENGLISH)])
    new = load_tokenizer(tmp_path / "small")
    assert new.fingerprint != tokenizer.fingerprint
    with safe_open(tmp_path / "small/model.safetensors", framework="pt") as file:
        assert file.metadata()["tokenizer_sha256"] == new.fingerprint
        assert file.get_tensor(WEIGHTS).dtype == torch.bfloat16


def test_card_is_extended_and_the_image_transform_kept(tokenizer: XLMRTokenizer, tmp_path: Path) -> None:
    source = save_altclip(tmp_path / "altclip", tokenizer)
    (source / "README.md").write_text("---\ntags: [altclip]\n---\n# Mine\n", encoding="utf-8")
    report = trimming.trim(source, tmp_path / "small", [text_file(tmp_path / "texts.txt", ENGLISH)])
    card = (tmp_path / "small/README.md").read_text(encoding="utf-8")
    assert card.startswith("---\ntags: [altclip]\n---\n# Mine\n\n## Trimmed vocabulary\n")
    assert all(line in card for line in report.lines())
    assert (tmp_path / "small/preprocessor_config.json").read_bytes() == (
        source / "preprocessor_config.json"
    ).read_bytes()


def test_rows_beyond_the_tokenizer_go(tokenizer: XLMRTokenizer, tmp_path: Path) -> None:
    source = save_altclip(tmp_path / "altclip", tokenizer, spare_rows=5)
    report = trimming.trim(source, tmp_path / "small", [text_file(tmp_path / "texts.txt", ENGLISH)])
    assert report.rows[0] == len(tokenizer) + 5
    assert report.rows[1] == len(load_tokenizer(tmp_path / "small"))
    assert torch.equal(features(tmp_path / "small", ENGLISH), features(source, ENGLISH))


def test_trimmed_model_is_a_student(checkpoint: Path, tmp_path: Path) -> None:
    trimming.trim(checkpoint, tmp_path / "small", [text_file(tmp_path / "texts.txt", ENGLISH)])
    tokenizer = load_tokenizer(tmp_path / "small")
    student = build_text_student(student=tmp_path / "small", project_dim=10).eval()
    assert student.config.vocab_size == len(tokenizer)
    expected = AltCLIPModel.from_pretrained(checkpoint).text_model
    with torch.inference_mode():
        got = student.encode_packed(tokenizer.pack(ENGLISH, 77))
        assert torch.equal(got, expected.encode_packed(load_tokenizer(checkpoint).pack(ENGLISH, 77)))


def test_tokenizer_json_alone_is_enough(tokenizer: XLMRTokenizer, tmp_path: Path) -> None:
    source = save_altclip(tmp_path / "altclip", tokenizer)
    (source / "sentencepiece.bpe.model").unlink()
    trimming.trim(source, tmp_path / "small", [text_file(tmp_path / "texts.txt", ENGLISH)])
    assert not (tmp_path / "small/sentencepiece.bpe.model").exists()
    assert torch.equal(features(tmp_path / "small", ENGLISH), features(source, ENGLISH))


def test_rare_pieces_can_go_and_are_counted(checkpoint: Path, tmp_path: Path) -> None:
    texts = text_file(tmp_path / "texts.txt", ["the cat"] * 5 + ["the dog"])
    all_kept = trimming.trim(checkpoint, tmp_path / "all", [texts])
    report = trimming.trim(checkpoint, tmp_path / "few", [texts], min_count=2, check=[texts])
    assert report.rows[1] < all_kept.rows[1]
    assert (report.given.texts, report.given.changed) == (6, 1)
    assert report.held_out == report.given
    assert report.given.tokens[1] > report.given.tokens[0]
    assert report.given.unknown == (0, 0)
    assert (report.sampled, report.difference) == (1, 0.0)
    assert torch.equal(features(tmp_path / "few", ["the cat"]), features(checkpoint, ["the cat"]))


def test_sample_is_the_same_in_any_order(tokenizer: XLMRTokenizer) -> None:
    texts = [f"cat {number}" for number in range(300)]
    _, sample = trimming.count_pieces(tokenizer, texts, 40)
    _, again = trimming.count_pieces(tokenizer, [*reversed(texts), *texts], 40)
    assert sample == again
    assert len(set(sample)) == 40
    counts, everything = trimming.count_pieces(tokenizer, texts, 1000)
    assert sorted(everything) == sorted(texts)
    assert counts[0] == counts[2] == 300  # one begin and one end each


def test_a_failed_proof_writes_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = text_file(tmp_path / "texts.txt", ENGLISH)
    with monkeypatch.context() as patch:
        cut = trimming.cut_embeddings
        patch.setattr(
            trimming, "cut_embeddings", lambda model, old, new, kept, texts: cut(model, old, new, kept[::-1], texts)
        )
        with pytest.raises(ValueError, match=r"proof failed.*features differ"):
            trimming.trim(checkpoint, tmp_path / "small", [texts])
    with monkeypatch.context() as patch:
        patch.setattr(trimming, "trim_tokenizer", lambda old, kept: trim_tokenizer(old, [*kept[:10], *kept[11:]]))
        with pytest.raises(ValueError, match=r"proof failed.*has ids"):
            trimming.trim(checkpoint, tmp_path / "small", [texts])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt"]


def test_refusals(checkpoint: Path, tokenizer: XLMRTokenizer, tmp_path: Path) -> None:
    texts = [text_file(tmp_path / "texts.txt", ENGLISH)]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(FileExistsError, match="taken exists already"):
        trimming.trim(checkpoint, tmp_path / "taken", texts)
    with pytest.raises(ValueError, match="no text to keep pieces for"):
        trimming.trim(checkpoint, tmp_path / "small", [text_file(tmp_path / "blank.txt", ["", " \t"])])
    with pytest.raises(ValueError, match="min_count=0"):
        trimming.trim(checkpoint, tmp_path / "small", texts, min_count=0)
    source = save_altclip(tmp_path / "altclip", tokenizer)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["vocab_size"] = len(tokenizer) - 1
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"of {len(tokenizer)} ids, expected XLM-R's .* vocab_size={len(tokenizer) - 1}"
    ):
        trimming.trim(source, tmp_path / "small", texts)
    assert not (tmp_path / "small").exists()


def test_a_clip_is_refused_with_the_reason(tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="is a CLIP, whose text tower reads byte pairs"):
        trimming.trim(tmp_path / "clip", tmp_path / "small", [text_file(tmp_path / "texts.txt", ENGLISH)])


def test_hub_id_is_trimmed_and_keeps_its_card(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = shutil.copytree(checkpoint, tmp_path / "cached")
    (cached / "README.md").write_text("# Theirs\n", encoding="utf-8")
    monkeypatch.setattr(hub, "_fetch", lambda hub_id, _: {"org/name": cached}[hub_id])
    trimming.trim("org/name", tmp_path / "small", [text_file(tmp_path / "texts.txt", ENGLISH)])
    assert torch.equal(features(tmp_path / "small", ENGLISH), features(checkpoint, ENGLISH))
    assert (tmp_path / "small/README.md").read_text(encoding="utf-8").startswith("# Theirs\n")


def test_command(tokenizer: XLMRTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = text_file(tmp_path / "texts.txt", ENGLISH)
    save_altclip(tmp_path / "run/model", tokenizer)
    main(["trim", str(tmp_path / "run"), str(tmp_path / "small"), "--texts", str(texts), "--check", str(texts)])
    printed = capsys.readouterr().out
    assert "3 of 3 texts consist of the same pieces as before" in printed
    assert "held-out texts: 0 of 3 texts cut differently" in printed
    with pytest.raises(SystemExit, match=r"error: .*exists already"):
        main(["trim", str(tmp_path / "run"), str(tmp_path / "small"), "--texts", str(texts)])
