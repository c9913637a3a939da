"""The tokenizer, against transformers' on a vocabulary made here."""

import gzip
import json

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax.errors import UserError
from inti_jax.models.tokenizer import Tokenizer, Vocabulary, read_vocabulary
from tests.pretrained import checkpoints

IDS, MERGES = checkpoints.vocabulary()
SIZE = len(IDS)
OURS = Tokenizer(Vocabulary(tuple(IDS), tuple(MERGES)), 77)
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
]
WORDS = st.sampled_from(SPACES + SPECIAL + WRITTEN)
TEXTS = st.text() | st.lists(WORDS | st.text(max_size=3), max_size=60).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_equals_transformers(texts):
    theirs = THEIRS(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    np.testing.assert_array_equal(OURS(texts), np.array(theirs))


def test_long_text_keeps_its_end_token():
    tokens = OURS(["dog " * 100])
    assert tokens.shape == (1, 77)
    assert tokens[0, 0] == IDS["<|startoftext|>"]
    assert tokens[0, 1:-1].tolist() == [IDS["dog</w>"]] * 75
    assert tokens[0, -1] == IDS["<|endoftext|>"]


def _openai_file(path, *, compressed):
    """More merges than the model has tokens for, as in OpenAI's file."""
    text = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *MERGES, "q q", "qq q</w>", ""])
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
