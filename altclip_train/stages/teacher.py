"""Stage one: the student learns to reproduce the frozen CLIP text teacher from parallel text, without images.

Reference: AltCLIP (arXiv:2211.06679), teacher learning stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from altclip_train.data.datamodule import TextPairData
from altclip_train.evaluation.encoder import Encoder
from altclip_train.losses import distillation_loss
from altclip_train.models import (
    AltCLIPModel,
    CLIPTextModel,
    assemble_altclip,
    build_text_student,
    compile_blocks,
    load_clip_text,
    set_gradient_checkpointing,
)
from altclip_train.models.flops import text_flops
from altclip_train.optim import Schedule, configure_optimizers
from altclip_train.processing import AltCLIPProcessor, CLIPImageProcessor
from altclip_train.sharding import clip_gradients, shard
from altclip_train.stages.frozen import (
    drop_from_checkpoint,
    frozen_vectors,
    keep_in_eval_mode,
    parts_of,
    restore_in_checkpoint,
)
from altclip_train.stages.micro_batches import check_micro_batch, encode_in_micro_batches
from altclip_train.stages.tokenizer import TokenizerGuard
from altclip_train.types import TextPairBatch


class TeacherLearning(L.LightningModule):
    """Distils the text tower of a CLIP into a multilingual student.

    Args:
        clip: directory of the CLIP whose text tower teaches and whose image tower the result keeps.
        student: directory of an XLM-R (or AltCLIP) to start from; None starts from random weights.
        text: fields of the student's configuration, used where ``student`` gives none.
        locked: names of the student's parts that stay as they are, such as ``embeddings.word_embeddings``.
        micro_batch: texts whose graph is held at a time, by each process; the gradient stays that of the whole batch,
            and the student is computed twice. None: all at once.
        gradient_checkpointing: blocks of the student keep their inputs alone and are computed again in backward.
        compile: blocks through torch.compile.
        optimizer: takes parameter groups. schedule: takes the optimizer and ``total_steps``.
    """

    image_tower_locked = True

    def __init__(
        self,
        *,
        clip: str,
        student: str | None,
        text: Mapping[str, Any],
        locked: Sequence[str],
        micro_batch: int | None,
        gradient_checkpointing: bool,
        compile: bool,
        optimizer: Callable[..., Optimizer],
        schedule: Schedule,
        weight_decay: float,
    ) -> None:
        super().__init__()
        if locked and student is None:
            raise ValueError(f"stage.locked={list(locked)} would keep random weights: pass student=DIR")
        self.clip = Path(clip)
        self.teacher: CLIPTextModel = load_clip_text(clip)
        self.student = build_text_student(student=student, project_dim=self.teacher.config.hidden_size, **dict(text))
        self.micro_batch = check_micro_batch(micro_batch)
        self.optimizer, self.schedule, self.weight_decay = optimizer, schedule, weight_decay
        self.locked = list(locked)
        for part in [self.teacher, *parts_of(self.student, self.locked)]:
            part.requires_grad_(False)
        set_gradient_checkpointing(self.student, gradient_checkpointing)
        self.compiled = compile
        # In a tuple, so that the image tower does not become part of this module and of its checkpoints.
        self._assembled: tuple[AltCLIPModel, ...] = ()
        self.tokenizer_guard = TokenizerGuard()

    def training_step(self, batch: TextPairBatch) -> Tensor:
        target = self.teach(batch)  # (B, W)
        student = encode_in_micro_batches(self.student.encode_packed, batch.student, self.micro_batch)  # (2B, W)
        # Both the drawn language and English learn the teacher's vector of the entry's English, 1:1.
        loss = distillation_loss(student, target.repeat(2, 1))
        self.log("train/loss", loss)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/spread", spread(student) / spread(target))
        return loss

    def teach(self, batch: TextPairBatch) -> Tensor:
        """The teacher's vectors of the B English texts, (B, W), from the cache where it has them."""
        encode = partial(encode_in_micro_batches, self.teacher.encode_packed, size=self.micro_batch)
        return frozen_vectors(encode, batch.teacher, batch.cached, self._keep)

    def validation_step(self, batch: TextPairBatch) -> None:
        target = self.teach(batch)  # (B, W)
        other, english = self.student.encode_packed(batch.student).chunk(2)  # (B, W) each
        for name, student in (("other", other), ("english", english)):
            cosine = F.cosine_similarity(student.float(), target.float())  # (B,)
            self.log(f"val/{name}_cosine", cosine.mean(), batch_size=len(target), sync_dist=True)
            mse = F.mse_loss(student.float(), target.float())
            self.log(f"val/{name}_mse", mse, batch_size=len(target), sync_dist=True)

    def training_flops(self, batch: TextPairBatch) -> Tensor:
        """Of one step on this batch: forward, and twice that backward where something trains."""
        taught = 0 if batch.teacher is None else text_flops(self.teacher, batch.teacher)
        return 3 * text_flops(self.student, batch.student) + taught

    def configure_optimizers(self) -> Any:
        return configure_optimizers(
            self.student,
            optimizer=self.optimizer,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            total_steps=int(self.trainer.estimated_stepping_batches),
        )

    def setup(self, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        # Here, before Lightning moves the weights or changes their type: a fingerprint is of the original ones.
        data: TextPairData = self.trainer.datamodule  # type: ignore[attr-defined]
        data.cache_vectors_of(self.teacher)

    def configure_model(self) -> None:
        shard(self.student, self.device_mesh, methods=["encode_packed"])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,  # noqa: ARG002 - Lightning's signature
        gradient_clip_val: float | None,
        gradient_clip_algorithm: str | None,
    ) -> None:
        clip_gradients(self.parameters(), gradient_clip_val, gradient_clip_algorithm)

    def on_fit_start(self) -> None:
        if self.compiled:
            compile_blocks(self)
        data: TextPairData = self.trainer.datamodule  # type: ignore[attr-defined]
        data.check_text_towers(student=self.student.config, teacher=self.teacher.config)
        self.tokenizer_guard.check(data.tokenizer)

    def train(self, mode: bool = True) -> TeacherLearning:
        super().train(mode)
        keep_in_eval_mode([self.teacher, *parts_of(self.student, self.locked)])
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        drop_from_checkpoint(checkpoint, self._frozen())
        self.tokenizer_guard.save(checkpoint, self.processor.tokenizer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_in_checkpoint(checkpoint, self, self._frozen())
        self.tokenizer_guard.load(checkpoint)

    def _frozen(self) -> list[str]:
        return ["teacher", *(f"student.{name}" for name in self.locked)]

    def _keep(self, rows: Sequence[tuple[int, int]], vectors: Tensor) -> Tensor:
        data: TextPairData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.keep(rows, vectors)

    @property
    def processor(self) -> AltCLIPProcessor:
        return self.processor_of(self.trainer.datamodule)  # type: ignore[attr-defined]

    def processor_of(self, data: TextPairData) -> AltCLIPProcessor:
        """What turns texts and pictures into the inputs of `trained_model`."""
        self.tokenizer_guard.check(data.tokenizer)
        return AltCLIPProcessor(CLIPImageProcessor.from_pretrained(self.clip), data.tokenizer)

    def assemble(self) -> AltCLIPModel:
        """The whole AltCLIP: image tower, projections and logit_scale of the CLIP around this student."""
        if not self._assembled:
            self._assembled = (assemble_altclip(self.clip, self.student),)
        return self._assembled[0]

    def evaluation_encoder(self) -> Encoder:
        return Encoder(self.assemble().to(self.device), self.processor)

    @property
    def trained_model(self) -> AltCLIPModel:
        """The whole model as it is now, the very modules that train."""
        return self.assemble()

    def save_model(self, directory: Path) -> None:
        model, processor = self.assemble(), self.processor
        model.tokenizer_sha256 = processor.tokenizer.fingerprint
        model.save_pretrained(directory)
        processor.save_pretrained(directory)


def spread(vectors: Tensor) -> Tensor:
    """How much vectors (N, W) differ: standard deviation over N, mean over W."""
    return vectors.detach().float().std(dim=0, correction=0).mean()
