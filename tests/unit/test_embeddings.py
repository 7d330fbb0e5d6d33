"""Sidecars and the store over them: what is read back, what is refused, and who may use them at once."""

import json
import multiprocessing
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn

from altclip_train.data.embeddings import EmbeddingStore, sidecar_path
from altclip_train.data.sidecars import Sidecar
from altclip_train.data.urls import RemoteUrl
from altclip_train.models.fingerprint import weights_digest

MADE = {"field": "en", "dtype": "float16", "weights": "a" * 64, "tokenizer": "b" * 64, "max_length": "77"}
OFFSETS = np.array([0, 2, 2, 3])  # the second of three samples has no row
WIDTH = 4
DIGEST = "d" * 64


def create(path, made=MADE, digest=DIGEST, offsets=OFFSETS):
    return Sidecar.create(path, offsets, width=WIDTH, fingerprint=made, shard_digest=digest)


def reopen(path, made=MADE, digest=DIGEST, **options):
    return Sidecar.open(path, fingerprint=made, shard_digest=digest, **options)


def vectors(rows, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_read_as_they_were_written(tmp_path, dtype):
    made = {**MADE, "dtype": dtype}
    written = vectors(3)
    create(tmp_path / "s", made).write([2, 0], written[[2, 0]])
    sidecar = reopen(tmp_path / "s", made)
    np.testing.assert_array_equal(sidecar.row(2, 0), written[2].astype(dtype))
    np.testing.assert_array_equal(sidecar.row(0, 0), written[0].astype(dtype))
    assert sidecar.row(0, 1) is None  # not filled
    assert sidecar.row(1, 0) is None  # has no row, nor may it take that of its neighbour
    assert sidecar.row(0, 2) is None
    assert sidecar.row_number(2, 0) == 2
    assert not sidecar.complete
    assert sidecar.missing().tolist() == [1]
    reopen(tmp_path / "s", made, writable=True).write([1], written[1:2], sync=True)
    assert sidecar.complete  # who has it open sees what others write


def test_vectors_are_there_before_they_count(tmp_path):
    sidecar = create(tmp_path / "s")
    counted = []

    class Flags:
        def __setitem__(self, rows, flag):
            np.testing.assert_array_equal(sidecar.embeddings[rows], vectors(2).astype(np.float16))
            counted.append((rows, flag))

    sidecar.filled = Flags()
    sidecar.write([0, 2], vectors(2))
    assert counted == [([0, 2], 1)]


def test_safetensors_reads_the_file(tmp_path):
    create(tmp_path / "s").write([1], vectors(1))
    tensors = load_file(tmp_path / "s")
    np.testing.assert_array_equal(tensors["offsets"], OFFSETS)
    np.testing.assert_array_equal(tensors["filled"], np.array([0, 1, 0], np.uint8))
    np.testing.assert_array_equal(tensors["embeddings"][1], vectors(1)[0].astype(np.float16))
    with safe_open(tmp_path / "s", framework="np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["fingerprint"]) == MADE
    assert metadata["shard_sha256"] == DIGEST


@pytest.mark.parametrize("offsets", [[0], [0, 0, 0]])
def test_shard_without_rows_has_a_complete_sidecar(tmp_path, offsets):
    sidecar = create(tmp_path / "s", offsets=np.array(offsets))
    assert sidecar.complete
    assert load_file(tmp_path / "s")["embeddings"].shape == (0, WIDTH)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("weights", "c" * 64, "weights is aaaaaaaaaaaa…, expected cccccccccccc…"),
        ("tokenizer", "c" * 64, "tokenizer is bbb"),
        ("max_length", "64", "max_length is 77, expected 64"),
        ("dtype", "float32", "dtype is float16, expected float32"),
        ("field", "de", "field is en, expected de"),
        ("transform", "{}", "transform is not given, expected {}"),
    ],
)
def test_sidecar_of_something_else_is_refused(tmp_path, part, value, said):
    create(tmp_path / "s")
    with pytest.raises(ValueError, match="holds other embeddings") as error:
        reopen(tmp_path / "s", {**MADE, part: value})
    assert said in str(error.value)
    assert str(error.value).count("expected") == 1


def test_sidecar_of_an_earlier_shard_is_refused(tmp_path):
    create(tmp_path / "s")
    with pytest.raises(ValueError, match="s belongs to an earlier state of its shard: delete it"):
        reopen(tmp_path / "s", digest="e" * 64)


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1, -5])
def test_cut_off_file_is_refused(tmp_path, size):
    create(tmp_path / "s")
    os.truncate(tmp_path / "s", size if size >= 0 else (tmp_path / "s").stat().st_size + size)
    with pytest.raises(ValueError, match=r"s is damaged.*delete it"):
        reopen(tmp_path / "s")


@pytest.mark.parametrize(
    "content",
    [
        random.Random(0).randbytes(5000),
        b"<html>" * 100,
        b"\2\0\0\0\0\0\0\0[]",
        b"\2\0\0\0\0\0\0\0{}",
        b"\x28\0\0\0\0\0\0\0" + b'{"__metadata__": {"format": "2"}}       ',
    ],
)
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(ValueError, match=r"s is damaged.*delete it"):
        reopen(tmp_path / "s")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65505.0, -70000.0])
def test_vector_that_does_not_fit_is_refused_whole(tmp_path, value):
    sidecar = create(tmp_path / "s")
    bad = vectors(2)
    bad[1, 2] = value
    with pytest.raises(ValueError, match="row 2 is not finite or beyond 65504"):
        sidecar.write([0, 2], bad)
    assert not sidecar.filled.any()


def test_vectors_of_another_shape_are_refused(tmp_path):
    sidecar = create(tmp_path / "s")
    with pytest.raises(ValueError, match=r"vectors are \(1, 4\), expected \(2, 4\)"):
        sidecar.write([0, 1], vectors(1))


def test_second_to_create_gets_the_file_of_the_first(tmp_path):
    first = create(tmp_path / "s")
    first.write([0], vectors(1))
    second = create(tmp_path / "s")
    np.testing.assert_array_equal(second.row(0), first.row(0))
    first.write([1], vectors(1))
    assert second.row(0, 1) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_file_system_without_links_holds_sidecars_too(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", link)
    create(tmp_path / "s").write([0], vectors(1))
    assert reopen(tmp_path / "s").row(0) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def fill(directory, barrier, row):
    """In a process of its own."""
    store = EmbeddingStore([directory / "0.tar"], [DIGEST], **STORE, entries=entries)
    barrier.wait()
    store.write(0, [row], vectors(1, seed=row))


def test_processes_that_create_at_once_fill_one_file(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=fill, args=(tmp_path, barrier, row)) for row in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    store = EmbeddingStore([tmp_path / "0.tar"], [DIGEST], **STORE)
    sidecar = store.sidecar(0)
    assert sidecar.complete
    for row in range(3):
        np.testing.assert_array_equal(sidecar.embeddings[row], vectors(1, seed=row)[0].astype(np.float16))
    assert len(list(tmp_path.iterdir())) == 1


STORE = {"name": "teacher.en", "fingerprint": MADE, "width": WIDTH}


def entries(shard):
    return [[2, 0, 1], [1]][shard]


def store_of(directory, **options):
    return EmbeddingStore([directory / "0.tar", directory / "1.tar"], [DIGEST, "e" * 64], **STORE, **options)


def test_store_reads_what_is_there_and_makes_nothing(tmp_path):
    store = store_of(tmp_path)
    assert store.row(0, 0) is None
    assert store.row_number(0, 0) is None
    assert list(tmp_path.iterdir()) == []
    create(tmp_path / "1.tar.teacher.en.safetensors")
    with pytest.raises(ValueError, match="earlier state"):
        store.row(1, 0)


def test_store_with_entries_makes_and_fills_sidecars(tmp_path):
    store = store_of(tmp_path, entries=entries)
    assert store.row(0, 2) is None
    store.write(0, [store.row_number(0, 2)], vectors(1))
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar.teacher.en.safetensors"]
    np.testing.assert_array_equal(store_of(tmp_path).row(0, 2), vectors(1)[0].astype(np.float16))


@pytest.mark.parametrize("max_open", [1, 64])
def test_few_files_are_open_and_views_outlive_them(tmp_path, max_open):
    store = store_of(tmp_path, entries=entries, max_open=max_open)
    store.write(0, [0], vectors(1))
    kept = store.row(0, 0)
    store.write(1, [0], vectors(1, seed=1))
    assert len(store._open) == min(2, max_open)
    np.testing.assert_array_equal(kept, vectors(1)[0].astype(np.float16))
    np.testing.assert_array_equal(store.row(0, 0), kept)


def test_store_can_be_pickled_and_forked(tmp_path):
    store = store_of(tmp_path, entries=entries)
    store.write(0, [0], vectors(1))
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.row(0, 0), store.row(0, 0))
    process = multiprocessing.get_context("fork").Process(target=store.write, args=(0, [2], vectors(1)))
    process.start()
    process.join(30)
    np.testing.assert_array_equal(store.row(0, 2), vectors(1)[0].astype(np.float16))


def test_directory_tells_equal_names_apart(tmp_path):
    shards = [Path("/a/0.tar"), Path("/b/0.tar"), RemoteUrl("https://h/0.tar?sig=1"), RemoteUrl("s3://b/0.tar")]
    paths = [sidecar_path(shard, "image", tmp_path) for shard in shards]
    assert len(set(paths)) == 4
    assert all(path.name.endswith("-0.tar.image.safetensors") for path in paths)
    with pytest.raises(ValueError, match=r"https://h/0\.tar is remote.*give a directory"):
        sidecar_path(shards[2], "image")


def test_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    store = store_of(tmp_path / "file", entries=entries)
    with pytest.raises(ValueError, match=r"0\.tar\.teacher\.en\.safetensors.*give another directory"):
        store.row(0, 0)


def test_weights_digest_sees_values_names_shapes_and_types():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    known = weights_digest(model)
    assert weights_digest(dict(reversed(list(model.named_parameters()))).items()) == known
    others = [
        [(name.upper(), tensor) for name, tensor in model.named_parameters()],
        [(name, tensor.reshape(-1)) for name, tensor in model.named_parameters()],
        [(name, tensor.bfloat16()) for name, tensor in model.named_parameters()],
        [(name, tensor + 1e-6) for name, tensor in model.named_parameters()],
    ]
    assert len({known, *map(weights_digest, others)}) == 5
    transposed = [(name, tensor.T.contiguous().T) for name, tensor in model.named_parameters() if tensor.ndim == 2]
    whole = [(name, tensor) for name, tensor in model.named_parameters() if tensor.ndim == 2]
    assert weights_digest(transposed) == weights_digest(whole)
    assert weights_digest([("scale", torch.tensor(1.0))]) != weights_digest([("scale", torch.tensor(2.0))])
