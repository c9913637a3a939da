"""Tokenize texts with CLIP's byte-pair encoding, run by the `tokenizers` library.

The vocabulary is read from the files that checkpoints come with: a Hugging Face directory, `tokenizer.json`,
`vocab.json` with `merges.txt`, or OpenAI's `bpe_simple_vocab_16e6.txt.gz`.
"""

import dataclasses
import gzip
import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, normalizers, pre_tokenizers, processors

from inti_jax.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"

# Pattern of the words that are encoded separately: the start and end tokens, contractions, runs of letters,
# single digits, runs of other characters. OpenAI's pattern ignores case.
_SPECIAL = "|".join(re.escape(token) for token in (START, END))
_WORDS = rf"{_SPECIAL}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
_OPENAI_WORDS = f"(?i:{_WORDS})"

# Names of the vocabulary files that checkpoints come with. The first that exists is read.
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.json",
    "bpe_simple_vocab_16e6.txt.gz",
    "bpe_simple_vocab_16e6.txt",
)

# Whose cleaning of texts is followed: that of OpenAI's CLIP and open_clip, of transformers' CLIP, of SigLIP
# or of SigLIP 2. The last two go with `pieces.Pieces`.
Cleaning = Literal["openai", "huggingface", "siglip", "siglip2"]

# The number of tokens that OpenAI's file is for, although it holds merges for many more.
_OPENAI_TOKENS = 49408


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A byte-pair vocabulary.

    `tokens[i]` is the token with id i. `merges` are pairs joined by a space, in the order of their priority.
    """

    tokens: tuple[str, ...]
    merges: tuple[str, ...]

    def to_json(self) -> str:
        """Serialize the vocabulary to JSON."""
        return json.dumps({"tokens": self.tokens, "merges": self.merges}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Read a vocabulary that `to_json` wrote."""
        values = json.loads(text)
        return cls(tuple(values["tokens"]), tuple(values["merges"]))


def clean(text: str) -> str:
    """Clean a text as OpenAI's and open_clip's tokenizers do before they split it.

    ftfy mends mojibake, curly quotes, ligatures and full-width letters. HTML entities are resolved twice,
    white space is collapsed, and letters become lower case.
    """
    import ftfy  # imported late: that takes longer than reading a vocabulary

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


class Tokenizer:
    """CLIP's tokenizer: texts to token ids, with `START` and `END` around each text.

    Letters become lower case and white space is collapsed. With `cleaning` "openai", texts are cleaned as in
    OpenAI's `simple_tokenizer.py` and in open_clip. With "huggingface" they are cleaned as in transformers'
    CLIPTokenizer, which composes characters (NFC) and mends nothing.
    """

    def __init__(self, vocabulary: Vocabulary, context: int, cleaning: Cleaning = "huggingface"):
        ids = {token: index for index, token in enumerate(vocabulary.tokens)}
        merges = [(first, second) for first, _, second in (m.partition(" ") for m in vocabulary.merges)]
        self._tokenizer = tokenizers.Tokenizer(
            models.BPE(vocab=ids, merges=merges, end_of_word_suffix=_WORD_END, unk_token=END)
        )
        self._words: pre_tokenizers.Split | None = None
        if cleaning == "openai":
            self._words = _splitter(_OPENAI_WORDS)
            self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        else:
            spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
            self._tokenizer.normalizer = normalizers.Sequence(
                [normalizers.NFC(), spaces, normalizers.Lowercase()]
            )
            self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [_splitter(_WORDS), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        self._context = context
        self._tokenizer.add_special_tokens([START, END])
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
        )
        # The end token does not see what follows it, so these ids give the same features as OpenAI's zeros.
        self._tokenizer.enable_padding(length=context, pad_id=ids[END], pad_token=END)
        self._tokenizer.enable_truncation(context)

    def __call__(self, texts: Iterable[Any]) -> Int[np.ndarray, "B L"]:
        """Tokenize texts to `context` ids each; a longer text is cut and keeps its end token.

        Raises UserError for an item that is no string or, with cleaning "huggingface", holds half a surrogate
        pair.
        """
        texts = list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {index} should be a string, not {type(text).__name__}")
            if self._words is None and not _is_unicode(text):
                raise UserError(f"text {index}, {text!r:.80}, holds half a surrogate pair")
        if self._words is None:
            encoded = self._tokenizer.encode_batch(texts)
        else:
            words = [[word for word, _ in self._words.pre_tokenize_str(clean(text))] for text in texts]
            encoded = self._tokenizer.encode_batch(words, is_pretokenized=True)
        ids = [encoding.ids for encoding in encoded]
        return np.array(ids, np.int32).reshape(len(texts), self._context)


def _splitter(words: str) -> pre_tokenizers.Split:
    return pre_tokenizers.Split(tokenizers.Regex(words), behavior="removed", invert=True)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_vocabulary(directory: Path) -> Path | None:
    """Find the file in `directory` that `read_vocabulary` can read; None where there is none."""
    return next((directory / name for name in VOCABULARY_FILES if (directory / name).is_file()), None)


def read_vocabulary(path: Path, size: int) -> Vocabulary:
    """Read the vocabulary in `path`, a file or a directory, for a model with `size` tokens.

    Raises UserError where there is none or it does not fit.
    """
    if path.is_dir():
        found = find_vocabulary(path)
        if found is None:
            raise UserError(f"{path} holds no vocabulary: neither tokenizer.json nor vocab.json")
        path = found
    try:
        if path.suffix == ".json":
            ids, merges = _read_json(path)
        else:
            ids, merges = _read_merges(path, size)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a CLIP vocabulary: {type(error).__name__}: {error}") from None
    tokens = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise UserError(f"{path} has token ids with gaps or repetitions")
    if not {START, END} <= ids.keys():
        raise UserError(f"{path} is not a CLIP vocabulary: it has no {START} or no {END}")
    if len(tokens) != size:
        raise UserError(f"{path} has {len(tokens)} tokens, but the text tower has {size}")
    return Vocabulary(tuple(tokens), tuple(merges))


def _read_json(path: Path) -> tuple[dict[str, int], list[str]]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if "model" in values:
        merges = values["model"]["merges"]
        added = {token["content"]: token["id"] for token in values.get("added_tokens", [])}
        ids = {**values["model"]["vocab"], **added}
    else:
        merges = _merge_lines((path.parent / "merges.txt").read_text(encoding="utf-8"))
        ids = values
    return ids, [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _read_merges(path: Path, size: int) -> tuple[dict[str, int], list[str]]:
    """Read a file of merges, as OpenAI's, and derive the token ids from them.

    OpenAI's file has more merges than its CLIP uses: those beyond `size` tokens are ignored. A model with
    another number of tokens has other tokens too, so for such a model the file has to have exactly as many.
    Raises UserError where it has not.
    """
    contents = path.read_bytes()
    if contents[:2] == b"\x1f\x8b":
        contents = gzip.decompress(contents)
    letters = [*_BYTE_LETTERS, *(letter + _WORD_END for letter in _BYTE_LETTERS)]
    merges = _merge_lines(contents.decode("utf-8"))
    wanted = size - len(letters) - 2
    if len(merges) < wanted or (len(merges) > wanted and size != _OPENAI_TOKENS):
        raise UserError(
            f"{path} is not the vocabulary of this text tower, which has {size} tokens: the file is for "
            f"{_OPENAI_TOKENS} tokens or, uncut, for {len(merges) + len(letters) + 2}"
        )
    merges = merges[:wanted]
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _merge_lines(text: str) -> list[str]:
    lines = [line for line in text.split("\n") if line and not line.startswith("#version")]
    # The first line of OpenAI's file is a comment in quotes.
    lines = [line for line in lines if not line.startswith('"bpe_simple_vocab')]
    if not all(line.count(" ") == 1 for line in lines):
        raise ValueError("a line that is not a pair")
    return lines


def _byte_letters() -> Mapping[int, str]:
    """Map each byte to its letter: the byte's own character where it is visible, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


_BYTE_LETTERS = tuple(_byte_letters().values())
