"""`altclip embed`: rows equal what the towers give one by one, and nothing is computed twice."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from altclip_train.cli import main
from altclip_train.data.cache import ShardCache
from altclip_train.data.embeddings import EmbeddingStore, caption_entries, sidecar_path
from altclip_train.data.samples import is_caption_field
from altclip_train.data.shards import ShardReader
from altclip_train.embedding import features, tables
from altclip_train.embedding.shards import Job, embed_contrastive, embed_teacher
from altclip_train.embedding.towers import Towers
from altclip_train.models import (
    AltCLIPModel,
    AltCLIPTextConfig,
    AltCLIPTextModel,
    CLIPModel,
    assemble_altclip,
    build_clip,
    load_clip_text,
)
from altclip_train.models.fingerprint import image_fingerprint, text_fingerprint
from altclip_train.processing import (
    CLIPTokenizer,
    ImageTransform,
    XLMRTokenizer,
    train_clip_bpe,
    train_sentencepiece,
)

TEXTS = [f"a photo of a {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("cat", "dog", "house")]
TEXTS += ["cat", "a cat " * 60]  # the longest is cut
SIDE = 32


def save_clip(directory: Path, *, seed: int = 0, **text: object) -> Path:
    """A CLIP with random weights."""
    tokenizer = train_clip_bpe(TEXTS, 560)
    torch.manual_seed(seed)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    clip = build_clip(
        vision={**shape, "hidden_size": 16, "image_size": SIDE, "patch_size": 16},
        text={**shape, "hidden_size": 12, "vocab_size": tokenizer.vocab_size, "eos_token_id": 2, **text},
        projection_dim=8,
        logit_scale_init_value=2.0,
    )
    clip.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    ImageTransform(size=SIDE, crop_size=SIDE).save_pretrained(directory)
    return directory


def save_altclip(directory: Path, clip: Path, seed: int = 1) -> Path:
    """An AltCLIP around the image tower of a CLIP."""
    train_sentencepiece([*TEXTS, "一张猫的照片"], directory / "sentencepiece.bpe.model", 70)
    tokenizer = XLMRTokenizer.from_pretrained(directory)
    torch.manual_seed(seed)
    student = AltCLIPTextModel(
        AltCLIPTextConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=12,
            intermediate_size=20,
            num_hidden_layers=1,
            num_attention_heads=2,
            project_dim=12,
            hidden_dropout_prob=0.0,
        )
    )
    assemble_altclip(clip, student).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    ImageTransform.from_pretrained(clip).save_pretrained(directory)
    return directory


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (40 + seed, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def parallel(*english: str | list[str] | None) -> bytes:
    """A shard of parallel text; None is a sample without English."""
    samples = [{"zh": "猫"} if text is None else {"en": text, "zh": text} for text in english]
    return tar({f"{i:04d}.json": json.dumps(sample).encode() for i, sample in enumerate(samples)})


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_ARRAY_TASK_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two shards with lists, repeated texts, and samples that have no English."""
    (tmp_path / "0.tar").write_bytes(parallel(TEXTS[0], TEXTS[1:9], None, "cat", TEXTS[10]))
    damaged = {"0.json": b"{", "1.json": json.dumps({"en": ["cat", "cat", "dog"]}).encode()}
    (tmp_path / "1.tar").write_bytes(tar(damaged))
    return tmp_path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A shard of pictures, of which the second is damaged and the last is missing."""
    members = {f"{i}.png": picture(i) for i in range(5)} | {"5.txt": b"no picture"}
    members["1.png"] = members["1.png"][:200]
    (tmp_path / "0.tar").write_bytes(tar(members))
    return tmp_path


def one_by_one(clip: Path, text: str, max_length: int = 77) -> np.ndarray:
    tower, tokenizer = load_clip_text(clip), CLIPTokenizer.from_pretrained(clip)
    with torch.no_grad():
        return tower.encode_packed(tokenizer.pack([text], max_length))[0].numpy()


def image_features(model: AltCLIPModel | CLIPModel, data: bytes) -> np.ndarray:
    transform = ImageTransform(size=SIDE, crop_size=SIDE)
    with torch.no_grad():
        return model.get_image_features(transform(Image.open(io.BytesIO(data)))[None])[0].numpy()


def teacher_store(clip: Path, shards: list[Path], dtype: str = "float16", **changes: object) -> EmbeddingStore:
    """As a training run opens it: nothing is shared with the tool but the fingerprint."""
    tower = CLIPModel.from_pretrained(clip).text_model
    made = {"max_length": 77, "language": "en", "normalize_full_width": False, "dtype": dtype, **changes}
    fingerprint = text_fingerprint(tower, tokenizer=CLIPTokenizer.from_pretrained(clip).fingerprint, **made)
    digests = ShardReader(shards).digests
    return EmbeddingStore(shards, digests, name="teacher.en", fingerprint=fingerprint, width=tower.output_width)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
def test_teacher_rows_equal_encode_packed_one_by_one(clip: Path, texts: Path, dtype: str, tolerance: float) -> None:
    coverage = embed_teacher(clip, Job(urls=[f"{texts}/*.tar"], dtype=dtype))
    assert (coverage.shards, coverage.rows, coverage.filled, coverage.computed) == (2, 14, 14, 14)
    assert [(bad.key, bad.reason) for bad in coverage.skipped] == [("0002", "language_missing"), ("0", "caption_json")]
    store = teacher_store(clip, [texts / "0.tar", texts / "1.tar"], dtype)
    expected = {
        **{(0, 0, 0): TEXTS[0], (0, 3, 0): "cat", (0, 4, 0): TEXTS[10]},
        **{(0, 1, entry): text for entry, text in enumerate(TEXTS[1:9])},
        **{(1, 1, entry): text for entry, text in enumerate(["cat", "cat", "dog"])},
    }
    for place, text in expected.items():
        row, oracle = store.row(*place), one_by_one(clip, text)
        assert row is not None
        np.testing.assert_allclose(row, oracle, atol=tolerance * np.abs(oracle).max())
    assert store.row(0, 2) is store.row(1, 0) is None


def test_max_length_and_full_width_letters_are_those_of_the_run(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(parallel("ｃａｔ", TEXTS[0]))
    job = Job(urls=[str(tmp_path)], dtype="float32")
    embed_teacher(clip, job, max_length=5, normalize_full_width=True)
    store = teacher_store(clip, [tmp_path / "0.tar"], "float32", max_length=5, normalize_full_width=True)
    np.testing.assert_allclose(store.row(0, 0), one_by_one(clip, "cat"), atol=1e-5)
    np.testing.assert_allclose(store.row(0, 1), one_by_one(clip, TEXTS[0], max_length=5), atol=1e-5)
    with pytest.raises(ValueError, match="max_length is 5, expected 77; normalize_full_width is True, expected False"):
        teacher_store(clip, [tmp_path / "0.tar"], "float32").row(0, 0)


def test_only_rows_that_are_missing_are_computed(clip: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altclip_train.embedding.shards.TEXTS_AT_ONCE", 4)
    job = Job(urls=[f"{texts}/*.tar"], dtype="float32")
    embed_teacher(clip, job)
    store = teacher_store(clip, [texts / "0.tar"], "float32")
    whole = store.sidecar(0)
    assert whole is not None
    before = whole.embeddings.copy()
    fill = EmbeddingStore([texts / "0.tar"], store.digests, **writable(store))
    sidecar = fill.sidecar(0)
    assert sidecar is not None
    sidecar.embeddings[3] = 7.0  # marks a row that is there
    sidecar.embeddings[[1, 6]], sidecar.filled[[1, 6]] = 0.0, 0
    assert embed_teacher(clip, job).computed == 2
    assert (sidecar.embeddings[3] == 7.0).all()
    np.testing.assert_allclose(np.delete(sidecar.embeddings, 3, 0), np.delete(before, 3, 0), atol=1e-6)
    assert embed_teacher(clip, job).computed == 0


def writable(store: EmbeddingStore) -> dict:
    same = {"name": "teacher.en", "fingerprint": store.fingerprint, "width": store.width}
    return {**same, "entries": lambda _: pytest.fail("the sidecar is there")}


def test_entries_of_a_text_field_give_the_tools_offsets(clip: Path, texts: Path) -> None:
    embed_teacher(clip, Job(urls=[f"{texts}/*.tar"]))
    shards = [texts / "0.tar", texts / "1.tar"]
    reader = ShardReader(shards, wanted=is_caption_field)
    for shard in range(2):
        entries = caption_entries(reader, shard, language="en", normalize_full_width=False)
        sidecar = teacher_store(clip, shards).sidecar(shard)
        assert sidecar is not None
        assert np.diff(sidecar.offsets).tolist() == entries


def test_equal_texts_are_encoded_once_in_batches_of_few_tokens(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "TOKENS_PER_BATCH", 40)
    tower, tokenizer = load_clip_text(clip), CLIPTokenizer.from_pretrained(clip)
    batches = []

    def encode(tokens):
        batches.append(tokens.lengths.tolist())
        return tower.encode_packed(tokens)

    texts = ["cat", *TEXTS, "cat", "dog"]
    found = features.text_features(encode, tokenizer, texts, max_length=30, device=tower.device)
    lengths = [length for batch in batches for length in batch]
    assert len(lengths) == len(set(texts))
    assert lengths == sorted(lengths, reverse=True)
    assert all(sum(batch) <= 40 for batch in batches)
    oracle = np.stack([one_by_one(clip, text, max_length=30) for text in texts])
    np.testing.assert_allclose(found, oracle, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "altclip"])
def test_picture_rows_equal_get_image_features(clip: Path, tmp_path: Path, pictures: Path, kind: str) -> None:
    directory = clip if kind == "clip" else save_altclip(tmp_path / "altclip", clip)
    coverage = embed_contrastive(directory, Job(urls=[f"{pictures}/*.tar"], dtype="float32"))
    assert (coverage.rows, coverage.filled, coverage.computed) == (6, 4, 4)
    assert [(bad.key, bad.reason) for bad in coverage.skipped] == [("1", "image_damaged"), ("5", "image_missing")]
    # A run with another text tower around the same image tower uses them, too.
    model = CLIPModel.from_pretrained(clip)
    fingerprint = image_fingerprint(
        model, transform=ImageTransform(size=SIDE, crop_size=SIDE).to_dict(), draft=False, dtype="float32"
    )
    shard = pictures / "0.tar"
    store = EmbeddingStore([shard], ShardReader([shard]).digests, name="image", fingerprint=fingerprint, width=8)
    for sample in (0, 2, 3, 4):
        np.testing.assert_allclose(store.row(0, sample), image_features(model, picture(sample)), atol=1e-5)
    assert store.row(0, 1) is store.row(0, 5) is None
    again = embed_contrastive(directory, Job(urls=[f"{pictures}/*.tar"], dtype="float32"))
    assert (again.computed, len(again.skipped)) == (0, 2)


def test_more_pictures_than_a_batch_keep_their_order(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PICTURES_AT_ONCE", 3)
    data = {i: picture(i) for i in range(8)} | {3: b"damaged", 4: b"damaged", 5: b"damaged"}
    (tmp_path / "0.tar").write_bytes(tar({f"{i}.png": one for i, one in data.items()}))
    embed_contrastive(clip, Job(urls=[str(tmp_path)], dtype="float32"))
    model = CLIPModel.from_pretrained(clip)
    transform = ImageTransform.from_pretrained(clip).to_dict()
    made = image_fingerprint(model, transform=transform, draft=False, dtype="float32")
    shard = tmp_path / "0.tar"
    store = EmbeddingStore([shard], ShardReader([shard]).digests, name="image", fingerprint=made, width=8)
    for sample in (0, 1, 2, 6, 7):
        np.testing.assert_allclose(store.row(0, sample), image_features(model, data[sample]), atol=1e-5)


def test_sidecars_of_another_model_are_refused(clip: Path, tmp_path: Path, texts: Path) -> None:
    job = Job(urls=[f"{texts}/*.tar"])
    embed_teacher(clip, job)
    with pytest.raises(ValueError, match=r"0\.tar\.teacher\.en\.safetensors holds other embeddings: weights is"):
        embed_teacher(save_clip(tmp_path / "other", seed=1), job)
    with pytest.raises(ValueError, match=r"architecture is hidden_act=quick_gelu .*, expected hidden_act=gelu"):
        embed_teacher(save_clip(tmp_path / "gelu", hidden_act="gelu"), job)
    with pytest.raises(ValueError, match="dtype is float16, expected float32"):
        embed_teacher(clip, replace(job, dtype="float32"))


def test_fingerprint_of_a_whole_model_is_not_that_of_its_tower(clip: Path) -> None:
    model = CLIPModel.from_pretrained(clip)
    made = {"tokenizer": "t", "max_length": 77, "language": "en", "normalize_full_width": False, "dtype": "float16"}
    tower, whole = text_fingerprint(model.text_model, **made), text_fingerprint(model, **made)
    assert tower == text_fingerprint(load_clip_text(clip), **made)
    assert {part for part in tower if tower[part] != whole[part]} == {"output", "weights"}


def test_parts_cover_all_shards_once(clip: Path, texts: Path) -> None:
    found = [embed_teacher(clip, Job(urls=[f"{texts}/*.tar"], part=(own, 2))) for own in range(2)]
    assert [(coverage.shards, coverage.computed) for coverage in found] == [(1, 11), (1, 3)]
    assert embed_teacher(clip, Job(urls=[f"{texts}/*.tar"], part=(2, 3))).shards == 0


def test_sidecars_of_remote_shards_lie_in_a_directory(clip: Path, tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/embed/0.tar", parallel("cat"))
    job = Job(urls=["memory://embed/0.tar"], cache=ShardCache(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"is remote.*give a directory"):
        embed_teacher(clip, job)
    job = replace(job, directory=tmp_path / "sidecars")
    assert embed_teacher(clip, job).computed == 1
    shard = job.reader(is_caption_field).shards[0]
    assert sidecar_path(shard, "teacher.en", tmp_path / "sidecars").is_file()


def command(*arguments: object) -> None:
    main(["embed", *map(str, arguments)])


def test_command_reports_rows_and_damage(clip: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(clip, f"{texts}/*.tar", "--for", "teacher")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "14 of 14 texts of 2 shards are embedded, 14 of them now",
        "2 samples left out: 1 language_missing, 1 caption_json",
    ]
    assert lines[3].startswith(f"  {texts}/1.tar: 0: caption_json: ")
    command(clip, f"{texts}/*.tar", "--for", "teacher", "--part", "1/2")
    again = capsys.readouterr().out
    assert again == "3 of 3 texts of 1 shards are embedded, 0 of them now\n1 samples left out\n"


def test_shard_without_a_usable_sample_is_counted(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(parallel(None, None))
    for _ in range(2):
        coverage = embed_teacher(clip, Job(urls=[str(tmp_path)]))
        assert coverage.lines() == ["0 of 0 texts of 1 shards are embedded, 0 of them now", "2 samples left out"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["*.tar"],
        ["--for", "teacher"],
        ["--texts", "a.txt"],
        ["*.tar", "--for", "teacher", "--output", "o"],
        ["--texts", "a.txt", "--images", "b", "--output", "o"],
        ["*.tar", "--for", "teacher", "--texts", "a.txt"],
    ],
)
def test_command_says_what_goes_together(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="give either URLS with --for"):
        command("clip", *arguments)


def normalised(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features)


def read_index(directory: Path) -> tuple[list[str], np.ndarray]:
    ids = [line for file in sorted(directory.glob("*.ids.txt")) for line in file.read_text("utf-8").split("\n")[:-1]]
    return ids, np.concatenate([np.load(file) for file in sorted(directory.glob("*.npy"))])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_texts_of_files_are_embedded_with_themselves_as_ids(clip: Path, tmp_path: Path, dtype: str) -> None:
    (tmp_path / "a.txt").write_text("\n".join([*TEXTS, "cat\u2028dog", "cat"]) + "\n", encoding="utf-8")
    command(clip, "--texts", tmp_path / "a.txt", "--output", tmp_path / "out", "--dtype", dtype)
    ids, found = read_index(tmp_path / "out")
    assert ids == [text for text in (tmp_path / "a.txt").read_text("utf-8").split("\n") if text]
    assert found.dtype == dtype
    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    for text, row in zip(ids, found, strict=True):
        inputs = tokenizer([text], truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            oracle = normalised(model.get_text_features(**inputs)[0].numpy())
        np.testing.assert_allclose(row, oracle, atol=1e-5 if dtype == "float32" else 1e-3)
    described = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert (described["kind"], described["rows"], described["parts"], described["width"]) == ("texts", 13, 1, 8)


def test_pictures_of_folders_and_shards_are_embedded(
    clip: Path, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    (folder / "b.JPG").write_bytes(picture(7))  # a PNG: what it is decides, not its name
    (folder / "broken.png").write_bytes(b"broken")
    (folder / "notes.md").write_text("no picture")
    command(
        clip, "--images", tmp_path / "folder", pictures / "0.tar", "--output", tmp_path / "out", "--dtype", "float32"
    )
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path / 'out'}: 5 images in 1 parts, 3 damaged left out"
    assert [line.split(": ")[0].strip() for line in out[1:]] == [
        str(folder / "broken.png"),
        f"{pictures / '0.tar'}#1",
        f"{pictures / '0.tar'}#5",
    ]
    ids, found = read_index(tmp_path / "out")
    assert ids == [str(folder / "b.JPG"), *(f"{pictures / '0.tar'}#{i}" for i in (0, 2, 3, 4))]
    model = CLIPModel.from_pretrained(clip)
    for seed, row in zip((7, 0, 2, 3, 4), found, strict=True):
        np.testing.assert_allclose(row, normalised(image_features(model, picture(seed))), atol=1e-5)


def test_parts_that_are_there_are_not_made_again(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    table = tables.Table(directory=tmp_path / "out", rows_per_part=4)
    towers = Towers(clip)
    first = tables.embed_texts(towers, [str(tmp_path / "a.txt")], replace(table, part=(0, 2)))
    assert first.rows is None  # the parts of the other process are not there
    assert len(list(tmp_path.glob("out/*.npy"))) == 2
    whole = tables.embed_texts(towers, [str(tmp_path / "a.txt")], replace(table, part=(1, 2)))
    assert (whole.parts, whole.rows) == (3, 11)
    _, before = read_index(tmp_path / "out")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/part-*")}
    (tmp_path / "out" / "part-00001.npy").unlink()
    tables.embed_texts(towers, [str(tmp_path / "a.txt")], table)
    ids, after = read_index(tmp_path / "out")
    assert ids == TEXTS
    np.testing.assert_array_equal(after, before)
    changed = {path.name for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert changed == {"part-00001.npy", "part-00001.ids.txt"}


def test_parquet_holds_ids_and_embeddings(clip: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    for file_format in ("npy", "parquet"):
        command(clip, "--texts", tmp_path / "a.txt", "--output", tmp_path / file_format, "--format", file_format)
    table = parquet.read_table(tmp_path / "parquet" / "part-00000.parquet")
    assert table.column_names == ["id", "embedding"]
    ids, expected = read_index(tmp_path / "npy")
    assert table["id"].to_pylist() == ids
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), expected)


def test_directory_with_something_else_is_refused(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat\n")
    (tmp_path / "b.txt").write_text("dog\n")
    command(clip, "--texts", tmp_path / "a.txt", "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"out holds other embeddings: inputs differ\. Give a new directory"):
        command(clip, "--texts", tmp_path / "b.txt", "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match="dtype is float16, expected float32"):
        command(clip, "--texts", tmp_path / "a.txt", "--output", tmp_path / "out", "--dtype", "float32")
    with pytest.raises(SystemExit, match="and no embeddings: give a new directory"):
        command(clip, "--texts", tmp_path / "a.txt", "--output", tmp_path)
    with pytest.raises(SystemExit, match="holds neither pictures"):
        command(clip, "--images", tmp_path / "out", "--output", tmp_path / "new")
