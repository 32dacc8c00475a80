"""The few-step student steps where its teacher is, and is its teacher before it has learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from selfsame.methods.instantid.method import InstantID
from selfsame.methods.instantid.objective import InstantIDTrainer
from selfsame.models.loras import Lora, fuse_unet
from selfsame.models.mannequin import CONTEXT_DIM, SCHEDULE, alphas_cumprod
from selfsame.recipes.common import Trained
from selfsame.recipes.ship import ship_trained
from selfsame.recipes.turbo import LEGS, Hurried, leg_target
from selfsame.studio.painting import scheduler_of
from selfsame.studio.request import MANNEQUIN, Request
from selfsame.studio.studio import TURBO
from selfsame.weights.mannequin import checked_folder, load_unet


def test_one_ddim_step_with_the_legs_target_lands_where_the_teacher_is():
    scheduler = scheduler_of(SCHEDULE | {"prediction_type": "sample"}, MANNEQUIN.turbo.solver, timestep_spacing="trailing")
    assert isinstance(scheduler, DDIMScheduler)
    scheduler.set_timesteps(LEGS)
    at, abar = scheduler.timesteps, alphas_cumprod()
    ends = torch.cat([abar[at[1:]], torch.ones(1)])
    for t, end in zip(at, ends, strict=True):
        x, later = torch.randn(2, 2, 4, 8, 8).double().unbind(0)
        clean = leg_target(x, later, abar[t].double(), end.double())
        assert torch.allclose(scheduler.step(clean, int(t), x, return_dict=False)[0], later, atol=1e-4)


def test_the_students_timesteps_are_among_the_teachers():
    ours, theirs = (scheduler_of(SCHEDULE, solver, timestep_spacing="trailing") for solver in (MANNEQUIN.turbo.solver, "dpmpp-2m"))
    ours.set_timesteps(LEGS)
    theirs.set_timesteps(MANNEQUIN.num_steps)
    assert ours.timesteps.tolist() == theirs.timesteps[:: MANNEQUIN.num_steps // LEGS].tolist()


def test_before_it_learns_the_student_is_the_base_with_instantid_upon_it():
    unet, beside = load_unet(), load_unet()
    method = InstantID.from_pretrained(checked_folder("instantid"), beside)
    student = Hurried(unet, method)
    assert {n.split(".")[-3] for n, p in student.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    noisy, t, text = torch.randn(2, 16, 16, 16), torch.tensor([700, 300]), torch.randn(2, 24, CONTEXT_DIM)
    with torch.no_grad():
        assert torch.equal(student(noisy, t, text), beside(noisy, t, text).sample)
        embedding, drawing = torch.randn(2, 1, 512), torch.rand(2, 3, 128, 128)
        assert torch.equal(student(noisy, t, text, embedding, drawing), InstantIDTrainer(method, beside)(noisy, t, text, embedding, drawing))


def test_what_is_shipped_makes_the_base_the_student(tmp_path: Path):
    torch.manual_seed(0)
    unet = load_unet()
    student = Hurried(unet, InstantID.from_pretrained(checked_folder("instantid"), unet))
    for name, p in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.csv").write_text("step,samples,lr,loss\n1,8,0.1,0.5\n")
    (run / "run.json").write_text("{}")
    ship_trained("turbo", Trained(student, {"grey_levels_away": 1.0}, run, 8), tmp_path / "weights")
    fused = load_unet()
    fuse_unet([Lora(tmp_path / "weights" / TURBO)], fused, is_xl=False)
    noisy, t, text = torch.randn(2, 16, 16, 16), torch.tensor([700, 300]), torch.randn(2, 24, CONTEXT_DIM)
    with torch.no_grad():
        ours, plain = fused(noisy, t, text).sample, load_unet()(noisy, t, text).sample
        assert torch.allclose(ours, student(noisy, t, text), atol=2e-2)
    assert (ours - plain).abs().max() > 0.1


@pytest.mark.parametrize(
    ("asked", "steps", "guidance"), [({}, 4, 1.0), ({"num_steps": 6}, 6, 1.0), ({"guidance_scale": 2.0}, 4, 2.0), ({"solver": "euler"}, 4, 1.0)]
)
def test_turbo_has_steps_guidance_and_a_solver_of_its_own(asked: dict, steps: int, guidance: float):
    settled = Request(speed="turbo", **asked).sized(MANNEQUIN)
    assert (settled.num_steps, settled.guidance_scale, settled.solver) == (steps, guidance, "ddim")
