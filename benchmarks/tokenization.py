"""Texts to packed token ids, beside other libraries, on one core and on two: ``python benchmarks/tokenization.py``.

Ways to encode a kind of text, 256 texts at a time:

    ours            TextTokenizer.pack, what the loader calls: one packed int64 tensor a batch. It remembers words of
                    100,000 texts before; `cold` has seen none
    tokenizers      encode_batch_fast of the same library set up in the same way, lists of ids
    transformers    its tokenizer with padding=True and truncation, padded tensors
    sentencepiece   its batch encoding alone, lists of ids: other ids on some texts, which are counted

Texts: English captions of lognormal length (Zipf's law over 30,000 invented words and those of the starter texts),
the starter's English, and its Chinese, two sentences a text since one is short. The vocabularies are made from all
three, unless --tokenizer names a directory with XLM-R's. Ids are compared first. Then all ways take turns on the same
new texts of each round, in one process and in two at once, each computing on one thread as a loader process does.
Rates are per second of a process's CPU time, added up for two, so that other work on the machine counts little; the
table shows medians.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import sides

from altclip_train.data.texts import read_texts
from altclip_train.processing import CLIPTokenizer, XLMRTokenizer, load_tokenizer, train_clip_bpe, train_sentencepiece

BATCH, MAX_LENGTH = 256, 77
AIM = 200_000  # texts per second on two cores
WAYS = {
    "xlmr": ["ours, cold", "ours", "tokenizers", "transformers", "sentencepiece"],
    "clip": ["ours, cold", "ours", "tokenizers", "transformers"],
}
ROWS = [("xlmr", "captions"), ("xlmr", "english"), ("xlmr", "chinese"), ("clip", "captions")]
Way = Callable[[list[str]], Any]


# Texts


class Texts:
    """New texts of a kind for each seed."""

    def __init__(self, starter: Path) -> None:
        shards = sorted((starter / "parallel_texts" / "train").glob("*.tar"))
        if not shards:
            raise SystemExit(
                f"no shards in {starter}/parallel_texts/train: run `altclip data starter`, or use --starter DIR"
            )
        self.english, self.chinese = (list(read_texts(shards, [language])) for language in ("en", "zh"))
        draw = random.Random(0)
        invented = ("".join(draw.choices("etaoinshrdlucmfwypvbgkjqxz", k=draw.randint(3, 9))) for _ in range(30_000))
        self.words = list(dict.fromkeys([*" ".join(self.english[:2000]).split(), *invented]))
        self.shares = list(accumulate(1 / (rank + 3) for rank in range(len(self.words))))

    def of(self, kind: str, count: int, seed: int) -> list[str]:
        draw = random.Random(f"{kind} {seed}")
        if kind == "english":
            return draw.choices(self.english, k=count)
        if kind == "chinese":
            return [f"{draw.choice(self.chinese)}，{draw.choice(self.chinese)}" for _ in range(count)]
        lengths = (max(1, min(60, round(draw.lognormvariate(2.13, 0.5)))) for _ in range(count))
        return [" ".join(draw.choices(self.words, cum_weights=self.shares, k=length)) for length in lengths]


def train_tokenizers(folder: Path, texts: Texts) -> None:
    some = [text for kind in ("captions", "english", "chinese") for text in texts.of(kind, 20_000, -1)]
    train_clip_bpe(some[:40_000], 32_000).save_pretrained(folder / "clip")
    train_sentencepiece(some, folder / "model", 32_000)
    XLMRTokenizer(folder / "model").save_pretrained(folder / "xlmr")


# Ways to encode, in processes of their own


@cache
def tokenizer_of(folder: Path) -> XLMRTokenizer | CLIPTokenizer:
    return load_tokenizer(folder)


def new_way(folder: Path, tokenizer: str, way: str) -> Way:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if way == "ours, cold":
        return partial(load_tokenizer(folder).pack, max_length=MAX_LENGTH)
    ours = tokenizer_of(folder)
    if way == "ours":
        return partial(ours.pack, max_length=MAX_LENGTH)
    if way == "tokenizers":
        return lambda batch: [one.ids for one in ours._tokenizer.encode_batch_fast(batch)]
    if way == "transformers":
        import transformers

        theirs = transformers.XLMRobertaTokenizer if tokenizer == "xlmr" else transformers.CLIPTokenizer
        options = {"padding": True, "truncation": True, "max_length": MAX_LENGTH, "return_tensors": "pt"}
        return partial(theirs.from_pretrained(folder), **options)
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    return partial(processor.encode, out_type=int, num_threads=1)


way_of = cache(new_way)


def compare(folder: Path, tokenizer: str, texts: list[str]) -> dict[str, Any]:
    """Tokens of a text, and the share that SentencePiece cuts otherwise; SystemExit unless ids are transformers'."""
    ours = tokenizer_of(folder).encode_batch(texts, MAX_LENGTH)
    theirs = way_of(folder, tokenizer, "transformers")(texts)
    lengths = theirs.attention_mask.sum(1).tolist()
    if ours != [ids[:length] for ids, length in zip(theirs.input_ids.tolist(), lengths, strict=True)]:
        raise SystemExit(f"{folder}: ids differ from those of transformers")
    result = {"tokens_per_text": sum(lengths) / len(lengths)}
    if tokenizer == "xlmr":
        others = way_of(folder, tokenizer, "sentencepiece")(texts)
        shifted = [[index + 1 if index else 3 for index in ids[: MAX_LENGTH - 2]] for ids in others]
        result["sentencepiece_differs"] = sum(a[1:-1] != b for a, b in zip(ours, shifted, strict=True)) / len(ours)
    return result


def measure(folder: Path, tokenizer: str, way: str, texts: list[str], seconds: float) -> float:
    """Texts per second of CPU time, in batches until all are encoded or the time is over."""
    encode = (new_way if way == "ours, cold" else way_of)(folder, tokenizer, way)
    done, start = 0, time.process_time()
    while done < len(texts) and time.process_time() - start < seconds:
        encode(texts[done : done + BATCH])
        done += BATCH
    return min(done, len(texts)) / (time.process_time() - start)


# The whole


def rates(
    folder: Path, row: tuple[str, str], texts: Texts, arguments: argparse.Namespace
) -> dict[str, dict[int, list[float]]]:
    """Texts per second of each way by number of processes, one value a round."""
    tokenizer, kind = row
    result = {way: {1: [], 2: []} for way in WAYS[tokenizer]}
    pools = [ProcessPoolExecutor(1) for _ in range(2)]
    before = texts.of(kind, arguments.before, -2)
    for pool in pools:
        for way in WAYS[tokenizer]:
            pool.submit(measure, folder, tokenizer, way, before[:BATCH], 60).result()
        pool.submit(measure, folder, tokenizer, "ours", before, 60).result()
    for round_ in range(arguments.rounds):
        for processes in (1, 2):
            shares = [texts.of(kind, arguments.texts, 1000 * processes + 2 * round_ + n) for n in range(processes)]
            for way in WAYS[tokenizer]:
                jobs = zip(pools, shares, strict=False)
                futures = [p.submit(measure, folder, tokenizer, way, t, arguments.seconds) for p, t in jobs]
                result[way][processes].append(sum(future.result() for future in futures))
    for pool in pools:
        pool.shutdown()
    return result


def rows_of(name: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours on two cores, and beside each other way on one."""
    texts_per_second = row["texts_per_second"]
    ours = texts_per_second["ours"]
    rows = [sides.row(f"{name}, {row['tokens_per_text']:.1f} tokens: ours on two cores", ours[2], "texts/s", AIM)]
    for way, by_processes in texts_per_second.items():
        if not way.startswith("ours"):
            ratios = [a / b for a, b in zip(ours[1], by_processes[1], strict=True)]
            rows.append(sides.row(f"{name}: ours / {way}", ratios))
    if (share := row.get("sentencepiece_differs")) is not None:
        rows.append(sides.row(f"{name}: texts that SentencePiece cuts in another way", [100 * share], "%"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="directory of an XLM-R tokenizer, in place of a trained one")
    parser.add_argument("--starter", type=Path, default=Path("data/starter"))
    parser.add_argument("--directory", type=Path, default=Path("outputs/benchmarks/tokenization"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=20_000, help="new texts of a process in each measurement")
    parser.add_argument("--before", type=int, default=100_000, help="texts that ours has seen (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="at most, of CPU time, per measurement")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    texts = Texts(arguments.starter)
    if not (arguments.directory / "xlmr").is_dir():
        train_tokenizers(arguments.directory, texts)
    folders = {"xlmr": arguments.tokenizer or arguments.directory / "xlmr", "clip": arguments.directory / "clip"}
    rows: list[dict[str, Any]] = []
    for tokenizer, kind in ROWS:
        folder = folders[tokenizer]
        row = compare(folder, tokenizer, texts.of(kind, 4000, 0))
        row["texts_per_second"] = rates(folder, (tokenizer, kind), texts, arguments)
        rows += rows_of(f"{tokenizer} {kind}", row)
    facts = {f"{name}_vocabulary": len(load_tokenizer(folder)) for name, folder in folders.items()}
    facts |= {name: version(name) for name in ("tokenizers", "sentencepiece")}
    options = argparse.Namespace(device="cpu", threads=1, json=arguments.json)
    sides.report(options, "Tokenization", rows, **facts)


if __name__ == "__main__":
    main()
