"""Real tokenizers for models with random weights: whole, or cut to the tokens that a BPE learnt first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "tokenizer.json"
END = "<|end|>"
"""The last token of a cut tokenizer, which ends a text."""
ENOUGH = 0.95
"""The least share of a model's logits that have a token."""


def fitting(folders: Sequence[Path], vocab: int) -> Path | None:
    """Of these tokenizers the smallest with tokens for ``vocab`` logits; None where none has enough."""
    found = [(size, folder) for folder in folders if (size := _size(folder)) >= ENOUGH * vocab]
    return min(found)[1] if found else None


def loaded(folder: Path, vocab: int) -> Any:
    """The tokenizer of a folder as mlx-lm wraps it, with no token from ``vocab`` on."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    fields = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if _size(folder) > vocab:
        _cut(fields, vocab - 1)
        eos = END
    else:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        eos = config["eos_token"]
    tokenizer = Tokenizer.from_str(json.dumps(fields))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    made.add_special_tokens({"eos_token": eos["content"] if isinstance(eos, dict) else eos})
    return TokenizerWrapper(made)


def _size(folder: Path) -> int:
    fields = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return 1 + max([*_vocabulary(fields).values(), *(int(token["id"]) for token in fields["added_tokens"])])


def _vocabulary(fields: dict[str, Any]) -> dict[str, int]:
    vocabulary = fields["model"]["vocab"]
    if isinstance(vocabulary, list):  # SentencePiece's, with their scores
        return {piece: place for place, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _cut(fields: dict[str, Any], vocab: int) -> None:
    """Leave a byte-level BPE its first ``vocab`` tokens: ids are in the order in which it learnt them."""
    model = fields["model"]
    kept = {token: place for token, place in model["vocab"].items() if place < vocab}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    model["vocab"] = kept
    model["merges"] = [pair for pair in pairs if "".join(pair) in kept and all(part in kept for part in pair)]
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["id"] < vocab]
    fields["post_processor"] = None
