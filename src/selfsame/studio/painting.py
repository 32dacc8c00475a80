"""Rows to pictures: one guided run of the sampling loop, whatever the base."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsame.diffusion.sampling import Predict, Step, guided_together, holding, in_window, sample
from selfsame.methods.instantid.method import InstantID, face_conditions, predict
from selfsame.models.latents import decode
from selfsame.studio.request import Made, Request
from selfsame.values.conditioning import Conditioning, stacked


@dataclass(frozen=True)
class Row:
    """One row of a batch: what to paint and whom."""

    prompt: str
    negative_prompt: str = ""
    embedding: Tensor | None = None  # 1 k 512
    kps: np.ndarray | None = None  # 5 2 pixels of the picture to be


@dataclass(frozen=True)
class Told:
    """What a base's text side makes of prompts."""

    states: Tensor  # b t c
    pooled: Tensor | None = None  # b p, SDXL
    time_ids: Tensor | None = None  # b 6, SDXL
    notes: tuple[str, ...] = ()  # warnings

    def conditioning(self) -> Conditioning:
        return Conditioning(self.states, self.pooled, self.time_ids)


SOLVERS: dict[str, str] = {
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "dpmpp-2m-karras": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}


def scheduler_of(config: Mapping[str, Any], solver: str, **more: Any) -> Any:
    """A fresh diffusers solver with a base's noise schedule: of its config, every field that the solver knows.

    Args:
        config: the base's scheduler config.
        more: fields that the solver gets instead of the config's.
    """
    import diffusers

    if solver == "dpmpp-2m-karras":
        more = {"use_karras_sigmas": True} | more
    if solver == "ddim":
        more = {"clip_sample": False} | more  # latents lie beyond [-1, 1]
    kind: Any = getattr(diffusers, SOLVERS[solver])
    known = set(inspect.signature(kind.__init__).parameters)
    return kind(**{k: v for k, v in config.items() if k in known and not k.startswith("_")} | more)


def calls_of(scheduler: Any, num_steps: int) -> int:
    """How often the networks run: once a step, but a solver of second order calls twice."""
    scheduler.set_timesteps(num_steps)
    return len(scheduler.timesteps)


def noise_of(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal latents b c h w, each of its own seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def last_of(step: Predict, noise: Tensor, scheduler: Any, num_steps: int, seed: int, on_step: Callable[[Step], None] | None) -> Tensor:
    """The latents at the end of the sampling loop; `on_step` sees every step."""
    latents = noise
    for state in sample(step, noise, scheduler, num_steps, generator=torch.Generator().manual_seed(seed)):
        latents = state.latents
        if on_step:
            on_step(state)
    return latents


@dataclass(frozen=True)
class Painter:
    """The networks and rules of one base."""

    unet: Any
    vae: Any
    instantid: Callable[[], InstantID]  # loaded when a row has a face
    tell: Callable[[Sequence[str], Sequence[str], Request], tuple[Told, Told]]  # prompts and negative prompts, of equal length in tokens
    scheduler: Callable[[str], Any]
    draw_kps: Callable[[int, int, np.ndarray], np.ndarray]

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @torch.no_grad()
    def paint(
        self,
        rows: Sequence[Row],
        r: Request,
        seeds: Sequence[int],
        *,
        known: tuple[Tensor, Tensor] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> tuple[list[np.ndarray], tuple[str, ...]]:
        """Denoise rows of different prompts and people together.

        Args:
            r: size, steps, solver, strengths and windows.
            known: latents b c h w of a picture to paint into, and a mask b 1 h w of its cells, 1 where to paint.

        Raises:
            ValueError: some rows have a face and some have none.
        """
        told, against = self.tell([row.prompt for row in rows], [row.negative_prompt for row in rows], r)
        shape = (self.vae.config.latent_channels, r.height // 8, r.width // 8)
        noise = noise_of(seeds, shape).to(self.device, self.unet.dtype)
        method = self.instantid() if rows[0].embedding is not None else None
        tokens = nobody = drawings = None
        if method is not None:
            tokens, drawings = self._faces(rows, r, method)
            assert rows[0].embedding is not None
            # Guidance runs against zeros of the same shape: K photos given jointly, K embeddings of zeros.
            nobody = method.no_face(len(rows), rows[0].embedding.shape[1])
        scheduler, calls = self.scheduler(r.solver), calls_of(self.scheduler(r.solver), r.num_steps)

        def condition(said: Told, face: Tensor | None, index: int) -> Conditioning:
            c = said.conditioning()
            if face is None or drawings is None:
                return c
            adapter = r.adapter_scale * in_window(index, calls, r.adapter_start, r.adapter_end)
            control = r.controlnet_scale * in_window(index, calls, r.controlnet_start, r.controlnet_end)
            f, s = face_conditions(face, drawings, adapter, control)
            return Conditioning(c.encoder_hidden_states, c.pooled, c.time_ids, f, s)

        net = method.identity_net if method else None

        def both(latents: Tensor, t: Tensor, index: int) -> Tensor:
            return predict(self.unet, net, latents, t, stacked(condition(against, nobody, index), condition(told, tokens, index)))

        def one(latents: Tensor, t: Tensor, index: int) -> Tensor:
            return predict(self.unet, net, latents, t, condition(told, tokens, index))

        with ExitStack() as stack:
            if method is not None:
                stack.enter_context(method.attached(self.unet))
            step = guided_together(both, r.guidance_scale) if r.guidance_scale > 1 else one
            if known is not None:
                step = holding(step, *known, noise, scheduler.alphas_cumprod)
            latents = last_of(step, noise, scheduler, r.num_steps, seeds[0], on_step)
        return self.decode(latents), told.notes + against.notes

    def pictures(self, row: Row, request: Request, *, together: int, on_step: Callable[[Step], None] | None = None) -> Iterator[Made]:
        """Pictures of one row, `together` at a time; picture i has seed + i, whatever it is made together with."""
        seeds = [request.seed + i for i in range(request.num_images)]
        for start in range(0, len(seeds), together):
            group = seeds[start : start + together]
            pixels, notes = self.paint([row] * len(group), request, group, on_step=on_step)
            for image, seed in zip(pixels, group, strict=True):
                yield Made(image, replace(request, seed=seed, num_images=1), seed, notes)

    def _faces(self, rows: Sequence[Row], r: Request, method: InstantID) -> tuple[Tensor, Tensor]:
        """Face tokens and key-point drawings of rows."""
        tokens, drawings = [], []
        for row in rows:
            if row.embedding is None or row.kps is None:
                raise ValueError("rows with and without a face cannot share a batch")
            tokens.append(method.tokens(row.embedding.to(self.device)))
            drawings.append(self.draw_kps(r.height, r.width, row.kps))
        images = torch.from_numpy(np.stack(drawings)).permute(0, 3, 1, 2).float() / 255
        return torch.cat(tokens), images.to(self.device, self.unet.dtype)

    def decode(self, latents: Tensor) -> list[np.ndarray]:
        """Latents b c h w to pictures h w 3 uint8."""
        pixels = decode(self.vae, latents.to(self.vae.dtype))
        return [((p.permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().astype(np.uint8) for p in pixels.float()]
