"""Texts to token ids and pictures to pixel values, as the published AltCLIP and CLIP directories expect."""

from altclip_train.processing.augment import Augmentation
from altclip_train.processing.images import ImageTransform, to_rgb
from altclip_train.processing.processor import AltCLIPProcessor, ProcessorOutput
from altclip_train.processing.tokenizers import CLIPTokenizer, XLMRTokenizer, load_tokenizer
from altclip_train.processing.training import train_clip_bpe, train_sentencepiece

__all__ = [
    "AltCLIPProcessor",
    "Augmentation",
    "CLIPTokenizer",
    "ImageTransform",
    "ProcessorOutput",
    "XLMRTokenizer",
    "load_tokenizer",
    "to_rgb",
    "train_clip_bpe",
    "train_sentencepiece",
]
