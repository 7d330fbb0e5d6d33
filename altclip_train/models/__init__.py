"""The towers, the whole models, and how they are read, written and put together."""

from altclip_train.models.altclip import (
    AltCLIPModel,
    CLIPModel,
    pack_padded,
)
from altclip_train.models.assemble import (
    assemble_altclip,
    build_clip,
    build_text_student,
    load_clip_text,
    load_model,
)
from altclip_train.models.clip_text import CLIPTextModel
from altclip_train.models.config import (
    AltCLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
)
from altclip_train.models.layers import compile_blocks, set_dropout, set_gradient_checkpointing
from altclip_train.models.outputs import AltCLIPOutput, TowerOutput
from altclip_train.models.vision import AltCLIPVisionModel
from altclip_train.models.xlm_roberta import AltCLIPTextModel

__all__ = [
    "AltCLIPConfig",
    "AltCLIPModel",
    "AltCLIPOutput",
    "AltCLIPTextConfig",
    "AltCLIPTextModel",
    "AltCLIPVisionConfig",
    "AltCLIPVisionModel",
    "CLIPConfig",
    "CLIPModel",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPVisionConfig",
    "TowerOutput",
    "assemble_altclip",
    "build_clip",
    "build_text_student",
    "compile_blocks",
    "load_clip_text",
    "load_model",
    "pack_padded",
    "set_dropout",
    "set_gradient_checkpointing",
]
