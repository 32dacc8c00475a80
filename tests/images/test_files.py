"""Every common picture is read rightly, every bad one gets one clear line, writes are whole or absent."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from selfsame.images.files import InputError, check_output, read_image, read_json, read_metadata, read_source, spare_inputs, write_image, written_whole


def gradient(h: int = 24, w: int = 32) -> np.ndarray:
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([x * 255 // w, y * 255 // h, (x + y) * 255 // (h + w)], -1).astype(np.uint8)


def test_plain_rgb_comes_back_exactly(tmp_path: Path):
    write_image(tmp_path / "a.png", gradient())
    assert np.array_equal(read_image(tmp_path / "a.png"), gradient())


def test_transparency_lies_over_white(tmp_path: Path):
    rgba = np.dstack([gradient(), np.zeros((24, 32), np.uint8)])
    rgba[:12, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    seen = read_image(tmp_path / "a.png")
    assert np.array_equal(seen[:12], gradient()[:12])
    assert (seen[12:] == 255).all()


def test_grey_is_grey_in_three_channels(tmp_path: Path):
    Image.fromarray(gradient()[..., 0]).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.repeat(gradient()[..., :1], 3, 2))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    deep = gradient()[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], gradient()[..., 0])


def test_cmyk_and_palette_are_converted(tmp_path: Path):
    Image.fromarray(gradient()).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - gradient()).mean() < 12
    Image.fromarray(gradient()).quantize(64).save(tmp_path / "b.png")
    assert np.abs(read_image(tmp_path / "b.png").astype(int) - gradient()).mean() < 12


def test_exif_turns_the_picture_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "a.jpg").shape == (32, 24, 3)


def test_bad_files_are_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match=r"text.png: not a picture"):
        read_image(tmp_path / "text.png")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, format="PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:2000])
    with pytest.raises(InputError, match=r"cut.png: the picture is damaged or cut off"):
        read_image(tmp_path / "cut.png")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [8000, 10000, 60000])
def test_bombs_are_refused_before_they_are_opened(tmp_path: Path, side: int):
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(InputError, match="megapixels"):
        read_image(tmp_path / "bomb.png")


def test_outputs_are_checked_before_any_work(tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        check_output(tmp_path / "missing" / "out.png")
    with pytest.raises(InputError, match=r"end the name in .png"):
        check_output(tmp_path / "out.gif")
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path / "dir.png")


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_image(tmp_path / "a.png", gradient())
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_image(path, gradient() * 0)
    assert np.array_equal(read_image(path), gradient())
    assert list(tmp_path.iterdir()) == [path]


def test_parameters_travel_inside(tmp_path: Path):
    write_image(tmp_path / "a.png", gradient(), {"seed": 3, "prompt": "ünïcode"})
    assert read_metadata(tmp_path / "a.png") == {"seed": 3, "prompt": "ünïcode"}
    write_image(tmp_path / "b.png", gradient())
    with pytest.raises(InputError, match="carries no selfsame parameters"):
        read_metadata(tmp_path / "b.png")


def test_a_source_keeps_its_transparency_and_profile(tmp_path: Path):
    rgba = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    rgba[:16, :, 3] = 0
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=profile)
    source = read_source(tmp_path / "a.png")
    made = source.pixels.copy()
    made[20:24, 4:8] = 255 - made[20:24, 4:8]
    write_image(tmp_path / "b.png", source.changed(made), icc_profile=source.icc_profile)
    with Image.open(tmp_path / "b.png") as image:
        again = np.asarray(image)
        assert image.info["icc_profile"] == profile
    same = (made == source.pixels).all(-1)
    assert np.array_equal(again[same], rgba[same])
    assert (again[~same][:, 3] == 255).all()


def test_sixteen_bits_a_colour_are_not_lost_in_silence(tmp_path: Path):
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), np.full((24, 24, 3), 300, np.uint16))
    assert read_source(path).notes == (f"{path}: its 16 bits become 8",)
    cv2.imwrite(str(path), np.full((24, 24, 3), 30, np.uint8))
    assert read_source(path).notes == ()


def test_what_is_read_is_never_written_over(tmp_path: Path):
    (tmp_path / "people").mkdir()
    write_image(tmp_path / "people/a.png", np.zeros((4, 4, 3), np.uint8))
    spare_inputs([tmp_path / "b.png", tmp_path / "people/weights.safetensors"], [tmp_path / "people", None])
    with pytest.raises(InputError, match="be read with them"):
        spare_inputs([tmp_path / "people/new.png"], [tmp_path / "people"])
    for path, read in ((tmp_path / "people/../people/a.png", tmp_path / "people/a.png"), (tmp_path / "people/a.png", tmp_path / "people")):
        with pytest.raises(InputError, match="would be overwritten"):
            spare_inputs([path], [read])


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "a.txt"
    with written_whole(path) as partial:
        partial.write_text("whole")

    def fill() -> None:
        with written_whole(path) as partial:
            partial.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_dark_16_bit_picture_stays_dark(tmp_path: Path):
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "dark.png")
    assert read_image(tmp_path / "dark.png").max() <= 1


@pytest.mark.parametrize(("content", "says"), [(None, "no such file"), (b'{"a": 1', "not a JSON file"), (b"\xff\xfe", "not a JSON file")])
def test_a_damaged_json_file_is_named(content: bytes | None, says: str, tmp_path: Path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"config.json: {says}"):
        read_json(path)
