"""Estimates of the memory presets beside measured peaks, at full size with random weights: no quality, true bytes.

    python -m benchmarks.memory                                     Stable Diffusion 1.5 in fp32: 6 GB of disk, 8 GB of memory, some minutes
    python -m benchmarks.memory --size sdxl --dtype bfloat16        SDXL: 12 GB of disk, 14 GB of memory, and slow where half precision is

Each case is a process of its own that paints one small picture in two steps; its peak is what the system says (VmHWM), or torch on a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.instantid import RESAMPLERS, SIZES
from selfsame.methods.instantid.checkpoint import instantid_to_official
from selfsame.methods.instantid.method import InstantID, ResamplerSize
from selfsame.studio.memory import GB, PLANS, needed
from selfsame.studio.places import Person, Pose
from selfsame.studio.real import Folders, RealStudio
from selfsame.studio.request import Request
from selfsame.values.identity import Identity
from selfsame.weights.mannequin import checked_folder

VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280}
CASES = [*((plan, side, 1) for side in (256, 512) for plan in PLANS), ("high", 512, 4)]  # preset, pixels, people in the picture


def made(size: str, folder: Path, dtype: torch.dtype) -> None:
    """A base and an InstantID of full size, random, on the disk."""
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SIZES[size], sample_size=64 if size == "sd15" else 128)
    unet.save_pretrained(folder / "base/unet")
    method = InstantID.new(unet, ResamplerSize(**RESAMPLERS[size], output_dim=SIZES[size]["cross_attention_dim"]))
    instantid_to_official(method, folder / "InstantID", form="safetensors")
    del unet, method
    AutoencoderKL(**VAE, sample_size=512 if size == "sd15" else 1024).save_pretrained(folder / "base/vae")
    CLIPTextModel(CLIPTextConfig(**CLIP_L)).save_pretrained(folder / "base/text_encoder")
    if size == "sdxl":
        CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G)).save_pretrained(folder / "base/text_encoder_2")
    CLIPTokenizer.from_pretrained(checked_folder("base/tokenizer")).save_pretrained(folder / "base/tokenizer")  # its ids are small enough for any tower
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(folder / "base/scheduler")


def one(folder: Path, plan: str, side: int, people: int, dtype: torch.dtype) -> dict[str, float]:
    """Paint one picture; estimated and measured GB."""
    studio = RealStudio(Folders(folder / "base", folder / "InstantID"), dtype=dtype, memory=plan)
    studio.__dict__["reader"] = type("Reader", (), {"name": "antelopev2", "__call__": lambda self, image: []})()
    kps = np.array([[0.4, 0.4], [0.6, 0.4], [0.5, 0.5], [0.42, 0.6], [0.58, 0.6]]) * side
    who = Identity(np.ones((1, 512), np.float32), "antelopev2", kps[None].astype(np.float32), np.array([[side, side]]), ("made up",))
    request = Request(prompt="a person", height=side, width=side, num_steps=2, guidance_scale=5)
    everybody = [Person(who, pose=Pose(kps, side, side))] * people
    for _ in range(2):  # of the second picture the prompt is read beside the loaded base
        studio.generate(request, everybody)
        studio.__dict__["_said"] = None
    peak = next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")) * 1024
    estimate = max(needed(studio.sizes, PLANS[plan], side, side, 2, people).values())
    return {"estimate": estimate / GB, "measured": peak / GB}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--case", nargs=4, metavar=("FOLDER", "PRESET", "SIDE", "PEOPLE"), help="one case, as this program calls itself")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    if args.case:
        print(json.dumps(one(Path(args.case[0]), args.case[1], int(args.case[2]), int(args.case[3]), dtype)))
        return
    with tempfile.TemporaryDirectory() as folder:
        made(args.size, Path(folder), dtype)
        print(f"{args.size}, {args.dtype}, two guided steps, two pictures; GB of the whole process")
        for plan, side, people in CASES:
            command = [sys.executable, "-m", "benchmarks.memory", "--dtype", args.dtype, "--case", folder, plan, str(side), str(people)]
            said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            off = said["estimate"] / said["measured"] - 1
            print(f"{plan:8} {side:5} px  {people} in it   estimate {said['estimate']:6.2f}   measured {said['measured']:6.2f}   {off:+.0%}", flush=True)


if __name__ == "__main__":
    main()
