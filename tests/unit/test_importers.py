"""Imports: every format to samples, exact over restarts and parts, with every lost record accounted for."""

import base64
import gzip
import io
import json
import os
import random
import signal
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from altclip_train.cli import main
from altclip_train.data.importers import Filters, ImportJob, run_import
from altclip_train.data.importers.chinese_clip import decode_base64
from altclip_train.data.importers.filters import in_script
from altclip_train.data.importers.job import temporary_beside
from altclip_train.data.importers.run import ShardMaker
from altclip_train.data.samples import BadSample


def picture(color, format="PNG", size=(6, 4), **options):
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, format, **options)
    return stream.getvalue()


def samples(folder):
    """Key and members of every sample, by the standard library's tar reader."""
    found = {}
    for shard in sorted(Path(folder).glob("[0-9]*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, field = member.name.partition(".")
                found.setdefault(key, {})[field] = tar.extractfile(member).read()
    return found


def texts(folder):
    return [json.loads(members["json"]) for _, members in sorted(samples(folder).items())]


def import_parallel(tmp_path, name, content, **options):
    (tmp_path / name).write_bytes(content.encode())
    options = {"texts": {"en": "en", "zh": "zh"}, **options}
    job = ImportJob(kind="parallel", inputs=[tmp_path / name], output=tmp_path / "out", **options)
    return run_import(job), texts(tmp_path / "out")


PAIRS = [{"en": "a cat", "zh": "一只猫"}, {"en": 'two\n"dogs"', "zh": "两只狗"}, {"en": "three", "zh": "三个"}]


class TestTables:
    def test_tsv_with_header_and_other_columns(self, tmp_path):
        report, found = import_parallel(tmp_path, "a.tsv", "\ufeffid\tzh\ten\r\n1\t一只猫\ta cat\r\n\r\n2\t三个\tthree")
        assert found == [PAIRS[0], PAIRS[2]]
        assert (report["records"], report["read"], report["written"], report["texts"]) == (2, 2, 2, 4)

    def test_tsv_without_header(self, tmp_path):
        _, found = import_parallel(tmp_path, "a.txt", "a cat\t一只猫\n", columns=["en", "zh"])
        assert found == [PAIRS[0]]

    def test_csv_with_quotes_and_line_breaks(self, tmp_path):
        content = 'en,zh\na cat,一只猫\n"two\n""dogs""",两只狗\nthree,三个\n'
        _, found = import_parallel(tmp_path, "a.csv", content, samples_per_shard=1)
        assert found == [PAIRS[0], {"en": 'two "dogs"', "zh": "两只狗"}, PAIRS[2]]

    def test_jsonl(self, tmp_path):
        content = "".join(json.dumps({"en": pair["en"], "zh": pair["zh"], "id": 7}) + "\n" for pair in PAIRS[::2])
        assert import_parallel(tmp_path, "a.jsonl", content)[1] == PAIRS[::2]

    def test_parquet(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        pairs = [{"en": f"text {i}", "zh": f"文 {i}", "other": i} for i in range(250)]
        parquet.write_table(arrow.Table.from_pylist(pairs), tmp_path / "a.parquet", row_group_size=70)
        job = ImportJob(
            kind="parallel",
            inputs=[tmp_path / "a.parquet"],
            output=tmp_path / "out",
            texts={"en": "en", "zh": "zh"},
            samples_per_shard=33,
        )
        run_import(job)
        assert texts(tmp_path / "out") == [{"en": pair["en"], "zh": pair["zh"]} for pair in pairs]

    def test_parquet_without_pyarrow_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ModuleNotFoundError, match=r"altclip_train\[data\]"):
            import_parallel(tmp_path, "a.parquet", "")

    def test_compressed_tables_give_the_same_bytes(self, tmp_path):
        content = "en\tzh\n" + "".join(f"text {n}\t文 {n}\n" for n in range(50))
        _, plain = import_parallel(tmp_path, "a.tsv", content, samples_per_shard=7)
        (tmp_path / "b.TSV.gz").write_bytes(gzip.compress(content.encode()))
        options = {"texts": {"en": "en", "zh": "zh"}, "samples_per_shard": 7, "inputs": [tmp_path / "b.TSV.gz"]}
        run_import(ImportJob(kind="parallel", output=tmp_path / "again", **options), processes=2)
        assert texts(tmp_path / "again") == plain
        (tmp_path / "b.TSV.gz").write_bytes(gzip.compress(content.encode())[:-20])
        with pytest.raises(ValueError, match=r"b\.TSV\.gz is damaged: .* should be gzip"):
            run_import(ImportJob(kind="parallel", output=tmp_path / "third", **options))

    def test_other_compression_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"a\.tsv\.xz: of compressed tables only \.gz"):
            import_parallel(tmp_path, "a.tsv.xz", "")

    def test_compressed_moses_files(self, tmp_path):
        (tmp_path / "a.en.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
        (tmp_path / "a.zh").write_text("一\n二\n")
        inputs = [tmp_path / "a.en.gz", tmp_path / "a.zh"]
        run_import(ImportJob(kind="moses", inputs=inputs, output=tmp_path / "out"))
        assert texts(tmp_path / "out") == [{"en": "one", "zh": "一"}, {"en": "two", "zh": "二"}]

    def test_moses_files(self, tmp_path):
        for name, lines in {"a.en": "one\n\nthree\n", "a.cn": "一\n二\n三\n", "b.zh": "四", "b.en": "four"}.items():
            (tmp_path / name).write_text(lines)
        inputs = [tmp_path / name for name in ("a.en", "a.cn", "b.zh", "b.en")]
        report = run_import(ImportJob(kind="moses", inputs=inputs, output=tmp_path / "out", samples_per_shard=2))
        assert texts(tmp_path / "out") == [
            {"en": "one", "zh": "一"},
            {"en": "three", "zh": "三"},
            {"zh": "四", "en": "four"},
        ]
        assert report["left_out"] == {"text_empty": 1}

    def test_moses_files_of_unequal_length_are_refused_before_anything_is_written(self, tmp_path):
        (tmp_path / "a.en").write_text("one\ntwo\n")
        (tmp_path / "a.zh").write_text("一\n")
        job = ImportJob(kind="moses", inputs=[tmp_path / "a.en", tmp_path / "a.zh"], output=tmp_path / "out")
        with pytest.raises(ValueError, match=r"a\.zh ends after 1 lines, .*a\.en does not"):
            run_import(job)
        assert not samples(tmp_path / "out")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.tsv", "en\tzh\na\t一\nb\n", r"a\.tsv:3: columns: 1 columns, expected 2"),
            ("a.csv", 'en,zh\na,一\n"b\nc",二\n"d,三\n', r"a\.csv:5: csv: unexpected end of data"),
            ("a.jsonl", '{"en": "a", "zh": "一"}\n{"en": "b", \n', r"a\.jsonl:2: json: "),
            ("a.jsonl", '{"en": "a", "zh": "一"}\n{"en": "b"}\n', r"a\.jsonl:2: columns: no 'zh' among en"),
            ("a.jsonl", '{"en": ["a", "b"], "zh": "一"}\n', r"a\.jsonl:1: caption_type: en holds 2 texts"),
        ],
    )
    def test_errors_name_file_and_line(self, tmp_path, name, content, message):
        with pytest.raises(ValueError, match=message):
            import_parallel(tmp_path, name, content)

    def test_text_that_is_not_utf8_names_its_line_and_can_be_skipped(self, tmp_path):
        (tmp_path / "a.tsv").write_bytes("en\tzh\na\t一\n".encode() + b"b\t\xff\n" + "c\t三\n".encode())
        options = {"kind": "parallel", "inputs": [tmp_path / "a.tsv"], "texts": {"en": "en", "zh": "zh"}}
        with pytest.raises(ValueError, match=r"a\.tsv:3: encoding: not UTF-8"):
            run_import(ImportJob(output=tmp_path / "out", **options))
        report = run_import(ImportJob(output=tmp_path / "out", skip_errors=True, **options))
        assert (report["written"], report["errors"]) == (2, {"encoding": 1})
        assert "a.tsv:3" in report["examples"]["encoding"]
        assert list(samples(tmp_path / "out")) == ["000000000", "000000002"]

    def test_a_column_that_is_not_there_is_named_with_those_that_are(self, tmp_path):
        with pytest.raises(ValueError, match=r"no column 'zh': it has 'en', 'chinese'"):
            import_parallel(tmp_path, "a.tsv", "en\tchinese\na\t一\n")


@pytest.fixture
def noisy_pairs(tmp_path):
    """A TSV whose records repeat, and what an import without duplicates must keep of it."""
    rng = random.Random(5)
    lines = [f"text {rng.randrange(40)}\t文 {rng.randrange(3)}" for _ in range(300)]
    (tmp_path / "noisy.tsv").write_text("en\tzh\n" + "\n".join(lines) + "\n")
    kept = {f"{lines.index(line):09d}": line for line in lines}
    return tmp_path / "noisy.tsv", dict(sorted(kept.items()))


def noisy_job(file, output):
    return ImportJob(
        kind="parallel",
        inputs=[file],
        output=output,
        texts={"en": "en", "zh": "zh"},
        samples_per_shard=23,
        filters=Filters(drop_duplicates=True),
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


class TestRestartsAndParts:
    def test_duplicates_are_found_across_shards(self, tmp_path, noisy_pairs):
        file, kept = noisy_pairs
        report = run_import(noisy_job(file, tmp_path / "out"))
        found = {key: json.loads(members["json"]) for key, members in samples(tmp_path / "out").items()}
        assert {key: f"{pair['en']}\t{pair['zh']}" for key, pair in found.items()} == kept
        assert report["left_out"] == {"duplicate": 300 - len(kept)}

    def test_parts_in_any_order_give_the_same_bytes(self, tmp_path, noisy_pairs):
        file, _ = noisy_pairs
        whole = run_import(noisy_job(file, tmp_path / "whole"))
        for part in (2, 0, 1):
            report = run_import(noisy_job(file, tmp_path / "parts"), part=(part, 3))
        assert report == whole
        assert contents(tmp_path / "parts") == contents(tmp_path / "whole")

    def test_parts_that_share_no_disk_agree_on_duplicates(self, tmp_path, noisy_pairs):
        file, _ = noisy_pairs
        run_import(noisy_job(file, tmp_path / "whole"))
        shards = {}
        for part in range(2):
            run_import(noisy_job(file, tmp_path / str(part)), part=(part, 2))
            shards |= contents(tmp_path / str(part))
        assert shards | {"import.json": b""} == contents(tmp_path / "whole") | {"import.json": b""}

    @pytest.mark.parametrize("stopped_at", [0, 4, 17])
    def test_an_interrupted_import_goes_on_to_the_same_bytes(self, tmp_path, noisy_pairs, monkeypatch, stopped_at):
        file, _ = noisy_pairs
        run_import(noisy_job(file, tmp_path / "whole"))
        whole_samples, count = ShardMaker._samples, 0

        def broken(self, *args):
            nonlocal count
            for sample in whole_samples(self, *args):
                if count == stopped_at:
                    raise KeyboardInterrupt
                count += 1
                yield sample

        monkeypatch.setattr(ShardMaker, "_samples", broken)
        with pytest.raises(KeyboardInterrupt):
            run_import(noisy_job(file, tmp_path / "out"))
        monkeypatch.undo()
        assert not list((tmp_path / "out").glob(".tmp*"))
        run_import(noisy_job(file, tmp_path / "out"))
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_running_again_changes_nothing(self, tmp_path, noisy_pairs):
        file, _ = noisy_pairs
        run_import(noisy_job(file, tmp_path / "out"))
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
        run_import(noisy_job(file, tmp_path / "out"))
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == before

    def test_only_files_of_living_processes_are_left_alone(self, tmp_path, noisy_pairs):
        file, _ = noisy_pairs
        run_import(noisy_job(file, tmp_path / "out"))
        ready, tell = os.pipe()
        if not (child := os.fork()):
            try:
                with temporary_beside(tmp_path / "out" / "000001.tar") as leftover:
                    os.write(tell, leftover.name.encode())
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        os.close(tell)
        leftover = tmp_path / "out" / os.read(ready, 200).decode()
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # dead, but its number is taken: nobody has waited for it
        assert leftover.exists()
        with temporary_beside(tmp_path / "out" / "000002.tar") as current:
            run_import(noisy_job(file, tmp_path / "out"))
            assert current.exists()
            assert not leftover.exists()
        os.waitpid(child, 0)

    def test_other_settings_or_input_are_refused(self, tmp_path, noisy_pairs):
        file, _ = noisy_pairs
        run_import(noisy_job(file, tmp_path / "out"), part=(0, 2))
        file.write_text(file.read_text() + "more\t多\n")
        with pytest.raises(ValueError, match="an import with other inputs"):
            run_import(noisy_job(file, tmp_path / "out"))

    def test_foreign_shards_are_not_mixed_with_new_ones(self, tmp_path, noisy_pairs):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "000007.tar").write_bytes(b"")
        with pytest.raises(FileExistsError, match="another --output"):
            run_import(noisy_job(noisy_pairs[0], tmp_path / "out"))


class TestPictures:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "pictures" / "more").mkdir(parents=True)
        (tmp_path / "pictures" / "red.png").write_bytes(picture("red"))
        (tmp_path / "pictures" / "more" / "blue.dat").write_bytes(picture("blue", "JPEG"))
        (tmp_path / "pictures" / "bad.jpg").write_bytes(picture("blue", "JPEG")[:-200])
        return tmp_path

    def run(self, folder, rows, **options):
        (folder / "captions.tsv").write_text("image\tzh\n" + "".join(f"{row}\n" for row in rows))
        job = ImportJob(
            kind="image-text",
            inputs=[folder / "captions.tsv"],
            output=folder / "out",
            pictures=folder / "pictures",
            texts={"zh": "zh"},
            **options,
        )
        return run_import(job), samples(folder / "out")

    def test_pictures_keep_their_bytes_and_are_named_by_content(self, folder):
        _, found = self.run(folder, ["red.png\t红", "more/blue.dat\t蓝"])
        assert found == {
            "000000000": {"json": '{"zh": "红"}'.encode(), "png": picture("red")},
            "000000001": {"json": '{"zh": "蓝"}'.encode(), "jpg": picture("blue", "JPEG")},
        }

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("gone.png\t没", r"captions\.tsv:3: picture_missing"),
            ("bad.jpg\t坏", r"captions\.tsv:3: image_damaged"),
            ("../captions.tsv\t坏", r"captions\.tsv:3: picture_path"),
        ],
    )
    def test_errors_name_the_line(self, folder, row, message):
        with pytest.raises(ValueError, match=message):
            self.run(folder, ["red.png\t红", row])

    def test_skipped_errors_are_counted(self, folder):
        report, found = self.run(folder, ["gone.png\t没", "red.png\t红", "bad.jpg\t坏"], skip_errors=True)
        assert report["errors"] == {"picture_missing": 1, "image_damaged": 1}
        assert list(found) == ["000000001"]

    def test_evaluation_pictures_are_found_by_their_pixels(self, folder):
        (folder / "evaluation" / "test").mkdir(parents=True)
        with tarfile.open(folder / "evaluation" / "test" / "0.tar", "w") as tar:
            data = picture("red", "WEBP", lossless=True)
            info = tarfile.TarInfo("s0000000.webp")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        with Image.open(folder / "pictures" / "more" / "blue.dat") as blue:  # its pixels in another shape
            (folder / "evaluation" / "other.png").write_bytes(picture(blue.getpixel((0, 0)), size=(4, 6)))
        rows = ["red.png\t红", "more/blue.dat\t蓝"]
        report, found = self.run(folder, rows, exclude_pictures=[str(folder / "evaluation")])
        assert report["left_out"] == {"evaluation_picture": 1}
        assert list(found) == ["000000001"]

    def test_rows_that_follow_each_other_with_one_picture_are_one_sample(self, folder):
        rows = ["red.png\t红", "red.png\t红色", "more/blue.dat\t蓝", "red.png\t又红", "red.png\t又红"]
        report, found = self.run(folder, rows, samples_per_shard=1)
        captions = [json.loads(members["json"]) for _, members in sorted(found.items())]
        assert captions == [{"zh": ["红", "红色"]}, {"zh": "蓝"}, {"zh": ["又红", "又红"]}]
        assert (report["records"], report["shards"], report["written"], report["texts"]) == (3, 3, 3, 5)

    def test_repeated_captions_of_one_picture_are_duplicates(self, folder):
        rows = ["red.png\t红", "red.png\t红", "red.png\t红色"]
        report, found = self.run(folder, rows, filters=Filters(drop_duplicates=True))
        assert json.loads(found["000000000"]["json"]) == {"zh": ["红", "红色"]}
        assert report["texts_left_out"] == {"duplicate": 1}

    def test_unreadable_row_among_rows_of_one_picture_is_named(self, folder):
        report, found = self.run(folder, ["red.png\t红", "red.png", "red.png\t红色"], skip_errors=True)
        assert (report["records"], report["errors"], len(found)) == (3, {"columns": 1}, 2)
        assert "captions.tsv:3: 1 columns" in report["examples"]["columns"]

    @pytest.mark.parametrize("encoded", [False, True])
    def test_rows_of_parquet_with_one_name_are_one_sample(self, folder, encoded):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = [{"image": name, "zh": f"文 {n}"} for n, name in enumerate(["red.png"] * 3 + ["more/blue.dat"] * 2)]
        table = arrow.Table.from_pylist(rows)
        if encoded:
            table = table.set_column(0, "image", table["image"].dictionary_encode())
        parquet.write_table(table, folder / "a.parquet", row_group_size=2)
        options = {"texts": {"zh": "zh"}, "pictures": folder / "pictures", "samples_per_shard": 1}
        run_import(ImportJob(kind="image-text", inputs=[folder / "a.parquet"], output=folder / "out", **options))
        assert texts(folder / "out") == [{"zh": ["文 0", "文 1", "文 2"]}, {"zh": ["文 3", "文 4"]}]

    def test_a_duplicate_has_the_same_picture_and_the_same_captions(self, folder):
        rows = ["red.png\t红", "more/blue.dat\t红", "red.png\t红色", "more/blue.dat\t蓝", "red.png\t红"]
        report, found = self.run(folder, rows, filters=Filters(drop_duplicates=True))
        assert list(found) == [f"{n:09d}" for n in range(4)]
        assert report["left_out"] == {"duplicate": 1}

    def test_pictures_inside_parquet(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = [{"image": {"bytes": picture("red"), "path": None}, "zh": text} for text in (["红", "红色"], ["红"])]
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
        job = ImportJob(kind="image-text", inputs=[tmp_path / "a.parquet"], output=tmp_path / "out", texts={"zh": "zh"})
        run_import(job)
        assert samples(tmp_path / "out")["000000000"]["png"] == picture("red")
        # Only rows that name their picture are taken together.
        assert texts(tmp_path / "out") == [{"zh": ["红", "红色"]}, {"zh": "红"}]


class TestAnnotations:
    def run(self, tmp_path, kind, name, content, **options):
        (tmp_path / name).write_text(content)
        job = ImportJob(kind=kind, inputs=[tmp_path / name], output=tmp_path / "out", pictures=tmp_path, **options)
        return run_import(job)

    def test_coco_captions_are_grouped_by_picture(self, tmp_path):
        (tmp_path / "b.png").write_bytes(picture("red"))
        (tmp_path / "a.png").write_bytes(picture("blue"))
        content = {
            "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
            "annotations": [
                {"image_id": 2, "caption": "red"},
                {"image_id": 1, "caption": "blue"},
                {"image_id": 2, "caption": "also red"},
            ],
        }
        self.run(tmp_path, "coco", "captions_val.json", json.dumps(content), language="en")
        assert texts(tmp_path / "out") == [{"en": ["red", "also red"]}, {"en": "blue"}]
        assert samples(tmp_path / "out")["000000001"]["png"] == picture("blue")

    @pytest.mark.parametrize(
        "content",
        [
            "12_3.jpg#zhb#0 一只猫。\n12_3.jpg#zhb#1 猫,坐着\n4.jpg#zhm#0 狗\n",
            "12_3#0\t一只猫。\n12_3#1\t猫,坐着\n4#0\t狗\n",
            "image,caption\n12_3.jpg,一只猫。\n12_3.jpg,猫,坐着\n4.jpg,狗\n",
        ],
    )
    def test_every_form_of_flickr30k_cn(self, tmp_path, content):
        for name in ("12_3.jpg", "4.jpg"):
            (tmp_path / name).write_bytes(picture("red", "JPEG"))
        self.run(tmp_path, "flickr30k-cn", "captions.txt", content)
        assert texts(tmp_path / "out") == [{"zh": ["一只猫。", "猫,坐着"]}, {"zh": "狗"}]

    def test_coco_cn_takes_pictures_from_the_folders_of_coco_and_a_list_of_ids(self, tmp_path):
        names = ["COCO_train2014_000000000101", "COCO_val2014_000000000102"]
        for name, folder in zip(names, ("train2014", "val2014"), strict=True):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / f"{name}.jpg").write_bytes(picture("red", "JPEG"))
        (tmp_path / "ids.txt").write_text(f"{names[1]}\n")
        content = f"{names[0]}#0\t一只猫\n{names[1]}#0\t两人\n{names[1]}#1\t两个人\n"
        self.run(tmp_path, "coco-cn", "imageid.human-written-caption.txt", content, ids=tmp_path / "ids.txt")
        assert texts(tmp_path / "out") == [{"zh": ["两人", "两个人"]}]

    def test_tagged_captions_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"captions\.txt:1: .* 1 of 1 captions .* part-of-speech tags"):
            self.run(tmp_path, "flickr30k-cn", "captions.txt", "1.jpg#zhm#0 两个:m 年轻:a 人:n\n")

    def test_a_time_of_day_is_no_tag(self, tmp_path):
        (tmp_path / "1.jpg").write_bytes(picture("red", "JPEG"))
        self.run(tmp_path, "flickr30k-cn", "captions.txt", "1.jpg#zhm#0 时间:10:30 的 钟\n")
        assert len(texts(tmp_path / "out")) == 1


class TestChineseClip:
    @pytest.fixture
    def folder(self, tmp_path):
        # A picture whose base64 has both characters in which the alphabets differ.
        odd = next(data for i in range(256) if {*"+/"} <= {*base64.b64encode(data := picture((i, 255, i))).decode()})
        lines = [f"7\t{base64.b64encode(odd).decode()}", f"12\t{base64.urlsafe_b64encode(odd).decode()}"]
        (tmp_path / "train_imgs.tsv").write_text("\n".join([*lines, f"9\t{lines[0][2:]}"]) + "\n")
        rows = [("猫", [12, 7]), ("狗", [7]), ("无", [])]
        (tmp_path / "train_texts.jsonl").write_text(
            "".join(json.dumps({"text_id": i, "text": t, "image_ids": ids}) + "\n" for i, (t, ids) in enumerate(rows))
        )
        self.odd = odd
        return tmp_path

    def test_texts_are_joined_to_their_pictures(self, folder):
        report = run_import(ImportJob(kind="chinese-clip", inputs=[folder], output=folder / "out"))
        assert texts(folder / "out") == [{"zh": ["猫", "狗"]}, {"zh": "猫"}]
        assert {members["png"] for members in samples(folder / "out").values()} == {self.odd}
        assert report["left_out"] == {"text_empty": 1}  # picture 9 has no text

    def test_damaged_base64_names_its_line(self, folder):
        file = folder / "train_imgs.tsv"
        lines = file.read_text().splitlines()
        file.write_text("\n".join([lines[0], lines[1][:40] + "!" + lines[1][41:]]))
        with pytest.raises(ValueError, match=r"train_imgs\.tsv:2: base64"):
            run_import(ImportJob(kind="chinese-clip", inputs=[folder], output=folder / "out"))

    def test_a_damaged_text_names_its_line(self, folder):
        with open(folder / "train_texts.jsonl", "a") as file:
            file.write('{"text": "坏", "image_ids": 3}\n')
        with pytest.raises(ValueError, match=r"train_texts\.jsonl:4: "):
            run_import(ImportJob(kind="chinese-clip", inputs=[folder], output=folder / "out"))

    @pytest.mark.parametrize("text", ["abc", "ab c=", "ab\x00c", "a*bc"])
    def test_base64_is_strict(self, text):
        with pytest.raises(BadSample, match="base64"):
            decode_base64(text)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("zh", "iPhone 14 Pro 手机壳", True),
        ("zh", "a phone", False),
        ("zh", "ねこがいます", False),
        ("zh-Hant", "貓在這裡", True),
        ("ja", "猫がいる", True),
        ("ja", "一只猫在这里", False),
        ("ko", "고양이", True),
        ("en", "a cat in 北京", True),
        ("en", "一只猫在 cat", False),
        ("en", "123", False),
        ("fr", "où est l’élève", True),
        ("ru", "кошка", True),
        ("ru", "koshka", False),
        ("ar", "قطة", True),
        ("hi", "बिल्ली", True),
    ],
)
def test_script(language, text, expected):
    assert in_script(language, text) is expected


def test_filters_of_parallel_text(tmp_path):
    lines = [
        "good text\t好的文字",
        "x\t好",
        "a very long text it is\t很长的文字",
        "wrong way\tround it is",
        "short it is not\t短",
    ]
    filters = Filters(min_chars=1, max_chars=16, max_ratio=4, check_script=True)
    report, found = import_parallel(tmp_path, "a.tsv", "en\tzh\n" + "\n".join(lines) + "\n", filters=filters)
    assert found == [{"en": "good text", "zh": "好的文字"}, {"en": "x", "zh": "好"}]
    assert report["left_out"] == {"text_long": 1, "script_zh": 1, "ratio": 1}


def test_filters_take_single_captions_from_a_picture(tmp_path):
    (tmp_path / "red.png").write_bytes(picture("red"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "red.png", "c": ["红", "red", "红色"]}) + "\n")
    job = ImportJob(
        kind="image-text",
        inputs=[tmp_path / "a.jsonl"],
        output=tmp_path / "out",
        texts={"zh": "c"},
        filters=Filters(check_script=True),
    )
    report = run_import(job)
    assert texts(tmp_path / "out") == [{"zh": ["红", "红色"]}]
    assert report["texts_left_out"] == {"script_zh": 1}


def test_the_command_imports_and_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pairs.tsv").write_text("english\tzh\na cat\t一只猫\na cat\t一只猫\n")
    columns = ["--text", "en=english", "--text", "cn=zh"]
    main(
        [
            "data",
            "import",
            "parallel",
            "pairs.tsv",
            "--output",
            "out",
            "--processes",
            "1",
            "--drop-duplicates",
            *columns,
        ]
    )
    assert texts("out") == [{"en": "a cat", "zh": "一只猫"}]
    assert "1 written with 2 texts, 1 left out" in capsys.readouterr().out


def test_the_command_verifies_folders_of_shards_where_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmark" / "test").mkdir(parents=True)
    with tarfile.open("benchmark/test/0.tar", "w") as tar:
        for name, data in {"s0.png": picture("red"), "s0.cls": b"3"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(SystemExit, match="0"):
        main(["data", "import", "clip-benchmark", "benchmark", "--processes", "1"])
    output = capsys.readouterr().out
    assert "nothing is copied" in output
    assert "no damage found" in output
