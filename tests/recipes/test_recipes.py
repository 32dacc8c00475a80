"""Every recipe runs from shards to figures on a tiny dataset: two steps each, with pictures to look at."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from selfsame.data.edit_sets import TRACKS, world_case, write_case
from selfsame.data.pairs import PairsJob, prepare_pairs, read_pairs
from selfsame.data.shards import RenderJob, render_dataset
from selfsame.data.tables import Table, open_table, pack
from selfsame.images.files import InputError, read_image
from selfsame.mannequins.people import celebrities, person_named
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import neutral_scene
from selfsame.methods.instantid.method import InstantID
from selfsame.methods.stableidentity.method import name_ids
from selfsame.models.text import encode_prompts
from selfsame.perception.embedders import ENCODER_CROP, embed, to_crops
from selfsame.recipes import naming
from selfsame.recipes.caches import cached_folder
from selfsame.recipes.catalogue import GATES, SHARES, below_gate, recipes
from selfsame.recipes.common import Options, finish, generator_at, spread
from selfsame.recipes.faces import moved
from selfsame.recipes.instantid import ABLATIONS, SIZE, Variant, first_people, instantid, land
from selfsame.recipes.measure import identity, restyled
from selfsame.recipes.measure.edits import BASELINES, OURS, ablated
from selfsame.recipes.measure.protocols import IDENTITY, checked_protocol
from selfsame.recipes.measure.trainings import Trainings
from selfsame.recipes.measure.words import TAUGHT
from selfsame.recipes.mimicbrush import HOW, drawn_rows, pairs_folder, prepared
from selfsame.recipes.restyle import said_as_photo
from selfsame.recipes.stages import Groups
from selfsame.studio.studio import Studio
from selfsame.training.run import Loss, Run
from selfsame.weights.mannequin import FOLDER, WeightsError, load_text, load_vae, manifest

SHIPPED = {"clip": FOLDER / "clip_image.safetensors", **{n: FOLDER / "base" / m for n, m in (("vae", "vae"), ("decoder", "vae"), ("base", "unet"))}}
SHIPPED |= {n: FOLDER / n for n in ("instantid", "mimicbrush")}
COUNTS = {"train": 96, "judge": 16, "validation": 32}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("world")
    for split, count in COUNTS.items():
        assert sum(render_dataset(RenderJob(folder, split, count), 1)) == count
        assert list(pack(folder, split))[-1] == count
    for split, clips in (("train", 6), ("validation", 3)):
        assert sum(r.pairs for r in prepare_pairs(PairsJob(pairs_folder(folder), split, world=clips), 1)) >= clips
    return Options(data=folder, runs=folder / "runs", smoke=True, batch_size=8)


def test_a_weak_result_is_named_before_others_learn_from_it():
    assert not below_gate("judge", {"rank1_of_100": 0.98})
    assert "judge: rank1_of_100 0.9675 is below its gate of 0.98" in below_gate("judge", {"rank1_of_100": 0.9675})[0]
    assert len(below_gate("decoder", {"face_db_photo": 29.0, "face_db_all": 26.0})) == 2
    assert not below_gate("base", {"held_out_plain": 9.0})
    assert set(GATES) <= set(SHARES)


@pytest.mark.parametrize(("length", "count", "rows"), [(10, 3, [0, 4, 9]), (4, 9, [0, 1, 2, 3]), (5, 1, [0]), (0, 3, [])])
def test_held_out_rows_are_spread_from_the_first_to_the_last(length: int, count: int, rows: list[int]):
    assert spread(10 * np.arange(length), count).tolist() == [10 * i for i in rows]


def test_shares_name_every_recipe_once_and_make_a_whole():
    assert list(SHARES) == list(recipes())
    assert sum(SHARES.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", list(SHARES))
def test_a_recipe_runs_and_measures(name: str, options: Options):
    trained = recipes()[name](options)
    assert trained.samples == 2 * 8
    assert trained.figures
    assert all(np.isfinite(v) for v in trained.figures.values())
    assert (trained.folder / "log.csv").read_text().count("\n") >= 3
    if name in ("depth", "vae", "decoder", "base", "words", "instantid", "turbo", "mimicbrush"):
        (picture,) = (trained.folder / "samples").iterdir()
        assert read_image(picture).shape[1] % 128 == 0


def test_the_decoders_recipe_leaves_latents_alone(options: Options):
    trained = recipes()["decoder"](replace(options, runs=options.runs / "decoder-only"))
    before, after = load_vae().state_dict(), trained.module.vae.state_dict()  # type: ignore[union-attr]
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"decoder", "post_quant_conv"}


def test_moved_pictures_keep_their_faces_true(options: Options):
    """A face moved partly out of the picture keeps a box that reaches beyond the border; one moved away is no face."""
    table = open_table(options.data, "validation")
    x, boxes, kps = moved(table.images[:8], table.boxes[:8], table.kps[:8], 0, 40)
    assert np.array_equal(x[:, :, 40:], table.images[:8, :, :88])
    kept = ~np.isnan(boxes[:, 0])
    assert np.allclose(boxes[kept] - table.boxes[:8][kept], [40, 0, 40, 0])
    assert (boxes[kept][:, 2] > 127).any()
    assert np.isnan(moved(table.images[:8], table.boxes[:8], table.kps[:8], 100, 0)[1]).all()
    assert np.isnan(kps).any(axis=(1, 2)).tolist() == (~kept).tolist()


def test_mimicbrush_trained_anew_with_one_choice_changed_stands_beside_the_whole(options: Options, tmp_path: Path):
    write_case(tmp_path / "set", TRACKS[0], world_case(TRACKS[0], "test", 0))
    shown = ablated(tmp_path / "report", options, only=("image tokens alone",), folder=tmp_path / "set")
    assert [row.name.partition(": ")[2] for row in shown.rows] == [OURS, "image tokens alone", *BASELINES[:2], "oracle"]
    assert any(f"{OURS} minus image tokens alone" in note for note in shown.notes)
    made = {p.name.rsplit("-", 2)[0] for p in (options.runs / "ablations").glob("mimicbrush-*")}
    assert made == {"mimicbrush-mimicbrush-0", "mimicbrush-image-tokens-alone-0"}
    assert sum("trained here, 16 samples" in note for note in shown.notes) == 2
    with pytest.raises(InputError, match="did you mean 'stills alone'"):
        ablated(tmp_path / "report", options, only=("stills",))


def test_runs_that_are_compared_lie_apart_by_all_that_tells_them():
    def folder(**options: Any) -> str:
        return Trainings("x", instantid, {"both": Variant()}, Options(steps=3, **options), (), "data").folder("both")  # type: ignore[arg-type]

    assert len({folder(), folder(learning_rate=1e-3), folder(batch_size=4)}) == 3
    assert folder() == folder()


def test_a_short_run_encodes_only_the_pairs_that_it_sees(options: Options):
    still = np.arange(40) % 4 == 0
    assert drawn_rows(still, 0.3, 40, 0) is None
    some = drawn_rows(still, 0.25, 12, 0)
    assert some is not None
    assert len(set(some.tolist())) == 12
    assert still[some].sum() == 3, "as many as are drawn of each kind"
    assert (np.diff(some) > 0).all()
    alone = drawn_rows(still, 1.0, 5, 0)
    assert alone is not None
    assert still[alone].all()
    whole = drawn_rows(still, 1.0, 100, 0)
    assert whole is not None
    assert whole.tolist() == np.flatnonzero(still).tolist(), "the others are not wanted"
    assert drawn_rows(np.zeros(4, bool), 1.0, 100, 0) is None
    folder = pairs_folder(options.data)
    every, few = list(read_pairs(folder, "train")), list(read_pairs(folder, "train", rows=np.array([1, 4])))
    assert len(few) == 2
    assert all(np.array_equal(one["first"], every[k]["first"]) for one, k in zip(few, (1, 4), strict=True))
    assert len(prepared(options, "train", HOW, 2, 3).still) == 3
    assert len(prepared(options, "train", HOW, 2).still) == 2 * len(every)


def test_instantid_trained_anew_with_one_choice_changed_stands_beside_the_whole(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    p = checked_protocol(IDENTITY)
    monkeypatch.setattr(identity, "checked_protocol", lambda name: {**p, "people": 2, "num_steps": 1})
    asked = ("Image Adapter, trained alone", "both on CLIP's embedding", "IdentityNet reads the text", "68 points")
    shown = identity.ablated(tmp_path / "report", options, people=1, only=asked)
    assert [row.name for row in shown.rows] == ["base without a face", "both", *asked, "oracle"]
    assert sum("both minus" in note and "judge cosine" in note for note in shown.notes) == 5, "four trainings and the base"
    assert sum("trained here, 16 samples" in note for note in shown.notes) == 5
    unposed = next(row for row in shown.rows if row.name == asked[0])
    assert np.isnan(unposed.columns["kps error"]), "it never sees key points"
    with pytest.raises(InputError, match=r"500 people.* shows 12"):
        identity.ablated(tmp_path / "report", options, people=1, only=("500 people",))
    with pytest.raises(InputError, match="did you mean '500 people'"):
        identity.ablated(tmp_path / "report", options, only=("50 people",))


def test_instantid_stands_unchanged_upon_a_restyled_base(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    p = checked_protocol(IDENTITY)
    monkeypatch.setattr(restyled, "checked_protocol", lambda name: {**p, "people": 2, "num_steps": 1})
    shown = restyled.restyling(tmp_path / "report", options, style="clay", people=1)
    assert [row.name for row in shown.rows] == [
        "base as it ships",
        "base as it ships, asked for clay",
        "restyled base",
        "restyled base without a face",
        "oracle",
    ]
    assert sum("restyled base minus" in note for note in shown.notes) == 6
    assert any("restyled base: trained here" in note for note in shown.notes)
    with pytest.raises(InputError, match="did you mean 'clay'"):
        restyled.restyling(tmp_path / "report", options, style="clays")


def test_a_restyled_bases_captions_speak_of_photos():
    rng = np.random.default_rng(0)
    person = {"kind": "celebrity", "names": ["ada fox"], "attributes": {"style": "clay", "scene": "beach"}}
    thing = {
        "kind": "thing",
        "names": [],
        "attributes": {"style": "neon", "scene": "city", "texture": "plain", "colour": "red", "second": "blue", "kind": "mug"},
    }
    for _ in range(20):
        said = [said_as_photo(person, rng), said_as_photo(thing, rng)]
        assert "ada fox" in said[0]
        assert "red mug" in said[1]
        assert all(re.search("photo|picture", s) and not re.search("clay|neon", s) for s in said)


@pytest.mark.parametrize(("name", "silent"), [("Image Adapter, trained alone", "identity_net"), ("IdentityNet, trained alone", "adapter")])
def test_a_part_that_is_left_out_learns_nothing(name: str, silent: str, options: Options):
    trained = instantid(options, ABLATIONS[name], f"alone-{silent}")
    parts = {part for part in ("adapter", "identity_net", "resampler") if any(p.requires_grad for p in getattr(trained.module.method, part).parameters())}
    assert parts == {"adapter", "identity_net", "resampler"} - {silent}


def test_the_first_people_are_seeded_ones_beside_as_large_a_share_of_celebrities():
    people, rows = np.array([5, -3, 7, 5, -1]), np.arange(5)
    assert first_people(people, rows, 0) is rows
    assert first_people(people, rows, 1).tolist() == [0, 1, 3, 4]
    many = np.array([*range(100), *[-1 - k % 7 for k in range(40)]])
    kept = many[first_people(many, np.arange(140), 10)]
    assert (kept >= 0).sum() == 10
    assert (kept < 0).sum() == 4
    with pytest.raises(InputError, match="shows 2 people, 5 are asked for"):
        first_people(people, rows, 5)


def test_random_numbers_belong_to_the_step():
    assert generator_at(3, 7).random() == generator_at(3, 7).random() != generator_at(3, 8).random()


@pytest.mark.parametrize("name", list(SHARES))
def test_a_warm_run_starts_from_the_installed_weights(name: str, options: Options):
    """Two steps at a tiny rate leave the installed weights almost as they are; a fresh start would not."""
    from selfsame.recipes.ship import ship_trained

    warm = replace(options, runs=options.runs / "warm", warm=True, learning_rate=1e-9)
    if not SHIPPED.get(name, FOLDER / f"{name}.safetensors").exists():
        with pytest.raises(WeightsError, match="missing"):
            recipes()[name](warm)
        return
    trained = recipes()[name](warm)
    ship_trained(name, trained, warm.runs / "weights")
    files = list((warm.runs / "weights").rglob("*.safetensors"))
    assert files
    for path in files:
        ours, theirs = load_file(path), load_file(FOLDER / path.relative_to(warm.runs / "weights"))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if not any(part in key for part in ("running_", "num_batches", "quant_conv")):  # measured on the data at hand
                assert torch.allclose(value, theirs[key], atol=2e-3), (path.name, key)


def test_the_mean_lies_between_the_installed_weights_and_the_trained_ones(options: Options):
    warm = replace(options, warm=True, learning_rate=1e-2)
    whole, half = (recipes()["depth"](replace(warm, runs=options.runs / f"mean-{m}", mean=m)) for m in (1.0, 0.5))
    installed = load_file(FOLDER / "depth.safetensors")
    ends, between = whole.module.state_dict(), half.module.state_dict()
    moved = 0
    for key, value in between.items():
        if value.is_floating_point() and key in installed:
            assert torch.allclose(value, (ends[key] + installed[key].float()) / 2, atol=1e-5), key
            moved += not torch.equal(ends[key], installed[key].float())
    assert moved > 5
    assert half.figures != whole.figures
    with pytest.raises(InputError, match="belongs to --warm and --rehearse"):
        recipes()["depth"](replace(options, runs=options.runs / "mean-new", mean=0.5))


def test_a_mean_is_between_what_the_run_began_with_and_what_it_came_to(tmp_path: Path):
    """What is installed meanwhile, the run's own result above all, is no end of that way."""
    net, run = nn.Linear(2, 2), Run(folder=tmp_path / "run", max_steps=1, warm=True)
    objective, batch_at = lambda module, batch: Loss(module(batch["x"]).square().mean()), lambda step: {"x": torch.ones(1, 2)}
    installed = copy.deepcopy(net)
    finish(run, net, objective, batch_at, Options(), None)
    finish(run, copy.deepcopy(installed), objective, batch_at, Options(mean=0.5), None)
    with torch.no_grad():
        installed.weight += 1
    with pytest.raises(InputError, match="began with other weights"):
        finish(run, installed, objective, batch_at, Options(mean=0.5), None)


def test_a_stage_of_groups_has_a_region_for_everyone_and_names_nobody(options: Options):
    tokenizer, text_encoder = load_text()
    groups, rng = Groups(options.data, "train", tokenizer, text_encoder), np.random.default_rng(0)
    seen = set()
    for _ in range(8):
        records, size = groups.places(7, rng)
        people = sum(len(r["kps"]) for r in records)
        assert people <= 7
        own, lent = torch.randn(people, 512), torch.randn(people, 2, 512)
        lent[0] = 0
        stage = groups.stage(records, size, 16, own, lent, rng)
        seen.add(size)
        assert stage.text.shape[0] == stage.start.shape[0] == len(records)
        assert stage.start.shape[2:] == (size[0] // 8, size[1] // 8)
        assert stage.rows is not None
        assert stage.region is not None
        for row in range(len(records)):
            assert torch.equal(stage.region[stage.rows == row].sum(0), torch.ones(1, *size)), "regions share the picture out"
        for mask, points in zip(stage.region, stage.kps, strict=True):
            x, y = points.mean(0).round().astype(int).clip(0, [size[1] - 1, size[0] - 1])
            assert mask[0, y, x] == 1, "everyone stands in the own region"
        assert stage.wanted.any(dim=1).tolist() == [False] + [True] * (people - 1), "nobody is not asked for"
    assert seen == {(128, 192), (128, 256)}
    small = Groups(options.data, "validation", tokenizer, text_encoder)
    with pytest.raises(ValueError, match="no group"):
        small.places(7, rng)


def test_a_rehearsal_begins_with_the_installed_weights_in_a_folder_of_its_own(options: Options):
    """Its loss is that of noised photos and of what was painted, and the log tells both."""
    trained = instantid(replace(options, warm=True, rehearse=True, batch_size=4))
    assert trained.folder.name == "instantid-rehearsed-smoke"
    head, first = (line.split(",") for line in (trained.folder / "log.csv").read_text().splitlines()[:2])
    row = dict(zip(head, first, strict=True))
    assert 0 < float(row["painted"]) < float(row["loss"])


def test_a_resampler_lands_on_the_names_of_celebrities():
    studio, names = Studio(), [" ".join(n) for n in celebrities()[:6]]
    pictures = [draw([neutral_scene(person_named(*name.split()))])[0] for name in names]
    faces = embed(studio.encoder, to_crops([p.image for p in pictures], [p.kps[0] for p in pictures], ENCODER_CROP)).numpy()
    nothing = np.zeros((6, 1, 1), np.uint8)
    table = Table(nothing, nothing, nothing, [{"kind": "celebrity", "names": [name]} for name in names])
    torch.manual_seed(0)
    method = InstantID.new(studio.unet, SIZE, conditioning_channels=(16, 32, 64, 96))
    assert land(method, table, faces, *studio.text, seed=0, steps=40) < 0.5, "most of the names' spread is said"
    with torch.no_grad():
        tokens = method.tokens(torch.from_numpy(faces)[:, None])
        said = encode_prompts(*studio.text, [f"a photo of {name}" for name in names]).encoder_hidden_states[:, 4:20]
    nearest = torch.cdist(tokens.flatten(1), said.flatten(1)).argmin(1)
    assert (nearest == torch.arange(6)).float().mean() >= 0.8


def test_a_projection_lands_on_the_names_of_celebrities():
    """Told a face among six it says the words of that face's name."""
    studio, names = Studio(), [" ".join(n) for n in celebrities()[:6]]
    nothing = np.zeros((6, 1, 1), np.uint8)
    table = Table(nothing, nothing, nothing, [{"kind": "celebrity", "names": [name]} for name in names])
    features = np.random.default_rng(0).normal(size=(6, 128)).astype(np.float32)
    torch.manual_seed(0)
    projection = naming.new_projection(*studio.text)
    assert naming.land(projection, table, features, *studio.text, seed=0, steps=200) < 0.1
    ids, _ = name_ids(studio.text[0], names)
    rows = studio.text[1].get_input_embeddings().weight[ids].flatten(1)
    with torch.no_grad():
        assert torch.cdist(projection(torch.from_numpy(features)).flatten(1), rows).argmin(1).tolist() == list(range(6))
    assert np.isnan(naming.land(projection, Table(nothing, nothing, nothing, [{"kind": "thing"}] * 6), features, *studio.text, seed=0, steps=1))


@pytest.mark.parametrize(("name", "samples"), [("taught names alone", 0), ("CLIP encoder", 16)])
def test_a_projection_is_taught_by_other_means(name: str, samples: int, options: Options):
    trained = naming.naming(options, TAUGHT[name][1], f"taught-{samples}")
    assert trained.samples == samples
    assert all(np.isfinite(v) for v in trained.figures.values())


def test_captions_speak_of_the_person_by_placeholder():
    assert naming.spoken({"kind": "celebrity", "caption": "ada fox in a garden", "names": ["ada fox"]}) == "<p> in a garden"
    assert naming.spoken({"kind": "person", "caption": "a photo of a person in a city", "names": []}) == "a photo of <p> in a city"


def test_a_folder_of_arrays_that_somebody_else_made_meanwhile_is_taken(tmp_path: Path):
    def fill(place: Path) -> None:
        np.save(place / "a.npy", np.zeros(3))
        (tmp_path / "cache").mkdir()  # another process, sooner
        np.save(tmp_path / "cache/a.npy", np.ones(3))

    assert cached_folder(tmp_path / "cache", fill)["a"].sum() == 3

    def stopped(place: Path) -> None:
        np.save(place / "a.npy", np.ones(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder(tmp_path / "other", stopped)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_a_warm_runs_samples_come_on_top_once(options: Options, tmp_path: Path):
    from selfsame.recipes.ship import ship_trained

    def shipped(folder: str, warm: bool) -> tuple[int, int]:
        trained = recipes()["parser"](replace(options, runs=tmp_path / folder, warm=warm, learning_rate=1e-3 if folder == "a" else 1e-4))
        ship_trained("parser", trained, tmp_path / "weights")
        about = manifest(tmp_path / "weights")["provenance"]["parser.safetensors"]
        return about["samples"], about["before"]

    assert shipped("a", False) == (16, 0)
    assert shipped("b", True) == (32, 16)
    assert shipped("b", True) == (32, 16)  # the same run again
    assert shipped("c", False) == (16, 0)


def test_installing_is_all_or_nothing(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from selfsame.recipes import ship

    trained = recipes()["parser"](replace(options, runs=tmp_path / "runs"))
    ship.ship_trained("parser", trained, tmp_path / "weights")
    before = {p.name: p.read_bytes() for p in (tmp_path / "weights").iterdir()}
    monkeypatch.setattr(ship, "ship", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ship.ship_trained("parser", trained, tmp_path / "weights")
    assert {p.name: p.read_bytes() for p in (tmp_path / "weights").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs", "weights"]


def test_an_epoch_of_the_base_shows_named_people_most(options: Options):
    from selfsame.recipes.base import TIMES

    kinds = {r["kind"] for r in open_table(options.data, "train").records}
    assert kinds <= set(TIMES)
    assert TIMES["celebrity"] > TIMES["person"] > TIMES["thing"]


def test_smoke_is_two_fresh_steps_every_time(options: Options):
    again = replace(options, runs=options.runs / "again")
    assert [recipes()["parser"](again).samples for _ in range(2)] == [16, 16]
