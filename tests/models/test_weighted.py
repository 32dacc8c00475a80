"""Weighted and long prompts: the official parser's items exactly, and what weights and windows promise."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from selfsame.models.weighted import WINDOW, encode_weighted, encode_windows, parse_weights, weighted_ids
from tests.goldens import recipe

CASES = json.loads((recipe.FOLDER / "u06_prompt_parser.json").read_text())


@pytest.mark.parametrize("prompt", CASES)
def test_u06_the_official_items(prompt: str):
    assert [list(item) for item in parse_weights(prompt)] == CASES[prompt]


@given(st.text(alphabet="ab ()[]:\\.1,BREAK", max_size=40))
def test_any_text_is_read_and_neighbours_differ(prompt: str):
    items = parse_weights(prompt)
    assert items
    assert all(a[1] != b[1] for a, b in pairwise(items))


@given(st.text(alphabet="abc ,.:!", max_size=30))
def test_text_without_brackets_stays_as_it_is(prompt: str):
    assert parse_weights(prompt) == [(prompt, 1.0)]


class Words:
    """A tokenizer of whole words."""

    bos_token_id, eos_token_id = 98, 99

    def __call__(self, text: str, truncation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[98, *(99 if w == "END" else sum(map(ord, w)) % 97 for w in text.split()), 99])


@pytest.fixture(scope="module")
def encoders() -> list:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, projection_dim=12, bos_token_id=98, eos_token_id=99
    )
    return [CLIPTextModel(config).eval(), CLIPTextModelWithProjection(config).eval()]


def test_stable_diffusion_1_reads_a_short_prompt_as_a_stock_pipeline_does_and_a_long_one_in_windows(encoders: list):
    tower = encoders[0]
    told, against = encode_windows(Words(), tower, ["a red hat", "b"], ["", "c"])
    assert told.shape == against.shape == (2, 77, 16)
    ids = torch.tensor([[98, *Words()("a red hat").input_ids[1:-1], *[99] * 73]])
    with torch.no_grad():
        assert torch.allclose(told[:1], tower(ids).last_hidden_state, atol=1e-6)
    heavy, _ = encode_windows(Words(), tower, ["a (red:1.5) hat", "b"], ["", "c"])
    assert not torch.allclose(heavy[0], told[0], atol=1e-3)
    assert torch.allclose(heavy[1], told[1], atol=1e-6)
    long, short = encode_windows(Words(), tower, [" ".join("abcdefgh"[i % 8] for i in range(80))], ["c"])
    assert long.shape == short.shape == (1, 154, 16)
    alone, _ = encode_windows(Words(), tower, ["c"], [""])
    assert torch.allclose(short[:, :77], alone, atol=1e-6)


def test_a_window_is_filled_with_the_tokenizers_own_filler(encoders: list):
    class Padding(Words):
        pad_token_id = 0

    told, _ = encode_windows(Padding(), encoders[0], ["a red hat"], [""])
    ids = torch.tensor([[98, *Words()("a red hat").input_ids[1:-1], 99, *[0] * 72]])
    with torch.no_grad():
        assert torch.allclose(told, encoders[0](ids).last_hidden_state, atol=1e-6)


def test_a_learned_word_stands_in_its_window(encoders: list):
    word, another = torch.randn(2, 2, 16)
    told, _ = encode_windows(Words(), encoders[0], ["a <x> hat", " ".join("abcdefgh"[i % 8] for i in range(74)) + " <x>"], ["", ""], {"<x>": word})
    other, _ = encode_windows(Words(), encoders[0], ["a <x> hat", " ".join("abcdefgh"[i % 8] for i in range(74)) + " <x>"], ["", ""], {"<x>": another})
    assert torch.equal(told[0, :2], other[0, :2])  # before it nothing changes
    assert not torch.allclose(told[0, 2:], other[0, 2:], atol=1e-3)
    assert torch.equal(told[1, :77], other[1, :77])  # it moved whole into the second window
    assert not torch.allclose(told[1, 78:], other[1, 78:], atol=1e-3)


def test_weight_1_is_the_plain_prompt_and_others_move_away_from_the_end(encoders: list):
    plain, _ = encode_weighted(Words(), encoders, "a red hat")
    ones, _ = encode_weighted(Words(), encoders, "a (red:1.0) hat")
    heavy, _ = encode_weighted(Words(), encoders, "a (red:1.5) hat")
    assert torch.equal(plain.encoder_hidden_states, ones.encoder_hidden_states)
    e, h = plain.encoder_hidden_states[0], heavy.encoder_hidden_states[0]
    assert torch.allclose(h[2], e[-1] + 1.5 * (e[2] - e[-1]), atol=1e-5)
    assert torch.equal(h[1], e[1])
    assert plain.encoder_hidden_states.shape == (1, 5, 32)
    assert plain.pooled.shape == (1, 12)


@pytest.mark.parametrize(("count", "tokens"), [(74, 76), (75, 79), (76, 80), (150, 156)])
def test_long_prompts_are_read_in_windows(encoders: list, count: int, tokens: int):
    told, against = encode_weighted(Words(), encoders, " ".join("abcdefghij"[i % 10] for i in range(count)), "bad")
    assert told.encoder_hidden_states.shape[1] == against.encoder_hidden_states.shape[1] == tokens
    first, _ = encode_weighted(Words(), encoders, " ".join("abcdefghij"[i % 10] for i in range(min(count, 75))))
    window = min(count + 2, 77)
    assert torch.allclose(told.encoder_hidden_states[:, :window], first.encoder_hidden_states[:, :window], atol=1e-5)


def test_ids_carry_the_weight_of_their_piece():
    ids, weights, places = weighted_ids(Words(), "one (two three:1.2) four")
    assert len(ids) == 4
    assert not places
    assert weights == [1.0, 1.2, 1.2, 1.0]


@pytest.mark.parametrize("before", [0, 3, 73, 74, 75, 76, 149])
def test_learned_words_weigh_like_others_and_stand_in_one_window(encoders: list, before: int):
    """Rows of a tower's own table as learned words say what those tokens say, whatever their weight and wherever they stand."""
    tables = [e.get_input_embeddings().weight.detach() for e in encoders]
    own = [int(i) for i in Words()("red hat").input_ids[1:-1]]
    words = {"<x>": tuple(table[own] for table in tables)}
    text = " ".join("abcdefghij"[i % 10] for i in range(before))
    ids, weights, places = weighted_ids(Words(), f"{text} (<x>:1.4) b", {"<x>": 2})
    at = [position for position, *_ in places]
    assert at[1] == at[0] + 1
    assert at[0] // WINDOW == at[1] // WINDOW
    assert [weights[i] for i in at] == [1.4, 1.4]
    assert len(ids) == before + 3 + (1 if before % WINDOW == WINDOW - 1 else 0)
    learned, _ = encode_weighted(Words(), encoders, f"{text} (<x>:1.4) b", "c", words)
    fill = "END " if before % WINDOW == WINDOW - 1 else ""  # the window's rest
    plain, _ = encode_weighted(Words(), encoders, f"{text} {fill}(red hat:1.4) b", "c")
    assert torch.allclose(learned.encoder_hidden_states, plain.encoder_hidden_states, atol=1e-6)
    assert torch.allclose(learned.pooled, plain.pooled, atol=1e-6)


def test_more_words_than_a_window_holds_are_refused():
    with pytest.raises(ValueError, match="76 words"):
        weighted_ids(Words(), "a <x>", {"<x>": 76})
