"""The loop and the clock against what theory says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from selfsame.diffusion.sampling import guided_together, rescaled, sample, set_steps
from selfsame.diffusion.schedule import add_noise, denoised_of, lognormal_timesteps, scaled_linear_alphas_cumprod, target, velocity
from selfsame.diffusion.windows import in_window
from selfsame.studio.painting import scheduler_of

ABAR = scaled_linear_alphas_cumprod()
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}


def test_our_clock_is_the_schedulers():
    assert torch.allclose(ABAR, DDIMScheduler(**CONFIG).alphas_cumprod, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_denoises_exactly(kind: str):
    x, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 400, 999])
    noisy = add_noise(x, noise, t, ABAR)
    clean = denoised_of(kind, target(kind, x, noise, t, ABAR), noisy, ABAR[t].view(-1, 1, 1, 1))
    assert torch.allclose(clean, x, atol=2e-4)


def test_velocity_agrees_with_diffusers():
    x, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 400, 999])
    assert torch.allclose(velocity(x, noise, t, ABAR), DDIMScheduler(**CONFIG).get_velocity(x, noise, t), atol=1e-5)


def test_timesteps_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"5\.\.1000 leave the range 0\.\.999"):
        add_noise(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), torch.tensor([5, 1000]), ABAR)
    with pytest.raises(ValueError, match="prediction_type 'flow'"):
        target("flow", torch.zeros(1), torch.zeros(1), torch.tensor([0]), ABAR)


def test_training_noise_levels_are_lognormal():
    t = lognormal_timesteps(20000, ABAR, torch.Generator().manual_seed(0), uniform_share=0.0)
    log_sigma = 0.5 * ((1 - ABAR[t]) / ABAR[t]).log()
    assert float(log_sigma.mean()) == pytest.approx(-0.5, abs=0.05)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.06)


def gaussian_denoiser(std: float):
    """The exact epsilon of Gaussian data N(0, std^2): eps = sqrt(1 - abar) x / (abar std^2 + 1 - abar)."""

    def predict(x: Tensor, t: Tensor, i: int) -> Tensor:
        abar = torch.as_tensor(ABAR[int(t)])
        return (1 - abar).sqrt() * x / (abar * std**2 + 1 - abar)

    return predict


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_every_solver_turns_noise_into_the_data(scheduler):
    extra = {"clip_sample": False} if scheduler is DDIMScheduler else {}
    noise = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    *_, last = sample(gaussian_denoiser(0.5), noise, scheduler(**CONFIG, **extra), 60)
    assert float(last.latents.std()) == pytest.approx(0.5, rel=0.08)


def test_euler_is_first_order():
    """Gaussian data has an exact solution; halving the step halves the error."""
    noise = torch.ones(1, 1, 1, 1)

    def end(steps: int) -> float:
        *_, last = sample(gaussian_denoiser(0.5), noise, EulerDiscreteScheduler(**(CONFIG | {"timestep_spacing": "linspace"})), steps)
        return float(last.latents)

    exact = end(900)
    assert (end(25) - exact) / (end(50) - exact) == pytest.approx(2, rel=0.25)


def test_the_loop_is_a_generator_that_can_be_left():
    seen = []
    for step in sample(gaussian_denoiser(1.0), torch.zeros(1, 1, 2, 2), DDIMScheduler(**CONFIG), 10):
        seen.append(step.index)
        if step.index == 3:
            break
    assert seen == [0, 1, 2, 3]


def test_sigmas_fall_and_denoised_is_the_clean_estimate():
    steps = list(sample(gaussian_denoiser(0.0001), torch.randn(1, 1, 4, 4), EulerDiscreteScheduler(**CONFIG), 8))
    assert all(a.sigma > b.sigma for a, b in pairwise(steps))
    assert all(s.denoised.abs().max() < 0.05 for s in steps)


def test_guidance_goes_from_the_rows_without_through_those_with():
    def both(x: Tensor, t: Tensor, i: int) -> Tensor:
        a, b = x.chunk(2)
        return torch.cat([a, 2 * b])

    x, t = torch.randn(2, 1, 2, 2), torch.tensor(1)
    assert torch.allclose(guided_together(both, 4.0)(x, t, 0), 5 * x)
    assert torch.allclose(guided_together(both, 1.0)(x, t, 0), 2 * x)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rescaled_guidance_has_the_spread_of_the_conditional_prediction(share: float):
    c, g = torch.randn(2, 4, 8, 8), 3 * torch.randn(2, 4, 8, 8)
    out = rescaled(g, c, share)
    wanted = share * c.std((1, 2, 3)) + (1 - share) * g.std((1, 2, 3))
    assert torch.allclose(out.std((1, 2, 3)), wanted)
    if not share:
        assert out is g


@pytest.mark.parametrize(("steps", "kept"), [(5, [1, 2, 3]), (4, [1, 2]), (30, list(range(6, 24)))])
def test_windows_keep_the_official_steps(steps: int, kept: list[int]):
    assert [i for i in range(steps) if in_window(i, steps, 0.2, 0.8)] == kept


@pytest.mark.parametrize("count", [16, 61, 103, 121, 122])
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_no_timestep_lies_before_the_first(count: int, kind: Any):
    scheduler = kind(**CONFIG)
    set_steps(scheduler, count)
    assert int(scheduler.timesteps.min()) >= 0
    assert count <= len(scheduler.timesteps) <= count + 1


def test_a_first_timestep_that_stands_there_twice_is_taken_twice():
    """Karras sigmas of a schedule that ends in pure noise round to it twice."""
    scheduler = scheduler_of(CONFIG | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "dpmpp-2m-karras")
    steps = list(sample(gaussian_denoiser(0.5), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), scheduler, 30))
    assert len(steps) == 30
    assert torch.isfinite(steps[-1].latents).all()


def test_ddim_of_61_steps_ends_where_its_neighbours_do():
    ends = {}
    for count in (60, 61):
        steps = sample(
            gaussian_denoiser(0.5), torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0)), DDIMScheduler(**CONFIG, clip_sample=False), count
        )
        ends[count] = float(list(steps)[-1].latents.std())
    assert ends[61] == pytest.approx(ends[60], rel=0.05)
