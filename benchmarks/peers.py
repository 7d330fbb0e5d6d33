"""The peers' own code, as their users run it. Imported only in the peers' environment."""

from __future__ import annotations

import argparse
import importlib.machinery
import os
import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sides
import torch
import torch.nn.functional as F
from shapes import LONGEST, PAD, STUDENTS, Texts, Words, draw_texts
from torch import Tensor, nn

SORTED_TOGETHER = 32  # batches


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
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # transformers remembers that there is none; a placeholder would have no version
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

    def __init__(self, options: argparse.Namespace, drawn: Sequence[tuple[Texts, Texts]]) -> None:
        from transformers import AltCLIPModel, CLIPTextModel, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if options.side == "sentence_transformers":
            import sentence_transformers  # noqa: F401
        sides.models_follow()
        self.options, self.drawn = options, list(drawn)
        models = Path(options.models)
        self.teacher = CLIPTextModel.from_pretrained(models / "clip").eval().requires_grad_(False).to(options.device)
        model = AltCLIPModel.from_pretrained(models / "altclip").text_model.train().to(options.device)
        _without_dropout(model)
        self.student: Callable[[Texts], Tensor] = lambda texts: model(texts.input_ids, texts.mask).pooler_output
        self.loss: Callable[[Texts, Tensor], Tensor] = lambda texts, target: F.mse_loss(self.student(texts), target)
        self.cached: list[Tensor] = []
        if options.side == "sorted_cached":
            self.student = lambda texts: _pooled_first(model, texts)
            self.drawn = [(texts, texts) for texts in _sorted_by_length(options)]
        if not options.side.startswith("authors"):
            self.cached = [self.teach(teacher).repeat(2, 1) for _, teacher in drawn]
            del self.teacher  # who has its vectors does not load it
        if options.side == "sentence_transformers":
            self.loss = _sentence_transformers_loss(model)
        fused = None if options.side == "authors" else True  # None: torch chooses
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)

    def teach(self, texts: Texts) -> Tensor:
        with torch.inference_mode():
            vectors = self.teacher(texts.input_ids).pooler_output  # causal: what follows a text's end changes nothing
        return vectors.clone()

    def step(self, number: int) -> dict[str, float]:
        student, teacher = self.drawn[number]
        with sides.autocast(self.options):
            target = self.cached[number] if self.cached else self.teach(teacher).repeat(2, 1)
            loss = self.loss(student, target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss.item(), "tokens": student.mask.sum().item()}


def _pooled_first(model: nn.Module, texts: Texts) -> Tensor:
    """`model`, with its head on [CLS] alone."""
    states = model.roberta(texts.input_ids, texts.mask).last_hidden_state
    return model.transformation(model.pre_LN(states[:, 0]))


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

    def __init__(self, options: argparse.Namespace, drawn: Sequence[Texts]) -> None:
        open_clip()
        from open_clip.loss import ClipLoss
        from open_clip.model import CustomTextCLIP
        from transformers import AltCLIPModel, XLMRobertaConfig, XLMRobertaModel, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        sides.models_follow()
        models = Path(options.models)
        source = AltCLIPModel.from_pretrained(models / "altclip")
        vision, text = source.config.vision_config, source.text_model
        width = vision.hidden_size
        image_tower = {"layers": vision.num_hidden_layers, "width": width, "patch_size": vision.patch_size}
        image_tower |= {"head_width": width // vision.num_attention_heads, "image_size": vision.image_size}
        config = XLMRobertaConfig.from_dict({**text.config.to_dict(), "model_type": "xlm-roberta"})
        encoder = XLMRobertaModel(config, add_pooling_layer=False)
        weights = text.roberta.state_dict().items()
        encoder.load_state_dict({name.replace("encoder.layers.", "encoder.layer."): value for name, value in weights})
        own = models / f"xlm_roberta_of_{options.side}"
        encoder.save_pretrained(own)
        text_tower = {"hf_model_name": str(own), "hf_proj_type": "linear"}
        text_tower["hf_pooler_type"] = "cls_last_hidden_state_pooler"
        model = CustomTextCLIP(source.config.projection_dim, image_tower, text_tower, quick_gelu=True)
        model.text.proj = nn.Sequential(text.pre_LN, text.transformation, source.text_projection)
        model.logit_scale.data.copy_(source.logit_scale.data)
        model.visual.load_state_dict(_open_clip_image_tower(source))
        model.lock_image_tower()
        _without_dropout(model)
        self.model, self.loss, self.options = model.train().to(options.device), ClipLoss(), options
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.texts = [F.pad(t.input_ids, (0, LONGEST - t.input_ids.shape[1]), value=PAD) for t in drawn]

    def step(self, number: int, pixel_values: Tensor) -> dict[str, float]:
        with sides.autocast(self.options):
            image, text, scale = self.model(pixel_values, self.texts[number])
            loss = self.loss(image, text, scale)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, 4.6052)
        return {"loss": loss.item()}


def _sorted_by_length(options: argparse.Namespace) -> list[Texts]:
    """Batches of 2B texts of similar length, as one gets them by sorting very many, each padded to its own longest.

    Those of all rounds are spread evenly over the lengths, and so are those of each round.
    """
    size, rounds = 2 * options.batch, options.rounds + 1
    pool = draw_texts(SORTED_TOGETHER * size, STUDENTS[options.size]["vocab_size"], 1_000_000)
    by_length = pool.mask.sum(1).argsort().split(size)
    batches = []
    for number in sorted(range(rounds), key=lambda n: n != rounds // 2):  # the middle one warms up
        for step in range(options.steps):
            place = step * rounds + (number if step % 2 == 0 else rounds - 1 - number)
            own = by_length[int((place + 0.5) / (rounds * options.steps) * SORTED_TOGETHER)]
            length = int(pool.mask[own].sum(1).max())
            batches.append(Texts(pool.input_ids[own, :length], pool.mask[own, :length]).to(options.device))
    return batches


def clip_benchmark_classifier(
    options: argparse.Namespace, length: int | None
) -> Callable[[list[str], list[str]], Tensor]:
    """CLIP_benchmark's classifier of class names and templates, (D, C), on open_clip's XLM-R tower."""
    os.environ["TQDM_DISABLE"] = "1"  # its progress bar writes a line a class
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    model = StageTwo(options, []).model.eval()
    tokenizer = partial(Words().padded, length=length)
    return lambda names, templates: zero_shot_classifier(model, tokenizer, names, templates, options.device, amp=False)


def _sentence_transformers_loss(model: nn.Module) -> Callable[[Texts, Tensor], Tensor]:
    """Its distillation loss on its modules Pooling("cls"), LayerNorm and Dense over XLM-R."""
    from sentence_transformers.sentence_transformer.losses import MSELoss
    from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Pooling

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.roberta = model.roberta

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            states = self.roberta(features["input_ids"], features["attention_mask"]).last_hidden_state
            return {**features, "token_embeddings": states}

    head = model.transformation
    norm, dense = LayerNorm(head.in_features), Dense(head.in_features, head.out_features, activation_function=None)
    norm.norm, dense.linear = model.pre_LN, head
    loss = MSELoss(nn.Sequential(Encoder(), Pooling(head.in_features, "cls"), norm, dense))
    return lambda texts, target: loss([{"input_ids": texts.input_ids, "attention_mask": texts.mask}], target)


def _without_dropout(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
