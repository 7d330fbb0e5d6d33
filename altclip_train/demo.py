"""``altclip demo``: a web page to search pictures in any language of a model, to name one and to describe one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from altclip_train.data.samples import BadSample, decode_image
from altclip_train.embedding.collection import Collection, Found
from altclip_train.processing.images import to_rgb

if TYPE_CHECKING:
    import gradio

TOP = 12
LABELS = ["a cat", "a dog", "一只猫", "一只狗", "an apple", "一个苹果"]
THUMBNAIL = 512  # pixels: larger pictures are sent smaller


def build_page(collection: Collection, *, title: str, queries: Sequence[str]) -> gradio.Blocks:
    """The page over a collection. Mistakes become messages on it. Nothing is sent to anyone."""
    import gradio

    def explained(action: Any, *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except (BadSample, ValueError) as error:
            raise gradio.Error(str(error), duration=None) from error

    def search(text: str) -> list[tuple[Image.Image, str]]:
        return explained(_search, collection, text)

    def show(file: str | None) -> Image.Image | None:
        return None if file is None else explained(_picture, file)

    def classify(file: str | None, labels: str) -> dict[str, float]:
        return explained(_classify, collection, file, labels)

    def describe(file: str | None) -> list[list[str]]:
        return explained(_describe, collection, file)

    # Uploads are files of an hour.
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"## {title}\n{collection.description.rows:,} pictures")
        with gradio.Tab("Search"):
            query = gradio.Textbox(label="Describe a picture, in any language", elem_id="query", autofocus=True)
            button = gradio.Button("Search", variant="primary", elem_id="search")
            gallery = gradio.Gallery(label="Best first", columns=6, object_fit="contain", elem_id="found", height=560)
            gradio.Examples([[text] for text in queries], inputs=query)
            gradio.on([button.click, query.submit], search, query, gallery)
        with gradio.Tab("Name a picture"):
            file = _upload(gradio, show, "classify")
            labels = gradio.Textbox("\n".join(LABELS), label="Labels, one a line", lines=6, elem_id="labels")
            button = gradio.Button("Classify", variant="primary", elem_id="classify")
            button.click(classify, [file, labels], gradio.Label(label="Probability", elem_id="probabilities"))
        if collection.texts is not None:
            with gradio.Tab("Describe a picture"):
                file = _upload(gradio, show, "describe")
                button = gradio.Button("Describe", variant="primary", elem_id="describe")
                table = gradio.Dataframe(headers=["text", "score"], label="Nearest texts", elem_id="texts", wrap=True)
                button.click(describe, file, table)
    return page


def _upload(gradio: Any, show: Any, name: str) -> Any:
    """A place for a file, and the picture in it as the model's own decoder reads it."""
    with gradio.Row():
        file = gradio.File(label="A picture", type="filepath", elem_id=f"{name}-file", height=180)
        shown = gradio.Image(label="Preview", interactive=False, height=180, elem_id=f"{name}-preview")
    file.change(show, file, shown)
    return file


def _search(collection: Collection, text: str) -> list[tuple[Image.Image, str]]:
    if not text.strip():
        raise ValueError("Type what to search for, such as: a red apple, 一只猫")
    return [(_small(collection.picture(found.id)), _caption(found)) for found in collection.search(text, TOP)]


def _classify(collection: Collection, file: str | None, labels: str) -> dict[str, float]:
    named = list(dict.fromkeys(line.strip() for line in labels.splitlines() if line.strip()))
    if len(named) < 2:
        raise ValueError("Give at least two labels, one a line")
    return collection.classify(_bytes(file), named)


def _describe(collection: Collection, file: str | None) -> list[list[str]]:
    return [[found.id, f"{found.score:.3f}"] for found in collection.describe(_bytes(file), TOP)]


def _picture(file: str) -> Image.Image:
    return _small(decode_image({"jpg": _bytes(file)}))


def _bytes(file: str | None) -> bytes:
    if file is None:
        raise ValueError("Choose a picture first")
    return Path(file).read_bytes()


def _small(picture: Image.Image) -> Image.Image:
    small = to_rgb(picture)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def _caption(found: Found) -> str:
    _, mark, key = found.id.rpartition("#")  # of a shard; else a file
    return f"{found.score:.3f}  {key if mark else Path(found.id).name}"
