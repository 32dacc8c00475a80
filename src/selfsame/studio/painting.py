"""Rows to pictures: one guided run of the sampling loop, whatever the base."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsame.adapters.keeping import DeepReuse
from selfsame.diffusion.sampling import Predict, Step, guided_together, holding, sample, set_steps
from selfsame.diffusion.windows import ever_in_window, in_window
from selfsame.methods.instantid.method import InstantID, Residuals, predict, residuals_of
from selfsame.studio.crowd import Act, Crowd, DrawKps, Shown
from selfsame.studio.request import Request
from selfsame.values.conditioning import Conditioning, stacked


@dataclass(frozen=True)
class Row:
    """One row of a batch: what to paint and whom."""

    prompt: str
    negative_prompt: str = ""
    faces: tuple[Shown, ...] = ()
    start: Tensor | None = None  # 1 c h w latents of a picture to change; None: from noise alone


@dataclass(frozen=True)
class Pace:
    """Which work is left out. The first and the last step are always whole."""

    net_every: int = 1  # steps between two runs of IdentityNet, whose residuals serve in between
    deep_every: int = 1  # the same of the U-Net's deep features
    guidance_end: float = 1.0  # guidance ends no later

    @property
    def reuses(self) -> bool:
        """Whether work of one step serves in others."""
        return max(self.net_every, self.deep_every) > 1

    def in_steps(self, num_steps: int) -> Pace:
        """As it was measured in 16 steps or more; in fewer, which lie farther apart, less is left out between them."""

        def closer(every: int) -> int:
            return max(1, min(every, round(every * num_steps / 16)))

        return replace(self, net_every=closer(self.net_every), deep_every=closer(self.deep_every))

    def is_due(self, index: int, num_steps: int, every: int) -> bool:
        return index % every == 0 or index in (0, num_steps - 1)


PACES = {"exact": Pace(), "fast": Pace(net_every=3, deep_every=3, guidance_end=0.8), "turbo": Pace()}


@dataclass(frozen=True)
class Told:
    """What a base's text side makes of prompts."""

    states: Tensor  # b t c
    pooled: Tensor | None = None  # b p, SDXL
    time_ids: Tensor | None = None  # b 6, SDXL
    notes: tuple[str, ...] = ()  # a warning for each row, "" for none

    def conditioning(self) -> Conditioning:
        return Conditioning(self.states, self.pooled, self.time_ids)


SOLVERS: dict[str, str] = {
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "dpmpp-2m-karras": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
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
    set_steps(scheduler, num_steps)
    return len(scheduler.timesteps)


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Each row's own randomness: its first noise, and what a solver draws on the way."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise_of(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal latents b c h w, a row of each generator."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators])


def last_of(
    step: Predict,
    noise: Tensor,
    scheduler: Any,
    num_steps: int,
    generators: list[torch.Generator],
    on_step: Callable[[Step], None] | None,
    timesteps: Tensor | None = None,
) -> Tensor:
    """The latents at the end of the sampling loop; `on_step` sees every step. `timesteps` as of `sample`."""
    latents = noise
    for state in sample(step, noise, scheduler, num_steps, generator=generators, timesteps=timesteps):
        latents = state.latents
        if on_step:
            on_step(state)
    return latents


def begun(start: Tensor, noise: Tensor, scheduler: Any, num_steps: int, strength: float) -> tuple[Tensor, Tensor]:
    """A picture noised to where the last part of a schedule begins, and that part's timesteps: image to image (SDEdit, arXiv:2108.01073).

    Args:
        start, noise: b c h w.
        strength: share of the steps that are run, rounded down as diffusers does, but never none.
    """
    set_steps(scheduler, num_steps, noise.device)
    first = (num_steps - run_steps(num_steps, strength)) * scheduler.order
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler.add_noise(start, noise, timesteps[:1].repeat(len(start))), timesteps


def run_steps(num_steps: int, strength: float) -> int:
    """Steps of a schedule that image to image runs."""
    return max(1, min(int(num_steps * strength), num_steps))


class _Run:
    """One guided run: what each step is told, and what of an earlier step serves again. Tensors that do not change are the same objects
    throughout, by which the layers know that their keys and values can stay."""

    def __init__(
        self, unet: Any, net: Any, crowd: Crowd | None, told: Conditioning, against: Conditioning, request: Request, calls: int, pace: Pace
    ) -> None:  # fmt: skip
        self.unet, self.net, self.crowd, self.request, self.calls, self.pace = unet, net, crowd, request, calls, pace
        self.told, self.both = told, stacked(against, told) if request.guidance_scale > 1 else told
        cut = min(request.guidance_end, pace.guidance_end)
        self.guidance_end = cut if ever_in_window(calls, request.guidance_start, cut) else request.guidance_end  # a late window stays what was asked for
        self.deep = DeepReuse(unet)
        self._conditions: dict[tuple[bool, Act | None], Conditioning] = {}
        self._before: tuple[bool, Act | None] | None = None
        self._residuals: Residuals | None = None

    def _condition(self, guided: bool, act: Act | None) -> Conditioning:
        """What a step is told; with guidance the rows against come first."""
        if (guided, act) not in self._conditions:
            c = self.both if guided else self.told
            if self.crowd is not None and act is not None:
                c = self.crowd.joined(c, act, guided=guided)
            self._conditions[guided, act] = c
        return self._conditions[guided, act]

    def predict(self, latents: Tensor, t: Tensor, index: int) -> Tensor:
        """The guided prediction of one step."""
        r, pace = self.request, self.pace
        guided = r.guidance_scale > 1 and in_window(index, self.calls, r.guidance_start, self.guidance_end)
        act = None if self.crowd is None else self.crowd.act(index, self.calls)
        c = self._condition(guided, act)
        changed = (guided, act) != self._before  # other rows or other people: nothing of before fits
        self._before = guided, act
        self.deep.is_fresh = changed or pace.is_due(index, self.calls, pace.deep_every)

        def raw(latents: Tensor, t: Tensor, index: int) -> Tensor:
            if changed or pace.is_due(index, self.calls, pace.net_every):
                self._residuals = None if self.net is None else residuals_of(self.net, latents, t, c)
            return predict(self.unet, self.net, latents, t, c, self._residuals)

        return (guided_together(raw, r.guidance_scale, r.guidance_rescale) if guided else raw)(latents, t, index)


@dataclass(frozen=True)
class Painter:
    """The networks and rules of one base."""

    device: torch.device
    dtype: torch.dtype
    channels: int  # of the latents
    unet: Callable[[str], Any]  # of a speed; loaded when the prompts have been read
    instantid: Callable[[], InstantID]  # loaded when a row has a face
    tell: Callable[[Sequence[str], Sequence[str], Request], tuple[Told, Told]]  # prompts and negative prompts, of equal length in tokens
    scheduler: Callable[[str], Any]
    draw_kps: DrawKps
    decode: Callable[[Tensor], list[np.ndarray]]  # latents b c h w to pictures h w 3 uint8

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
        """Denoise rows of different prompts and people together; all have a start, or none has.

        Args:
            r: size, steps, solver, guidance, speed and how far starts are changed; strengths come with the faces.
            known: latents b c h w of a picture to paint into, and a mask b 1 h w of its cells, 1 where to paint.

        Returns:
            Pictures, and a warning for each, "" for none.
        """
        told, against = self.tell([row.prompt for row in rows], [row.negative_prompt for row in rows], r)
        generators = generators_of(seeds)
        noise = noise_of(generators, (self.channels, r.height // 8, r.width // 8)).to(self.device, self.dtype)
        unet = self.unet(r.speed)
        method = self.instantid() if any(row.faces for row in rows) else None
        crowd = None if method is None else Crowd.of([row.faces for row in rows], r.size, method, self.draw_kps, self.dtype)
        scheduler, timesteps, first = self.scheduler(r.solver), None, noise
        calls = calls_of(self.scheduler(r.solver), r.num_steps)
        if rows[0].start is not None:
            starts = torch.cat([row.start for row in rows if row.start is not None]).to(noise)
            first, timesteps = begun(starts, noise, scheduler, r.num_steps, r.start_strength)
            calls = len(timesteps)
        with ExitStack() as stack:
            if method is not None:
                stack.enter_context(method.attached(unet, keeps=True))
            net, pace = method.identity_net if method else None, PACES[r.speed].in_steps(r.num_steps)
            run = _Run(unet, net, crowd, told.conditioning(), against.conditioning(), r, calls, pace)
            if run.pace.deep_every > 1:
                stack.enter_context(run.deep.attached())
            step = run.predict if known is None else holding(run.predict, *known, noise, scheduler.alphas_cumprod)
            latents = last_of(step, first, scheduler, r.num_steps, generators, on_step, timesteps)
        notes = [("",) * len(rows) if not t.notes else t.notes for t in (told, against)]
        return self.decode(latents), tuple("; ".join(filter(None, pair)) for pair in zip(*notes, strict=True))
