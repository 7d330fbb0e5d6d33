"""A stage's weights go with one tokenizer: checkpoints carry its hash, and a run with another one is refused."""

from __future__ import annotations

from typing import Any

from altclip_train.processing import CLIPTokenizer, XLMRTokenizer, check_same_tokenizer

_KEY = "tokenizer_sha256"


class TokenizerGuard:
    """Remembers which tokenizer the weights of a stage were trained with, and where that is known from."""

    def __init__(self, sha256: str | None = None, weights: str = "the weights") -> None:
        self.sha256 = sha256
        self.weights = weights

    def save(self, checkpoint: dict[str, Any], tokenizer: XLMRTokenizer | CLIPTokenizer) -> None:
        """Put the tokenizer of the run into a checkpoint."""
        checkpoint[_KEY] = tokenizer.fingerprint

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Expect from now on what the checkpoint was trained with; the data come later than the weights."""
        self.sha256, self.weights = checkpoint.get(_KEY), "the weights of the checkpoint"

    def check(self, tokenizer: XLMRTokenizer | CLIPTokenizer) -> None:
        """Raise ValueError, naming both hashes and the directory of the tokenizer, when it is another one."""
        check_same_tokenizer(tokenizer, self.sha256, weights=self.weights)
