"""Models from the catalogue onto the disk: address after address, resumed, checked, laid flat, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from selfsame.images.files import InputError, read_json, written_whole
from selfsame.weights.catalogue import HUB, Model, Part
from selfsame.weights.mannequin import sha256

CACHE_VARIABLE = "SELFSAME_HOME"
RECORD = "fetched.json"  # hashes of what was fetched, beside it
CHUNK = 1 << 20
LARGEST = 20_000_000_000  # bytes of an unpacked archive: more is no model of ours
SECONDS = 30  # without a byte after which an address is given up
Tick = Callable[[int, str], None]  # bytes that came, of what


def cache_folder() -> Path:
    """Where models are kept: $SELFSAME_HOME, else the user's cache."""
    own = os.environ.get(CACHE_VARIABLE)
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "selfsame"


def is_offline() -> bool:
    """Whether the user forbade the network, by the hub's own variable."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def folder_of(model: Model) -> Path:
    return cache_folder() / model.name


def missing_of(model: Model) -> list[str]:
    """Files of a model that are not there."""
    return [f for p in model.parts for f in p.files if not (folder_of(model) / p.into / _kept_as(f)).is_file()]


def _kept_as(name: str) -> str:
    """Where a file lies below the model's folder.

    Raises:
        InputError: its path leads out of it.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{name}: a file's path must stay in its folder")
    return name


def local(model: Model, *, thorough: bool = False) -> Path:
    """The folder of a model that has been fetched, its files what they were.

    Args:
        thorough: hash every file again; else only those whose size or time has changed.

    Raises:
        InputError: files are missing, or are not what they were.
    """
    absent = missing_of(model)
    if absent:
        raise InputError(f"{model.name}: {absent[0]} is not in {folder_of(model)}; fetch it with `selfsame models fetch {model.name}`")
    record, moved = _record(model), False
    for part in model.parts:  # what nobody fetched here, but the catalogue knows
        for name, expected in part.sha256.items():
            path, key = folder_of(model) / part.into / name, f"{part.into}/{name}".lstrip("/")
            if key in record or name not in part.files:
                continue
            seen = _stat(path)
            if _sha256_once(path, tuple(seen)) != expected:
                raise InputError(f"{path}: is not {model.name}'s file of that name; delete it and fetch it (selfsame models fetch {model.name})")
            record[key], moved = {"sha256": expected, "stat": seen}, True
    for name, known in record.items():
        path = folder_of(model) / name
        seen = _stat(path)
        if (thorough or seen != known["stat"]) and sha256(path) != known["sha256"]:
            raise InputError(f"{path}: has changed since it was fetched; delete it and fetch it again (selfsame models fetch {model.name})")
        moved, known["stat"] = moved or seen != known["stat"], seen
    if moved:  # copied, or put there by hand: not to be hashed again next time
        with contextlib.suppress(OSError):
            _write_record(model, record)
    return folder_of(model)


@cache
def _sha256_once(path: Path, stat: tuple[int, ...]) -> str:
    return sha256(path)


def _stat(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def _record(model: Model) -> dict[str, dict[str, Any]]:
    """What is known of a model's files: sha256 and, to notice a change quickly, size and time."""
    path = folder_of(model) / RECORD
    try:
        return dict(read_json(path)["files"]) if path.exists() else {}
    except (InputError, KeyError, TypeError, ValueError):  # cut off: the files are looked at anew
        return {}


def fetch(model: Model, tick: Tick = lambda count, name: None) -> Path:
    """Bring what is missing of a model; files that are there stay, once they are seen to be the right ones.

    Args:
        tick: sees the bytes as they come.

    Raises:
        InputError: no address gave a part, a hash is wrong, a file has changed, or the disk is full; the message names all that was tried.
    """
    folder = folder_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    known, files = _record(model), {}
    for part in model.parts:
        target = folder / part.into
        wanted = [f for f in part.files if not (target / _kept_as(f)).is_file()]
        for name in part.files:
            key, path = f"{part.into}/{name}".lstrip("/"), target / name
            if name not in wanted:
                expected = part.sha256.get(name) or known.get(key, {}).get("sha256", "")
                if expected and sha256(path) != expected:
                    raise InputError(f"{path}: is not what it was or should be; delete it and fetch it again")
        if wanted:
            _bring(model, part, wanted, target, tick)
        for name in part.files:
            path = target / name
            files[f"{part.into}/{name}".lstrip("/")] = {"sha256": sha256(path), "stat": _stat(path)}
    _write_record(model, files)
    return folder


def _write_record(model: Model, files: Mapping[str, Any]) -> None:
    with written_whole(folder_of(model) / RECORD) as partial:
        partial.write_text(json.dumps({"model": model.name, "licence": model.weights, "files": files}, indent=1) + "\n")


def _bring(model: Model, part: Part, wanted: list[str], target: Path, tick: Tick) -> None:
    """A part's missing files from the first address that has them."""
    if is_offline():
        raise InputError(f"{model.name}: {wanted[0]} is not in {target} and HF_HUB_OFFLINE forbids the network; unset it, or put the file there")
    _must_fit(model, part, wanted, target)
    tried = []
    for source in part.sources:
        try:
            if source.startswith(HUB):
                _from_hub(source, {name: part.bytes_of(name) for name in wanted}, target, tick)
            else:
                _from_address(source, wanted, target, tick)
            for name in wanted:
                _check(target / name, part.sha256.get(name, ""), "the catalogue says")
            break
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise InputError(f"{target}: the disk is full; about {model.size_mb} MB are needed (${CACHE_VARIABLE} names another folder)") from None
            tried.append(f"{source} ({' '.join(str(error).split())[:120]})")
    else:
        raise InputError(f"{model.name}: no address gave {', '.join(wanted[:3])}; tried {'; '.join(tried)}. Put the files into {target} by hand")
    record, known = folder_of(model) / RECORD, _record(model)
    for name in wanted:
        try:
            _check(target / name, known.get(f"{part.into}/{name}".lstrip("/"), {}).get("sha256", ""), "when it was first fetched it was")
        except OSError as error:
            raise InputError(f"{error}; if you trust the new one, delete {record} and fetch again") from None


def _must_fit(model: Model, part: Part, wanted: Sequence[str], target: Path) -> None:
    """Before any byte comes, as far as sizes are known; what is half here counts.

    Raises:
        InputError: the disk has less room.
    """
    target.mkdir(parents=True, exist_ok=True)
    here = sum(p.stat().st_size for name in wanted for p in (target / name).parent.glob(f"{glob.escape(Path(name).name)}.????????.part"))
    needed, free = sum(map(part.bytes_of, wanted)) - here, shutil.disk_usage(target).free
    if needed > free:
        raise InputError(f"{target}: {model.name} needs {needed / 1e6:.0f} MB more and the disk has {free / 1e6:.0f} (${CACHE_VARIABLE} names another folder)")


def _check(path: Path, expected: str, says: str) -> None:
    """A file with another hash is deleted.

    Raises:
        OSError: it had another.
    """
    if expected and (actual := sha256(path)) != expected:
        path.unlink()
        raise OSError(f"{path.name}: arrived with sha256 {actual[:12]}..., {says} {expected[:12]}..., and was deleted")


def _from_hub(source: str, wanted: Mapping[str, int], target: Path, tick: Tick) -> None:
    """Files of a repository of the hub, with their sizes, by plain addresses: a broken one goes on where it stopped, which the hub's client does not."""
    address, _, revision = source.removeprefix(HUB).partition("@")
    owner, name, *inner = address.split("/")
    site = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    for file, size in wanted.items():
        path = target / file
        path.parent.mkdir(parents=True, exist_ok=True)
        download(f"{site}/{owner}/{name}/resolve/{revision or 'main'}/{'/'.join([*inner, file])}", path, tick, size=size)


def _from_address(source: str, wanted: list[str], target: Path, tick: Tick) -> None:
    """A zip with the files somewhere in it, or one file."""
    name = PurePosixPath(urllib.parse.urlparse(source).path).name
    if not name.endswith(".zip"):
        download(source, target / wanted[0], tick)
        return
    archive = download(source, target / name, tick)
    try:
        _unpack(archive, wanted, target)
    finally:
        archive.unlink(missing_ok=True)


def _unpack(archive: Path, wanted: list[str], target: Path) -> None:
    """Lay the wanted members flat, wherever they lie in the archive: people have it nested in a folder of its own name."""
    try:
        with zipfile.ZipFile(archive) as z:
            members = {PurePosixPath(i.filename).name: i for i in z.infolist() if not i.is_dir()}
            if sum(members[n].file_size for n in wanted if n in members) > LARGEST:
                raise OSError(f"the archive unpacks to more than {LARGEST / 1e9:.0f} GB")
            for name in wanted:
                if name not in members:
                    raise OSError(f"the archive lacks {name}, it holds {', '.join(sorted(members)[:5])}")
                with written_whole(target / name) as partial, z.open(members[name]) as source, open(partial, "wb") as out:
                    shutil.copyfileobj(source, out, CHUNK)
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # damaged, encrypted, or packed in a way that zipfile does not know
        raise OSError(f"a damaged archive: {error}") from None


def download(address: str, path: Path, tick: Tick = lambda count, name: None, *, size: int = 0) -> Path:
    """One file over https, continued where an earlier try stopped; renamed when whole.

    Args:
        size: how many bytes it has; 0: not known.

    Raises:
        OSError: no connection, an error of the server, fewer bytes than it said, or a file of another size, of which nothing is fetched.
    """
    partial = partial_of(path, address)
    version = partial.with_suffix(".etag")  # of what is here so far
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "selfsame", **({"Range": f"bytes={have}-"} if have else {})}
    if have and version.exists():
        headers["If-Range"] = version.read_text()
    token = os.environ.get("HF_TOKEN", "")
    if token and urllib.parse.urlparse(address).hostname == "huggingface.co":
        headers["Authorization"] = f"Bearer {token}"
    try:
        with _OPENER.open(urllib.request.Request(address, headers=headers), timeout=SECONDS) as answer:
            again = have > 0 and answer.status == 206 and answer.headers.get("Content-Range", f"bytes {have}-").startswith(f"bytes {have}-")
            total = int(answer.headers.get("Content-Length") or -1)
            have = have if again else 0
            if size and total >= 0 and have + total != size:
                raise OSError(f"a file of {have + total:,} bytes lies there, the catalogue says {size:,}")
            if not again:
                version.unlink(missing_ok=True)
                if (etag := answer.headers.get("ETag", "")).startswith('"'):  # a strong one
                    version.write_text(etag)
            with open(partial, "ab" if again else "wb") as out:
                if again:
                    tick(have, path.name)
                got = 0
                while block := answer.read(CHUNK):
                    out.write(block)
                    got += len(block)
                    tick(len(block), path.name)
    except urllib.error.HTTPError as error:
        whole = error.headers.get("Content-Range", "").rpartition("/")[2]
        if error.code == 416 and whole == str(have):  # nothing is left to send
            return _done(partial, path)
        if error.code == 416:  # what is here does not belong to what is there
            partial.unlink()
            version.unlink(missing_ok=True)
            raise OSError("the beginning that is here belongs to another version; it was deleted, try again") from None
        raise OSError(f"the server says {error.code} {error.reason}") from None
    if total >= 0 and got != total:
        raise OSError(f"the connection broke after {have + got} bytes; try again, it goes on there")
    return _done(partial, path)


def partial_of(path: Path, address: str) -> Path:
    """Where a file grows: another address may send another file."""
    return path.with_name(f"{path.name}.{hashlib.sha256(address.encode()).hexdigest()[:8]}.part")


def _done(partial: Path, path: Path) -> Path:
    """A whole file under its name, and nothing left of other tries."""
    os.replace(partial, path)
    for left in path.parent.glob(f"{glob.escape(path.name)}.????????.*"):
        if left.suffix in (".part", ".etag"):
            left.unlink()
    return path


class _NoWeaker(urllib.request.HTTPRedirectHandler):
    """A redirect may not leave https, and takes no password to another site."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlparse(req.full_url), urllib.parse.urlparse(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise OSError(f"redirected from https to {new.scheme}")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and old.hostname != new.hostname:
            made.remove_header("Authorization")
        return made


_OPENER = urllib.request.build_opener(_NoWeaker)
