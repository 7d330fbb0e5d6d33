"""Published scores, each with its source, protocol and counts. They stand beside ours only where all three agree."""

from __future__ import annotations

from typing import NamedTuple

from altclip_train.evaluation.results import BenchmarkResult

# The result files that the authors of AltCLIP keep with their evaluation toolkit.
MCLIPEVAL = "FlagEval mCLIPEval/outputs"
CHINESE_CLIP = "Chinese-CLIP Results.md"


class Published(NamedTuple):
    model: str
    benchmark: str
    language: str
    protocol: str
    counts: dict[str, int]
    metrics: dict[str, float]
    source: str

    def obstacle(self, result: BenchmarkResult) -> str:
        """Why the row may not be compared with ``result``; empty where it may."""
        if self.protocol != result.protocol:
            return f"protocol {self.protocol} there, {result.protocol} here"
        if self.counts != result.counts:
            return f"{_spell(self.counts)} there, {_spell(result.counts)} here"
        return ""


def published_for(result: BenchmarkResult) -> list[Published]:
    """Rows of the same benchmark and language, comparable or not."""
    return [row for row in PUBLISHED if (row.benchmark, row.language) == (result.benchmark, result.language)]


def _spell(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def _retrieval(
    benchmark: str, language: str, protocol: str, texts: int, source: str, rows: dict[str, str]
) -> list[Published]:
    """Rows ``T2I R@1/5/10 | I2T R@1/5/10`` in percent."""
    found = []
    for model, row in rows.items():
        values = [float(value) / 100 for value in row.replace("|", "/").split("/")]
        names = [f"{way}_R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
        metrics = dict(zip(names, values, strict=True)) | {"mean_recall": sum(values) / 6}
        found.append(Published(model, benchmark, language, protocol, {"images": 1000, "texts": texts}, metrics, source))
    return found


def _imagenet(benchmark: str, language: str, protocol: str, source: str, rows: dict[str, float]) -> list[Published]:
    counts = {"images": 50_000, "classes": 1000}
    return [
        Published(model, benchmark, language, protocol, counts, {"top1": top1 / 100}, source)
        for model, top1 in rows.items()
    ]


PUBLISHED = [
    *_retrieval(
        "coco_cn",
        "zh",
        "coco_cn_1053",
        1053,
        MCLIPEVAL,
        {
            "AltCLIP": "63.9/87.3/93.9|62.9/88.7/95.4",
            "AltCLIP-m9": "61.3/85.8/92.2|65.1/88.4/95.9",
            "CN-CLIP L/14": "63.5/87.7/93.9|58.3/84.6/91.2",
            "M-CLIP": "55.0/81.8/91.4|60.7/86.8/93.8",
            "Taiyi L": "51.9/80.3/89.6|46.5/76.3/88.6",
            "OpenCLIP H XLM-R L": "66.1/90.8/96.0|69.9/91.6/97.1",
        },
    ),
    *_retrieval(
        "coco_cn",
        "zh",
        "coco_cn_1053",
        1053,
        CHINESE_CLIP,
        {
            "CN-CLIP L/14": "64.0/89.2/94.4|60.4/84.2/92.9",
            "CN-CLIP H/14": "69.2/89.9/96.1|63.0/86.6/92.9",
            "R2D2": "56.4/85.0/93.1|63.3/89.3/95.7",
            "Wukong L": "53.4/80.2/90.1|55.2/81.0/90.6",
        },
    ),
    *_retrieval(
        "coco_cn",
        "zh",
        "coco_cn_5000",
        5000,
        MCLIPEVAL,
        {
            "AltCLIP": "61.3/86.1/93.1|77.8/94.4/97.6",
            "AltCLIP-m9": "58.1/83.8/91.8|76.1/94.0/97.9",
            "CN-CLIP L/14": "57.6/84.4/91.8|69.0/90.7/95.2",
            "M-CLIP": "54.8/81.4/90.1|77.9/91.7/95.8",
        },
    ),
    *_retrieval(
        "flickr30k",
        "en",
        "karpathy_1k",
        5000,
        MCLIPEVAL,
        {
            "CLIP L/14": "65.2/87.3/92.0|85.1/97.3/99.0",
            "AltCLIP": "72.5/91.6/95.4|86.1/98.0/99.1",
            "AltCLIP-m9": "69.0/89.7/93.6|82.5/97.3/98.9",
            "M-CLIP": "65.0/87.5/92.9|84.6/97.6/99.3",
            "OpenCLIP H XLM-R L": "77.4/93.9/96.7|92.0/99.2/99.8",
        },
    ),
    *_retrieval(
        "flickr30k_cn",
        "zh",
        "flickr30k_cn_5000",
        5000,
        MCLIPEVAL,
        {
            "AltCLIP": "69.8/89.8/94.7|85.0/97.4/98.7",
            "AltCLIP-m9": "67.8/88.9/94.1|84.4/97.9/99.0",
            "M-CLIP": "62.7/85.9/91.8|84.6/97.0/98.7",
            "CN-CLIP L/14": "66.1/88.8/93.9|80.0/96.3/98.1",
            "Taiyi L": "53.6/79.8/86.6|63.8/90.3/95.9",
            "OpenCLIP H XLM-R L": "70.9/90.4/94.9|86.1/97.5/99.2",
        },
    ),
    *_imagenet(
        "imagenet",
        "en",
        "mclipeval",
        MCLIPEVAL,
        {"CLIP L/14": 75.5, "AltCLIP": 74.5, "AltCLIP-m9": 73.4, "M-CLIP": 52.3, "OpenCLIP H XLM-R L": 77.0},
    ),
    *_imagenet(
        "imagenet_cn",
        "zh",
        "mclipeval",
        MCLIPEVAL,
        {
            "CLIP L/14": 1.9,
            "AltCLIP": 59.6,
            "AltCLIP-m9": 58.7,
            "M-CLIP": 43.0,
            "CN-CLIP L/14": 53.3,
            "Taiyi L": 49.3,
            "OpenCLIP H XLM-R L": 55.9,
        },
    ),
    *_imagenet("imagenet_cn", "zh", "not stated", CHINESE_CLIP, {"CN-CLIP L/14": 54.7, "CN-CLIP H/14": 59.6}),
]
