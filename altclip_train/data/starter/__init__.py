"""The starter data: emoji drawings and scenes with captions in five languages, built without a network."""

from altclip_train.data.starter.build import FORMAT_VERSION, build_starter, ensure_starter
from altclip_train.data.starter.concepts import LANGUAGES
from altclip_train.data.starter.settings import StarterSettings

__all__ = ["FORMAT_VERSION", "LANGUAGES", "StarterSettings", "build_starter", "ensure_starter"]
