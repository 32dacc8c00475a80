"""Presets that trade seconds for memory, and what a picture will need of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from selfsame.images.files import InputError
from selfsame.models.single_file import header_of

GB = 1 << 30
ALONE = 0.5 * GB  # Python, torch and diffusers before any weights; on a GPU about what its driver takes
SPARE = 0.9  # of what is free may be taken
CONFIG_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
# Bytes that one row of one latent cell needs at its peak in full precision: U-Net, IdentityNet for each person (an allowance: with four people the decoder's
# peak is still higher), and a decoder's cell (`benchmarks/memory.py`).
PER_CELL, PER_NET_CELL, PER_DECODED = 40_000, 30_000, 260_000
CGROUP = Path("/sys/fs/cgroup")  # where a container finds its own limit
TILE_SIDE = 64  # latent cells across that a tiled decoder sees at a time


@dataclass(frozen=True)
class Plan:
    """What leaves when it is not needed."""

    name: str
    parks: bool  # text encoders and VAE: to main memory from a GPU, dropped and read again on a CPU
    fp8: bool  # the frozen base is kept as 8-bit floats and cast layer by layer, IdentityNet and adapter are not
    tiles: bool  # the VAE sees large pictures in tiles


PLANS = {"high": Plan("high", False, False, False), "medium": Plan("medium", True, False, True), "low": Plan("low", True, True, True)}
CHOICES = (*PLANS, "auto")


def numbers_in(folder: Path) -> int:
    """How many numbers the weights in a folder or file hold, read off their headers.

    Raises:
        InputError: a header is damaged.
    """
    if folder.is_file():
        return _in_file(folder)
    tensors, pickles = sorted(folder.glob("*.safetensors")), sorted(folder.glob("*.bin"))
    plain = ([f for f in files if f.name.count(".") == 1] for files in (tensors, pickles))  # no variant, such as non_ema
    # A folder often holds the same weights several times: what is loaded counts.
    files = next((some for some in ([f for f in tensors if ".fp16." in f.name], *plain, tensors, pickles) if some), [])
    return sum(_in_file(f) for f in files)


def _in_file(path: Path) -> int:
    if path.suffix != ".safetensors":
        return path.stat().st_size // 4  # torch files of these models are in full precision
    return sum((v["data_offsets"][1] - v["data_offsets"][0]) // CONFIG_BYTES.get(v["dtype"], 4) for v in header_of(path).values())


@dataclass(frozen=True)
class Sizes:
    """Numbers in each part, and bytes of each number."""

    text: int
    unet: int
    method: int  # Resampler, adapter and IdentityNet
    vae: int
    precision: int  # bytes of a number where it is computed with; the VAE's are 4
    in_place: bool = False  # files are read where they lie, as on a CPU: one stays whole until all of it has been made small


def needed(sizes: Sizes, plan: Plan, height: int, width: int, rows: int, people: int = 1) -> Mapping[str, int]:
    """Bytes at the peak of each phase: loading the base, reading the prompt, painting, decoding.

    Args:
        rows: of the batch; guidance doubles them.
        people: in each row, for each of whom IdentityNet runs.
    """
    p, cells = sizes.precision, height * width // 64
    text, vae = sizes.text * p, sizes.vae * 4
    base = sizes.unet * (1 if plan.fp8 else p) + sizes.method * p
    seen = min(cells, TILE_SIDE**2) if plan.tiles else cells
    here = 0 if plan.parks else text + vae
    phases = {
        "loading": sizes.unet * (p + (plan.fp8 and sizes.in_place)) + here,  # whole, before it is made small
        "prompt": base + text + (0 if plan.parks else vae),  # of a second picture, when the base is there
        "painting": base + here + rows * cells * max(PER_CELL, people * PER_NET_CELL) * p / 4,
        "decoding": base + vae + (0 if plan.parks else text) + seen * PER_DECODED,
    }
    return {name: int(ALONE + size) for name, size in phases.items()}


def free_memory(device: str) -> int:
    """Bytes that are free on a device, or in the machine for a CPU; 0 where it cannot be told."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(meminfo["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = installed_memory()
    return min(free, allowed_memory(CGROUP) or free)


def installed_memory() -> int:
    """Bytes of the machine, 0 where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def memory_limit(cgroup: Path) -> int:
    """Bytes that a container may take in all (cgroup v2), 0 where there is no limit."""
    try:
        return int((cgroup / "memory.max").read_text())
    except (OSError, ValueError):  # "max"
        return 0


def allowed_memory(cgroup: Path) -> int:
    """Bytes that a container's limit still leaves, 0 where there is none."""
    try:
        if not (limit := memory_limit(cgroup)):
            return 0
        said = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return max(1, limit - int((cgroup / "memory.current").read_text()) + int(said.get("inactive_file", 0)))  # files that were read give way
    except (OSError, ValueError):
        return 0


def chosen(name: str, sizes: Sizes, free: int, height: int, width: int, rows: int, people: int = 1, *, has_fp8: bool = True) -> Plan:
    """A plan by its name; `auto` is the fastest whose peak fits into what is free.

    Args:
        has_fp8: whether the device knows 8-bit floats; without them `low` is not to be had.

    Raises:
        InputError: not even the smallest fits, or no such plan.
    """
    if name in PLANS:
        if PLANS[name].fp8 and not has_fp8:
            raise InputError(f"--memory {name} keeps the base in 8-bit floats, which this device does not know: say --memory medium, or --device cpu")
        return PLANS[name]
    if name != "auto":
        raise InputError(f"memory {name!r}: choose from {', '.join(CHOICES)}")
    plans = [plan for plan in PLANS.values() if has_fp8 or not plan.fp8]
    peaks = {plan.name: max(needed(sizes, plan, height, width, rows, people).values()) for plan in plans}
    for plan in plans:
        if not free or peaks[plan.name] <= SPARE * free:
            return plan
    least = plans[-1].name
    raise InputError(
        f"a picture of {width} x {height} needs about {peaks[least] / GB:.1f} GB with --memory {least} and {free / GB:.1f} GB are free: "
        f"make it smaller, or say --memory {least} to try all the same"
    )
