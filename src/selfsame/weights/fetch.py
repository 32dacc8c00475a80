"""Models from the catalogue onto the disk: address after address, resumed, checked, laid flat, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from selfsame.images.files import InputError
from selfsame.weights.catalogue import HUB, Model
from selfsame.weights.mannequin import sha256

CACHE_VARIABLE = "SELFSAME_HOME"
RECORD = "selfsame.json"  # hashes of what was fetched, beside it
CHUNK = 1 << 20
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


def local(model: Model) -> Path:
    """The folder of a model that has been fetched, its hashes unchanged since.

    Raises:
        InputError: files are missing, or are not what they were.
    """
    absent = missing_of(model)
    if absent:
        raise InputError(f"{model.name}: {absent[0]} is not in {folder_of(model)}; fetch it with `selfsame models fetch {model.name}`")
    for name, expected in _record(model).items():
        if sha256(folder_of(model) / name) != expected:
            raise InputError(f"{folder_of(model) / name}: has changed since it was fetched; delete it and fetch it again")
    return folder_of(model)


def _record(model: Model) -> dict[str, str]:
    path = folder_of(model) / RECORD
    return json.loads(path.read_text())["sha256"] if path.exists() else {}


def fetch(model: Model, tick: Tick = lambda count, name: None) -> Path:
    """Bring what is missing of a model; files that are there stay.

    Args:
        tick: sees the bytes as they come.

    Raises:
        InputError: no address gave a part, a hash is wrong, or the disk is full; the message names all that was tried.
    """
    folder = folder_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    for part in model.parts:
        target = folder / part.into
        wanted = [f for f in part.files if not (target / _kept_as(f)).is_file()]
        if not wanted:
            continue
        if is_offline():
            raise InputError(f"{model.name}: {wanted[0]} is not in {target} and HF_HUB_OFFLINE forbids the network; unset it, or put the file there")
        tried = []
        for source in part.sources:
            try:
                (_from_hub if source.startswith(HUB) else _from_address)(source, wanted, target, tick)
                break
            except OSError as error:
                if getattr(error, "errno", None) == 28:
                    raise InputError(f"{target}: the disk is full; about {model.size_mb} MB are needed (${CACHE_VARIABLE} names another folder)") from None
                tried.append(f"{source} ({' '.join(str(error).split())[:120]})")
        else:
            raise InputError(f"{model.name}: no address gave {', '.join(wanted[:3])}; tried {'; '.join(tried)}. Put the files into {target} by hand")
        for name in wanted:
            _check(target / name, part.sha256.get(name, ""))
    made = {f"{p.into}/{f}".lstrip("/"): sha256(folder / p.into / f) for p in model.parts for f in p.files}
    partial = folder / f".{RECORD}.{os.getpid()}.part"
    partial.write_text(json.dumps({"model": model.name, "licence": model.weights, "sha256": made}, indent=1) + "\n")
    os.replace(partial, folder / RECORD)
    return folder


def _check(path: Path, expected: str) -> None:
    if expected and (actual := sha256(path)) != expected:
        path.unlink()
        raise InputError(f"{path.name}: arrived with sha256 {actual[:12]}..., the catalogue says {expected[:12]}...; it was deleted, try again later")


def _from_hub(source: str, wanted: list[str], target: Path, tick: Tick) -> None:
    """Files of a repository of the hub; its own client resumes, checks and shows progress."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    address, _, revision = source.removeprefix(HUB).partition("@")
    owner, name, *inner = address.split("/")
    below = "/".join(inner)
    for file in wanted:
        try:
            got = hf_hub_download(f"{owner}/{name}", f"{below}/{file}" if below else file, revision=revision or None, local_dir=target)
        except HfHubHTTPError as error:
            raise OSError(str(error)) from None
        except ValueError as error:  # a repository's name that cannot be one
            raise OSError(str(error)) from None
        if below:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(got, target / file)
        tick((target / file).stat().st_size, file)
    if below:
        shutil.rmtree(target / below.split("/")[0], ignore_errors=True)


def _from_address(source: str, wanted: list[str], target: Path, tick: Tick) -> None:
    """A zip with the files somewhere in it, or one file."""
    target.mkdir(parents=True, exist_ok=True)
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
            for name in wanted:
                if name not in members:
                    raise OSError(f"the archive lacks {name}, it holds {', '.join(sorted(members)[:5])}")
                partial = target / f".{name}.{os.getpid()}.part"
                try:
                    with z.open(members[name]) as source, open(partial, "wb") as out:
                        shutil.copyfileobj(source, out, CHUNK)
                    os.replace(partial, target / name)
                finally:
                    partial.unlink(missing_ok=True)
    except zipfile.BadZipFile as error:
        raise OSError(f"a damaged archive: {error}") from None


def download(address: str, path: Path, tick: Tick = lambda count, name: None) -> Path:
    """One file over https, continued where an earlier try stopped; renamed when whole.

    Raises:
        OSError: no connection, an error of the server, or fewer bytes than it said.
    """
    partial = path.with_name(f"{path.name}.part")
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "selfsame", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            again = have > 0 and answer.status == 206
            total = int(answer.headers.get("Content-Length") or -1)
            have = have if again else 0
            with open(partial, "ab" if again else "wb") as out:
                if again:
                    tick(have, path.name)
                got = 0
                while block := answer.read(CHUNK):
                    out.write(block)
                    got += len(block)
                    tick(len(block), path.name)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send
            os.replace(partial, path)
            return path
        raise OSError(f"the server says {error.code} {error.reason}") from None
    if total >= 0 and got != total:
        raise OSError(f"the connection broke after {have + got} bytes; try again, it goes on there")
    os.replace(partial, path)
    return path
