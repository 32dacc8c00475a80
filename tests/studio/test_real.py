"""Photographs: folders of the official layout at tiny size through the same requests, and the same numbers as a stock pipeline."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import selfsame
from selfsame.adapters.processors import cross_attention_paths
from selfsame.cli.main import main
from selfsame.images.draw import draw_kps
from selfsame.images.files import InputError, read_image, read_metadata, write_image
from selfsame.methods.instantid.checkpoint import dtypes_of, instantid_to_official, read_adapter
from selfsame.methods.instantid.interop import face_in
from selfsame.models.text import tower_hash
from selfsame.models.weighted import encode_weighted
from selfsame.perception import real_faces
from selfsame.perception.zeroshot import PHRASES
from selfsame.studio import real
from selfsame.studio.batches import Into, read_manifest, run_batch
from selfsame.studio.memory import PLANS, SPARE, needed
from selfsame.studio.orders import KEEPS, Order
from selfsame.studio.painting import Painter
from selfsame.studio.people import lent_embedding
from selfsame.studio.places import Person
from selfsame.studio.ready import jobs_of
from selfsame.studio.real import Folders, RealStudio
from selfsame.studio.request import MANNEQUIN, Limits, Request, Strengths
from selfsame.values.identity import Identity, LearnedWords, mixed
from selfsame.weights.mannequin import checked_folder
from tests.goldens import recipe
from tests.methods.test_instantid_interop import SD15, filled
from tests.perception.test_real_faces import TinyArcFace, TinyScrfd, exported

PROMPT = "a (photo:1.3) of a person in a garden"


def saved_base(folder: Path, unet: UNet2DConditionModel, towers: int) -> None:
    tokenizer = checked_folder("base/tokenizer")
    config = CLIPTextConfig(
        vocab_size=1500, hidden_size=64 // towers, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=77,
        projection_dim=32, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    vae = recipe.fill(AutoencoderKL(**recipe.VAE), "vae")
    assert isinstance(vae, AutoencoderKL)
    vae.save_pretrained(folder / "vae")
    EulerDiscreteScheduler(**recipe.EULER).save_pretrained(folder / "scheduler")
    for k in range(towers):
        ending = f"_{k + 1}" if k else ""
        torch.manual_seed(k)
        (CLIPTextModelWithProjection if k else CLIPTextModel)(config).save_pretrained(folder / f"text_encoder{ending}")
        shutil.copytree(tokenizer, folder / f"tokenizer{ending}")
    (folder / "model_index.json").write_text('{"force_zeros_for_empty_prompt": true}')


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("real")
    unet = recipe.fill(UNet2DConditionModel(**recipe.UNET), "unet")
    assert isinstance(unet, UNet2DConditionModel)
    saved_base(root / "sdxl", unet, 2)
    instantid_to_official(filled(unet), root / "InstantID")
    models = root / "antelopev2"
    models.mkdir()
    torch.manual_seed(0)
    exported(TinyScrfd(), 640, models / "det.onnx", free=True)
    exported(TinyArcFace(), 112, models / "rec.onnx")
    return Folders(root / "sdxl", root / "InstantID", models)


@pytest.fixture(autouse=True)
def few_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_faces, "SCORE", 0.955)  # random weights see faces everywhere


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = cv2.resize(read_image(Path(__file__).parents[2] / "examples/ada.png"), (480, 640))
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    return write_image(tmp_path_factory.mktemp("photo") / "me.png", noisy)


@pytest.fixture(scope="module")
def studio(folders: Folders) -> RealStudio:
    return RealStudio(folders)


def test_the_same_numbers_as_a_stock_pipeline(studio: RealStudio, photo: Path):
    who = studio.identity(photo)
    request = Request(prompt=PROMPT, height=64, width=96, num_steps=3, solver="euler", guidance_scale=4.0, adapter_scale=0.8, controlnet_scale=0.7, seed=5)
    ours = studio.generate(request, who)[0].pixels
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    parts |= {"unet": studio.unet, "vae": studio.vae, "scheduler": studio.scheduler("euler"), "controlnet": studio.instantid.identity_net}
    pipe = diffusers.StableDiffusionXLControlNetPipeline(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    told, against = encode_weighted(studio.tokenizer, studio.encoders, PROMPT, "")
    kps = studio.pose_of(photo).in_picture(64, 96)
    with face_in(pipe, studio.instantid, who.embeddings[0], ip_scale=0.8):
        theirs = pipe(
            prompt_embeds=told.encoder_hidden_states, pooled_prompt_embeds=told.pooled, negative_prompt_embeds=torch.zeros_like(against.encoder_hidden_states),
            negative_pooled_prompt_embeds=torch.zeros_like(against.pooled), image=Image.fromarray(draw_kps(64, 96, kps)), controlnet_conditioning_scale=0.7,
            num_inference_steps=3, guidance_scale=4.0, latents=torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(5))[None], output_type="np",
        ).images[0]  # fmt: skip
    assert np.abs(ours.astype(int) - (theirs * 255).round()).max() <= 1


def test_without_a_size_the_picture_has_the_photos_shape_and_like_repeats_it(
    folders: Folders, studio: RealStudio, photo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(real, "LONGEST", {1024: 256})
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    where = ["--base", str(folders.base), "--instantid", str(folders.instantid), "--face-models", str(folders.face_models)]
    assert main(["generate", "--model", "instantid-sdxl", *where, "--face", str(photo), "--num-steps", "1", "--out", str(out)]) == 0
    assert read_image(out).shape == (256, 192, 3)
    assert main(["generate", "--like", str(out), "--out", str(again)]) == 0
    assert np.array_equal(read_image(out), read_image(again))


def test_a_face_is_read_from_the_photo_at_the_official_size(studio: RealStudio, photo: Path):
    assert studio.identity(photo).sizes.tolist() == [[1280, 960]]
    with pytest.raises(InputError, match="too long and thin"):
        studio.as_read(np.zeros((40, 2000, 3), np.uint8))


def test_long_prompts_negatives_and_no_face_work(studio: RealStudio):
    request = Request(prompt="a photo of a person in a garden, " * 12, negative_prompt="(dark:1.4)", height=64, width=64, num_steps=1)
    assert studio.generate(request)[0].pixels.shape == (64, 64, 3)


def test_several_photos_are_averaged_or_joined(studio: RealStudio, photo: Path):
    who = studio.identity(photo, photo)
    mean, joint = (lent_embedding(who, studio.reader.name, how, studio.device) for how in ("mean", "joint"))
    assert mean.shape == (1, 1, 512)
    assert joint.shape == (1, 2, 512)
    assert abs(float(mean.norm()) - 1) > 0.1  # raw


@pytest.fixture(scope="module")
def own_sd15(tmp_path_factory: pytest.TempPathFactory, folders: Folders) -> RealStudio:
    tmp_path = tmp_path_factory.mktemp("sd15")
    unet = recipe.fill(UNet2DConditionModel(**SD15), "unet15")
    assert isinstance(unet, UNet2DConditionModel)
    saved_base(tmp_path / "sd15", unet, 1)
    instantid_to_official(filled(unet), tmp_path / "own")
    (tmp_path / "own/selfsame.json").write_text('{"encoder": "antelopev2"}')
    studio = selfsame.load("instantid-sd15", base=tmp_path / "sd15", instantid=tmp_path / "own", face_models=folders.face_models)
    assert isinstance(studio, RealStudio)
    return studio


def test_stable_diffusion_15_takes_an_instantid_that_somebody_trained(own_sd15: RealStudio, photo: Path):
    studio = own_sd15
    made = studio.generate(Request(prompt="a photo of a person", height=64, width=64, num_steps=1), studio.identity(photo))[0]
    assert made.pixels.shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["sdxl", "sd15"])
def test_pictures_share_a_batch_where_the_device_has_room_and_are_what_they_are_alone(
    kind: str, studio: RealStudio, own_sd15: RealStudio, photo: Path, monkeypatch: pytest.MonkeyPatch
):
    """Other people, strengths and prompts of one length in one batch; a longer prompt, which would fill the others', waits for its own."""
    base = studio if kind == "sdxl" else own_sd15
    who = base.identity(photo)
    other = replace(who, embeddings=who.embeddings[:, ::-1].copy())
    quick = Request(height=64, width=64, num_steps=2)
    asked = [
        (replace(quick, prompt="a photo of a person", seed=1), who), (replace(quick, prompt="a drawing of a mug", seed=2), None),
        (replace(quick, prompt="a photo of one person, " * 30, seed=3), who), (replace(quick, prompt="a photo of a person", seed=4, adapter_scale=0.2), other),
        (replace(quick, prompt="a photo of a person", seed=5, negative_prompt="a mug"), who),
    ]  # fmt: skip
    alone = [base.generate(request, person)[0].pixels for request, person in asked]
    assert base.together == 1
    monkeypatch.setattr(RealStudio, "most_together", {"cpu": 5})
    sizes: list[int] = []
    paint = Painter.paint
    monkeypatch.setattr(Painter, "paint", lambda self, rows, *args, **more: sizes.append(len(rows)) or paint(self, rows, *args, **more))
    jobs = [job for request, person in asked for job in base.jobs(request, person)]
    for i, made in base.paint_jobs(jobs):
        assert np.abs(made.pixels.astype(int) - alone[i]).max() <= 1
    assert sorted(sizes) == [1, 4]
    large = replace(quick, height=512, width=512).sized(base.limits)
    monkeypatch.setattr(base, "_free", 1 + int(max(needed(base.sizes, PLANS["high"], 512, 512, 2, 99).values()) / SPARE))  # nothing but one fits
    assert base.planned(large, 99)[0].name == "high"
    assert base.together == 1


def test_fast_computes_in_bf16_where_that_pays_and_exact_stays_what_it_was(folders: Folders, photo: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(real, "fast_bf16", lambda: True)
    studio = RealStudio(folders)
    who = studio.identity(photo)
    exact = Request(prompt="a photo of a person", height=64, width=64, num_steps=2)
    before = studio.generate(exact, who)[0].pixels
    quick = studio.generate(replace(exact, speed="fast"), who)[0].pixels
    assert {p.dtype for p in (*studio.unet.parameters(), *studio.instantid.parameters())} == {torch.bfloat16}
    assert {p.dtype for p in studio.vae.parameters()} == {torch.float32}
    assert 0 < np.abs(quick.astype(int) - before).mean() < 20
    words = Identity.of_words(names_own_words(RealStudio(folders), "ada fox"))
    assert studio.generate(replace(exact, speed="fast", prompt="a photo of <x>"), words)[0].pixels.shape == (64, 64, 3)
    assert np.array_equal(studio.generate(exact, who)[0].pixels, before)
    assert {p.dtype for p in studio.unet.parameters()} == {torch.float32}
    jobs = [job for speed in ("fast", "exact") for job in studio.jobs(replace(exact, speed=speed), who)]
    each = dict(studio.paint_jobs(jobs))
    assert np.array_equal(each[0].pixels, quick), "each request in its own precision, also beside others"
    assert np.array_equal(each[1].pixels, before)
    said = RealStudio(folders, dtype=torch.float32)
    said.generate(replace(exact, speed="fast"), who)
    assert {p.dtype for p in said.unet.parameters()} == {torch.float32}, "what somebody said stays"
    with pytest.raises(InputError, match="did you mean 'bf16'"):
        selfsame.load("instantid-sdxl", base=folders.base, precision="bf61")


def test_strengths_are_the_official_ones_unless_somebody_says_others(own_sd15: RealStudio, photo: Path):
    who = own_sd15.identity(photo)
    quick = Request(prompt="a photo of a person", height=64, width=64, num_steps=1)
    usual, said, whole = (
        own_sd15.generate(r, who)[0] for r in (quick, replace(quick, adapter_scale=0.8, controlnet_scale=0.8), replace(quick, adapter_scale=1.0))
    )
    assert (usual.request.adapter_scale, usual.request.controlnet_scale) == (0.8, 0.8)
    assert np.array_equal(usual.pixels, said.pixels)
    assert not np.array_equal(usual.pixels, whole.pixels)
    assert Request().sized(MANNEQUIN).strengths == Strengths()


@pytest.mark.parametrize("kind", ["sdxl", "sd15"])
def test_mixes_regions_groups_and_batches_on_either_base(kind: str, studio: RealStudio, own_sd15: RealStudio, photo: Path, tmp_path: Path):
    """What the miniature's users can ask for, on Stable Diffusion 1.5 and SDXL."""
    studio = studio if kind == "sdxl" else own_sd15
    who = studio.identity(photo)
    other = replace(who, embeddings=who.embeddings[:, ::-1].copy())
    quick = Request(prompt="a photo of two people", height=64, width=128, num_steps=1)
    regions = [Person(who, (0, 0, 64, 64), name="a"), Person(other, (64, 0, 128, 64), studio.view(20), Strengths(controlnet_scale=0.5), "b")]
    two = studio.generate(quick, regions, retries=1)[0]
    assert [m.name for m in two.matches] == ["a", "b"]
    ends = [studio.generate(quick, w)[0].pixels for w in (who, mixed([who, other], [0.5, 0.5], "spherical"))]
    assert not np.array_equal(*ends)
    inside = studio.generate(replace(quick, start_strength=0.5, num_steps=2), who, start=np.full((64, 128, 3), 90, np.uint8))[0]
    assert inside.pixels.shape == (64, 128, 3)
    orders = tmp_path / "orders.jsonl"
    line = {"face": str(photo), "prompt": "a photo of a person", "height": 64, "width": 64, "num_steps": 1, "style": "comic"}
    orders.write_text("\n".join(json.dumps(line | {"id": name, "adapter_scale": scale}) for name, scale in (("x", 1.0), ("y", 0.2))))
    assert [r.status for r in run_batch(studio, read_manifest(orders), Into(tmp_path))] == ["made"] * 2


def test_from_the_command_line_and_again_by_like(folders: Folders, photo: Path, tmp_path: Path):
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    where = ["--base", str(folders.base), "--instantid", str(folders.instantid), "--face-models", str(folders.face_models)]
    args = ["generate", "--model", "instantid-sdxl", *where, "--face", str(photo), "--prompt", "a photo of a person", "--height", "64", "--width", "64"]
    assert main([*args, "--num-steps", "1", "--out", str(out)]) == 0
    assert read_metadata(out)["model"] == "instantid-sdxl"
    assert main(["generate", "--like", str(out), "--out", str(again)]) == 0
    assert np.array_equal(read_image(out), read_image(again))


def test_what_is_missing_is_said_with_its_remedy(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Path, studio: RealStudio, own_sd15: RealStudio
):
    monkeypatch.setenv("SELFSAME_HOME", str(tmp_path))
    with pytest.raises(InputError, match="selfsame models fetch sdxl"):
        selfsame.load("instantid-sdxl")
    with pytest.raises(InputError, match="selfsame models fetch antelopev2"):
        selfsame.load("instantid-sdxl", base=folders.base, instantid=folders.instantid).identity(photo)
    bare = selfsame.load("instantid-sdxl", base=folders.base, face_models=folders.face_models)
    with pytest.raises(InputError, match="selfsame models fetch instantid"):
        bare.generate(Request(height=64, width=64), bare.identity(photo))
    alone = selfsame.load("instantid-sdxl", base=folders.base)  # words need neither
    who = Identity.of_words(names_own_words(studio, "ada fox"))
    assert alone.generate(Request(prompt="a photo of <x>", height=64, width=64, num_steps=1), who)[0].pixels.shape == (64, 64, 3)
    with pytest.raises(InputError, match="was ever released"):
        _ = selfsame.load("instantid-sd15", base=own_sd15.folders.base, face_models=folders.face_models).instantid
    (tmp_path / "buffalo_l").symlink_to(folders.face_models)
    with pytest.raises(InputError, match="read embeddings of antelopev2"):
        RealStudio(Folders(folders.base, folders.instantid, tmp_path / "buffalo_l")).identity(photo)
    with pytest.raises(InputError, match="lacks unet"):
        RealStudio(Folders(tmp_path))
    for wrong in (tmp_path / "none", tmp_path, folders.instantid / "ip-adapter.bin"):  # before anything large is loaded
        with pytest.raises(InputError, match="holds no InstantID; give the folder with ip-adapter"):
            RealStudio(Folders(folders.base, wrong))
    shutil.copytree(own_sd15.folders.base, tmp_path / "inpainting")
    config = tmp_path / "inpainting/unet/config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 9'))
    with pytest.raises(InputError, match="made for inpainting; give a text-to-image base"):
        RealStudio(Folders(tmp_path / "inpainting"))
    with pytest.raises(InputError, match="the miniature brings its own"):
        selfsame.load("mannequin", base=folders.base)
    with pytest.raises(InputError, match="give --face-models"):
        RealStudio(Folders(folders.base)).identity(photo)
    with pytest.raises(InputError, match="multiple of 8"):
        studio.generate(Request(height=100, width=64))
    for base, name in ((studio, "lcm-lora-sdxl"), (own_sd15, "lcm-lora-sd15")):
        with pytest.raises(InputError, match=f"selfsame models fetch {name}.*--solver lcm"):
            base.generate(Request(height=64, width=64, speed="turbo"))
    for name, content, says in (("vocab.json", None, "lacks vocab.json"), ("vocab.json", b'{"a', "cannot be loaded")):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(own_sd15.folders.base, tmp_path / "cut")
        (tmp_path / "cut/tokenizer/tokenizer.json").unlink(missing_ok=True)
        (tmp_path / "cut/tokenizer" / name).unlink()
        if content:
            (tmp_path / "cut/tokenizer" / name).write_bytes(content)
        with pytest.raises(InputError, match=says):
            _ = RealStudio(Folders(tmp_path / "cut")).tokenizer
    for part in ("text_encoder", "unet", "vae"):
        shutil.rmtree(tmp_path / "cut")
        shutil.copytree(own_sd15.folders.base, tmp_path / "cut")
        (weights,) = (tmp_path / "cut" / part).glob("*.safetensors")
        values = load_file(weights)
        lost = sorted(values)[len(values) // 2]
        save_file({f"foo.{k}" if k == lost else k: v for k, v in values.items()}, weights, metadata={"format": "pt"})
        with pytest.raises(InputError, match=rf"not the whole of the base's {part}, 1 keys are missing .*{lost}"):
            RealStudio(Folders(tmp_path / "cut")).generate(Request(prompt="a mug", height=64, width=64, num_steps=1))
        weights.unlink()
        weights.with_name("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(print, protocol=2))
        with pytest.raises(InputError, match="holds more than tensors, perhaps code"):
            RealStudio(Folders(tmp_path / "cut")).generate(Request(prompt="a mug", height=64, width=64, num_steps=1))
    who = studio.identity(photo)
    wide = replace(who, sizes=np.array([[448, 640]]))  # as another base's studio would have read the photo
    assert studio.sized(Request(), [Person(wide)]).size == (896, 1280)
    monkeypatch.setattr(studio.reader, "name", "buffalo_l")
    with pytest.raises(InputError, match="make it anew"):
        studio.generate(Request(height=64, width=64), who)


def test_what_the_photo_shows_is_asked_of_clip(own_sd15: RealStudio, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SELFSAME_HOME", str(tmp_path))
    order = Order(face=(photo,), keep=("glasses", "expression"), prompt="a painting of a person in a garden", height=64, width=64)
    with pytest.raises(InputError, match="selfsame models fetch clip-vit-l14"):
        jobs_of(order, own_sd15)

    class Sees:
        sides: ClassVar[list[tuple[int, ...]]] = []

        def images(self, images: Sequence[np.ndarray]) -> torch.Tensor:
            self.sides += [i.shape for i in images]
            return torch.tensor([[1.0, 0.5]])

        def prompt(self, prompt: str) -> torch.Tensor:
            return torch.tensor([float(prompt.endswith("sunglasses")), float("neutral" in prompt)])

    assert set(PHRASES) == set(KEEPS)
    own_sd15.__dict__["clip"] = Sees()
    (job,), _, _ = jobs_of(order, own_sd15)
    assert job.row.prompt == "a painting of a person wearing sunglasses in a garden"
    ((h, w, _),) = Sees.sides
    assert h == w
    del own_sd15.__dict__["clip"]


def names_own_words(studio: RealStudio, name: str) -> LearnedWords:
    """A name's own rows of the token tables as if they had been learned."""
    ids = studio.tokenizer(name, add_special_tokens=False)["input_ids"]
    rows = tuple(e.get_input_embeddings().weight[ids].detach().float().numpy() for e in studio.encoders)
    return LearnedWords(rows, "<x>", tower_hash(*studio.encoders))


@pytest.mark.parametrize("kind", ["sdxl", "sd15"])
def test_learned_words_stand_where_a_name_would(kind: str, studio: RealStudio, own_sd15: RealStudio, photo: Path):
    """Alone and beside the face: a name's own rows paint what the name paints, bit for bit."""
    studio = studio if kind == "sdxl" else own_sd15
    ada, photos = names_own_words(studio, "ada fox"), studio.identity(photo)
    brackets = "({}:1.3)" if kind == "sdxl" else "{}"
    request = Request(prompt=f"a photo of {brackets} in space", height=64, width=64, num_steps=1)
    for who in (Identity.of_words(ada), replace(photos, words=ada)):
        asked = replace(request, use="both" if who.num_photos else "words")
        learned = studio.generate(replace(asked, prompt=request.prompt.format("<x>")), who)[0].pixels
        named = studio.generate(replace(request, prompt=request.prompt.format("ada fox")), photos if who.num_photos else None)[0].pixels
        assert np.array_equal(learned, named)
    other = replace(ada, vectors=tuple(v * 3 for v in ada.vectors))  # remembered prompts are those of the same words
    assert not np.array_equal(learned, studio.generate(replace(asked, prompt=request.prompt.format("<x>")), replace(photos, words=other))[0].pixels)
    with pytest.raises(InputError, match="width 5, this base has"):
        studio.generate(replace(request, prompt="<x>"), Identity.of_words(LearnedWords((np.zeros((2, 5), np.float32),), "<x>", "")))
    with pytest.raises(InputError, match="another text encoder"):
        studio.generate(replace(request, prompt="<x>"), Identity.of_words(replace(ada, text_encoder="none")))


def test_photos_and_words_of_one_person_in_one_command(folders: Folders, studio: RealStudio, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = tmp_path / "x.safetensors"
    Identity.of_words(names_own_words(studio, "ada fox")).save(words)
    where = ["--base", str(folders.base), "--instantid", str(folders.instantid), "--face-models", str(folders.face_models)]
    args = ["generate", "--model", "instantid-sdxl", *where, "--face", str(photo), "--height", "64", "--width", "64", "--num-steps", "1"]
    assert main([*args, "--prompt", "a photo of ada fox", "--out", str(tmp_path / "a.png")]) == 0
    with_words = [*args, "--prompt", "a photo of <x>", "--identity", str(words)]
    assert main([*with_words, "--use", "both", "--out", str(tmp_path / "b.png")]) == 0
    assert np.array_equal(read_image(tmp_path / "a.png"), read_image(tmp_path / "b.png"))
    assert main([*with_words, "--out", str(tmp_path / "c.png")]) == 2
    assert "give one --identity, and --use both" in capsys.readouterr().err
    studio.identity(photo).save(words)
    assert main([*with_words, "--use", "both", "--out", str(tmp_path / "c.png")]) == 2
    assert "an identity without learned words" in capsys.readouterr().err


def test_several_people_views_and_starts_work_at_this_size_too(studio: RealStudio, photo: Path, monkeypatch: pytest.MonkeyPatch):
    who = studio.identity(photo)
    request = Request(prompt=PROMPT, height=64, width=128, num_steps=2)
    one, two = studio.generate(request, who)[0], studio.generate(request, [who, Person(who, strengths=Strengths(adapter_scale=0.1))])[0]
    assert one.matches == ()
    assert [m.person for m in two.matches] == [0, 1]
    assert not np.array_equal(one.pixels, two.pixels)
    turned = studio.generate(request, who, pose=studio.view(30))[0].pixels
    assert not np.array_equal(one.pixels, turned)
    start = np.full((100, 200, 3), 80, np.uint8)
    assert studio.generate(request, who, start=start)[0].pixels.shape == (64, 128, 3)
    fast = studio.generate(replace(request, num_steps=8, speed="fast"), who)[0].pixels
    assert fast.shape == (64, 128, 3)


def test_a_person_is_put_into_a_photo_and_nothing_else_changes(folders: Folders, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(real, "SDXL", Limits(64, 8, 128))
    monkeypatch.setitem(real.LONGEST, 64, 1280)
    source = read_image(photo)
    mask = np.zeros(source.shape[:2], np.uint8)
    mask[200:330, 150:290] = 255
    path, out = write_image(tmp_path / "mask.png", np.repeat(mask[..., None], 3, 2)), tmp_path / "out.png"
    args = ["edit", "--model", "instantid-sdxl", "--base", str(folders.base), "--instantid", str(folders.instantid), "--face-models", str(folders.face_models)]
    args += ["--source", str(photo), "--mask", str(path), "--person", str(photo), "--num-steps", "2", "--feather", "0", "--num-images", "2", "--out", str(out)]
    assert main(args) == 0
    made = [read_image(tmp_path / f"out-{i}.png") for i in (1, 2)]
    assert all(np.array_equal(m[mask == 0], source[mask == 0]) for m in made)
    assert not np.array_equal(made[0][mask > 0], source[mask > 0])
    assert not np.array_equal(*made)
    assert main([*args, "--memory", "low"]) == 0
    said = read_metadata(tmp_path / "out-1.png")
    assert (said["memory"], said["encoder"]) == ("low", "antelopev2")
    assert not np.array_equal(read_image(tmp_path / "out-1.png"), made[0]), "eight bits are coarse"


def test_a_lora_paints_along_and_like_repeats_it(folders: Folders, photo: Path, tmp_path: Path):
    unet = RealStudio(folders).unet
    values = {}
    for k, path in enumerate(cross_attention_paths(unet)):
        shape = unet.get_submodule(f"{path}.to_q").weight.shape
        g = torch.Generator().manual_seed(k)
        values |= {f"unet.{path}.to_q.lora_{n}.weight": torch.randn(size, generator=g) for n, size in (("A", (2, shape[1])), ("B", (shape[0], 2)))}
    save_file(values, tmp_path / "style.safetensors")
    where = ["--base", str(folders.base), "--instantid", str(folders.instantid), "--face-models", str(folders.face_models)]
    args = ["generate", "--model", "instantid-sdxl", *where, "--face", str(photo), "--prompt", "a photo", "--height", "64", "--width", "64"]
    args += ["--num-steps", "2"]
    few = ["--solver", "lcm", "--guidance-scale", "1"]
    made = {}
    for name, more in (("plain", []), ("none", ["--lora", f"{tmp_path}/style.safetensors:0"]), ("style", ["--lora", f"{tmp_path}/style.safetensors:0.5"])):
        assert main([*args, *few, *more, "--out", str(tmp_path / f"{name}.png")]) == 0
        made[name] = read_image(tmp_path / f"{name}.png")
    assert np.array_equal(made["plain"], made["none"])
    assert not np.array_equal(made["plain"], made["style"])
    assert main(["generate", "--like", str(tmp_path / "style.png"), "--out", str(tmp_path / "again.png")]) == 0
    assert np.array_equal(made["style"], read_image(tmp_path / "again.png"))
    assert main([*args, "--speed", "turbo", "--lora", f"{tmp_path}/style.safetensors:0.5", "--out", str(tmp_path / "turbo.png")]) == 0
    assert np.array_equal(made["style"], read_image(tmp_path / "turbo.png")), "turbo is the solver and the guidance of LCM-LoRA"
    assert read_metadata(tmp_path / "turbo.png")["request"]["solver"] == "lcm"
    assert main(["generate", "--lora", f"{tmp_path}/style.safetensors", "--prompt", "a photo", "--out", str(tmp_path / "no.png")]) == 2


def test_a_whole_instantid_goes_to_other_forms_and_back(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert folders.instantid is not None
    args = ["convert", str(folders.instantid), "--base", str(folders.base)]
    assert main([*args, "--form", "selfsame", "--out", str(tmp_path / "own")]) == 0
    assert (tmp_path / "own/adapter.safetensors").exists()
    args[1] = str(tmp_path / "own")
    assert main([*args, "--out", str(tmp_path / "official")]) == 0
    assert main([*args, "--form", "comfyui", "--out", str(tmp_path / "comfyui")]) == 0
    first = read_adapter(folders.instantid / "ip-adapter.bin")
    for path in (tmp_path / "official/ip-adapter.bin", tmp_path / "comfyui/ip-adapter.safetensors"):
        back = read_adapter(path)
        assert all(set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(first, back, strict=True))
    shutil.copytree(tmp_path / "comfyui", tmp_path / "a1111")
    (tmp_path / "a1111/ip-adapter.safetensors").rename(tmp_path / "a1111/ip-adapter_instant_id_sdxl.safetensors")
    studios = [RealStudio(replace(folders, instantid=tmp_path / name)) for name in ("comfyui", "a1111")]
    assert studios[0].sizes == studios[1].sizes
    states = [s.instantid.state_dict() for s in studios]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    ControlNetModel.from_pretrained(tmp_path / "official/ControlNetModel").half().save_pretrained(tmp_path / "official/ControlNetModel")
    assert main(["convert", str(tmp_path / "official"), *args[2:], "--out", str(tmp_path / "mixed")]) == 0
    assert [str(d) for d in dtypes_of(tmp_path / "mixed")] == ["torch.float32", "torch.float16"]  # as released
    capsys.readouterr()
    for more, says in (
        (["--out", str(tmp_path / "official")], "exists"), (["--form", "a1111", "--out", str(tmp_path / "x")], "is of learned words"),
    ):  # fmt: skip
        assert main([*args, *more]) == 2
        assert says in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "own"), "--out", str(tmp_path / "x")]) == 2
    assert "needs --base" in capsys.readouterr().err


def test_the_adapter_goes_to_comfyui_and_back(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert folders.instantid is not None
    official, flat, again = folders.instantid / "ip-adapter.bin", tmp_path / "ip-adapter.safetensors", tmp_path / "again.bin"
    assert main(["convert", str(official), "--out", str(flat)]) == 0
    assert main(["convert", str(flat), "--out", str(again)]) == 0
    first, back = read_adapter(official), read_adapter(again)
    assert all(set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(first, back, strict=True))
    assert all(k.startswith(("image_proj.", "ip_adapter.")) for k in load_file(flat))
    assert main(["convert", str(official), "--out", str(tmp_path / "a.txt")]) == 2
    assert main(["convert", str(checked_folder("instantid") / "adapter.safetensors"), "--out", str(tmp_path / "a.safetensors")]) == 2
    assert "selfsame's own file" in capsys.readouterr().err
    assert main(["convert", str(official), "--form", "a1111", "--out", str(tmp_path / "a.bin")]) == 2
    assert "how an adapter is written" in capsys.readouterr().err
