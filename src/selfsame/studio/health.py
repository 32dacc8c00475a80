"""Whether a machine is ready: what is there, what is missing, what to do."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from selfsame.studio.memory import CGROUP, installed_memory, memory_limit

GB = 1 << 30
LEAST_MEMORY_GB = 2  # the miniature peaks at 0.6 GB beside a system


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    what: str
    ok: bool
    found: str
    remedy: str = ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _least(name: str) -> str:
    """The oldest version that this package asks for."""
    said = (Requirement(text) for text in metadata.requires("selfsame") or ())
    return next((spec.version for r in said if r.name == name for spec in r.specifier if spec.operator == ">="), "0")


def checks() -> Iterator[Check]:
    """Look at everything, one after the other."""
    yield Check("python", sys.version_info >= (3, 11), sys.version.split()[0], "install Python 3.11 or newer")
    import torch

    parts = torch.__version__.split("+")[0].split(".")
    known = (2, 6) <= (int(parts[0]), int(parts[1])) < (2, 14)
    yield Check("torch", known, torch.__version__, 'pip install "torch>=2.6,<2.14"')
    for name in ("diffusers", "transformers", "accelerate", "peft", "safetensors"):
        least = _least(name)
        fits = bool(_version(name)) and Version(_version(name)) >= Version(least)
        yield Check(name, fits, _version(name) or "missing", f'pip install "{name}>={least}"')
    if importlib.util.find_spec("torchvision"):
        yield Check("torchvision", True, "installed, not needed")
    yield from _devices()
    memory = min(installed_memory(), memory_limit(CGROUP) or installed_memory()) / GB  # of the machine, or of the container
    yield Check("memory", memory == 0 or memory >= LEAST_MEMORY_GB, f"{memory:.1f} GB" if memory else "unknown", "the miniature needs 2 GB, SDXL on a CPU 24")
    from selfsame.weights.fetch import cache_folder

    folder = cache_folder()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(place).free / GB
    yield Check("disk", free > 1, f"{free:.0f} GB free at {place}", "free some space, or set SELFSAME_HOME to another disk (SDXL and InstantID are 11.5 GB)")
    faces = importlib.util.find_spec("onnxruntime") is not None
    yield Check("faces in photographs", True, f"onnxruntime {_version('onnxruntime')}" if faces else 'without onnxruntime (pip install "selfsame[faces]")')
    yield from _weights()


def _devices() -> Iterator[Check]:
    import torch as t

    from selfsame.training.run import fast_bf16

    if t.cuda.is_available():
        for i in range(t.cuda.device_count()):
            about = t.cuda.get_device_properties(i)
            yield Check(f"cuda:{i}", True, f"{about.name}, {about.total_memory / GB:.0f} GB")
    elif _version("nvidia-cuda-runtime-cu12") or "+cu" in t.__version__:
        remedy = "install NVIDIA's driver, or torch's CPU build: --index-url https://download.pytorch.org/whl/cpu"
        yield Check("cuda", False, "torch was built for CUDA but sees no GPU", remedy)
    else:
        yield Check("cuda", True, "none; --device cpu works everywhere")
    if t.backends.mps.is_available():
        yield Check("mps", True, "an Apple GPU: --device mps")
    yield Check("precision", True, f"{t.get_num_threads()} threads, bf16 {'is fast here' if fast_bf16() else 'is not faster than fp32 here'}")


def _weights() -> Iterator[Check]:
    from selfsame.weights.catalogue import CATALOGUE
    from selfsame.weights.fetch import folder_of, local, missing_of
    from selfsame.weights.mannequin import WeightsError, checked, manifest

    try:
        for name in manifest()["files"]:
            checked(name)
        yield Check("mannequin", True, "all weights are there and unchanged (Apache-2.0)")
    except WeightsError as error:
        yield Check("mannequin", False, str(error), "reinstall selfsame")
    for model in CATALOGUE.values():
        if absent := missing_of(model):
            if folder_of(model).is_dir():
                yield Check(model.name, False, f"half fetched, {len(absent)} files are missing, such as {absent[0]}", f"selfsame models fetch {model.name}")
            continue
        try:
            local(model, thorough=True)
            yield Check(model.name, True, f"there; weights: {model.weights}")
        except ValueError as error:
            yield Check(model.name, False, str(error), f"delete the file, then: selfsame models fetch {model.name}")
