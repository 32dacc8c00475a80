"""Models onto the disk: in order, resumed, checked, flat, never half. The only server is one of this test, on the loopback."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from selfsame.cli.main import main
from selfsame.cli.say import fail
from selfsame.images.files import InputError
from selfsame.weights import catalogue
from selfsame.weights import fetch as fetching
from selfsame.weights.catalogue import CATALOGUE, Model, Part, model_called, must_be_commercial
from selfsame.weights.fetch import RECORD, download, fetch, folder_of, local, missing_of, partial_of
from selfsame.weights.mannequin import manifest

BODY = bytes(range(256)) * 4000


class Server(ThreadingHTTPServer):
    """Serves `files`; each path's first `cut` answers break off in the middle."""

    files: dict[str, bytes]
    cut: dict[str, int]
    asked: list[tuple[str, str]]
    etags: bool = False


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.server.files.get(self.path)
        wanted = self.headers.get("Range", "")
        self.server.asked.append((self.path, wanted))
        if body is None:
            self.send_error(404)
            return
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        same = self.headers.get("If-Range", etag) == etag
        start = int(m[1]) if same and (m := re.match(r"bytes=(\d+)-", wanted)) else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        part = body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        if self.server.etags:
            self.send_header("ETag", etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.server.cut.get(self.path, 0) > 0:
            self.server.cut[self.path] -= 1
            self.wfile.write(part[: len(part) // 2])
            return
        self.wfile.write(part)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.files, made.cut, made.asked = {}, {}, []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFSAME_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "home"


def at(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as z:
        for name, body in files.items():
            z.writestr(name, body)
    return stream.getvalue()


def toy(*sources: str, files: tuple[str, ...] = ("det.onnx", "rec.onnx"), **more: dict[str, str]) -> Model:
    return Model("toy", "a toy", (Part(sources, files, **more),), "MIT", "MIT", True, 1)


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path):
    server.files["/big.bin"], server.cut["/big.bin"] = BODY, 1
    path = tmp_path / "big.bin"
    with pytest.raises(OSError, match="goes on there"):
        download(at(server, "/big.bin"), path)
    assert not path.exists()
    came: list[int] = []
    assert download(at(server, "/big.bin"), path, lambda count, name: came.append(count)).read_bytes() == BODY
    assert server.asked[-1][1].startswith("bytes=")
    assert sum(came) == len(BODY)
    assert [p.name for p in tmp_path.iterdir()] == ["big.bin"]


def test_a_zip_is_laid_flat_however_deep_it_lies(server: Server):
    files = {"antelopev2/antelopev2/det.onnx": b"d", "antelopev2/antelopev2/rec.onnx": b"r", "antelopev2/unneeded.onnx": b"x"}
    server.files["/pack.zip"] = zipped(files)
    folder = fetch(toy(at(server, "/pack.zip")))
    assert {p.name for p in folder.iterdir()} == {"det.onnx", "rec.onnx", RECORD}
    assert local(toy(at(server, "/pack.zip"))) == folder


def test_dead_addresses_cost_a_moment_and_all_are_named_when_none_gives(server: Server):
    server.files["/good.zip"] = zipped({"det.onnx": b"d", "rec.onnx": b"r"})
    server.files["/poor.zip"] = zipped({"other.onnx": b"d"})
    server.files["/bad.zip"] = b"<html>moved</html>"
    dead, poor, bad, good = (at(server, f"/{n}.zip") for n in ("dead", "poor", "bad", "good"))
    assert not missing_of(replace(toy(), name=fetch(toy(dead, poor, bad, good)).name))
    shutil.rmtree(folder_of(toy()))
    with pytest.raises(InputError) as error:
        fetch(toy(dead, poor, bad))
    for word in ("404", "lacks det.onnx", "damaged archive", "by hand"):
        assert word in str(error.value)


def test_what_is_there_stays_and_is_not_asked_for(server: Server, home: Path):
    server.files["/one.bin"] = BODY
    model = toy(at(server, "/one.bin"), files=("one.bin",))
    fetch(model)
    fetch(model)
    assert len(server.asked) == 1
    (home / "toy" / "one.bin").write_bytes(b"changed")
    with pytest.raises(InputError, match="has changed since"):
        local(model)
    with pytest.raises(InputError, match="is not what it was"):
        fetch(model)  # a changed file is never approved


def test_a_wrong_hash_is_deleted_and_a_right_one_stays(server: Server, home: Path):
    server.files["/one.bin"] = BODY
    right = hashlib.sha256(BODY).hexdigest()
    with pytest.raises(InputError, match="arrived with sha256"):
        fetch(toy(at(server, "/one.bin"), files=("one.bin",), sha256={"one.bin": "0" * 64}))
    assert not (home / "toy" / "one.bin").exists()
    fetch(toy(at(server, "/one.bin"), files=("one.bin",), sha256={"one.bin": right}))


def test_offline_means_offline(server: Server, monkeypatch: pytest.MonkeyPatch):
    server.files["/one.bin"] = BODY
    model = toy(at(server, "/one.bin"), files=("one.bin",))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids"):
        fetch(model)
    assert not server.asked
    with pytest.raises(InputError, match="selfsame models fetch toy"):
        local(model)


def test_a_full_disk_and_no_network_are_said(server: Server, monkeypatch: pytest.MonkeyPatch):
    server.files["/one.bin"] = BODY

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "download", full)
    with pytest.raises(InputError, match="disk is full"):
        fetch(toy(at(server, "/one.bin"), files=("one.bin",)))
    monkeypatch.undo()
    monkeypatch.setenv("SELFSAME_HOME", str(folder_of(toy()).parent))

    def unreachable(*args: object, **more: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(fetching._OPENER, "open", unreachable)
    with pytest.raises(InputError, match="no address gave"):
        fetch(toy("https://nowhere.invalid/one.bin", files=("one.bin",)))


def test_writers_that_know_no_error_numbers_say_full_disks_too(capsys: pytest.CaptureFixture[str]):
    for error in (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), RuntimeError("unexpected pos 64 vs 0")):
        assert fail(error) == 2
        assert "no space left on device; free some space" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="something else"):
        fail(RuntimeError("something else"))


def test_a_path_that_leaves_its_folder_is_refused():
    for name in ("../evil.onnx", "/etc/evil.onnx"):
        with pytest.raises(InputError, match="stay in its folder"):
            fetch(toy("https://nowhere.invalid/x.zip", files=(name,)))


def test_files_of_the_hub_are_asked_for_by_their_addresses(server: Server, monkeypatch: pytest.MonkeyPatch, home: Path):
    monkeypatch.setenv("HF_ENDPOINT", at(server, ""))
    server.files["/owner/name/resolve/abc123/models/pack/det.onnx"] = BODY
    server.cut["/owner/name/resolve/abc123/models/pack/det.onnx"] = 1
    model = toy("hf:owner/name/models/pack@abc123", files=("det.onnx",))
    with pytest.raises(InputError, match="goes on there"):
        fetch(model)
    fetch(model)
    assert server.asked[-1][1].startswith("bytes=")
    assert (home / "toy" / "det.onnx").read_bytes() == BODY


def test_a_beginning_of_another_version_is_thrown_away(server: Server, tmp_path: Path):
    server.files["/one.bin"] = BODY
    path = tmp_path / "one.bin"
    partial_of(path, at(server, "/one.bin")).write_bytes(BODY + b"more")
    with pytest.raises(OSError, match="another version"):
        download(at(server, "/one.bin"), path)
    assert download(at(server, "/one.bin"), path).read_bytes() == BODY
    partial_of(path, at(server, "/one.bin")).write_bytes(BODY)
    path.unlink()
    assert download(at(server, "/one.bin"), path).read_bytes() == BODY  # all of it was there


def test_a_file_of_another_size_is_refused_before_it_comes(server: Server, tmp_path: Path):
    server.files["/big.bin"] = BODY
    came: list[int] = []
    with pytest.raises(OSError, match=r"a file of 1,024,000 bytes lies there, the catalogue says 1,024,001"):
        download(at(server, "/big.bin"), tmp_path / "big.bin", lambda count, name: came.append(count), size=len(BODY) + 1)
    assert not came
    assert not (tmp_path / "big.bin").exists()
    partial_of(tmp_path / "big.bin", at(server, "/big.bin")).write_bytes(BODY[:1000])
    assert download(at(server, "/big.bin"), tmp_path / "big.bin", size=len(BODY)).read_bytes() == BODY


def test_a_disk_without_room_is_named_before_anything_comes(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch):
    digest = hashlib.sha256(BODY).hexdigest()
    monkeypatch.setitem(catalogue._BYTES, digest, len(BODY))
    monkeypatch.setenv("HF_ENDPOINT", at(server, ""))
    server.files["/me/toy/resolve/main/det.onnx"] = BODY
    model = toy("hf:me/toy", files=("det.onnx",), sha256={"det.onnx": digest})
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: SimpleNamespace(free=len(BODY) - 1))
    with pytest.raises(InputError, match=r"toy needs 1 MB more and the disk has 1 .*SELFSAME_HOME"):
        fetch(model)
    assert not server.asked
    partial_of(folder_of(model) / "det.onnx", at(server, "/me/toy/resolve/main/det.onnx")).write_bytes(BODY[:10])  # so much less is needed
    assert (fetch(model) / "det.onnx").read_bytes() == BODY


# ------------------------------------------------------------------------------------------ the catalogue


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=lambda m: m.name)
def test_every_entry_can_be_understood(model: Model):
    assert model.what
    assert model.weights
    assert model.size_mb > 0
    assert model.commercial or model.instead
    assert all(n in CATALOGUE for n in model.needs)
    for part in model.parts:
        assert part.sources
        assert part.files
        assert all(re.fullmatch(r"hf:[\w.-]+(/[\w.-]+)+(@\w+)?|https://\S+", s) for s in part.sources)
        assert all(re.fullmatch(r"[0-9a-f]{64}", v) for v in part.sha256.values())
    assert not model.is_verified or all(p.sha256 for p in model.parts)
    known = sum(part.bytes_of(name) for part in model.parts for name in part.files) / 1e6
    assert not known or abs(known - model.size_mb) <= max(5, 0.03 * model.size_mb)


def test_names_dead_addresses_and_slips_lead_somewhere():
    assert model_called("sd15") is model_called("runwayml/stable-diffusion-v1-5") is model_called("stable-diffusion-v1-5/stable-diffusion-v1-5")
    with pytest.raises(InputError, match="did you mean 'antelopev2'"):
        model_called("antelope")
    with pytest.raises(InputError, match="non-commercial research; commercially: yunet-sface"):
        must_be_commercial(CATALOGUE["antelopev2"])


def test_from_the_command_line(capsys: pytest.CaptureFixture[str], server: Server, monkeypatch: pytest.MonkeyPatch):
    assert main(["models"]) == 0
    assert "antelopev2" in capsys.readouterr().out
    assert main(["models", "--licence", "commercial"]) == 0
    assert "antelopev2" not in capsys.readouterr().out.split("left out: ")[0]
    assert main(["models", "shipped"]) == 0
    judge = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| judge.safetensors |"))
    assert manifest()["files"]["judge.safetensors"][:12] in judge
    assert main(["models", "shipped", "antelopev2"]) == 2
    assert main(["models", "fetch"]) == 2
    assert main(["models", "fetch", "instantid", "--licence", "commercial"]) == 2
    assert "an adapter that you train" in capsys.readouterr().err
    server.files["/one.bin"] = BODY
    monkeypatch.setitem(CATALOGUE, "toy", replace(toy(at(server, "/one.bin"), files=("one.bin",)), needs=("sdxl",)))
    assert main(["models", "fetch", "toy"]) == 0
    assert "it needs sdxl too" in capsys.readouterr().out


def test_the_doctor_says_what_is_wrong(capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch):
    assert main(["doctor"]) == 0
    assert "ok   mannequin" in capsys.readouterr().out
    folder = home / "yunet-sface"
    folder.mkdir(parents=True)
    for part in CATALOGUE["yunet-sface"].parts:
        (folder / part.files[0]).write_bytes(b"x")
    (folder / RECORD).write_text('{"files": {"face_detection_yunet_2023mar.onnx": {"sha256": "00", "stat": [1, 1]}}}')
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "FIX  yunet-sface" in said
    assert "-> delete the file, then: selfsame models fetch yunet-sface" in said


def test_the_doctor_names_what_was_half_fetched(capsys: pytest.CaptureFixture[str], home: Path):
    (home / "yunet-sface").mkdir(parents=True)
    (home / "yunet-sface" / CATALOGUE["yunet-sface"].parts[1].files[0]).write_bytes(b"x")
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "FIX  yunet-sface: half fetched, 1 files are missing, such as face_detection_yunet_2023mar.onnx" in said
    assert "-> selfsame models fetch yunet-sface" in said


def test_a_file_that_was_put_there_by_hand_must_be_the_catalogues(home: Path):
    """Another recogniser under antelopev2's name would read faces in another space."""
    folder = home / "antelopev2"
    folder.mkdir(parents=True)
    for name in CATALOGUE["antelopev2"].parts[0].files:
        (folder / name).write_bytes(b"another network")
    with pytest.raises(InputError, match="is not antelopev2's file of that name"):
        local(CATALOGUE["antelopev2"])


def test_what_was_put_there_by_hand_is_hashed_once(home: Path, monkeypatch: pytest.MonkeyPatch):
    model = toy("https://nowhere.invalid/one.bin", files=("one.bin",), sha256={"one.bin": hashlib.sha256(BODY).hexdigest()})
    folder_of(model).mkdir(parents=True)
    (folder_of(model) / "one.bin").write_bytes(BODY)
    assert local(model) == folder_of(model)
    fetching._sha256_once.cache_clear()  # another command
    monkeypatch.setattr(fetching, "sha256", lambda path: pytest.fail(f"{path} is read again"))
    assert local(model) == folder_of(model)


def test_all_of_one_model_can_be_shown(capsys: pytest.CaptureFixture[str], home: Path):
    assert main(["models", "show", "antelopev2"]) == 0
    said = capsys.readouterr().out
    part = CATALOGUE["antelopev2"].parts[0]
    assert part.sources[0] in said
    assert all(f"{name}  {part.bytes_of(name):,} bytes, sha256 {digest}" in said for name, digest in part.sha256.items())
    assert "commercial use: no" in said
    assert "not here" in said
    assert main(["models", "show"]) == 2
    assert main(["models", "--licence", "commercial"]) == 0
    assert "left out: antelopev2, non-commercial research; instead: yunet-sface" in capsys.readouterr().out


def test_what_one_address_began_another_does_not_finish(server: Server, tmp_path: Path):
    other = BODY[::-1] + b"more"
    server.files |= {"/a/one.bin": BODY, "/b/one.bin": other}
    server.cut["/a/one.bin"] = 1
    path = fetch(toy(at(server, "/a/one.bin"), at(server, "/b/one.bin"), files=("one.bin",))) / "one.bin"
    assert path.read_bytes() == other
    assert {p.name for p in path.parent.iterdir()} == {"one.bin", RECORD}


def test_a_mirror_with_another_file_leaves_it_to_the_next(server: Server, home: Path):
    server.files |= {"/a/one.bin": b"replaced", "/b/one.bin": BODY}
    known = {"one.bin": hashlib.sha256(BODY).hexdigest()}
    assert (fetch(toy(at(server, "/a/one.bin"), at(server, "/b/one.bin"), files=("one.bin",), sha256=known)) / "one.bin").read_bytes() == BODY


def test_a_copied_cache_is_hashed_once_and_a_record_of_another_kind_is_none(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch):
    server.files["/one.bin"] = BODY
    model = toy(at(server, "/one.bin"), files=("one.bin",))
    folder = fetch(model)
    os.utime(folder / "one.bin", (1, 1))
    local(model)
    monkeypatch.setattr("selfsame.weights.fetch.sha256", lambda path: pytest.fail("hashed again"))
    local(model)
    (folder / RECORD).write_text('{"encoder": "antelopev2"}')
    assert local(model) == folder


def test_a_version_that_changes_in_between_begins_anew(server: Server, tmp_path: Path):
    server.files["/one.bin"], server.cut["/one.bin"], server.etags = BODY, 1, True
    path = tmp_path / "one.bin"
    with pytest.raises(OSError, match="goes on there"):
        download(at(server, "/one.bin"), path)
    server.files["/one.bin"] = BODY[::-1]
    assert download(at(server, "/one.bin"), path).read_bytes() == BODY[::-1]
    assert [p.name for p in tmp_path.iterdir()] == ["one.bin"]


def test_a_file_that_is_fetched_again_must_be_the_same(server: Server, home: Path):
    server.files["/one.bin"] = BODY
    model = toy(at(server, "/one.bin"), files=("one.bin",))
    fetch(model)
    (home / "toy/one.bin").unlink()
    server.files["/one.bin"] = BODY + b"more"
    with pytest.raises(InputError, match="when it was first fetched"):
        fetch(model)
    (home / "toy" / RECORD).unlink()
    fetch(model)
