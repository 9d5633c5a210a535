"""Texts cut to so many tokens, by the tokenizer of the batch's model, where that is on this machine or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.errors import RefusedError
from jobs.templates.values import text_of


class Cutter:
    """The filter ``truncate_tokens``. The tokenizer is loaded when it is first used."""

    def __init__(self, model: str | None) -> None:
        self._model = model
        self._tokenizer: Any = None

    def __call__(self, value: Any, most: int) -> str:
        """The beginning of a text, of ``most`` tokens at most, without those that a template adds.

        Raises:
            RefusedError: there is no tokenizer at hand.
        """
        if self._tokenizer is None:
            self._tokenizer = _loaded(self._model)
        text = text_of(value)
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        if len(offsets) <= most:
            return text
        return text[: offsets[most - 1][1]] if most > 0 else ""


def _loaded(model: str | None) -> Any:
    if model is None:
        raise RefusedError("truncate_tokens needs a model for its tokenizer: give --model")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise RefusedError("truncate_tokens needs the package tokenizers: pip install tokenizers") from None
    path = Path(model) / "tokenizer.json"
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path))
        return Tokenizer.from_pretrained(model)
    except Exception as error:
        # The library raises bare exceptions.
        raise RefusedError(f"truncate_tokens: the tokenizer of {model} cannot be loaded: {error!s:.200}") from None
