"""The examples of docs/data.md run as they stand, on tiny made-up data."""

import base64
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from altclip_train.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- example: (\S+) -->\n```bash\n(.*?)```", PAGE, re.DOTALL))
WRITTEN = {"image-text": [3], "parallel": [2, 2], "annotations": [1, 1, 1]}


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """The files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "flickr30k-images", "train2014", "MUGE"):
        Path(folder).mkdir()
    jpegs = []
    for number in range(4):
        stream = io.BytesIO()
        Image.new("RGB", (40, 30), (60 * number, 90, 200)).save(stream, "JPEG")
        jpegs.append(stream.getvalue())
        Path(f"pictures/{number:04}.jpg").write_bytes(stream.getvalue())
    rows = [
        "image\tcaption",
        "0000.jpg\t一只猫",
        "0001.jpg\t两只狗",
        "0002.jpg\tno Chinese",
        "0003.jpg\t鸟",
        "0001.jpg\t两只狗",
    ]
    Path("captions.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    Path("pairs.tsv").write_text("a cat\t一只猫\ntwo dogs\t两只狗\na bird that sings\t鸟\n", encoding="utf-8")
    Path("corpus.en").write_text("a cat\nwrong\ntwo dogs\n", encoding="utf-8")
    Path("corpus.zh").write_text("一只猫\nwrong\n两只狗\n", encoding="utf-8")
    Path("flickr30k-images/1.jpg").write_bytes(jpegs[0])
    Path("flickr30k_cn_train.txt").write_text("1.jpg#zhm#0 一只猫\n1.jpg#zhm#1 猫\n", encoding="utf-8")
    Path("train2014/2.jpg").write_bytes(jpegs[1])
    coco = {"images": [{"id": 2, "file_name": "2.jpg"}], "annotations": [{"image_id": 2, "caption": "a cat"}]}
    Path("captions_train2014.json").write_text(json.dumps(coco))
    Path("MUGE/train_imgs.tsv").write_text(f"3\t{base64.b64encode(jpegs[2]).decode()}\n")
    Path("MUGE/train_texts.jsonl").write_text(json.dumps({"text_id": 1, "text": "猫", "image_ids": [3]}) + "\n")


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("name", WRITTEN)
def test_examples(name, capsys):
    commands = [shlex.split(line) for line in EXAMPLES[name].splitlines()]
    for command in commands:
        assert command[0] == "altclip"
        main(command[1:])
    written = [
        json.loads(Path(c[c.index("--output") + 1], "import.json").read_text()) for c in commands if "import" in c
    ]
    assert [report["written"] for report in written] == WRITTEN[name]
    if name == "image-text":
        assert written[0]["left_out"] == {"duplicate": 1, "script_zh": 1}
        with Image.open("sheet.png") as sheet:
            assert sheet.width > 500
        assert "read 3 samples of 1 shards: 3 pictures and 3 texts" in capsys.readouterr().out


def test_every_example_is_run():
    assert set(EXAMPLES) == set(WRITTEN)
