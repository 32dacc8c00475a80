"""Pairs for MimicBrush: from videos, stills and the world; resumable, the same bytes, bad sources reported."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from selfsame.cli.main import main
from selfsame.data import pairs
from selfsame.data.pair_table import PairTable
from selfsame.data.pairs import PairsJob, prepare_pairs, read_pairs, square_of, video_frames
from selfsame.data.shards import jpg_of, new_shard, png_of, report_beside
from selfsame.images.files import InputError, read_image
from selfsame.mannequins.clips import clip_scene
from selfsame.mannequins.render import draw
from selfsame.methods.mimicbrush.samples import Pair, PairSamples, training_sample

WIDE = PairSamples(ssim_low=-1, ssim_high=1)


def video(path: Path, frames: list[np.ndarray]) -> Path:
    path.parent.mkdir(exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 8, (width, height))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return [draw([scene])[0].image for scene in clip_scene("test", 1, 4)]


@pytest.fixture
def videos(tmp_path: Path, frames: list[np.ndarray]) -> Path:
    folder = tmp_path / "videos"
    video(folder / "a.avi", frames)
    video(folder / "one-frame.avi", frames[:1])
    (folder / "broken.mp4").write_bytes(b"not a video")
    return folder


def run(job: PairsJob, processes: int = 1) -> pairs.Report:
    total = pairs.Report()
    for report in prepare_pairs(job, processes):
        total.add(report)
    return total


def shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.tar"))}


def test_videos_give_pairs_and_bad_ones_are_named(tmp_path: Path, videos: Path):
    report = run(PairsJob(tmp_path / "out", videos=videos, how=WIDE))
    assert (report.sources, report.pairs, report.in_band) == (3, 2, 2)
    assert {p.split(": ")[0].rsplit("/")[-1] for p in report.problems} == {"one-frame.avi", "broken.mp4"}
    for record in read_pairs(tmp_path / "out", "train"):
        assert record["first"].shape == record["second"].shape == (128, 128, 3)
        assert record["kind"] == "clip"
        assert record["frames"][0] != record["frames"][1]
        assert record["mask"] is None
        assert record["depth"] is None


def test_stills_give_one_pair_a_thing(tmp_path: Path, frames: list[np.ndarray]):
    folder = tmp_path / "stills"
    folder.mkdir()
    marks = np.zeros((128, 128), np.uint8)
    marks[20:40, 20:40], marks[60:90, 60:90] = 1, 2
    for name in ("a", "unmarked", "small"):
        Image.fromarray(frames[0]).save(folder / f"{name}.png")
    Image.fromarray(marks).save(folder / "a.mask.png")
    Image.fromarray(marks[:50]).save(folder / "small.mask.png")
    report = run(PairsJob(tmp_path / "out", stills=folder))
    assert report.pairs == 2
    assert sorted(p.rsplit(": ")[1].split(" ")[0] for p in report.problems) == ["128", "no"]
    Image.fromarray(np.where(marks == 2, 1, 0).astype(np.uint8)).convert("P").save(folder / "a.mask.png")
    assert run(PairsJob(tmp_path / "out", stills=folder)).pairs == 1  # the file has changed: its shard is made anew
    areas = sorted(int(record["mask"].sum()) for record in read_pairs(tmp_path / "out", "train"))
    assert areas == [900]


def test_the_world_gives_pairs_with_depth_and_stills_with_masks(tmp_path: Path):
    report = run(PairsJob(tmp_path, "validation", world=2, how=WIDE))
    records = list(read_pairs(tmp_path, "validation"))
    assert report.pairs == len(records) == 8
    for record in records:
        assert record["depth"].any()
        assert record["mask"].mean() > pairs.SMALLEST, "a thing or part, which both looks show"
        assert np.array_equal(record["first"], record["second"]) == (record["kind"] == "still")


def test_a_killed_run_goes_on_and_any_number_of_processes_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(pairs.SOURCES_PER_SHARD, "world", 1)
    whole, cut = (PairsJob(tmp_path / n, world=2) for n in ("whole", "cut"))
    run(whole)
    next(iter(prepare_pairs(cut, 1)))
    (cut.folder / "train-world-0000001-0001.tar.7.part").write_bytes(b"half")
    monkeypatch.setattr(pairs, "draw", None)  # finished shards are not drawn again
    first = next(iter(prepare_pairs(cut, 1)))
    assert first.pairs
    monkeypatch.undo()
    monkeypatch.setitem(pairs.SOURCES_PER_SHARD, "world", 1)
    run(cut, 2)
    assert shards(whole.folder) == shards(cut.folder)


def test_another_job_is_not_taken_for_this_one(tmp_path: Path, videos: Path):
    out = tmp_path / "out"
    none = run(PairsJob(out, videos=videos, how=PairSamples(ssim_low=0.9999, ssim_high=1)))
    assert none.pairs == 0
    assert run(PairsJob(out, videos=videos, how=WIDE)).pairs == 2
    run(PairsJob(out, "train_held", videos=videos, how=WIDE))
    assert len(list(read_pairs(out, "train"))) == 2
    (videos / "a.avi").rename(videos / "b.avi")
    (videos / "one-frame.avi").unlink()
    assert run(PairsJob(out, videos=videos, how=WIDE)).pairs == 2
    assert len(list(read_pairs(out, "train"))) == 2  # the shard of the three sources is gone
    with pytest.raises(InputError, match="letters, digits"):
        PairsJob(out, "../up", videos=videos)
    others = tmp_path / "others"
    shutil.copytree(videos, others)
    with pytest.raises(InputError, match=r"holds pairs of .*choose another --out"):
        run(PairsJob(out, videos=others, how=WIDE))
    assert len(list(read_pairs(out, "train"))) == 2, "nothing of them is lost"


def test_frames_are_spread_over_the_whole_video_whatever_the_container_says(tmp_path: Path):
    frames = [np.full((32, 32, 3), 4 * i, np.uint8) for i in range(60)]
    seen = [int(f.mean()) for f in video_frames(video(tmp_path / "long.avi", frames), 32)]
    assert 8 <= len(seen) < 16
    assert seen[0] < 8
    assert seen[-1] > 200
    assert np.ptp(np.diff(seen)) < 8


def test_a_square_is_padded_in_the_middle():
    made = square_of(np.zeros((64, 128, 3), np.uint8), 128)
    assert made[:32].min() == made[96:].min() == 255
    assert made[32:96].max() == 0
    assert square_of(np.full((300, 300, 3), 9, np.uint8), 32).max() == 9


def test_the_command_line_says_what_it_saw(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    args = ["prepare", "pairs", "--videos", str(videos), "--out", str(out), "--processes", "1"]
    assert main([*args, "--ssim-low", "-1", "--ssim-high", "1", "--show", str(sheet)]) == 1
    said = capsys.readouterr()
    assert "2 pairs of 3 sources, 2 bad" in said.out
    assert said.err.count("warning: ") == 2
    assert read_image(sheet).shape == (256, 512, 3)
    args[args.index(str(out))] = str(tmp_path / "none")
    assert main([*args, "--ssim-low", "0.9999", "--ssim-high", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no pair of frames was kept of 3 sources" in error
    assert "looked at" in error
    assert main(["prepare", "pairs", "--world", "1", "--out", str(tmp_path / "world"), "--ssim-low", "0.9999", "--ssim-high", "1", "--processes", "1"]) == 2
    assert "0 kept, only 2 stills; widen --ssim-low" in capsys.readouterr().err


def test_anybodys_shards_give_pairs_and_bad_samples_are_named(tmp_path: Path, videos: Path, frames: list[np.ndarray], capsys: pytest.CaptureFixture[str]):
    wds, marks = tmp_path / "wds", np.zeros((128, 128), np.uint8)
    marks[20:60, 20:60] = 1
    wds.mkdir()
    with new_shard(wds / "a.tar") as tar:
        tar.write({"__key__": "clip", "jpg": jpg_of(frames[0]), "avi": (videos / "a.avi").read_bytes()})  # with a preview
        tar.write({"__key__": "still", "png": png_of(frames[0]), "mask.png": png_of(marks)})
        tar.write({"__key__": "bare", "jpg": jpg_of(frames[0])})
        tar.write({"__key__": "words", "txt": b"a mug"})
    (wds / "b.tar").write_bytes(b"no tar" * 200)
    report = run(PairsJob(tmp_path / "out", tars=wds, how=WIDE))
    records = list(read_pairs(tmp_path / "out", "train"))
    assert [r["kind"] for r in records] == ["clip", "clip", "still"]
    assert records[2]["mask"].sum() == 1600
    assert records[0]["source"] == "a.tar/clip"
    assert len(report.problems) == 3
    for says in ("a.tar: bare.jpg: no bare.mask.png beside it", "a.tar: words: holds no video or picture, only .txt", "b.tar: not a WebDataset shard"):
        assert any(says in p for p in report.problems), report.problems
    assert not any("BufferedReader" in p for p in report.problems)
    inside = PairsJob(wds / "pairs", tars=wds, how=WIDE)
    run(inside)
    assert inside.sources() == ["a.tar", "b.tar"], "what was made is no source"
    with pytest.raises(InputError, match="where the pairs are to be written"):
        PairsJob(wds, tars=wds)
    with pytest.raises(InputError, match="holds pairs of 128 pixels already, --size 64"):
        run(PairsJob(tmp_path / "out", videos=videos, size=64))


def test_what_pairs_teach_is_told_by_their_content(tmp_path: Path, frames: list[np.ndarray]):
    folder, marks = tmp_path / "stills", np.zeros((128, 128), np.uint8)
    folder.mkdir()
    Image.fromarray(frames[0]).save(folder / "a.png")
    digests = []
    for top in (20, 60):
        marks[:] = 0
        marks[top : top + 30, 20:50] = 255
        Image.fromarray(marks).save(folder / "a.mask.png")
        run(PairsJob(tmp_path / "out", stills=folder))
        digests.append(PairTable(tmp_path / "out", "train").digest)
    (shard,) = pairs.shards_of(tmp_path / "out", "train")
    report_beside(shard).unlink()  # somebody copied the shards alone
    digests.append(PairTable(tmp_path / "out", "train").digest)
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "give one of --videos"),
        (["--videos", "nowhere"], "no such folder"),
        (["--world", "2", "--videos", "nowhere"], "give one of --videos"),
        (["--world", "2", "--size", "256"], "128 pixels"),
        (["--world", "2", "--split", "tset"], "the world has"),
        (["--world", "2", "--pairs-per-source", "0"], "pairs a source"),
        (["--world", "2", "--ssim-low", "0.9", "--ssim-high", "0.1"], "SSIM band"),
        (["--world", "2", "--show", "sheet.jpg"], "PNG"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], says: str):
    assert main(["prepare", "pairs", "--out", str(tmp_path / "out"), *args]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert says in error


def test_an_empty_folder_and_missing_pairs_say_what_to_do(tmp_path: Path):
    with pytest.raises(InputError, match="holds no videos"):
        PairsJob(tmp_path, videos=tmp_path).sources()
    with pytest.raises(FileNotFoundError, match="selfsame prepare pairs"):
        next(read_pairs(tmp_path, "train"))


def test_wide_videos_become_squares(tmp_path: Path, frames: list[np.ndarray]):
    video(tmp_path / "videos/wide.avi", [frame[20:92] for frame in frames])
    job = PairsJob(tmp_path / "out", videos=tmp_path / "videos", how=WIDE, size=64)
    assert run(job).pairs
    for record in read_pairs(tmp_path / "out", "train"):
        assert record["first"].shape == record["second"].shape == (64, 64, 3)
        training_sample(Pair(record["first"], record["second"]), np.random.default_rng(0), WIDE)


def test_what_is_transparent_in_a_mask_is_nothing(tmp_path: Path):
    image = np.zeros((64, 64, 4), np.uint8)
    image[10:26, 10:26, 3] = 255  # a black thing
    Image.fromarray(image).save(tmp_path / "a.mask.png")
    marks = pairs.read_marks(tmp_path / "a.mask.png")
    assert (marks > 0).sum() == 256
    palette = Image.fromarray(np.where(image[..., 3] > 0, 0, 5).astype(np.uint8))
    palette.putpalette([40, 40, 40] * 8)
    palette.save(tmp_path / "b.mask.png", transparency=5)
    assert (pairs.read_marks(tmp_path / "b.mask.png") > 0).sum() == 256
