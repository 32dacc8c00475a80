"""The loop's promises: resuming changes nothing, accumulation changes nothing, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from selfsame.mannequins.world import WORLD_VERSION
from selfsame.recipes.common import Options
from selfsame.training.graphs import Graphed
from selfsame.training.loop import NORM_BATCHES, FiniteChecks, train
from selfsame.training.processes import rows_of
from selfsame.training.quick import QuickBf16
from selfsame.training.records import Checkpoint
from selfsame.training.run import Loss, Run

CPU = torch.device("cpu")


def batch_at(step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    x = torch.randn(8, 4, generator=g)
    return {"x": x, "y": x.sum(1, keepdim=True)}


def objective(model: nn.Module, batch: dict[str, torch.Tensor]) -> Loss:
    return Loss((model(batch["x"]) - batch["y"]).square().mean())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def run(folder: Path, steps: int = 12, **more: object) -> Run:
    values = {
        "folder": folder,
        "max_steps": steps,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "log_every": 3,
        "save_every": 5,
        "precision": "no",
    }
    return Run(**(values | more))  # type: ignore[arg-type]


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.flatten() for p in model.parameters()])


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path):
    whole = train(run(tmp_path / "whole"), net(), objective, batch_at).module

    def killed(step: int) -> dict[str, torch.Tensor]:
        if step == 7:
            raise KeyboardInterrupt
        return batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        train(run(tmp_path / "cut"), net(), objective, killed)
    resumed = train(run(tmp_path / "cut"), net(), objective, batch_at).module
    assert torch.equal(weights(whole), weights(resumed))
    assert (tmp_path / "cut/log.csv").read_text().count("\n") == (tmp_path / "whole/log.csv").read_text().count("\n")


def test_accumulation_gives_the_same_steps(tmp_path: Path):
    a = train(run(tmp_path / "a"), net(), objective, batch_at).module
    b = train(run(tmp_path / "b", accumulate=4), net(), objective, batch_at).module
    assert torch.allclose(weights(a), weights(b), atol=1e-5)


def test_batches_made_ahead_are_the_same_batches(tmp_path: Path):
    asked: list[int] = []

    def noted(step: int) -> dict[str, torch.Tensor]:
        asked.append(step)
        return batch_at(step)

    a = train(run(tmp_path / "a"), net(), objective, batch_at).module
    b = train(run(tmp_path / "b", prefetch=3), net(), objective, noted).module
    assert torch.equal(weights(a), weights(b))
    assert sorted(set(asked))[:12] == list(range(12))


def test_processes_share_a_global_batch_without_overlap():
    rows = [rows_of(rank, 2, 8) for rank in range(2)]
    assert [list(range(8))[r] for r in rows] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_frozen_parameters_stay(tmp_path: Path):
    model = net()
    model[0].requires_grad_(False)  # type: ignore[index]
    before = model[0].weight.clone()  # type: ignore[index, union-attr, operator]
    train(run(tmp_path), model, objective, batch_at)
    assert torch.equal(before, model[0].weight.cpu())  # type: ignore[index, union-attr, operator]


def test_the_loss_goes_down_and_is_logged(tmp_path: Path):
    train(run(tmp_path, steps=120), net(), objective, batch_at)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    column = lines[0].split(",").index("loss")
    losses = [float(line.split(",")[column]) for line in lines[1:]]
    assert losses[-1] < 0.3 * losses[0]


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_state(tmp_path: Path):
    def breaks(model: nn.Module, batch: dict[str, torch.Tensor]) -> Loss:
        loss = objective(model, batch).total
        return Loss(loss * float("nan") if broken and torch.equal(batch["x"], batch_at(7)["x"]) else loss)

    broken = True
    with pytest.raises(FloatingPointError, match="learning rate"):
        train(run(tmp_path / "a"), net(), breaks, batch_at)
    broken = False
    again = train(run(tmp_path / "a"), net(), breaks, batch_at).module
    assert torch.equal(weights(again), weights(train(run(tmp_path / "b"), net(), objective, batch_at).module))


def test_what_is_not_finite_is_refused_as_often_as_it_is_asked(tmp_path: Path):
    """On a GPU it is noticed late, and the end of the run asks once more before it saves."""
    checks = FiniteChecks(run(tmp_path), every=50)
    for step, value in enumerate((1.0, float("inf"), 2.0)):
        checks.add("the loss", torch.tensor(value), step)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="inf at step 1"):
            checks.passed()


def test_a_rate_that_fits_its_minutes_falls_to_the_end_within_them_and_remembers_them(tmp_path: Path):
    fitting = run(tmp_path, steps=1_000_000, max_minutes=1.0, fit=True)
    assert fitting.learning_rate_at(1000, 0.0) == pytest.approx(1e-2, rel=1e-4)
    assert fitting.learning_rate_at(1000, 0.5) == pytest.approx(0.505e-2, rel=1e-3)
    assert fitting.learning_rate_at(1000, 1.0) == pytest.approx(1e-4, rel=1e-3)
    with pytest.raises(ValueError, match="max_minutes"):
        run(tmp_path, fit=True)
    train(run(tmp_path, max_minutes=60.0, fit=True), net(), objective, batch_at)
    state = Checkpoint(tmp_path).load()
    assert state is not None
    assert 0 < state["minutes"] < 60
    Checkpoint(tmp_path).save(state | {"minutes": 61.0})  # its time is up: no step more
    again = train(run(tmp_path, steps=1_000_000, max_minutes=60.0, fit=True), net(), objective, batch_at)
    assert again.step == 12


def test_graphs_are_for_a_gpu_and_change_nothing_elsewhere(tmp_path: Path):
    graphed = train(run(tmp_path / "a", graphs=True), net(), objective, batch_at, device=CPU).module
    assert torch.equal(weights(graphed), weights(train(run(tmp_path / "b"), net(), objective, batch_at, device=CPU).module))
    inner = net()
    outside = Graphed(inner).train()
    x = batch_at(0)["x"]
    assert torch.equal(outside(x), inner(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_step_learns_what_a_plain_one_learns(tmp_path: Path):
    graphed, plain = (train(run(tmp_path / str(on), graphs=on), net(), objective, batch_at).module for on in (True, False))
    assert torch.allclose(weights(graphed), weights(plain), atol=1e-6)


def test_a_run_on_other_data_is_not_continued(tmp_path: Path):
    train(run(tmp_path, data="world 1"), net(), objective, batch_at)
    with pytest.raises(ValueError, match="learns from world 2"):
        train(run(tmp_path, data="world 2", max_steps=20), net(), objective, batch_at)


def test_a_warm_run_goes_on_warm_whatever_the_flag_says(tmp_path: Path):
    default = run(tmp_path / "runs/x")
    (tmp_path / "dataset.json").write_text(json.dumps({"world": WORLD_VERSION}))
    options = Options(data=tmp_path, runs=tmp_path / "runs", warm=True)
    train(options.run(default), net(), objective, batch_at)
    assert replace(options, warm=False).run(default).warm
    assert not replace(options, warm=False).run(run(tmp_path / "runs/y")).warm


def test_bf16_on_a_cpu_is_quick_in_steps_and_in_looks(tmp_path: Path):
    seen: list[bool] = []

    def noted(model: nn.Module, batch: dict[str, torch.Tensor]) -> Loss:
        seen.append(any(isinstance(mode, QuickBf16) for mode in _get_current_function_mode_stack()))
        return objective(model, batch)

    train(run(tmp_path, 2, precision="bf16"), net(), noted, batch_at, look=lambda model, step: {"x": float(noted(model, batch_at(0)).total)}, device=CPU)
    assert seen
    assert all(seen)


def test_runs_of_one_process_may_differ_in_precision(tmp_path: Path):
    """As `evaluate words --ablations` has them: people are learned in fp32, projections in bf16."""
    for k, precision in enumerate(("no", "bf16", "no")):
        seen: list[bool] = []

        def observed(model: nn.Module, batch: dict[str, torch.Tensor], seen: list[bool] = seen) -> Loss:
            seen.append(torch.is_autocast_enabled("cpu"))
            return objective(model, batch)

        train(run(tmp_path / str(k), steps=1, precision=precision), net(), observed, batch_at, device=CPU)
        assert set(seen) == {precision == "bf16"}


def test_averaged_weights_get_statistics_of_their_own(tmp_path: Path):
    """Batch norms of the result are those of its weights on its batches, not of the last raw weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    made = train(run(tmp_path, ema_decay=0.9), model, objective, batch_at).module
    assert isinstance(made, nn.Sequential)
    with torch.no_grad():
        hidden = torch.stack([made[0](batch_at(i)["x"]).mean(0) for i in range(NORM_BATCHES)])
    norm = made[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert torch.allclose(norm.running_mean, hidden.mean(0), atol=1e-5)  # type: ignore[arg-type]
    assert norm.momentum == 0.1


def test_checkpoints_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"step": 1})

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save({"step": 2})
    assert checkpoint.load() == {"step": 1}


@pytest.mark.parametrize("bad", [{"max_steps": 0}, {"ema_decay": 1.0}, {"batch_size": 8, "accumulate": 3}])
def test_bad_runs_are_refused(tmp_path: Path, bad: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(bad))):
        run(tmp_path, **bad)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_kill_ends_after_the_step_and_saves_everything(tmp_path: Path, number: int):
    def killed(step: int) -> dict[str, torch.Tensor]:
        if step == 4:
            os.kill(os.getpid(), number)
        return batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        train(run(tmp_path / "cut", save_every=1000), net(), objective, killed)
    state = Checkpoint(tmp_path / "cut").load()
    assert state is not None
    assert state["step"] == 5
    resumed = train(run(tmp_path / "cut"), net(), objective, batch_at).module
    assert torch.equal(weights(resumed), weights(train(run(tmp_path / "whole"), net(), objective, batch_at).module))


def test_killed_twice_ends_at_once_with_the_last_saved_state(tmp_path: Path):
    def impatient(model: nn.Module, batch: dict[str, torch.Tensor]) -> Loss:
        if torch.equal(batch["x"], batch_at(7)["x"]):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return objective(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(run(tmp_path, save_every=5), net(), impatient, batch_at)
    state = Checkpoint(tmp_path).load()
    assert state is not None
    assert state["step"] == 5


def test_it_ends_on_a_plateau_and_counts_over_an_interruption(tmp_path: Path):
    """The figure falls for three looks and then no more: two looks later the run ends, also when it was cut in between."""
    figures = [5.0, 4.0, 3.0, 3.0, 3.5, 1.0]

    def look(model: nn.Module, step: int) -> dict[str, float]:
        return {"figure": figures[min(step // 3, len(figures)) - 1]}

    how = run(tmp_path / "a", 30, look_every=3, watch="figure", patience=2)
    assert train(how, net(), objective, batch_at, look=look).step == 15

    def killed(step: int) -> dict[str, torch.Tensor]:
        if step == 13:
            raise KeyboardInterrupt
        return batch_at(step)

    how = run(tmp_path / "b", 30, look_every=3, watch="figure", patience=2)
    with pytest.raises(KeyboardInterrupt):
        train(how, net(), objective, killed, look=look)
    assert train(how, net(), objective, batch_at, look=look).step == 15
    with pytest.raises(ValueError, match="which figure to watch"):
        run(tmp_path, patience=3)


def test_a_run_of_another_model_is_not_continued(tmp_path: Path):
    train(run(tmp_path, 2), net(), objective, batch_at)
    other = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1))
    with pytest.raises(ValueError, match="holds a run of another model"):
        train(run(tmp_path, 4), other, objective, batch_at)


def test_a_second_ctrl_c_during_a_look_keeps_the_weights_as_they_were(tmp_path: Path):
    def with_norm() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    asked = 0

    def interrupted(step: int) -> dict[str, torch.Tensor]:
        nonlocal asked
        asked += 1
        if asked == 9:  # six steps, and in the middle of measuring the norms of the averages
            raise KeyboardInterrupt
        return batch_at(step)

    whole = train(run(tmp_path / "whole", look_every=6), with_norm(), objective, batch_at, look=lambda model, step: {}).module
    with pytest.raises(KeyboardInterrupt):
        train(run(tmp_path / "cut", look_every=6), with_norm(), objective, interrupted, look=lambda model, step: {})
    resumed = train(run(tmp_path / "cut", look_every=6), with_norm(), objective, batch_at, look=lambda model, step: {}).module
    assert torch.equal(weights(whole), weights(resumed))


def test_a_run_that_has_ended_is_not_looked_at_again(tmp_path: Path):
    first = train(run(tmp_path, 3), net(), objective, batch_at, look=lambda model, step: {"x": float(step)})
    again = train(run(tmp_path, 3), net(), objective, batch_at, look=lambda model, step: pytest.fail("looked at again"))
    assert again.figures == first.figures == {"x": 3.0}
    seen: list[int] = []
    train(run(tmp_path, 5), net(), objective, batch_at, look=lambda model, step: seen.append(step) or {"x": 0.0})
    assert seen == [5], "but one that goes on is"


def test_looks_come_when_asked_for_whatever_is_logged(tmp_path: Path):
    seen: list[int] = []
    train(run(tmp_path, log_every=5, look_every=4), net(), objective, batch_at, look=lambda model, step: seen.append(step) or {})
    assert seen == [4, 8, 12]


def test_a_run_goes_on_with_other_batches_as_far_as_its_samples_say(tmp_path: Path):
    train(run(tmp_path, steps=6, batch_size=8), net(), objective, batch_at)
    made = train(run(tmp_path, steps=4, batch_size=16), net(), objective, lambda step: {k: torch.cat([v, v]) for k, v in batch_at(step).items()})
    assert (made.step, made.samples) == (4, 64)


@pytest.mark.parametrize("wrong", [{"accumulate": 0}, {"batch_size": -4}, {"max_minutes": -1.0}])
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, float], tmp_path: Path):
    with pytest.raises(ValueError, match="give"):
        run(tmp_path, **wrong)


def test_a_run_whose_teachers_were_replaced_is_not_continued(tmp_path: Path):
    train(run(tmp_path, steps=2, upstream="one"), net(), objective, batch_at)
    assert train(run(tmp_path, steps=3, upstream="one"), net(), objective, batch_at).step == 3
    with pytest.raises(ValueError, match="other models"):
        train(run(tmp_path, steps=4, upstream="two"), net(), objective, batch_at)
