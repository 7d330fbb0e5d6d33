"""Train one stage: ``python train.py stage=teacher`` or ``python train.py stage=contrastive``."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from altclip_train.checks import check_start
from altclip_train.command import run_main
from altclip_train.data.processes import start_loader_server
from altclip_train.errors import short_errors
from altclip_train.heap import keep_freed_memory
from altclip_train.training.launch import own_rank
from altclip_train.training.resolvers import register_resolvers

if TYPE_CHECKING:
    import lightning as L

CONFIGS = Path(__file__).resolve().parent / "configs"

register_resolvers()


def train(config: DictConfig, directory: Path) -> L.Trainer:
    """Train the stage that ``config`` describes; everything that the run leaves lies in ``directory``."""
    check_start(directory, rank=own_rank())
    if config.data.get("num_workers", 0) > 0:
        start_loader_server("hydra")  # it imports torch while this process imports Lightning and makes the model
    # Here, so that loader processes, which import this file, start without Lightning.
    import lightning as L

    from altclip_train.training.session import TrainingRun
    from altclip_train.training.sizes import settled

    config = settled(config, directory)
    with closing(TrainingRun(directory, config, stage=HydraConfig.get().runtime.choices["stage"])) as run:
        L.seed_everything(config.seed, workers=True, verbose=False)
        data = instantiate(config.data, _convert_="all")
        data.prepare_data()  # before the stage: its weights may be made from the same data
        stage = instantiate(config.stage, _convert_="all")
        trainer = instantiate(
            config.trainer,
            logger=list(instantiate(config.logger).values()),
            callbacks=[run, *instantiate(config.callbacks, _convert_="all").values()],
        )
        keep_freed_memory(trainer.strategy.root_device)
        trainer.fit(stage, data, ckpt_path=run.checkpoint, weights_only=True)
        return trainer


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(config: DictConfig) -> None:
    with short_errors():
        if config.dry_run:
            from altclip_train.report.dry_run import dry_run

            dry_run(config)
        else:
            train(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    run_main(main, CONFIGS, "train")
