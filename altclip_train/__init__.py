"""altclip_train: teach any CLIP new languages (after AltCLIP, arXiv 2211.06679)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altclip_train.models import AltCLIPConfig as AltCLIPConfig
    from altclip_train.models import AltCLIPModel as AltCLIPModel
    from altclip_train.models import AltCLIPTextConfig as AltCLIPTextConfig
    from altclip_train.models import AltCLIPTextModel as AltCLIPTextModel
    from altclip_train.models import AltCLIPVisionConfig as AltCLIPVisionConfig
    from altclip_train.models import AltCLIPVisionModel as AltCLIPVisionModel
    from altclip_train.processing import AltCLIPProcessor as AltCLIPProcessor

_PUBLIC = {
    "AltCLIPConfig": "altclip_train.models",
    "AltCLIPModel": "altclip_train.models",
    "AltCLIPProcessor": "altclip_train.processing",
    "AltCLIPTextConfig": "altclip_train.models",
    "AltCLIPTextModel": "altclip_train.models",
    "AltCLIPVisionConfig": "altclip_train.models",
    "AltCLIPVisionModel": "altclip_train.models",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``import altclip_train`` costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'altclip_train' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
