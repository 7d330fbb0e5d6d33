"""The peers' own code, as their users run it. Imported only in the peers' environment."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from shapes import LONGEST, PAD, Texts, Words
from torch import Tensor, nn


class _Placeholder(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _NoTorchvision:
    """Stands in for torchvision, which open_clip imports for its image transforms; nothing measured here uses it."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        class Module(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return _Placeholder(name, (), {})

        module = Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def open_clip() -> Any:
    """The package."""
    if not any(isinstance(finder, _NoTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _NoTorchvision())  # type: ignore[arg-type]
    import open_clip

    return open_clip


def open_clip_loss() -> Any:
    """ClipLoss for one process."""
    open_clip()
    from open_clip.loss import ClipLoss

    return ClipLoss()


class StageOne:
    """The authors' way by `transformers`, and two ways that keep the teacher's vectors."""

    def __init__(self, name: str, models: Path, drawn: Sequence[tuple[Texts, Texts]], round_steps: int) -> None:
        from transformers import AltCLIPModel, CLIPTextModel, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.teacher = CLIPTextModel.from_pretrained(models / "clip").eval().requires_grad_(False)
        self.student: nn.Module = AltCLIPModel.from_pretrained(models / "altclip").text_model.train()
        _without_dropout(self.student)
        self.drawn = list(drawn)
        self.cached: list[Tensor] = []
        if not name.startswith("authors"):
            self.cached = [self.teach(teacher).repeat(2, 1) for _, teacher in drawn]
        if name == "sorted_cached":
            for first in range(0, len(drawn), round_steps):  # each round keeps its own texts
                own = slice(first, first + round_steps)
                self.drawn[own], self.cached[own] = _sorted_by_length(self.drawn[own], self.cached[own])
        self.loss = _sentence_transformers_loss(self.student) if name == "sentence_transformers" else None
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4, fused=name != "authors" or None)

    def teach(self, texts: Texts) -> Tensor:
        with torch.no_grad():
            return self.teacher(texts.input_ids, texts.mask).pooler_output

    def step(self, number: int) -> float:
        student, teacher = self.drawn[number]
        target = self.cached[number] if self.cached else self.teach(teacher).repeat(2, 1)
        if self.loss is not None:
            loss = self.loss([{"input_ids": student.input_ids, "attention_mask": student.mask}], target)
        else:
            loss = F.mse_loss(self.student(student.input_ids, student.mask).pooler_output, target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def _open_clip_image_tower(source: Any) -> dict[str, Tensor]:
    """The image tower and its projection by open_clip's names."""
    weights = source.vision_model.state_dict()
    names = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post",
        "encoder.layers": "transformer.resblocks",
        "layer_norm": "ln_",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    result = {"proj": source.visual_projection.weight.T}
    for name, weight in weights.items():
        if any(part in name for part in ("k_proj", "v_proj", "position_ids")):
            continue
        if "q_proj" in name:
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name, weight = name.replace("self_attn.q_proj.", "attn.in_proj_"), torch.cat(parts)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        result[name] = weight
    return result


class StageTwo:
    """open_clip's training step with a locked image tower and XLM-R as text tower."""

    def __init__(self, models: Path, drawn: Sequence[Texts]) -> None:
        open_clip()
        from open_clip.loss import ClipLoss
        from open_clip.model import CustomTextCLIP
        from transformers import AltCLIPModel, XLMRobertaConfig, XLMRobertaModel, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        source = AltCLIPModel.from_pretrained(models / "altclip")
        vision, text = source.config.vision_config, source.text_model
        width = vision.hidden_size
        image_tower = {"layers": vision.num_hidden_layers, "width": width, "patch_size": vision.patch_size}
        image_tower |= {"head_width": width // vision.num_attention_heads, "image_size": vision.image_size}
        config = XLMRobertaConfig.from_dict({**text.config.to_dict(), "model_type": "xlm-roberta"})
        encoder = XLMRobertaModel(config, add_pooling_layer=False)
        weights = text.roberta.state_dict().items()
        encoder.load_state_dict({name.replace("encoder.layers.", "encoder.layer."): value for name, value in weights})
        encoder.save_pretrained(models / "xlm_roberta")
        text_tower = {"hf_model_name": str(models / "xlm_roberta"), "hf_proj_type": "linear"}
        text_tower["hf_pooler_type"] = "cls_last_hidden_state_pooler"
        model = CustomTextCLIP(source.config.projection_dim, image_tower, text_tower, quick_gelu=True)
        model.text.proj = nn.Sequential(text.pre_LN, text.transformation, source.text_projection)
        model.logit_scale.data.copy_(source.logit_scale.data)
        model.visual.load_state_dict(_open_clip_image_tower(source))
        model.lock_image_tower()
        _without_dropout(model)
        self.model, self.loss = model.train(), ClipLoss()
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.texts = [F.pad(t.input_ids, (0, LONGEST - t.input_ids.shape[1]), value=PAD) for t in drawn]

    def step(self, number: int, pixel_values: Tensor) -> float:
        image, text, scale = self.model(pixel_values, self.texts[number])
        loss = self.loss(image, text, scale)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, 4.6052)
        return loss.item()


def _sorted_by_length(
    drawn: Sequence[tuple[Texts, Texts]], targets: Sequence[Tensor]
) -> tuple[list[tuple[Texts, Texts]], list[Tensor]]:
    """The texts of these batches in as many batches of similar length, each padded to its own longest."""
    longest = max(texts.mask.shape[1] for texts, _ in drawn)
    ids = torch.cat([F.pad(t.input_ids, (0, longest - t.mask.shape[1]), value=PAD) for t, _ in drawn])
    mask = torch.cat([F.pad(t.mask, (0, longest - t.mask.shape[1])) for t, _ in drawn])
    vectors = torch.cat(list(targets))
    batches = []
    order = mask.sum(1).argsort().split(len(targets[0]))
    for own in order:
        length = int(mask[own].sum(1).max())
        batches.append(Texts(ids[own, :length], mask[own, :length]))
    return [(texts, texts) for texts in batches], [vectors[own] for own in order]


def clip_benchmark_classifier(models: Path, length: int | None) -> Callable[[list[str], list[str]], Tensor]:
    """CLIP_benchmark's classifier of class names and templates, (D, C), on open_clip's XLM-R tower."""
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    model = StageTwo(models, []).model.eval()
    tokenizer = partial(Words().padded, length=length)
    return lambda names, templates: zero_shot_classifier(model, tokenizer, names, templates, "cpu", amp=False)


def _sentence_transformers_loss(student: nn.Module) -> Any:
    """Its distillation loss around a student that already is its whole sequence of modules."""
    from sentence_transformers.sentence_transformer.losses import MSELoss

    class Embedder(nn.Module):
        """What a SentenceTransformer of Transformer, Pooling("cls"), LayerNorm and Dense computes."""

        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            output = self.student(features["input_ids"], features["attention_mask"])
            return {**features, "sentence_embedding": output.pooler_output}

    return MSELoss(Embedder())


def _without_dropout(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
