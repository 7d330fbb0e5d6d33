"""Texts to token ids and pictures to pixel values, as the published AltCLIP and CLIP directories expect."""

from altclip_train.processing.augment import Augmentation
from altclip_train.processing.image_processor import CLIPImageProcessor
from altclip_train.processing.images import ImageTransform, to_rgb
from altclip_train.processing.outputs import ProcessorOutput
from altclip_train.processing.processor import AltCLIPProcessor
from altclip_train.processing.tokenizer_guard import check_same_tokenizer
from altclip_train.processing.tokenizers import CLIPTokenizer, XLMRTokenizer, load_tokenizer
from altclip_train.processing.training import train_clip_bpe, train_sentencepiece

__all__ = [
    "AltCLIPProcessor",
    "Augmentation",
    "CLIPImageProcessor",
    "CLIPTokenizer",
    "ImageTransform",
    "ProcessorOutput",
    "XLMRTokenizer",
    "check_same_tokenizer",
    "load_tokenizer",
    "to_rgb",
    "train_clip_bpe",
    "train_sentencepiece",
]
