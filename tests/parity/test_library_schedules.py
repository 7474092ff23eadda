"""Our learning rates against torch's schedulers and optax's schedules, update by update."""

import numpy as np
import pytest

from shared.config import ScheduleConfig
from shared.schedules import learning_rates, lowers_rate

BASE, MINIMUM, EPOCH = 0.002, 1e-5, 5
"""EPOCH: steps of an epoch."""


def ours(count, **options):
    return learning_rates(ScheduleConfig(**options), BASE, range(count), EPOCH)


def torch_rates(count, make, every=1):
    """The rates of `count` updates; the scheduler takes a step after each `every` of them."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))], lr=BASE)
    scheduler, found = make(optimizer), []
    for step in range(1, count + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % every == 0:
            scheduler.step()
    return found


@pytest.mark.parametrize(("period", "factor"), [(2, 2), (10, 1), (3, 3), (1, 2), (1, 1)])
@pytest.mark.parametrize(("unit", "every"), [("step", 1), ("epoch", EPOCH)])
def test_cosine_is_torchs_warm_restarts(period, factor, unit, every):
    from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

    expected = torch_rates(300, lambda each: CosineAnnealingWarmRestarts(each, period, factor, MINIMUM), every)
    found = ours(
        300,
        schedule="cosine",
        restart_period=period,
        restart_factor=factor,
        minimum_rate=MINIMUM,
        schedule_unit=unit,
    )
    assert found.tolist() == expected


def test_cosine_without_restarts_is_torchs_annealing_until_its_end():
    from torch.optim.lr_scheduler import CosineAnnealingLR

    expected = torch_rates(61, lambda each: CosineAnnealingLR(each, 60, MINIMUM))
    found = ours(90, schedule="cosine", schedule_unit="step", minimum_rate=MINIMUM, schedule_steps=60)
    assert found[:61] == pytest.approx(expected, rel=1e-12)
    assert (found[60:] == MINIMUM).all()


def test_decays_are_torchs():
    from torch.optim.lr_scheduler import ExponentialLR, StepLR

    expected = torch_rates(400, lambda each: StepLR(each, 30, 0.9))
    assert ours(400, schedule="step", decay_rate=0.9, decay_steps=30) == pytest.approx(expected, rel=1e-13)
    expected = torch_rates(400, lambda each: ExponentialLR(each, 0.9 ** (1 / 30)))
    assert ours(400, schedule="exponential", decay_rate=0.9, decay_steps=30) == pytest.approx(expected, rel=1e-13)


def test_warm_up_is_torchs():
    from torch.optim.lr_scheduler import LambdaLR

    expected = torch_rates(20, lambda each: LambdaLR(each, lambda step: min(1, (step + 1) / 12)))
    assert ours(20, warmup_steps=12).tolist() == expected


@pytest.mark.parametrize("patience", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_plateau_is_torchs(patience, seed):
    """The same losses, with plateaus, ties and falls: the same rate after each epoch."""
    import torch
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    losses = np.random.default_rng(seed).integers(0, 40, 120) / 8 + np.linspace(3, 0, 120).round(1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.7, patience=patience, threshold=0, min_lr=MINIMUM, eps=0)
    schedule = ScheduleConfig("plateau", decay_rate=0.7, plateau_patience=patience, minimum_rate=MINIMUM)
    best, waited, reductions = np.inf, 0, 0
    for epoch, loss in enumerate(losses):
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        reductions += lowers_rate(schedule, waited)
        scheduler.step(loss)
        (found,) = learning_rates(schedule, BASE, range(epoch, epoch + 1), EPOCH, reductions)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-13)
    assert reductions > 5


def test_optax_agrees():
    import jax
    import optax

    with jax.enable_x64(True):
        cycle = {"init_value": BASE, "peak_value": BASE, "warmup_steps": 0, "end_value": MINIMUM}
        sgdr = optax.sgdr_schedule([cycle | {"decay_steps": 4 * 2**k} for k in range(6)])
        found = ours(
            252, schedule="cosine", restart_period=4, restart_factor=2, minimum_rate=MINIMUM, schedule_unit="step"
        )
        assert found == pytest.approx([float(sgdr(step)) for step in range(252)], rel=1e-12)
        for staircase, kind in ((False, "exponential"), (True, "step")):
            decay = optax.exponential_decay(BASE, 30, 0.9, staircase=staircase)
            found = ours(200, schedule=kind, decay_rate=0.9, decay_steps=30)
            assert found == pytest.approx([float(decay(step)) for step in range(200)], rel=1e-12)
