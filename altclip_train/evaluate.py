"""Evaluation command: ``python -m altclip_train.evaluate checkpoint=DIR 'eval=[starter_retrieval]'``.

Prints a table and writes ``results.json`` into the run's output directory. Bad paths, data and names are
reported before a model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from altclip_train.command import run_main
from altclip_train.configuration import check_configuration
from altclip_train.errors import short_errors
from altclip_train.evaluation import BenchmarkResult, Encoder, result_tables, write_results
from altclip_train.files import contents
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
    """Scores of the model in the directory ``checkpoint`` on every benchmark.

    ``device`` is "cpu", "cuda" or "auto", which takes a GPU if there is one.
    """
    directory = find_checkpoint(checkpoint)
    if not benchmarks:
        raise ValueError("no benchmark given; pass for example 'eval=[starter_retrieval,starter_zero_shot]'")
    for benchmark in benchmarks.values():
        benchmark.prepare()
    encoder = load_encoder(directory, batch_size=batch_size, device=device)
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

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AltCLIPProcessor.from_pretrained(directory)
    model = load_model(directory).to(device)
    rows = model.config.text_config.vocab_size
    if len(processor.tokenizer) > rows:
        raise ValueError(
            f"the tokenizer in {directory} has {len(processor.tokenizer)} entries, but the text tower has {rows} "
            "embeddings: put the tokenizer files of this model there"
        )
    return Encoder(model, processor, batch_size=batch_size)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="evaluate")
def main(config: DictConfig) -> None:
    with short_errors():
        check_configuration(OmegaConf.to_container(config.eval, resolve=True, throw_on_missing=True), "eval")
        find_checkpoint(config.checkpoint)
        benchmarks: dict[str, Any] = instantiate(config.eval, _convert_="all")
        results = evaluate(
            checkpoint=config.checkpoint,
            benchmarks=benchmarks,
            batch_size=config.batch_size,
            device=config.device,
        )
        output = Path(HydraConfig.get().runtime.output_dir)
        file = write_results(output / "results.json", config.checkpoint, results)
        console = Console()
        for table in result_tables(results):
            console.print(table)
        console.print(f"written to {file}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    run_main(main, CONFIGS, "evaluate")
