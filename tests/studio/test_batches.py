"""Manifests in, pictures and results out: nothing is lost, nothing is done twice, a bad line is only itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import selfsame
from selfsame.cli.main import main
from selfsame.images.files import InputError, read_image, read_metadata, write_image
from selfsame.studio.batches import RESULTS, Into, Result, known_results, read_manifest, run_batch
from selfsame.studio.studio import Studio

ADA = str(Path(__file__).parents[2] / "examples" / "ada.png")
ORDERS = [
    {"id": "a", "face": ADA, "prompt": "a photo of a person", "num_steps": 2, "seed": 5},
    {"id": "b", "prompt": "a photo of a mug", "num_steps": 2, "num_images": 2},
    {"id": "c", "people": [ADA, ADA], "width": 192, "num_steps": 2},
]


@pytest.fixture(scope="module")
def studio() -> Studio:
    return selfsame.load("mannequin")


def manifest(tmp_path: Path, *orders: object) -> Path:
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(o if isinstance(o, str) else json.dumps(o) for o in orders))
    return path


def run(studio: Studio, path: Path, out: Path) -> dict[str, Result]:
    out.mkdir(exist_ok=True)
    return {r.name: r for r in run_batch(studio, read_manifest(path), Into(out, path.name))}


def test_a_manifest_becomes_pictures_with_all_that_was_said(studio: Studio, tmp_path: Path):
    results = run(studio, manifest(tmp_path, *ORDERS), tmp_path / "out")
    assert [r.status for r in results.values()] == ["made"] * 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b-1.png", "b-2.png", "c.png", RESULTS]
    assert len(results["a"].scores) == 1
    assert len(results["c"].people[0]) == 2
    written = known_results(tmp_path / "out")
    assert written["a"]["parameters"]["seed"] == 5
    alone = studio.generate(selfsame.Request(prompt="a photo of a person", num_steps=2, seed=5), studio.identity(ADA))[0].pixels
    assert np.abs(alone.astype(int) - read_image(tmp_path / "out" / "a.png").astype(int)).max() <= 1


def test_a_run_that_was_stopped_goes_on_and_a_changed_order_is_made_anew(studio: Studio, tmp_path: Path):
    path, out = manifest(tmp_path, *ORDERS[:2]), tmp_path / "out"
    run(studio, path, out)
    with open(out / RESULTS, "a") as f:
        f.write('{"name": "cut off')  # killed while writing
    (out / "b-2.png").unlink()
    first = (out / "b-1.png").stat().st_mtime_ns
    again = run(studio, path, out)
    assert {n: r.status for n, r in again.items()} == {"a": "kept", "b": "made"}
    assert (out / "b-2.png").exists()
    assert (out / "b-1.png").stat().st_mtime_ns == first  # what was there is not painted again
    assert [json.loads(x)["name"] for x in (out / RESULTS).read_text().splitlines()] == ["a", "b"]
    other = run(studio, manifest(tmp_path, ORDERS[0] | {"seed": 6}, ORDERS[1]), out)
    assert {n: r.status for n, r in other.items()} == {"a": "made", "b": "kept"}
    model = {r.name: r for r in run_batch(studio, read_manifest(path), Into(out, path.name, {"model": "another"}))}
    assert {r.status for r in model.values()} == {"made"}


def test_another_photo_behind_the_same_name_is_another_order(studio: Studio, tmp_path: Path):
    photo = tmp_path / "me.png"
    shutil.copy(ADA, photo)
    path = manifest(tmp_path, {"id": "m", "mix": ["me.png:1", f"{ADA}:1"], "num_steps": 1})
    run(studio, path, tmp_path / "out")
    assert run(studio, path, tmp_path / "out")["m"].status == "kept"
    shutil.copy(Path(ADA).with_name("bo.png"), photo)
    assert run(studio, path, tmp_path / "out")["m"].status == "made"


def test_a_picture_of_a_batch_can_be_repeated_alone(tmp_path: Path):
    path = manifest(tmp_path, {"id": "k", "face": ADA, "prompt": "a photo of a person", "keep": ["clothes"], "num_steps": 2, "retries": 1})
    assert main(["batch", str(path), "--out", str(tmp_path / "out")]) == 0
    again = tmp_path / "again.png"
    assert main(["generate", "--like", str(tmp_path / "out/k.png"), "--out", str(again)]) == 0
    assert np.array_equal(read_image(again), read_image(tmp_path / "out/k.png"))
    assert read_metadata(again)["request"]["prompt"] == read_metadata(tmp_path / "out/k.png")["request"]["prompt"]


def test_two_lines_never_write_one_file(tmp_path: Path):
    lines = read_manifest(manifest(tmp_path, {"id": "ada", "num_images": 2}, {"id": "ada-1"}, {"id": "ada-3"}))
    assert [bool(line.order) for line in lines] == [True, False, True]
    assert "ada-1.png is written by line 1" in lines[1].error


def test_bad_lines_are_numbered_and_the_rest_goes_on(studio: Studio, tmp_path: Path):
    bad = [
        ("{nonsense", "line 1: is no JSON"),
        ('"text"', "line 2: is no JSON object"),
        ({"id": "../up"}, "line 3: id '../up'"),
        ({"id": "d", "promt": "x"}, "line 4: field 'promt' is unknown; did you mean 'prompt'"),
        ({"id": "e", "num_steps": -1}, "line 5: -1 steps"),
        ({"id": "f", "face": "none.png"}, "none.png: no such file"),
        ({"id": "g", "num_steps": 1, "width": 100}, "line 7: width 100"),
        ({"id": "ok", "num_steps": 1}, ""),
        ({"id": "ok", "num_steps": 1}, "line 9: ok.png is written by line 8 already"),
        ('{"seed": 1e999}', "line 10: field 'seed'"),
        ({"id": "h", "style": "ink", "style_sheet": "."}, "line 11"),
        ({"id": "i", "start": "cut.png", "num_steps": 1}, "line 12"),
        ('{"id": "j", "face": "a\\u0000.png"}', "line 13: embedded null"),
        ('{"id": "k", "prompt": "a caf\ufffd"}', "line 14: holds bytes that are not UTF-8"),
        ({"id": "ok", "num_steps": 1, "num_images": 2}, "line 15: id 'ok' is that of line 8"),
        ({"id": "l", "people": [ADA, ADA], "regions": ["0,0,9.5,9", "0,0,9,9"]}, "line 16"),
    ]
    (tmp_path / "cut.png").write_bytes(b"PNG")
    lines = read_manifest(manifest(tmp_path, *(b for b, _ in bad)))
    (tmp_path / "out").mkdir()
    results = {r.line: r for r in run_batch(studio, lines, Into(tmp_path / "out"))}
    for number, (_, error) in enumerate(bad, 1):
        assert (results[number].status == "made") == (not error)
        assert error in results[number].error


def test_an_order_that_fails_while_painting_takes_nobody_with_it(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paint = type(studio.painter()).paint

    def fussy(self, rows, *args, **kwargs):
        if any("bad" in row.prompt for row in rows):
            raise KeyError("out of memory")
        return paint(self, rows, *args, **kwargs)

    monkeypatch.setattr(type(studio.painter()), "paint", fussy)
    results = run(studio, manifest(tmp_path, *({"id": n, "prompt": n, "num_steps": 1} for n in ("good", "bad", "fine"))), tmp_path / "out")
    assert {n: r.status for n, r in results.items()} == {"good": "made", "bad": "failed", "fine": "made"}
    assert "out of memory" in results["bad"].error


def test_tables_are_read_too(tmp_path: Path):
    path = tmp_path / "m.csv"
    path.write_text("id,face,prompt,seed,which\na,ada.png bo.png,a person,3,\nb,z.png,a mug,,1\nc,x,y,1,2,3\nd,,short\n")
    a, b, c, d = read_manifest(path)
    assert d.order is not None
    assert (d.order.prompt, d.order.seed) == ("short", 0)
    assert a.order is not None
    assert [p.name for p in a.order.face] == ["ada.png", "bo.png"]
    assert (a.order.seed, a.order.which) == (3, None)
    assert b.order is not None
    assert (b.order.face[0].name, b.order.which) == ("z.png", 1)
    assert "more cells than the header" in c.error


def test_a_cell_may_name_a_file_with_blanks_or_a_quote(tmp_path: Path):
    (tmp_path / "my photos").mkdir()
    for name in ("my photos/ada.png", "o'neil.png"):
        shutil.copy(ADA, tmp_path / name)
    path = tmp_path / "m.csv"
    path.write_text("id,face\na,my photos/ada.png\nb,o'neil.png\nc,C:\\pics\\ada.png\n")
    a, b, c = read_manifest(path)
    assert [line.order and [p.name for p in line.order.face] for line in (a, b)] == [["ada.png"], ["o'neil.png"]]
    assert c.order is not None
    assert str(c.order.face[0]).endswith("C:\\pics\\ada.png")


def test_a_folder_of_photos_takes_no_pictures(studio: Studio, tmp_path: Path):
    """Pictures among the photos would be photos of the next run; notes and captions beside them change nothing."""
    (tmp_path / "photos").mkdir()
    shutil.copy(ADA, tmp_path / "photos/1.png")
    path = manifest(tmp_path, {"id": "x", "face": "photos", "num_steps": 1})
    assert "be read with them" in run(studio, path, tmp_path / "photos")["x"].error
    assert run(studio, path, tmp_path / "out")["x"].status == "made"
    (tmp_path / "photos/.DS_Store").write_text("")
    (tmp_path / "photos/1.txt").write_text("a photo of ada")
    assert run(studio, path, tmp_path / "out")["x"].status == "kept"


def test_parameters_of_a_styled_line_are_a_line(studio: Studio, tmp_path: Path):
    (tmp_path / "styles.csv").write_text("name,prompt\nink,ink of {prompt}\n")
    path = manifest(tmp_path, {"id": "s", "prompt": "a mug", "style": "ink", "style_sheet": "styles.csv", "num_steps": 1})
    said = run(studio, path, tmp_path / "out")["s"].parameters
    assert said is not None
    (again,) = read_manifest(manifest(tmp_path, dict(said)))
    assert again.order is not None
    assert again.order.request.prompt == "ink of a mug"


def test_a_quote_that_is_left_open_costs_its_own_line(tmp_path: Path):
    path = tmp_path / "m.csv"
    path.write_text('id,prompt\na,"a photo of a person\nb,a photo of a mug\n\nc,"two\nlines"\n,"x"y\n')
    a, b, c, d = read_manifest(path)
    assert (a.number, b.number, c.number, d.number) == (2, 3, 5, 7)
    assert "line 2: no table row" in a.error
    assert b.order is not None
    assert b.order.prompt == "a photo of a mug"
    assert c.order is not None
    assert c.order.prompt == "two\nlines"
    assert "line 7: no table row" in d.error


@pytest.mark.parametrize(
    ("name", "content", "match"), [("m.txt", "x", "ends in .jsonl or .csv"), ("m.jsonl", "\n\n", "holds no orders"), ("m.csv", "id\n", "no orders")]
)
def test_what_is_no_manifest_is_refused(name: str, content: str, match: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=match):
        read_manifest(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_manifest(tmp_path / "none.jsonl")


def test_the_command_reports_and_says_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = manifest(tmp_path, {"id": "a", "num_steps": 1}, {"id": "b", "seed": -1})
    assert main(["batch", str(path), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("1 made, 0 kept, 1 failed")
    assert "line 2: seed -1" in said.err
    assert main(["batch", str(manifest(tmp_path, {"id": "a", "num_steps": 1})), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("0 made, 1 kept")
    assert main(["batch", str(path), "--out", str(path)]) == 2


def test_an_order_never_overwrites_what_it_reads(studio: Studio, tmp_path: Path):
    shutil.copy(ADA, tmp_path / "ada.png")
    before = (tmp_path / "ada.png").read_bytes()
    results = run(studio, manifest(tmp_path, {"id": "ada", "face": "ada.png", "num_steps": 1}, {"id": "b", "face": "ada.png", "num_steps": 1}), tmp_path)
    assert {n: r.status for n, r in results.items()} == {"ada": "failed", "b": "made"}
    assert "would be overwritten" in results["ada"].error
    assert (tmp_path / "ada.png").read_bytes() == before


def test_no_line_overwrites_what_another_one_reads(studio: Studio, tmp_path: Path):
    for name in ("ada", "bo"):
        shutil.copy(Path(ADA).with_name(f"{name}.png"), tmp_path)
    before = (tmp_path / "ada.png").read_bytes()
    results = run(studio, manifest(tmp_path, {"id": "ada", "face": "bo.png", "num_steps": 1}, {"id": "b", "face": "ada.png", "num_steps": 1}), tmp_path)
    assert {n: r.status for n, r in results.items()} == {"ada": "failed", "b": "made"}
    assert "would be overwritten" in results["ada"].error
    assert (tmp_path / "ada.png").read_bytes() == before


def test_a_folder_of_photos_lends_a_face_and_is_judged(studio: Studio, tmp_path: Path):
    (tmp_path / "ada").mkdir()
    shutil.copy(ADA, tmp_path / "ada/1.png")
    results = run(studio, manifest(tmp_path, {"id": "a", "face": "ada", "num_steps": 1}), tmp_path / "out")
    assert results["a"].status == "made"
    assert len(results["a"].scores) == 1


def test_what_a_stopped_run_knew_of_its_pictures_is_not_lost(studio: Studio, tmp_path: Path):
    path, out = manifest(tmp_path, {"id": "a", "face": str(ADA), "num_steps": 2, "num_images": 2}), tmp_path / "out"
    first = run(studio, path, out)["a"]
    assert all(score is not None for score in first.scores)
    (out / RESULTS).unlink()  # stopped before it was written down
    whole = run(studio, path, out)["a"]
    assert (whole.status, whole.scores, whole.seconds > 0) == ("made", first.scores, True)
    (out / RESULTS).unlink()
    (out / "a-2.png").unlink()
    assert run(studio, path, out)["a"].scores == pytest.approx(first.scores, abs=0.01)


def test_what_json_and_tables_may_hold_is_read_rightly(tmp_path: Path):
    one, odd = read_manifest(manifest(tmp_path, '{"prompt": "a\u2028person"}', {"seed": 3.7}))
    assert one.order is not None
    assert one.order.prompt == "a\u2028person"
    assert "3.7 cannot be used" in odd.error
    (tmp_path / "m.csv").write_text("face\n\"'my photo.png' ben.png\"\n")
    (line,) = read_manifest(tmp_path / "m.csv")
    assert line.order is not None
    assert [p.name for p in line.order.face] == ["my photo.png", "ben.png"]


def test_pictures_of_others_are_not_written_over(studio: Studio, tmp_path: Path):
    out = tmp_path / "out"
    order = {"prompt": "a photo of a mug", "num_steps": 1}  # without an id: both manifests name it 0001
    run(studio, manifest(tmp_path, order), out)
    write_image(out / "0002.png", np.zeros((32, 32, 3), np.uint8))  # somebody's own
    before = {p.name: p.read_bytes() for p in out.glob("*.png")}
    second = tmp_path / "second.jsonl"
    second.write_text("\n".join(json.dumps(order | {"seed": seed}) for seed in (1, 2, 3)))
    results = run(studio, second, out)
    assert {n: r.status for n, r in results.items()} == {"0001": "failed", "0002": "failed", "0003": "made"}
    assert "a picture of m.jsonl; give this line another id" in results["0001"].error
    assert "no picture of this manifest" in results["0002"].error
    assert {p.name: p.read_bytes() for p in out.glob("000[12].png")} == before
    assert known_results(out)["0001"]["parameters"]["prompt"] == "a photo of a mug"
    third = second.rename(tmp_path / "third.jsonl")  # under another name, its own pictures are still its own
    assert run(studio, third, out)["0003"].status == "kept"
    (out / RESULTS).unlink()
    assert run(studio, third, out)["0003"].status == "made"
