"""Learning a person: resumable, deterministic, clear about bad photos. Random parser and face transformer; all else as shipped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer, SegformerConfig, SegformerForSemanticSegmentation

from selfsame.images.files import InputError, read_image
from selfsame.mannequins import paint
from selfsame.methods.stableidentity.checkpoint import write_words
from selfsame.methods.stableidentity.interop import words_added
from selfsame.methods.stableidentity.method import FreeWords, PersonTrainer, celebrity_space, name_ids
from selfsame.methods.stableidentity.samples import framed, square
from selfsame.models.text import tokenize, tower_hash
from selfsame.perception.face_vit import FaceViT
from selfsame.perception.parser import FaceParser
from selfsame.recipes import bases
from selfsame.recipes.bases import FACE_NAMES, LearnBase, mannequin_base, stable_diffusion_base
from selfsame.recipes.naming import taught_projection
from selfsame.recipes.stableidentity import AS_TAUGHT, Learning, Samples, learn, photo_of, taught_start, usual, words_modules
from selfsame.studio.studio import Studio
from selfsame.training.run import Progress
from selfsame.values.identity import LearnedWords
from tests.goldens import stableidentity_recipe as recipe
from tests.methods.test_stableidentity_files import tiny_sdxl

ADA = Path(__file__).parents[2] / "examples/ada.png"
SHORT = Learning(steps=4, batch_size=2, look_every=0)


@pytest.fixture(scope="module")
def studio() -> Studio:
    torch.manual_seed(0)
    return Studio().with_parts(parser=FaceParser().eval(), face_vit=FaceViT().eval())


@pytest.fixture(scope="module")
def base(studio: Studio) -> LearnBase:
    return mannequin_base(studio)


def test_the_photo_can_be_read_by_clip_and_by_nothing_else(base: LearnBase, tmp_path: Path):
    """The paper's ablation learns from another feature; a base that has no such tower says so."""
    face, clip = (words_of(base, tmp_path / e, replace(SHORT, steps=1, encoder=e)) for e in ("face", "clip"))
    assert face.shape == clip.shape
    assert not np.array_equal(face, clip)
    with pytest.raises(ValueError, match="encoder 'clip': mannequin has face"):
        learn(replace(base, readers={"face": base.readers["face"]}), [ADA], "<ada>", tmp_path / "none", replace(SHORT, encoder="clip"))


def words_of(base: LearnBase, folder: Path, how: Learning) -> np.ndarray:
    words = learn(base, [ADA], "<ada>", folder, how).words
    assert words is not None
    return words.vectors[0]


def test_a_resumed_learning_equals_an_uninterrupted_one(base: LearnBase, tmp_path: Path):
    whole = learn(base, [ADA], "<ada>", tmp_path / "a", SHORT)

    def stop_at_two(p: Progress) -> None:
        if p.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(base, [ADA], "<ada>", tmp_path / "b", replace(SHORT, log_every=1), on_progress=stop_at_two)
    again = learn(base, [ADA], "<ada>", tmp_path / "b", SHORT)
    assert whole.words is not None
    assert again.words is not None
    assert np.array_equal(whole.words.vectors[0], again.words.vectors[0])
    assert dict(whole.words.about) == {"base": "mannequin", "method": "stableidentity", "start": "taught", "steps": 4, "seed": 0, "sources": whole.sources[0]}
    assert whole.num_photos == 1
    assert (tmp_path / "a/samples/0000004.png").exists()


def test_another_persons_checkpoint_is_not_continued(base: LearnBase, tmp_path: Path):
    learn(base, [ADA], "<ada>", tmp_path / "a", replace(SHORT, steps=1))
    with pytest.raises(ValueError, match="holds a run on <ada>"):
        learn(base, [ADA.with_name("bo.png")], "<bo>", tmp_path / "a", SHORT)


def test_another_photo_or_setting_begins_anew_and_says_so(base: LearnBase, tmp_path: Path):
    learn(base, [ADA], "<ada>", tmp_path / "a", replace(SHORT, steps=1))
    notes: list[str] = []
    again = learn(base, [ADA], "<ada>", tmp_path / "a", replace(SHORT, seed=5), on_note=notes.append)
    assert any("begins anew" in note for note in notes)
    assert again.words is not None
    assert np.array_equal(again.words.vectors[0], words_of(base, tmp_path / "b", replace(SHORT, seed=5)))


def test_learning_leaves_the_base_untouched(studio: Studio, base: LearnBase, tmp_path: Path):
    before = {k: v.clone() for part in (studio.unet, studio.text[1], studio.vae) for k, v in part.state_dict().items()}
    learn(base, [ADA], "<ada>", tmp_path / "a", replace(SHORT, steps=1))
    after = {k: v for part in (studio.unet, studio.text[1], studio.vae) for k, v in part.state_dict().items()}
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not studio.text[1].get_input_embeddings()._forward_hooks


def test_a_taught_start_knows_the_face_before_any_step(studio: Studio, base: LearnBase, tmp_path: Path):
    """Without steps the words are what the base's projection says of the photo; a fresh start, as published, says something else."""
    none = replace(SHORT, steps=0)
    who = learn(base, [ADA], "<ada>", tmp_path / "a", none)
    assert who.words is not None
    assert (who.words.about["start"], who.words.about["steps"]) == ("taught", 0)
    with torch.no_grad():
        said = taught_projection(*studio.text)(photo_of(base, read_image(ADA), none, "ada").features[:1])[0]
    assert np.array_equal(who.words.vectors[0], said.numpy())
    fresh = learn(base, [ADA], "<ada>", tmp_path / "b", replace(none, start="fresh")).words
    untaught = learn(replace(base, taught={}), [ADA], "<ada>", tmp_path / "c", none).words
    assert fresh is not None
    assert untaught is not None
    assert fresh.about["start"] == untaught.about["start"] == "fresh"
    assert np.array_equal(fresh.vectors[0], untaught.vectors[0])
    assert not np.array_equal(fresh.vectors[0], said.numpy())


@pytest.mark.parametrize("other", [{"encoder": "clip"}, {"landing": "none"}, {"depth": 3}, {"method": "textual-inversion"}, {"start": "fresh"}])
def test_other_layers_and_features_cannot_be_taught(base: LearnBase, other: dict[str, Any]):
    assert taught_start(base, SHORT) is not None
    assert taught_start(base, replace(SHORT, **other)) is None


def test_what_is_usual_follows_from_the_start(base: LearnBase):
    assert usual(base, Learning()) is AS_TAUGHT
    assert usual(base, Learning(start="fresh")) == Learning(start="fresh")
    assert usual(base, Learning(method="textual-inversion")) == Learning(method="textual-inversion")
    assert usual(replace(base, taught={}), Learning()) == Learning()


def test_noise_is_drawn_where_it_is_asked_for(base: LearnBase):
    """Most timesteps of a narrow log-normal (a few are always drawn evenly) lie close together; the published ones everywhere."""
    photo, many = photo_of(base, read_image(ADA), SHORT, "ada"), replace(SHORT, batch_size=64)
    narrow = Samples(base, [photo], replace(many, log_sigma=(1.8, 0.01)), "<ada>").batch(0)["t"]
    even = Samples(base, [photo], many, "<ada>").batch(0)["t"]
    assert ((narrow - narrow.median()).abs() < 10).float().mean() > 0.8
    assert ((even - even.median()).abs() < 10).float().mean() < 0.2


def test_learning_a_person_does_not_change_what_was_taught(base: LearnBase, tmp_path: Path):
    first = words_of(base, tmp_path / "a", replace(SHORT, steps=0))
    assert not np.array_equal(words_of(base, tmp_path / "b", SHORT), first)
    assert np.array_equal(words_of(base, tmp_path / "c", replace(SHORT, steps=0)), first)


def test_textual_inversion_starts_at_the_celebrities_mean(studio: Studio, base: LearnBase):
    (net,), skipped = words_modules(base, 128, replace(SHORT, method="textual-inversion"))
    assert not skipped
    assert isinstance(net, FreeWords)
    space, _ = celebrity_space(*studio.text, ["ada fox", "ben stone", "cleo tanaka"])
    assert net(torch.zeros(3, 128)).shape == (3, 2, 128)
    assert net.words.shape == space.mean.shape


def test_textual_inversion_is_learned_to_its_end(base: LearnBase, tmp_path: Path):
    words = learn(base, [ADA], "<ada>", tmp_path / "a", replace(SHORT, steps=2, method="textual-inversion")).words
    assert words is not None
    assert words.about["start"] == "fresh"
    assert words.vectors[0].shape == (2, 128)


def test_names_that_are_not_two_tokens_are_skipped_and_told(studio: Studio):
    ids, skipped = name_ids(studio.text[0], ["ada fox", "ada", "ada fox stone", "ben stone"])
    assert ids.shape == (2, 2)
    assert skipped == ("ada", "ada fox stone")


def test_samples_depend_on_the_step_alone(base: LearnBase):
    photo = photo_of(base, read_image(ADA), Learning(), "ada")
    a, b = (Samples(base, [photo], SHORT, "<ada>") for _ in range(2))
    one, two = a.batch(7), b.batch(7)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["noisy"], a.batch(8)["noisy"])
    assert one["face_mask"].shape == (2, 1, 16, 16)
    assert a.shown(4).shape == (512, 256, 3)


def test_several_photos_are_averaged_or_taken_in_turn(base: LearnBase):
    photos = [photo_of(base, read_image(ADA.with_name(f"{n}.png")), Learning(), n) for n in ("ada", "bo")]
    mean = Samples(base, photos, replace(SHORT, batch_size=8), "<ada>").batch(0)["features"]
    each = Samples(base, photos, replace(SHORT, batch_size=8, features="one"), "<ada>").batch(0)["features"]
    assert len(mean.unique(dim=0)) <= 2 < len(each.unique(dim=0))


def test_a_face_is_framed_inside_its_picture(studio: Studio):
    image = read_image(ADA)
    (found,) = studio.faces(image)
    wide = np.concatenate([np.zeros_like(image), image], 1)
    moved = replace(found, box=found.box + np.array([128, 0, 128, 0]), kps=found.kps + np.array([128, 0]))
    assert framed(wide, moved.box).shape == (128, 128, 3)
    assert np.abs(framed(wide, moved.box).astype(int) - framed(image, found.box).astype(int)).mean() < 3


def test_faces_too_small_to_learn_from_are_refused(base: LearnBase):
    image = read_image(ADA)
    canvas = np.full((128, 128, 3), 128, np.uint8)
    canvas[20:100, 24:104] = square(image, 80)
    with pytest.raises(InputError, match="too small to learn from"):
        photo_of(base, canvas, Learning(), "far.png")
    with pytest.raises(InputError, match="no face was found"):
        photo_of(base, np.full((128, 128, 3), 90, np.uint8), Learning(), "wall.png")


def test_the_parser_has_the_pictures_size_and_a_persons_parts(studio: Studio):
    from selfsame.perception.parser import PARSED, overlap, parse

    assert parse(studio.parser, np.zeros((100, 52, 3), np.uint8)).shape == (100, 52)
    truth = np.array([[[paint.SKIN, paint.SKIN, paint.HAIR, 0]]])
    scores = overlap(np.array([[[paint.SKIN, 0, paint.HAIR, 0]]]), truth)
    assert scores["skin"] == 0.5
    assert scores["hair"] == 1
    assert np.isnan(scores["hat"])
    assert len(PARSED) == 12


def test_the_run_says_what_it_was(base: LearnBase, tmp_path: Path):
    learn(base, [ADA], "<ada>", tmp_path / "a", replace(SHORT, steps=1))
    said = json.loads((tmp_path / "a/run.json").read_text())
    assert said["decay"] == "constant"
    assert said["betas"] == [0.9, 0.999]


# ------------------------------------------------------------------------------------------ Stable Diffusion at tiny size


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Stable Diffusion folder, a face transformer, a parser and a list of names, as their libraries save them, with random weights."""
    root = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tokens = Path(__file__).parents[1] / "goldens/stableidentity/tiny_tokenizer"
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=recipe.text_encoder(),
        tokenizer=CLIPTokenizer(str(tokens / "vocab.json"), str(tokens / "merges.txt"), model_max_length=77, pad_token="!"),
        unet=recipe.unet(),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(root / "sd")
    index = root / "sd/model_index.json"  # as the released folder has it, of which only what is used is fetched
    index.write_text(json.dumps(json.loads(index.read_text()) | {"feature_extractor": ["transformers", "CLIPImageProcessor"]}))
    recipe.vit().save_pretrained(root / "vit")
    labels = dict(enumerate(("background", *FACE_NAMES, "hair", "cloth")))
    sizes = {"hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1], "depths": [1, 1, 1, 1], "decoder_hidden_size": 8}
    parser = SegformerForSemanticSegmentation(SegformerConfig(**sizes, id2label=labels, label2id={n: i for i, n in labels.items()}))
    torch.nn.init.constant_(parser.decode_head.classifier.bias[1:2], 9.0)  # skin everywhere
    parser.save_pretrained(root / "parser")
    (root / "names.txt").write_text("\n".join(recipe.MANIFEST["names12"]))
    return {"folder": root / "sd", "face_vit": root / "vit", "parser": root / "parser", "names": root / "names.txt"}


def test_a_person_is_learned_for_stable_diffusion_and_the_official_file_comes_out(folders: dict[str, Path], tmp_path: Path):
    heard: list[str] = []
    base = stable_diffusion_base(**folders, side=64)
    who = learn(base, [ADA], "<ada>", tmp_path / "run", SHORT, on_note=heard.append)
    assert who.words is not None
    assert who.words.vectors[0].shape == (2, 32)
    assert "2 of 12 celebrities' names are not 2 tokens" in " ".join(heard)
    write_words(who.words, tmp_path / "ada.pt", "official")
    assert torch.load(tmp_path / "ada.pt", weights_only=True).shape == (1, 2, 32)
    assert (tmp_path / "run/samples/0000004.png").exists()


def test_photos_for_stable_diffusion_are_aligned_where_face_models_find_the_face(
    folders: dict[str, Path], studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Wherever in the picture the face is, the same square comes out; the miniature's detector stands for the real ones."""
    monkeypatch.setattr(bases, "reader_of", lambda folder, providers=(): studio.faces)
    base, plain = stable_diffusion_base(**folders, face_models=tmp_path, side=64), stable_diffusion_base(**folders, side=64)
    image = np.repeat(np.repeat(read_image(ADA), 2, 0), 2, 1)
    beside = np.concatenate([np.full_like(image, 90), image], 1)
    assert np.abs(base.frame(beside, "me.jpg").astype(int) - base.frame(image, "me.jpg").astype(int)).mean() < 12
    assert np.abs(plain.frame(beside, "me.jpg").astype(int) - base.frame(image, "me.jpg").astype(int)).mean() > 30
    assert base.notes(image, "me.jpg") == ()
    assert "--face-models" in plain.notes(image, "me.jpg")[0]
    with pytest.raises(InputError, match=r"me.jpg: no face was found"):
        base.frame(np.full_like(image, 90), "me.jpg")
    small = replace(studio.faces(image)[0], box=np.array([20.0, 20, 60, 70]))
    monkeypatch.setattr(bases, "reader_of", lambda folder, providers=(): lambda image: [small, small])
    base = stable_diffusion_base(**folders, face_models=tmp_path, side=64)
    assert base.notes(image, "me.jpg") == ("me.jpg: 2 faces, the largest is used",)
    with pytest.raises(InputError, match=r"me.jpg: the face is 40 pixels wide"):
        base.frame(image, "me.jpg")
    cut = replace(small, box=np.array([-40.0, 20, 120, 200]))
    monkeypatch.setattr(bases, "reader_of", lambda folder, providers=(): lambda image: [cut])
    with pytest.raises(InputError, match=r"me.jpg: the face is cut by the border"):
        stable_diffusion_base(**folders, face_models=tmp_path, side=64).frame(image, "me.jpg")


def test_a_person_is_learned_for_both_towers_of_sdxl_and_drives_its_stock_pipeline(folders: dict[str, Path], tmp_path: Path):
    tiny_sdxl(tiny_vae()).save_pretrained(tmp_path / "xl")
    base = stable_diffusion_base(**{**folders, "folder": tmp_path / "xl"})
    assert base.side == 64
    who = learn(base, [ADA], "<ada>", tmp_path / "run", SHORT)
    assert who.words is not None
    assert [v.shape for v in who.words.vectors] == [(2, 16), (2, 24)]
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "xl")
    assert who.words.text_encoder == tower_hash(pipe.text_encoder, pipe.text_encoder_2)
    pipe.set_progress_bar_config(disable=True)

    def painted(prompt: str) -> np.ndarray:
        return pipe(prompt, num_inference_steps=1, output_type="np", generator=torch.Generator().manual_seed(0)).images[0]

    with words_added(pipe, who.words):
        ada = painted("a photo of <ada>")
    assert not np.array_equal(ada, painted("a photo of somebody"))


def test_a_base_saved_in_half_precision_is_learned_for_in_full(folders: dict[str, Path], tmp_path: Path):
    """As SDXL's files are: some libraries would keep the towers in half and the U-Net in full."""
    half = tiny_sdxl(tiny_vae()).to(torch.float16)
    half.save_pretrained(tmp_path / "xl")
    base = stable_diffusion_base(**{**folders, "folder": tmp_path / "xl"})
    assert {p.dtype for part in (base.unet, base.vae, *(e for _, e in base.towers)) for p in part.parameters()} == {torch.float32}
    who = learn(base, [ADA], "<ada>", tmp_path / "run", replace(SHORT, look_every=0))
    assert who.words is not None
    assert who.words.text_encoder == tower_hash(half.text_encoder, half.text_encoder_2)


def test_both_towers_words_learn_and_nothing_else_does(folders: dict[str, Path], tmp_path: Path):
    """Gradients reach the words of either tower; the trained call is SDXL's own with those words in the prompt."""
    xl = tiny_sdxl(tiny_vae())
    xl.save_pretrained(tmp_path / "xl")
    base = stable_diffusion_base(**{**folders, "folder": tmp_path / "xl"})
    words, _ = words_modules(base, 48, SHORT)
    trainer = PersonTrainer(words, [e for _, e in base.towers], base.unet)
    ids = torch.stack([tokenize(t, ["a photo of <ada>"], {"<ada>": 2}).ids for t, _ in base.towers], 1)
    noisy, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    out = trainer(noisy, t, torch.randn(1, 48), ids, torch.tensor([4]))
    out.square().sum().backward()
    for module in words:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert all(p.grad is None for p in (*base.unet.parameters(), *(q for _, e in base.towers for q in e.parameters())))
    with pytest.raises(ValueError, match="1 word modules for 2 text towers"):
        PersonTrainer(words[:1], [e for _, e in base.towers], base.unet)
    said = FreeWords(celebrity_space(*base.towers[0], base.names)[0]), FreeWords(celebrity_space(*base.towers[1], base.names)[0])
    plain = PersonTrainer(said, [e for _, e in base.towers], base.unet)
    vectors = tuple(v.detach().numpy() for v in plain.vectors(torch.zeros(1, 48)))
    who = LearnedWords(vectors, "<ada>", "")
    with words_added(xl, who), torch.no_grad():
        states, _, pooled, _ = xl.encode_prompt("a photo of <ada>", do_classifier_free_guidance=False)
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
        theirs = xl.unet(noisy, t, encoder_hidden_states=states, added_cond_kwargs=added).sample
        ours = plain(noisy, t, torch.zeros(1, 48), ids, torch.tensor([4]))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_folders_that_are_no_such_models_are_refused(folders: dict[str, Path], tmp_path: Path):
    with pytest.raises(InputError, match="no such folder for the face parser"):
        stable_diffusion_base(**{**folders, "parser": tmp_path / "none"})
    with pytest.raises(InputError, match="give the folder of the face transformer"):
        stable_diffusion_base(**{**folders, "face_vit": tmp_path})
    pickled = tmp_path / "pickled"  # as the catalogue's is laid out
    pickled.mkdir()
    shutil.copy(folders["face_vit"] / "config.json", pickled)
    torch.save(load_file(folders["face_vit"] / "model.safetensors"), pickled / "pytorch_model.bin")
    stable_diffusion_base(**{**folders, "face_vit": pickled})
    with pytest.raises(InputError, match="holds a segformer, not the face transformer"):
        stable_diffusion_base(**{**folders, "face_vit": folders["parser"]})
    with pytest.raises(InputError, match="no such file; give a text file"):
        stable_diffusion_base(**{**folders, "names": tmp_path / "none.txt"})
