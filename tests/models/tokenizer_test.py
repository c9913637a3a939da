"""The tokenizer, against transformers' on a vocabulary made here."""

import gzip
import html
import itertools
import json
import re

import ftfy
import numpy as np
import pytest
import regex
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax.errors import UserError
from inti_jax.models.tokenizer import Tokenizer, Vocabulary, read_vocabulary
from tests.pretrained import checkpoints

IDS, MERGES = checkpoints.vocabulary()
SIZE = len(IDS)
OURS = Tokenizer(Vocabulary(tuple(IDS), tuple(MERGES)), 77)
OPENAI = Tokenizer(Vocabulary(tuple(IDS), tuple(MERGES)), 77, "openai")
THEIRS = transformers.CLIPTokenizer(vocab=IDS, merges=[tuple(merge.split()) for merge in MERGES])

SPACES = [" ", "\t\n", "\u00a0"]
SPECIAL = ["<|endoftext|>", "<|startoftext|>", "</w>", "\x00", "..."]
WRITTEN = [
    "the",
    "The",
    "DOG",
    "photo's",
    "I'LL",
    "12",
    "½",
    "é",
    "e\u0301",
    "ß",
    "İ",
    "日本",
    "🐕\u200d🦺",
    "dog-photo",
    "don\u2019t",
    "\u201cthe dog\u201d",
    "dog\u2019S",
    "'\u017f",
    "the &amp; dog",
    "&amp;lt;the&amp;gt;",
    "&lt;b&gt;",
    "schÃ¶n",
    "â€œdogâ€\u009d",
    "ﬁre",
    "\uff44\uff4f\uff47",
    "Σίσυφος ΟΔΟΣ",
    "\u212a",
    "the\u2028dog\r\nphoto",
    "\x1cthe\x1f",
    "\u200bdog",
    "\ufeffthe",
    "\x1b[31mdog\x1b[0m",
    "<|ENDOFTEXT|>",
    "!<|endoftext|>",
    "the<|startoftext|>dog",
    "<| endoftext |>",
    "I'll've",
    "''s",
    "'Tis",
    "1\u0660½",
    "\uff41\u0301",
    "한국어",
    "नमस्ते",
]
WORDS = st.sampled_from(SPACES + SPECIAL + WRITTEN)
# Without what is not assigned yet: which of that will be letters, libraries know sooner or later.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
TEXTS = st.text(CHARACTERS) | st.lists(WORDS | st.text(CHARACTERS, max_size=3), max_size=60).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_equals_transformers(texts):
    theirs = THEIRS(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    np.testing.assert_array_equal(OURS(texts), np.array(theirs))


PATTERN = regex.compile(
    r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""",
    regex.IGNORECASE,
)
RANKS = {tuple(merge.split()): rank for rank, merge in enumerate(MERGES)}
LETTERS = dict(zip([*range(33, 127), *range(161, 173), *range(174, 256)], list(IDS)[:188], strict=True))
LETTERS |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in LETTERS)}


def reference(text):
    """OpenAI's `tokenize` of one text, cut at 77, written here from its description."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    text = re.sub(r"\s+", " ", text).strip().lower()
    ids = [IDS["<|startoftext|>"]]
    for word in PATTERN.findall(text):
        if word in ("<|startoftext|>", "<|endoftext|>"):
            ids.append(IDS[word])
            continue
        parts = [LETTERS[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while pairs := [pair for pair in itertools.pairwise(parts) if pair in RANKS]:
            first, second = min(pairs, key=RANKS.__getitem__)
            merged, i = [], 0
            while i < len(parts):
                joined = tuple(parts[i : i + 2]) == (first, second)
                merged.append(first + second if joined else parts[i])
                i += 2 if joined else 1
            parts = merged
        ids += [IDS[part] for part in parts]
    ids = [*ids[:76], IDS["<|endoftext|>"]]
    return ids + [IDS["<|endoftext|>"]] * (77 - len(ids))


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_equals_openais(texts):
    np.testing.assert_array_equal(OPENAI(texts), np.array([reference(text) for text in texts]))


@pytest.mark.parametrize("cleaning", ["openai", "huggingface"])
def test_odd_strings_one_by_one(cleaning):
    """Each written form alone, between spaces, between words and doubled: 264 strings."""
    forms = ["{}", " {} ", "dog {} the", "the{}", "{}{}", "{}."]
    texts = [form.replace("{}", word) for word in [*WRITTEN, *SPECIAL] for form in forms]
    if cleaning == "openai":
        expected = [reference(text) for text in texts]
    else:
        expected = THEIRS(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    found = (OPENAI if cleaning == "openai" else OURS)(texts)
    pairs = zip(texts, found.tolist(), expected, strict=True)
    different = [text for text, ours, theirs in pairs if ours != theirs]
    assert different == []


def test_half_a_surrogate_pair():
    assert OPENAI(["dog \ud83d"]).tolist() == [reference("dog \ud83d")]
    with pytest.raises(UserError, match=r"text 1, 'dog \\ud83d', holds half a surrogate pair"):
        OURS(["the", "dog \ud83d"])


@pytest.mark.parametrize("tokenizer", [OURS, OPENAI])
def test_no_texts_and_an_empty_one(tokenizer):
    assert tokenizer([]).shape == (0, 77)
    assert tokenizer(["", "  "])[:, :3].tolist() == [[SIZE - 2, SIZE - 1, SIZE - 1]] * 2


def test_long_text_keeps_its_end_token():
    tokens = OURS(["dog " * 100])
    assert tokens.shape == (1, 77)
    assert tokens[0, 0] == IDS["<|startoftext|>"]
    assert tokens[0, 1:-1].tolist() == [IDS["dog</w>"]] * 75
    assert tokens[0, -1] == IDS["<|endoftext|>"]


def _openai_file(path, *, compressed=True, more=()):
    text = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *MERGES, *more, ""])
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    return path


def test_every_form_of_vocabulary_is_the_same(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(IDS))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
    (tmp_path / "saved").mkdir()
    THEIRS.save_pretrained(tmp_path / "saved")
    paths = [
        tmp_path / "vocab.json",
        tmp_path,
        tmp_path / "saved",
        tmp_path / "saved" / "tokenizer.json",
        _openai_file(tmp_path / "bpe_simple_vocab_16e6.txt.gz", compressed=True),
        _openai_file(tmp_path / "bpe.txt", compressed=False),
    ]
    expected = Vocabulary(tuple(IDS), tuple(MERGES))
    assert [read_vocabulary(path, SIZE) for path in paths] == [expected] * len(paths)


def test_ids_of_openai_file_are_clip_s(tmp_path):
    vocabulary = read_vocabulary(_openai_file(tmp_path / "bpe.gz", compressed=True), SIZE)
    # Three that CLIP's published vocabulary has: "a", "," and "." as whole words.
    assert Tokenizer(vocabulary, 6)(["A, ."]).tolist() == [[SIZE - 2, 320, 267, 269, SIZE - 1, SIZE - 1]]


def test_openais_file_is_cut_for_clips_tokens_alone(tmp_path):
    """It has more merges than CLIP's 49,408 tokens: of another number, MetaCLIP 2's, they are not its own."""
    letters = [chr(n) for n in range(0x4E00, 0x4E00 + 250)]
    more = [f"{first} {second}" for first in letters for second in letters]
    path = _openai_file(tmp_path / "bpe.gz", more=more)
    vocabulary = read_vocabulary(path, 49408)
    assert len(vocabulary.tokens) == 49408 and len(vocabulary.merges) == 49408 - 514
    for size in (49407, 50000, SIZE, 250100):
        with pytest.raises(UserError, match=rf"not the vocabulary of this .* {size} tokens"):
            read_vocabulary(path, size)
    assert len(read_vocabulary(path, 514 + len(MERGES) + len(more)).tokens) == 514 + len(MERGES) + len(more)


def test_json_round_trip():
    vocabulary = Vocabulary(tuple(IDS), tuple(MERGES))
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("vocab.json", "{"),
        ("vocab.json", "[]"),
        ("vocab.json", '{"a": 0, "b": 2}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": []}}'),
        ("bpe.txt", "a b c\n"),
        ("bpe.txt.gz", "\x1f"),
    ],
)
def test_no_vocabulary(tmp_path, name, contents):
    (tmp_path / "merges.txt").write_text("a b\n")
    (tmp_path / name).write_text(contents)
    with pytest.raises(UserError, match=name):
        read_vocabulary(tmp_path / name, SIZE)
    with pytest.raises(UserError):
        read_vocabulary(tmp_path / "absent.json", SIZE)
