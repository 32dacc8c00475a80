"""The small vocabulary is a standard tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from selfsame.mannequins.people import FIRST_NAMES, LAST_NAMES
from selfsame.mannequins.world import sample
from selfsame.models.mannequin import MAX_TOKENS
from selfsame.models.text import tokenize
from selfsame.models.tokens import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokens")
    captions = [sample("train", i).caption for i in range(300)]
    names = [f"{a} {b}" for a in FIRST_NAMES for b in LAST_NAMES]
    train_tokenizer([*captions, *names, *names], 1500, folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_every_name_is_one_token(tokenizer: CLIPTokenizer):
    for name in (*FIRST_NAMES, *LAST_NAMES):
        assert len(tokenizer(name, add_special_tokens=False)["input_ids"]) == 1, name


def test_text_comes_back(tokenizer: CLIPTokenizer):
    ids = tokenizer("a watercolour of ada fox on a beach", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == "a watercolour of ada fox on a beach"


def test_rows_are_padded_and_what_is_cut_is_told(tokenizer: CLIPTokenizer):
    ids, cut = tokenize(tokenizer, ["a person", "", "beach " * 100])
    assert ids.shape == (3, MAX_TOKENS)
    assert cut[0] == cut[1] == ""
    assert cut[2].split().count("beach") == 100 - (MAX_TOKENS - 2)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids[1, 1:] == tokenizer.eos_token_id).all()
