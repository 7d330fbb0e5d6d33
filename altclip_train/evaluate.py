"""Evaluation command: ``python -m altclip_train.evaluate checkpoint=DIR 'eval=[starter_retrieval]'``.

Prints a table and writes ``results.json``, ``results.csv``, ``results.html`` and ``samples.json`` into the run's output
directory. ``'checkpoint=[A,B]'`` evaluates several models on the same pictures in one run: each has its files in a
folder of its own, one page shows them all, and each is compared with the first. ``transformers:DIR`` and
``open_clip:DIR_OR_NAME`` are models of other libraries, where these are installed. Bad paths, data and names are
reported before a model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from altclip_train.command import run_main
from altclip_train.configuration import check_configuration
from altclip_train.errors import short_errors
from altclip_train.evaluation import BenchmarkResult, Encoder, FeatureEncoder, compare, result_tables, write_results
from altclip_train.evaluation.comparison import print_comparison
from altclip_train.evaluation.other_models import library_of, load_other
from altclip_train.evaluation.report import write_page
from altclip_train.evaluation.results import RESULTS, SAMPLES, write_csv, write_samples
from altclip_train.files import contents
from altclip_train.heap import keep_freed_memory
from altclip_train.hub import local_directory

if TYPE_CHECKING:
    from altclip_train.evaluation.benchmarks import Benchmark

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# One entry of each row must be there, and of an entry every file.
MODEL_FILES: dict[str, list[list[str]]] = {
    "its configuration": [["config.json"], ["open_clip_config.json"], ["*.pt"]],
    "its weights": [
        ["model.safetensors"],
        ["model.safetensors.index.json"],
        ["open_clip_model.safetensors"],
        ["pytorch_model.bin"],
        ["pytorch_model.bin.index.json"],
        ["open_clip_pytorch_model.bin"],
        ["*.pt"],
    ],
    "its image transform": [["preprocessor_config.json"], ["processor_config.json"], ["open_clip_config.json"]],
    "its tokenizer": [
        ["sentencepiece.bpe.model"],
        ["tokenizer.json"],
        ["vocab.json", "merges.txt"],
        ["bpe_simple_vocab_16e6.txt.gz"],
    ],
}


def find_checkpoint(checkpoint: str | Path | None) -> Path:
    """The model directory or hub id that ``checkpoint`` names. Errors say what was found and what to pass."""
    if checkpoint is None:
        raise ValueError(f"no checkpoint given; pass checkpoint=DIR, a model directory{_finished_runs()}")
    path = local_directory(checkpoint, weights=True)
    if path.suffix == ".ckpt":
        models = [parent / "model" for parent in path.parents if (parent / "model" / "config.json").is_file()]
        example = f"checkpoint={models[0]}" if models else "checkpoint=RUN/model, written when training ends"
        raise ValueError(
            f"checkpoint={path} is a training state of Lightning, not a model; "
            f"pass the run's model/ directory: {example}"
        )
    if not path.exists():
        raise FileNotFoundError(f"checkpoint={path} does not exist; pass a model directory{_finished_runs()}")
    if not path.is_dir():
        raise ValueError(f"checkpoint={path} is a file; pass a model directory, such as checkpoint={path.parent}")
    if (path / "model" / "config.json").is_file() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"checkpoint={path} is a run; pass its model directory: checkpoint={path / 'model'}")
    missing = [
        f"{what} ({' or '.join(' + '.join(names) for names in choices)})"
        for what, choices in MODEL_FILES.items()
        if not any(all(any(path.glob(name)) for name in names) for names in choices)
    ]
    if missing:
        raise FileNotFoundError(
            f"checkpoint={path} is not a model directory: it lacks {'; '.join(missing)}. "
            f"It holds {contents(path)}. "
            f"Pass a directory in the layout of a published AltCLIP or CLIP{_finished_runs()}"
        )
    return path


def _finished_runs() -> str:
    models = sorted(path.parent for path in Path("outputs").glob("*/latest/model/config.json"))
    return f", such as checkpoint={' or checkpoint='.join(map(str, models))}" if models else ""


def evaluate(
    *,
    checkpoint: str | Path | None,
    benchmarks: Mapping[str, Benchmark],
    batch_size: int,
    device: str,
) -> list[BenchmarkResult]:
    """Scores of the model in the directory ``checkpoint``, or of another library's, on every benchmark.

    ``device`` is "cpu", "cuda" or "auto", which takes a GPU if there is one.
    """
    library, name = library_of(str(checkpoint)) if checkpoint is not None else (None, "")
    directory = find_checkpoint(checkpoint) if library is None else Path()
    if not benchmarks:
        raise ValueError("no benchmark given; pass for example 'eval=[starter_retrieval,starter_zero_shot]'")
    for benchmark in benchmarks.values():
        benchmark.prepare()
    encoder: FeatureEncoder
    if library is None:
        encoder = load_encoder(directory, batch_size=batch_size, device=device)
    else:
        encoder = load_other(library, name, batch_size=batch_size, device=_device(device))
    results: list[BenchmarkResult] = []
    for benchmark in benchmarks.values():
        logger.info("evaluating %s (%s)", benchmark.name, ", ".join(benchmark.languages))
        results += benchmark.evaluate(encoder)
    return results


def load_encoder(directory: Path, *, batch_size: int, device: str) -> Encoder:
    """Model, tokenizer and image transform of a model directory.

    Raises ValueError when the tokenizer is not the one of the weights.
    """
    from altclip_train.models import load_model
    from altclip_train.processing import AltCLIPProcessor

    processor = AltCLIPProcessor.from_pretrained(directory)
    model = load_model(directory).to(_device(device))
    rows = model.config.text_config.vocab_size
    if len(processor.tokenizer) > rows:
        raise ValueError(
            f"the tokenizer in {directory} has {len(processor.tokenizer)} entries, but the text tower has {rows} "
            "embeddings: put the tokenizer files of this model there"
        )
    return Encoder(model, processor, batch_size=batch_size)


def _device(name: str) -> str:
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="evaluate")
def main(config: DictConfig) -> None:
    with short_errors():
        check_configuration(OmegaConf.to_container(config.eval, resolve=True, throw_on_missing=True), "eval")
        checkpoints = _checkpoints(config.checkpoint)
        for checkpoint in checkpoints:
            if checkpoint is None or library_of(checkpoint)[0] is None:
                find_checkpoint(checkpoint)
        benchmarks: dict[str, Any] = instantiate(config.eval, _convert_="all")
        keep_freed_memory(_device(config.device))
        results = {}
        for letter, checkpoint in zip(ascii_uppercase, checkpoints, strict=False):
            results[letter] = evaluate(
                checkpoint=checkpoint, benchmarks=benchmarks, batch_size=config.batch_size, device=config.device
            )
        output = Path(HydraConfig.get().runtime.output_dir)
        models = dict(zip(ascii_uppercase, map(str, checkpoints), strict=False))
        for letter, checkpoint in models.items():
            place = output / letter if len(models) > 1 else output
            write_results(place / RESULTS, checkpoint, results[letter])
            write_samples(place / SAMPLES, results[letter])
            write_csv(place / "results.csv", results[letter])
        page = write_page(output / "results.html", models, results, benchmarks)
        _print(models, results)
        written = output / RESULTS if len(models) == 1 else output
        Console().print(f"written to {written}; to look at: {page}", soft_wrap=True, markup=False)


def _checkpoints(given: Any) -> list[str | None]:
    """One or several. Raises ValueError for none of several, and for more than there are letters."""
    if not isinstance(given, ListConfig):
        return [given]
    if not 0 < len(given) <= len(ascii_uppercase):
        raise ValueError(f"checkpoint is a list of {len(given)}, expected 1 to {len(ascii_uppercase)} models")
    return list(given)


def _print(models: dict[str, str], results: dict[str, list[BenchmarkResult]]) -> None:
    console = Console()
    for table in result_tables(results):
        console.print(table)
    if len(models) == 1:
        return
    for letter, checkpoint in models.items():
        console.print(f"{letter}: {checkpoint}", soft_wrap=True, markup=False)
    first, *others = models
    for letter in others:
        console.print(f"\nfirst: {first}, second: {letter}", soft_wrap=True, markup=False)
        for comparison in compare(results[first], results[letter]):
            print_comparison(console, comparison, samples=0)


if __name__ == "__main__":
    run_main(main, CONFIGS, "evaluate")
