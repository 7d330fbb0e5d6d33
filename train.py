"""Train one stage: ``python train.py stage=teacher`` or ``python train.py stage=contrastive``."""

from __future__ import annotations

from pathlib import Path

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from altclip_train.training import TrainingRun, register_resolvers, run_main

register_resolvers()


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    run = TrainingRun(Path(HydraConfig.get().runtime.output_dir), config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data, _convert_="all")
    data.prepare_data()  # before the stage: its weights may be made from the same data
    stage = instantiate(config.stage, _convert_="all")
    trainer = instantiate(
        config.trainer,
        logger=list(instantiate(config.logger).values()),
        callbacks=list(instantiate(config.callbacks, _convert_="all").values()),
    )
    trainer.fit(stage, data, ckpt_path=run.checkpoint, weights_only=True)
    run.finish(trainer, stage)


if __name__ == "__main__":
    run_main(main, Path(__file__).parent / "configs", "train")
