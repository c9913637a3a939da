"""Tokenize texts as SigLIP and SigLIP 2 do, by a tokenizer.json that the `tokenizers` library reads.

SigLIP has pieces of SentencePiece's (a unigram model), SigLIP 2 those of Gemma (byte pairs). Both end a text
with an end token and pad it to the context.
"""

import dataclasses
import re
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, processors

from inti_jax.errors import UserError

_FILE = "tokenizer.json"
# The end token and the token for padding, by family.
_SPECIAL = {"siglip": ("</s>", "</s>"), "siglip2": ("<eos>", "<pad>")}
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A tokenizer as the `tokenizers` library writes it, and the family whose cleaning goes with it."""

    json: str
    cleaning: Literal["siglip", "siglip2"]

    @property
    def library_class(self) -> str:
        """The class of transformers' for it."""
        return {"siglip": "SiglipTokenizer", "siglip2": "Siglip2Tokenizer"}[self.cleaning]


def clean(text: str, cleaning: Literal["siglip", "siglip2"]) -> str:
    """Clean a text as in training: small letters and, for SigLIP, no ASCII punctuation and single spaces."""
    text = text.lower()
    if cleaning == "siglip":
        text = re.sub(r"\s+", " ", text.translate(_PUNCTUATION)).strip()
    return text


class PieceTokenizer:
    """SigLIP's tokenizer: texts to `context` token ids each."""

    def __init__(self, pieces: Pieces, context: int):
        self._tokenizer = tokenizers.Tokenizer.from_str(pieces.json)
        self._cleaning, self._context = pieces.cleaning, context
        end, pad = _SPECIAL[pieces.cleaning]
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, self._tokenizer.token_to_id(end))]
        )
        self._tokenizer.enable_padding(
            length=context, pad_id=self._tokenizer.token_to_id(pad), pad_token=pad, direction="right"
        )
        self._tokenizer.enable_truncation(context)

    def __call__(self, texts: Iterable[Any]) -> Int[np.ndarray, "B L"]:
        """Tokenize texts; a longer text is cut and keeps its end token.

        Raises UserError for an item that is no string or holds half a surrogate pair.
        """
        texts = list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {index} should be a string, not {type(text).__name__}")
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UserError(f"text {index}, {text!r:.80}, holds half a surrogate pair")
        encoded = self._tokenizer.encode_batch([clean(text, self._cleaning) for text in texts])
        return np.array([encoding.ids for encoding in encoded], np.int32).reshape(len(texts), self._context)


def has_pieces(directory: Path) -> bool:
    """Tell whether `directory` has the file that `read_pieces` reads."""
    return (directory / _FILE).is_file()


def read_pieces(path: Path, size: int) -> Pieces:
    """Read the tokenizer in `path`, a tokenizer.json or its directory, for a model with `size` tokens.

    Raises UserError where there is none or it does not fit.
    """
    path = path / _FILE if path.is_dir() else path
    if path.suffix != ".json" or not path.is_file():
        raise UserError(f"{path}: texts of SigLIP need the tokenizer.json of its Hugging Face directory")
    try:
        read = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises no narrower class
        raise UserError(f"{path} is not a tokenizer: {error}") from None
    cleaning: Literal["siglip", "siglip2"] = "siglip" if isinstance(read.model, models.Unigram) else "siglip2"
    if absent := [token for token in _SPECIAL[cleaning] if read.token_to_id(token) is None]:
        raise UserError(f"{path} is not the tokenizer of a SigLIP: it has no {absent[0]}")
    # Models have rows to spare.
    if read.get_vocab_size() > size:
        raise UserError(f"{path} has {read.get_vocab_size()} tokens, but the text tower has {size}")
    return Pieces(read.to_str(), cleaning)
