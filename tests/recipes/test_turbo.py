"""The few-step student steps where its teacher is, and is its teacher before it has learned."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from selfsame.methods.instantid.method import InstantID
from selfsame.methods.instantid.objective import InstantIDTrainer
from selfsame.models.mannequin import CONTEXT_DIM, SCHEDULE, alphas_cumprod
from selfsame.recipes.turbo import LEGS, Hurried, leg_target
from selfsame.studio.painting import scheduler_of
from selfsame.studio.request import MANNEQUIN, Request
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


@pytest.mark.parametrize(
    ("asked", "steps", "guidance"), [({}, 4, 1.0), ({"num_steps": 6}, 6, 1.0), ({"guidance_scale": 2.0}, 4, 2.0), ({"solver": "euler"}, 4, 1.0)]
)
def test_turbo_has_steps_guidance_and_a_solver_of_its_own(asked: dict, steps: int, guidance: float):
    settled = Request(speed="turbo", **asked).sized(MANNEQUIN)
    assert (settled.num_steps, settled.guidance_scale, settled.solver) == (steps, guidance, "ddim")
