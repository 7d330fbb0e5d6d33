"""A trimmed directory, read by transformers: the same token ids as ours, and the features of before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch

from altclip_train.models import AltCLIPModel
from altclip_train.processing import XLMRTokenizer, load_tokenizer, train_sentencepiece
from altclip_train.trimming import trim
from tests.parallel_texts import CHINESE, ENGLISH, SPANISH, text_file
from tests.tiny_models import save_altclip

transformers = pytest.importorskip("transformers", minversion="5.23")

pytestmark = pytest.mark.parity

GIVEN = [*ENGLISH, *CHINESE, "ｆｕｌｌ width <mask>", "ｶﾞ 😀 unseen", "a" * 300]
UNSEEN = [*SPANISH, "猫猫", "Ωmega", "<s> </s>", "", "  ", "sofas\u3000birds", "é ½ ﬁ"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trim")
    train_sentencepiece([*ENGLISH, *CHINESE, *SPANISH] * 10, folder / "sentencepiece", 190)
    return save_altclip(folder / "altclip", XLMRTokenizer(folder / "sentencepiece"))


@pytest.fixture(scope="module", params=[True, False], ids=["all_characters", "used_characters"])
def trimmed(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trimmed")
    trim(checkpoint, folder / "model", [text_file(folder / "texts.txt", GIVEN)], characters=request.param)
    return folder / "model"


def test_token_ids_equal_transformers(trimmed: Path) -> None:
    ours = load_tokenizer(trimmed)
    theirs = transformers.XLMRobertaTokenizer.from_pretrained(trimmed)
    expected = theirs([*GIVEN, *UNSEEN], truncation=True, max_length=77)["input_ids"]
    assert ours.encode_batch([*GIVEN, *UNSEEN], 77) == expected
    assert (theirs.unk_token_id, theirs.pad_token_id, theirs.mask_token_id) == (3, 1, len(ours) - 1)
    assert len(theirs) == len(ours)


def test_token_ids_equal_transformers_on_the_sentencepiece_file_alone(trimmed: Path, tmp_path: Path) -> None:
    data = (trimmed / "sentencepiece.bpe.model").read_bytes()
    (tmp_path / "sentencepiece.bpe.model").write_bytes(data)
    theirs = transformers.XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert load_tokenizer(trimmed).encode_batch(GIVEN, 999) == theirs(GIVEN)["input_ids"]
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert processor.get_piece_size() == len(theirs) - 2


def test_features_equal_those_of_transformers_before(checkpoint: Path, trimmed: Path) -> None:
    """Whole models, each through the padded batch of its own tokenizer."""
    features = []
    for directory in (checkpoint, trimmed):
        tokenizer = transformers.XLMRobertaTokenizer.from_pretrained(directory)
        model = transformers.AltCLIPModel.from_pretrained(directory)
        inputs = tokenizer(GIVEN, padding=True, truncation=True, max_length=77, return_tensors="pt")
        with torch.inference_mode():
            features.append(model.get_text_features(**inputs).pooler_output)
    assert torch.equal(*features)
    with torch.inference_mode():
        ours = AltCLIPModel.from_pretrained(trimmed).encode_text(load_tokenizer(trimmed).pack(GIVEN, 77))
    torch.testing.assert_close(ours, features[0], rtol=0, atol=1e-5)


def test_processor_of_transformers_reads_the_directory(trimmed: Path) -> None:
    processor = transformers.AltCLIPProcessor.from_pretrained(trimmed, backend="pil")
    ours = load_tokenizer(trimmed)
    assert processor(text=GIVEN)["input_ids"] == ours.encode_batch(GIVEN, 999)
    config = json.loads((trimmed / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["vocab_size"] == len(processor.tokenizer) == len(ours)
