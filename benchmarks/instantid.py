"""InstantID's own loop beside the stock diffusers composition (`load_ip_adapter` and a ControlNet pipeline), same random weights, in one run.

    python benchmarks/instantid.py                       tiny networks, seconds
    python benchmarks/instantid.py --size sd15           Stable Diffusion 1.5's sizes: 11 GB, twenty minutes on two cores
    python benchmarks/instantid.py --size sdxl --dtype bfloat16 --side 256       SDXL's: 13 GB; half precision is slow on most CPUs

Every row paints the same latents: the exact ones must equal the stock's to 1e-4 of the largest value. Ours and the stock's runs take turns. `--speed fast` is
what users get of it on this machine: with bf16 where that is faster, and as it is measured on the miniature, in 16 steps or more.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from selfsame.adapters.processors import cross_attention_paths
from selfsame.images.draw import draw_kps
from selfsame.methods.instantid.checkpoint import instantid_to_official
from selfsame.methods.instantid.method import InstantID, ResamplerSize
from selfsame.studio.crowd import Shown
from selfsame.studio.painting import Painter, Row, Told
from selfsame.studio.request import Request
from selfsame.training.run import fast_bf16

SD: dict[str, Any] = {"layers_per_block": 2}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "norm_num_groups": 8, "layers_per_block": 1},
    "sd15": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "layers_per_block": 2},
    "sdxl": {
        "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "layers_per_block": 2, "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
}  # fmt: skip
RESAMPLERS = {"tiny": {"dim": 64, "depth": 4, "heads": 1}, "sd15": {"dim": 768, "depth": 4, "heads": 12}, "sdxl": {}}
SIDES = {"tiny": 64, "sd15": 256, "sdxl": 256}
POOLED = 1280
TEXT_TOKENS = 77
Run = tuple[Tensor, float, float]  # latents, seconds, GB at the peak


def peak_of(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call gives, its seconds, and by how many GB its peak was above what was there (Linux; else 0)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    began = time.perf_counter()
    out = run()
    return out, time.perf_counter() - began, max(0.0, _resident("VmHWM") - before)


def _resident(name: str) -> float:
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
        return int(line.split()[1]) / 1e6
    except (OSError, StopIteration):
        return 0.0


def made_up(name: str, dtype: torch.dtype) -> tuple[UNet2DConditionModel, InstantID]:
    """Random networks, also where a fresh method starts at zero."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SIZES[name], sample_size=64, in_channels=4).to(dtype).eval().requires_grad_(False)
    size = ResamplerSize(**RESAMPLERS[name], output_dim=SIZES[name]["cross_attention_dim"])
    method = InstantID.new(unet, size).to(dtype).eval().requires_grad_(False)
    net = method.identity_net
    values = [layer.to_v_ip for layer in method.adapter.layers.values()] + [net.get_submodule(path).to_v for path in cross_attention_paths(net)]
    for layer in [*values, *net.controlnet_down_blocks, net.controlnet_mid_block]:
        torch.nn.init.normal_(layer.weight, std=0.01)
    return unet, method


class Stock:
    """diffusers' own pipeline, adapter and all; its ControlNet is handed the face tokens as context."""

    def __init__(self, name: str, unet: UNet2DConditionModel, method: InstantID, scheduler: Any, tokens: Tensor) -> None:
        self.is_xl = name == "sdxl"
        kind: Any = StableDiffusionXLControlNetPipeline if self.is_xl else StableDiffusionControlNetPipeline
        parts: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
        parts |= dict.fromkeys(("text_encoder_2", "tokenizer_2")) if self.is_xl else dict.fromkeys(("safety_checker", "feature_extractor"))
        net, self.hook = _net_of(method, tokens)
        self.pipe = kind(
            **parts, unet=unet, controlnet=net, scheduler=scheduler, **({"add_watermarker": False} if self.is_xl else {"requires_safety_checker": False})
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.processors = dict(unet.attn_processors)
        with tempfile.TemporaryDirectory() as folder:
            instantid_to_official(method, folder)
            self.pipe.load_ip_adapter(folder, subfolder="", weight_name="ip-adapter.bin", image_encoder_folder=None)

    def __call__(self, r: Request, told: Told, against: Told, embedding: Tensor, kps: np.ndarray, noise: Tensor) -> Tensor:
        self.pipe.set_ip_adapter_scale(r.adapter_scale)
        pooled = {"pooled_prompt_embeds": told.pooled, "negative_pooled_prompt_embeds": against.pooled} if self.is_xl else {}
        return self.pipe(
            prompt_embeds=told.states, negative_prompt_embeds=against.states, **pooled, image=Image.fromarray(kps), latents=noise, output_type="latent",
            ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embedding), embedding])[:, None]], num_inference_steps=r.num_steps,
            guidance_scale=r.guidance_scale, controlnet_conditioning_scale=r.controlnet_scale, control_guidance_start=r.controlnet_start,
            control_guidance_end=r.controlnet_end,
        ).images  # fmt: skip

    def taken_apart(self) -> None:
        """The U-Net as it was."""
        self.pipe.unload_ip_adapter()
        self.pipe.unet.set_attn_processor(self.processors)
        self.hook.remove()


def _net_of(method: InstantID, tokens: Tensor) -> tuple[ControlNetModel, Any]:
    """IdentityNet seeing the face tokens, and what ends that."""
    net = method.identity_net

    def see(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"encoder_hidden_states": tokens[: len(args[0])] if len(args[0]) == len(tokens) else tokens[-len(args[0]) :]}

    return net, net.register_forward_pre_hook(see, with_kwargs=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--side", type=int, default=0, help="pixels of the picture")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=0, help="runs of each, the fastest counts; default: 5 tiny, 1 else")
    args = parser.parse_args()
    dtype, side = getattr(torch, args.dtype), args.side or SIDES[args.size]
    repeats = args.repeats or (5 if args.size == "tiny" else 1)
    unet, method = made_up(args.size, dtype)
    context = SIZES[args.size]["cross_attention_dim"]
    is_xl = args.size == "sdxl"
    ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=dtype) if is_xl else None
    told, against = (Told(torch.randn(1, TEXT_TOKENS, context, dtype=dtype), torch.randn(1, POOLED, dtype=dtype) if is_xl else None, ids) for _ in range(2))
    embedding, points = torch.randn(1, 1, 512, dtype=dtype), np.array([[0.4, 0.4], [0.6, 0.4], [0.5, 0.5], [0.42, 0.6], [0.58, 0.6]]) * side
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    noise = torch.randn(4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))[None].to(dtype)

    def painter_in(dtype: torch.dtype, unet: UNet2DConditionModel, method: InstantID) -> Painter:
        seen = told, against
        if dtype != told.states.dtype:
            seen = tuple(Told(*(None if v is None else v.to(dtype) for v in (t.states, t.pooled, t.time_ids))) for t in seen)  # type: ignore[assignment]
        return Painter(
            torch.device("cpu"), dtype, 4, lambda speed: unet, lambda: method, lambda *_: seen,
            lambda solver: DDIMScheduler.from_config(scheduler.config), draw_kps, lambda latents: [latents],  # type: ignore[list-item, return-value]
        )  # fmt: skip

    painter = painter_in(dtype, unet, method)
    whole = Request(height=side, width=side, num_steps=args.steps, guidance_scale=5, adapter_scale=0.8, controlnet_scale=0.8, solver="ddim")
    cases = {
        "whole run": whole,
        "IdentityNet in 0.2 to 0.8": replace(whole, controlnet_start=0.2, controlnet_end=0.8),
        "IdentityNet's strength 0": replace(whole, controlnet_scale=0.0),
    }
    kps = draw_kps(side, side, points)
    tokens = torch.cat([method.no_face(1), method.tokens(embedding)])

    def ours(r: Request, painter: Painter = painter) -> Tensor:
        face = Shown(embedding.to(painter.dtype), points, None, r.strengths)
        return painter.paint([Row("", faces=(face,))], r, [0])[0][0].float()  # type: ignore[union-attr]

    print(f"{args.size}: {side} x {side}, {args.steps} guided steps, {args.dtype}, {torch.get_num_threads()} threads, fastest of {repeats}")

    def best(runs: list[Run]) -> Run:
        return min(runs, key=lambda x: x[1])

    quick = painter
    if dtype == torch.float32 and fast_bf16():
        quick = painter_in(torch.bfloat16, copy.deepcopy(unet).bfloat16(), copy.deepcopy(method).bfloat16())
    fast = best([peak_of(lambda: ours(replace(whole, speed="fast"), quick)) for _ in range(repeats)])
    is_bf16, quick = quick is not painter, painter

    def line(what: str, theirs: Run, mine: Run, more: str) -> None:
        times = f"stock {theirs[1]:8.2f} s  ours {mine[1]:8.2f} s  {theirs[1] / mine[1]:5.2f} x"
        print(f"{what:26} {times}   peak +{theirs[2]:.2f}, +{mine[2]:.2f} GB   {more}", flush=True)

    for name, r in cases.items():
        runs: tuple[list[Run], list[Run]] = ([], [])
        for _ in range(repeats):
            runs[0].append(peak_of(lambda r=r: ours(r)))
            stock = Stock(args.size, unet, method, scheduler, tokens)
            runs[1].append(peak_of(lambda r=r, stock=stock: stock(r, told, against, embedding, kps, noise)))
            stock.taken_apart()
        mine, theirs = best(runs[0]), best(runs[1])
        true = theirs[0].float()
        off = float((mine[0] - true).abs().max() / true.abs().max())
        line(name, theirs, mine, f"off {off:.1e}")
        assert off < 1e-4 or dtype != torch.float32, f"{name}: other latents than the stock pipeline's"
        if name == "whole run":
            apart = float((fast[0] - true).abs().mean() / true.abs().mean())
            line(f"  the same, --speed fast{', bf16' if is_bf16 else ''}", theirs, fast, f"mean difference {apart:.2f} of the mean")


if __name__ == "__main__":
    main()
