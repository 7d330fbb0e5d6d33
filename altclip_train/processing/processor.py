"""AltCLIPProcessor: texts and pictures to model inputs, with the documented arguments, defaults and output names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

from altclip_train.processing.image_processor import CLIPImageProcessor
from altclip_train.processing.outputs import ProcessorOutput
from altclip_train.processing.pictures import Pictures
from altclip_train.processing.tokenizers import CLIPTokenizer, XLMRTokenizer, load_tokenizer


class AltCLIPProcessor:
    """Image processor and tokenizer of one model.

    Defaults are the documented ones: nothing is padded, cut or made a tensor unless asked. Training and
    evaluation do not come here: they cut at their own ``max_length``, 77 unless told.
    """

    def __init__(self, image_processor: CLIPImageProcessor, tokenizer: XLMRTokenizer | CLIPTokenizer) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @property
    def model_input_names(self) -> list[str]:
        return [*self.image_processor.model_input_names, *self.tokenizer.model_input_names]

    def __call__(
        self,
        images: Pictures | None = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        do_rescale: bool = True,
    ) -> ProcessorOutput:
        """``input_ids`` and ``attention_mask`` (B, L) of texts, ``pixel_values`` (B, 3, R, R) of pictures.

        The arguments are those of the tokenizer and of the image processor. `transformers` 4 took the text
        first: two arguments by position are taken in either order. Raises ValueError without text and images.
        """
        if images is None and text is None:
            raise ValueError("give text, images or both")
        if text is not None and _is_text(images) and not _is_text(text):
            images, text = cast(Any, text), cast(Any, images)
        output = ProcessorOutput()
        if text is not None:
            output.update(
                self.tokenizer(
                    text, padding=padding, truncation=truncation, max_length=max_length, return_tensors=return_tensors
                )
            )
        if images is not None:
            output.update(self.image_processor(images, return_tensors=return_tensors, do_rescale=do_rescale))
        return output

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """Text of one row of ids, a list of texts for several."""
        return self.tokenizer.decode(token_ids, skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """Texts of rows of ids."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the tokenizer's files and preprocessor_config.json."""
        self.tokenizer.save_pretrained(directory)
        self.image_processor.save_pretrained(directory)

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, **changes: Any) -> Self:
        """Read a saved or published AltCLIP or CLIP directory, or a hub id.

        ``changes`` are `size` or `crop_size` of pictures to use instead of the directory's. Raises
        FileNotFoundError naming what is missing, ValueError when weights in the same directory were trained with
        another tokenizer.
        """
        return cls(CLIPImageProcessor.from_pretrained(path_or_id, **changes), load_tokenizer(path_or_id))


def _is_text(value: Any) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, str)
