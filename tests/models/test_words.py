"""The small vocabulary is a standard tokenizer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from selfsame.mannequins.people import FIRST_NAMES, LAST_NAMES
from selfsame.mannequins.world import sample
from selfsame.models.mannequin import MAX_TOKENS
from selfsame.models.text import FILLER, encode_prompts, tokenize, tower_hash
from selfsame.models.tokens import train_tokenizer
from selfsame.weights.mannequin import load_text


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
    tokens = tokenize(tokenizer, ["a person", "", "beach " * 100])
    ids, cut = tokens.ids, tokens.cut
    assert ids.shape == (3, MAX_TOKENS)
    assert cut[0] == cut[1] == ""
    assert cut[2].split().count("beach") == 100 - (MAX_TOKENS - 2)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids[1, 1:] == tokenizer.eos_token_id).all()


def test_learned_words_take_their_places_and_nothing_after_them_is_lost(tokenizer: CLIPTokenizer):
    plain = tokenize(tokenizer, ["a photo of ada fox in space"])
    learned = tokenize(tokenizer, ["a photo of <ada> in space"], {"<ada>": 2, "<ben>": 2})
    assert [p[2:] for p in learned.places] == [("<ada>", 0), ("<ada>", 1)]
    names = [p[1] for p in learned.places]
    others = [i for i in range(MAX_TOKENS) if i not in names]
    assert torch.equal(plain.ids[0, others], learned.ids[0, others])
    assert (learned.ids[0, names] == FILLER).all()


def test_a_person_is_never_cut_in_two(tokenizer: CLIPTokenizer):
    tokens = tokenize(tokenizer, ["beach " * (MAX_TOKENS - 3) + "<ada> in space"], {"<ada>": 2})
    assert tokens.places == ()
    assert tokens.cut == ("<ada> in space",)
    assert tokens.ids.shape == (1, MAX_TOKENS)


def test_a_celebritys_own_vectors_as_learned_words_are_that_celebrity():
    """The same sentence through the name's tokens and through their rows put in as words: bit for bit the same states."""
    tokenizer, encoder = load_text()
    table = encoder.get_input_embeddings().weight
    ids = tokenizer("ada fox", add_special_tokens=False)["input_ids"]
    named = encode_prompts(tokenizer, encoder, ["a photo of ada fox in space", "a mug"])
    learned = encode_prompts(tokenizer, encoder, ["a photo of <x> in space", "a mug"], {"<x>": table[ids]})
    assert torch.equal(named.encoder_hidden_states, learned.encoder_hidden_states)
    assert torch.equal(named.encoder_hidden_states, encode_prompts(tokenizer, encoder, ["a photo of ada fox in space", "a mug"]).encoder_hidden_states)


def test_a_tower_is_known_by_its_table():
    _, encoder = load_text()
    known = tower_hash(encoder)
    other = copy.deepcopy(encoder)
    assert tower_hash(other.half()) == known
    assert tower_hash(encoder, encoder) != known
    other.get_input_embeddings().weight[3, 5] += 1
    assert tower_hash(other) != known
