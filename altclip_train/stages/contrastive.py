"""Stage two: image-text pairs, with the image tower locked.

The same stage pretrains a whole CLIP when nothing is locked and the text tower is CLIP's.
Reference: AltCLIP (arXiv:2211.06679), contrastive learning stage; LiT (arXiv:2111.07991) for the locked tower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from altclip_train.data.datamodule import ImageTextData
from altclip_train.evaluation.encoder import Encoder
from altclip_train.losses import contrastive_loss, duplicate_share, sigmoid_loss
from altclip_train.models import AltCLIPModel, CLIPModel, compile_blocks, set_dropout, set_gradient_checkpointing
from altclip_train.models.flops import image_flops, text_flops
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
from altclip_train.types import ImageTextBatch, PackedTokens

MAX_LOGIT_SCALE = math.log(100)  # CLIP (arXiv:2103.00020), section 2.5: the scale is clipped at 100
# SigLIP (arXiv:2303.15343), section 3.2: where logit_scale and logit_bias start. It clips neither.
SIGMOID_LOGIT_SCALE, SIGMOID_LOGIT_BIAS = math.log(10), -10.0


class ContrastiveLearning(L.LightningModule):
    """Aligns text features with image features by the exact loss of the global batch.

    Args:
        model: an AltCLIP to continue from, or a CLIP.
        locked: names of the model's parts that stay as they are, such as ``text_model.embeddings.word_embeddings``.
        loss: "softmax" (InfoNCE), or "sigmoid", which starts from the scale and the bias of its paper. Published
            layouts have no place for the bias: it stays in checkpoints.
        positives: "pairs" takes each pair as the only positive of its row; "captions" also takes pairs whose
            caption is the same.
        dropout: of what trains, whatever the configuration of the model says.
        micro_batch: texts or pictures whose graph is held at a time, by each process; the loss stays that of the whole
            batch, and everything that trains is computed twice. None: all at once.
        gradient_checkpointing: blocks that train keep their inputs alone and are computed again in backward.
        compile: blocks through torch.compile.
        optimizer: takes parameter groups. schedule: takes the optimizer and ``total_steps``.
    """

    def __init__(
        self,
        *,
        model: AltCLIPModel | CLIPModel,
        locked: Sequence[str],
        loss: str,
        positives: str,
        dropout: float,
        micro_batch: int | None,
        gradient_checkpointing: bool,
        compile: bool,
        optimizer: Callable[..., Optimizer],
        schedule: Schedule,
        weight_decay: float,
    ) -> None:
        super().__init__()
        if positives not in ("pairs", "captions"):
            raise ValueError(f"stage.positives={positives!r}: expected 'pairs' or 'captions'")
        if loss not in ("softmax", "sigmoid"):
            raise ValueError(f"stage.loss={loss!r}: expected 'softmax' or 'sigmoid'")
        self.model = model
        self.locked = list(locked)
        self.positives = positives
        self.micro_batch = check_micro_batch(micro_batch)
        self.tokenizer_guard = TokenizerGuard(model.tokenizer_sha256, "the weights that this run starts from")
        self.optimizer, self.schedule, self.weight_decay = optimizer, schedule, weight_decay
        for part in parts_of(self.model, self.locked):
            part.requires_grad_(False)
        self.logit_bias: nn.Parameter | None = None
        if loss == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(SIGMOID_LOGIT_BIAS))
            nn.init.constant_(self.model.logit_scale, SIGMOID_LOGIT_SCALE)
        set_dropout(self.model, dropout)
        set_gradient_checkpointing(self.model, gradient_checkpointing)
        self.compiled = compile
        self.train()  # a loaded model is in eval mode, and Lightning leaves modes as it finds them

    @property
    def image_tower_locked(self) -> bool:
        return {"vision_model", "visual_projection"} <= set(self.locked)

    def training_step(self, batch: ImageTextBatch) -> Tensor:
        image_features = F.normalize(self.encode_image(batch).float(), dim=-1)  # (B, D)
        text_features = F.normalize(self.encode_text(batch.text).float(), dim=-1)  # (B, D)
        ids = batch.caption_ids if self.positives == "captions" else None
        if self.logit_bias is None:
            loss = contrastive_loss(image_features, text_features, self.model.logit_scale, ids=ids)
        else:
            loss = sigmoid_loss(image_features, text_features, self.model.logit_scale, self.logit_bias, ids=ids)
            self.log("train/logit_bias", self.logit_bias)
        self.log("train/loss", loss)
        self.log("train/logit_scale", self.model.logit_scale.exp())
        # Not in every step: it gathers over all ranks.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/duplicate_captions", duplicate_share(batch.caption_ids))
        return loss

    def encode_image(self, batch: ImageTextBatch) -> Tensor:
        """Projected image features (B, D); of a locked tower without graph, and from the cache where it has them."""
        encode = partial(encode_in_micro_batches, self.model.encode_image, size=self.micro_batch)
        if not self.image_tower_locked:
            assert batch.pixel_values is not None, "what trains has no cache"
            return encode(batch.pixel_values)
        return frozen_vectors(encode, batch.pixel_values, batch.cached, self._keep)

    def encode_text(self, tokens: PackedTokens) -> Tensor:
        """Projected text features of B texts, (B, D)."""
        return encode_in_micro_batches(self.model.encode_text, tokens, self.micro_batch)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        # Here rather than in on_train_batch_end, which comes after the checkpoint of the step.
        if self.logit_bias is None:
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def training_flops(self, batch: ImageTextBatch) -> Tensor:
        """Of one step on this batch: forward, and twice that backward where something trains. Without the loss."""
        pictures = 0 if batch.pixel_values is None else len(batch.pixel_values)
        text = text_flops(self.model.text_model, batch.text)
        text = text + 2 * self.model.text_projection.weight.numel() * len(batch.text.lengths)
        text_locked = {"text_model", "text_projection"} <= set(self.locked)
        image = image_flops(self.model, pictures)
        return (1 if text_locked else 3) * text + (1 if self.image_tower_locked else 3) * image

    def configure_optimizers(self) -> Any:
        return configure_optimizers(
            self,
            optimizer=self.optimizer,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            total_steps=int(self.trainer.estimated_stepping_batches),
        )

    def setup(self, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        # Here, before Lightning moves the weights or changes their type: a fingerprint is of the original ones.
        data: ImageTextData = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.image_tower_locked:
            data.cache_vectors_of(self.model)

    def configure_model(self) -> None:
        # Ranks encode unequally many pictures with a locked tower: what is cached on one is not on another.
        methods = ["encode_text"] if self.image_tower_locked else ["encode_text", "encode_image"]
        beside = [] if self.logit_bias is None else [self.logit_bias]
        shard(self.model, self.device_mesh, methods=methods, beside=beside)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,  # noqa: ARG002 - Lightning's signature
        gradient_clip_val: float | None,
        gradient_clip_algorithm: str | None,
    ) -> None:
        clip_gradients(self.parameters(), gradient_clip_val, gradient_clip_algorithm)

    def on_fit_start(self) -> None:
        if self.compiled:
            compile_blocks(self.model)
        data: ImageTextData = self.trainer.datamodule  # type: ignore[attr-defined]
        data.check_towers(self.model.config)
        self.tokenizer_guard.check(data.tokenizer)

    def train(self, mode: bool = True) -> ContrastiveLearning:
        super().train(mode)
        keep_in_eval_mode(parts_of(self.model, self.locked))
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        drop_from_checkpoint(checkpoint, self._locked_prefixes())
        self.tokenizer_guard.save(checkpoint, self.processor.tokenizer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if ("logit_bias" in checkpoint["state_dict"]) != (self.logit_bias is not None):
            before, now = ("sigmoid", "softmax") if self.logit_bias is None else ("softmax", "sigmoid")
            raise ValueError(
                f"the checkpoint was trained with stage.loss={before}, this command has stage.loss={now}: "
                f"resume with stage.loss={before}, or start a new run from its model directory"
            )
        restore_in_checkpoint(checkpoint, self, self._locked_prefixes())
        self.tokenizer_guard.load(checkpoint)

    def _keep(self, rows: Sequence[tuple[int, int]], vectors: Tensor) -> Tensor:
        data: ImageTextData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.keep(rows, vectors)

    @property
    def processor(self) -> AltCLIPProcessor:
        return self.processor_of(self.trainer.datamodule)  # type: ignore[attr-defined]

    def processor_of(self, data: ImageTextData) -> AltCLIPProcessor:
        """What turns texts and pictures into the inputs of `trained_model`."""
        self.tokenizer_guard.check(data.tokenizer)
        return AltCLIPProcessor(CLIPImageProcessor(data.image_transform), data.tokenizer)

    def evaluation_encoder(self) -> Encoder:
        return Encoder(self.model, self.processor)

    @property
    def trained_model(self) -> AltCLIPModel | CLIPModel:
        """The whole model as it is now, the very modules that train."""
        return self.model

    def save_model(self, directory: Path) -> None:
        processor = self.processor
        self.model.tokenizer_sha256 = processor.tokenizer.fingerprint
        self.model.save_pretrained(directory)
        processor.save_pretrained(directory)

    def _locked_prefixes(self) -> list[str]:
        return [f"model.{name}" for name in self.locked]
