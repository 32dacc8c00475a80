"""Learned words in files and in stock pipelines."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from selfsame.methods.stableidentity.checkpoint import read_words, write_words
from selfsame.methods.stableidentity.interop import words_added
from selfsame.models.text import encode_prompts
from selfsame.values.identity import Identity, LearnedWords
from selfsame.weights.mannequin import checked_folder

RNG = np.random.default_rng(0)


def words(*widths: int, name: str = "<ada>") -> LearnedWords:
    return LearnedWords(tuple(RNG.normal(0, 0.02, (2, d)).astype(np.float32) for d in widths or (128,)), name, "tower", {"steps": 450})


@pytest.mark.parametrize(("form", "file"), [("diffusers", "ada.safetensors"), ("a1111", "ada.pt"), ("official", "ada.pt")])
def test_they_come_back_from_every_form(form: Any, file: str, tmp_path: Path):
    a = words()
    b = read_words(write_words(a, tmp_path / file, form))
    assert np.array_equal(a.vectors[0], b.vectors[0])
    assert b.placeholder == "<ada>"
    assert [p.name for p in tmp_path.iterdir()] == [file]


def test_both_towers_of_sdxl(tmp_path: Path):
    a = words(32, 48)
    b = read_words(write_words(a, tmp_path / "ada.safetensors"))
    assert [v.shape for v in b.vectors] == [(2, 32), (2, 48)]
    with pytest.raises(ValueError, match="these have 2; choose diffusers"):
        write_words(a, tmp_path / "ada.pt", "official")


def test_the_official_file_is_a_bare_tensor(tmp_path: Path):
    path = write_words(words(1024), tmp_path / "x.pt", "official")
    value = torch.load(path, weights_only=True)
    assert value.shape == (1, 2, 1024)
    torch.save(value.requires_grad_(True), path)  # as the official code leaves it
    assert read_words(path, "<bea>").placeholder == "<bea>"


def test_an_identity_with_words_and_one_without(tmp_path: Path):
    a = words()
    path = Identity.of_words(a).save(tmp_path / "ada.safetensors")
    assert read_words(path).text_encoder == "tower"
    plain = Identity(np.zeros((1, 512), np.float32), "enc", np.zeros((1, 5, 2)), np.ones((1, 2)), ("s",)).save(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="without learned words"):
        read_words(plain)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hacked",)


def test_files_with_code_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"<ada>": Evil()}, tmp_path / "ada.pt")
    with pytest.raises(ValueError, match="perhaps code"):
        read_words(tmp_path / "ada.pt")
    assert not (tmp_path / "hacked").exists()


def test_files_without_words_are_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none.pt: no such file"):
        read_words(tmp_path / "none.pt")
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model.pt: holds no learned words"):
        read_words(tmp_path / "model.pt")
    torch.save(torch.ones(2, 3, 4, 5), tmp_path / "four.pt")
    with pytest.raises(ValueError, match=r"shape \[\(2, 3, 4, 5\)\]"):
        read_words(tmp_path / "four.pt")
    save_file({"x": torch.ones(2, dtype=torch.int32)}, tmp_path / "ints.safetensors")
    with pytest.raises(ValueError, match="holds no learned words"):
        read_words(tmp_path / "ints.safetensors")
    with pytest.raises(ValueError, match=r"name it ada.safetensors"):
        write_words(words(), tmp_path / "ada.pt", "diffusers")


@given(st.binary(max_size=200), st.sampled_from([".pt", ".safetensors", ".bin"]))
@example(b"\x80\x02X\x00", ".pt")  # a pickle cut inside a string's length
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes, ending: str):
    path = tmp_path / f"x{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x"):
        read_words(path)


# ------------------------------------------------------------------------------------------ stock pipelines


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    checked_folder("base/unet")
    made = StableDiffusionPipeline.from_pretrained(checked_folder("base/unet").parent, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_stock_pipeline_reads_the_words_as_our_own_text_states_do(pipe: StableDiffusionPipeline):
    ada, ben = words(), words(name="<ben>")
    prompt = "a photo of <ada> beside <ben> in space"
    ours = encode_prompts(pipe.tokenizer, pipe.text_encoder, [prompt], {w.placeholder: torch.from_numpy(w.vectors[0]) for w in (ada, ben)})
    with words_added(pipe, ada, ben):
        theirs, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
    assert torch.allclose(ours.encoder_hidden_states, theirs, atol=1e-6)


def test_a_pipeline_forgets_them_bit_for_bit_even_after_an_error(pipe: StableDiffusionPipeline):
    before, vocabulary = copy.deepcopy(pipe.text_encoder.state_dict()), dict(pipe.tokenizer.get_vocab())

    def fail() -> None:
        with words_added(pipe, words(), words(name="<ben>")):
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    after = pipe.text_encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert pipe.tokenizer.get_vocab() == vocabulary


def test_diffusers_itself_reads_our_file(pipe: StableDiffusionPipeline, tmp_path: Path):
    a = words()
    path = write_words(a, tmp_path / "ada.safetensors")
    pipe.load_textual_inversion(str(path))
    try:
        row = pipe.tokenizer.convert_tokens_to_ids("<ada>_1")
        assert np.array_equal(pipe.text_encoder.get_input_embeddings().weight[row].detach().numpy(), a.vectors[0][1])
    finally:
        pipe.unload_textual_inversion()


def test_a_controlnet_pipeline_takes_them_too(pipe: StableDiffusionPipeline):
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32, 64, 96))
    controlled = StableDiffusionControlNetPipeline(**pipe.components, controlnet=net)
    controlled.set_progress_bar_config(disable=True)
    drawing = torch.zeros(1, 3, 128, 128)
    with words_added(controlled, words()):
        image = controlled("a photo of <ada>", image=drawing, num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images[0]
    plain = controlled("a photo of", image=drawing, num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images[0]
    assert image.shape == (128, 128, 3)
    assert not np.array_equal(image, plain)


def test_wrong_towers_and_shared_names_are_refused(pipe: StableDiffusionPipeline):
    with pytest.raises(ValueError, match="width 1024, this base has 128"), words_added(pipe, words(1024)):
        pass
    with pytest.raises(ValueError, match="share a placeholder"), words_added(pipe, words(), words()):
        pass


def tiny_sdxl(vae: AutoencoderKL | None = None) -> StableDiffusionXLPipeline:
    """Both of SDXL's text towers at tiny size, with the goldens' tokenizer; without a VAE of eight pixels a latent nothing can be painted."""
    folder = Path(__file__).parents[1] / "goldens/stableidentity/tiny_tokenizer"
    torch.manual_seed(0)

    def tower(kind: type, width: int) -> Any:
        sizes = {"vocab_size": 646, "hidden_size": width, "projection_dim": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return kind(CLIPTextConfig(**sizes, bos_token_id=644, eos_token_id=645, pad_token_id=0))

    def tokenizer() -> CLIPTokenizer:
        return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, pad_token="!")

    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=40, attention_head_dim=2, norm_num_groups=4,
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=24 + 6 * 4,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae or AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=tower(CLIPTextModel, 16),
        text_encoder_2=tower(CLIPTextModelWithProjection, 24),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(),
    )


def test_sdxls_two_towers_take_and_forget_them():
    xl, ada = tiny_sdxl(), words(16, 24)
    before = [copy.deepcopy(t.state_dict()) for t in (xl.text_encoder, xl.text_encoder_2)]
    plain = xl.encode_prompt("a photo of", device="cpu", do_classifier_free_guidance=False)[0]
    with words_added(xl, ada):
        rows = [t.convert_tokens_to_ids("<ada>_1") for t in (xl.tokenizer, xl.tokenizer_2)]
        for tower, row, vectors in zip((xl.text_encoder, xl.text_encoder_2), rows, ada.vectors, strict=True):
            assert np.array_equal(tower.get_input_embeddings().weight[row].detach().numpy(), vectors[1])
        named = xl.encode_prompt("a photo of <ada>", device="cpu", do_classifier_free_guidance=False)[0]
        assert not torch.equal(named, plain)
    for tower, old in zip((xl.text_encoder, xl.text_encoder_2), before, strict=True):
        new = tower.state_dict()
        assert new.keys() == old.keys()
        assert all(torch.equal(new[k], old[k]) for k in old)
    assert torch.equal(xl.encode_prompt("a photo of", device="cpu", do_classifier_free_guidance=False)[0], plain)
    with pytest.raises(ValueError, match="width 16, this base has 16 and 24"), words_added(xl, words(16)):
        pass


def test_a_pipeline_that_moves_meanwhile_comes_out_whole():
    pipe = StableDiffusionPipeline.from_pretrained(checked_folder("base/unet").parent, local_files_only=True)
    size = pipe.text_encoder.get_input_embeddings().num_embeddings
    with words_added(pipe, words()):
        pipe.text_encoder.to(torch.bfloat16)
    assert {p.dtype for p in pipe.text_encoder.parameters()} == {torch.bfloat16}
    assert pipe.text_encoder.get_input_embeddings().num_embeddings == size
