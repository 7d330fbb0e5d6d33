"""Texts out of every kind of file, and damage that is named by file and line."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from altclip_train.data.texts import expand_texts, read_texts
from tests.parallel_texts import text_file


def test_texts_of_every_kind_of_file(tmp_path: Path) -> None:
    text_file(tmp_path / "a.txt", ["\ufeffcat", "", "  ", "sep\u2028arated"])
    with gzip.open(tmp_path / "b.txt.gz", "wb") as file:
        file.write("dog\r\n猫".encode())
    text_file(tmp_path / "c.tsv", ["en\tzh", "bird\t鸟\t"])
    text_file(tmp_path / "d.jsonl", ['{"en": "house", "zh": ["房子", "家"], "score": 3}', "{"])
    with tarfile.open(tmp_path / "e.tar", "w") as tar:
        members = {"0.json": '{"en": "tree", "fr": "arbre"}', "1.txt": "no language", "2.zh.txt": "树"}
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    files = expand_texts([tmp_path / "*.txt*", tmp_path / "c.tsv", tmp_path / "d.jsonl", tmp_path / "e.tar"])
    lines = ["cat", "sep\u2028arated", "dog", "猫", "en", "zh", "bird", "鸟"]
    assert list(read_texts(files)) == [*lines, "house", "房子", "家", "tree", "arbre", "no language", "树"]
    assert list(read_texts(files, ["zh"])) == [*lines, "房子", "家", "no language", "树"]


def test_damaged_texts_name_the_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("ok\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt, line 2 is not UTF-8"):
        list(read_texts([tmp_path / "latin.txt"]))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"cat\n" * 5000)[:-9])
    with pytest.raises(ValueError, match=r"cut\.txt\.gz is damaged after line"):
        list(read_texts([tmp_path / "cut.txt.gz"]))
    (tmp_path / "plain.txt.gz").write_bytes(b"cat\n")
    with pytest.raises(ValueError, match=r"plain\.txt\.gz is damaged after line 0"):
        list(read_texts([tmp_path / "plain.txt.gz"]))
    (tmp_path / "table.csv").touch()
    with pytest.raises(ValueError, match=r"table\.csv: texts are read from \.txt, \.tsv"):
        expand_texts([tmp_path / "table.csv"])
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        expand_texts([tmp_path / "absent.txt"])
