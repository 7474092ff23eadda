"""The learning rate as a function of the step: formulas, borders, what no schedule may do."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import ScheduleConfig, TrainingConfig
from shared.errors import ConfigError
from shared.schedules import learning_rates, lowers_rate, settled, steps_of_run

BASE, EPOCH = 0.37, 7
"""Learning rate, and steps of an epoch."""


def rates(steps, reductions=0, **options):
    return learning_rates(ScheduleConfig(**options), BASE, steps, EPOCH, reductions)


def test_constant():
    found = rates(range(5, 9))
    assert found.dtype == np.float64
    assert found.tolist() == [BASE] * 4


def test_exponential_is_smooth_and_step_is_not():
    steps = range(0, 250, 10)
    smooth, stairs = (rates(steps, schedule=kind, decay_rate=0.8, decay_steps=100) for kind in ("exponential", "step"))
    assert smooth == pytest.approx([BASE * 0.8 ** (step / 100) for step in steps], rel=1e-15)
    assert np.array_equal(stairs, np.array([BASE] * 10 + [BASE * 0.8] * 10 + [BASE * 0.8**2] * 5))
    assert rates(range(99, 102), schedule="step", decay_rate=0.8, decay_steps=100).tolist() == [BASE, *[BASE * 0.8] * 2]


def test_cosine_counts_epochs_or_steps():
    options = {"schedule": "cosine", "restart_period": 3, "minimum_rate": 0.01}
    by_step = rates(range(3), **options, schedule_unit="step")
    assert by_step == pytest.approx([BASE, 0.01 + 0.75 * (BASE - 0.01), 0.01 + 0.25 * (BASE - 0.01)], rel=1e-15)
    assert np.array_equal(rates(range(3 * EPOCH), **options), np.repeat(by_step, EPOCH))


@pytest.mark.parametrize(("period", "factor"), [(2, 2), (3, 1), (5, 3), (1, 1), (1, 2)])
def test_cosine_restarts_where_the_periods_end(period, factor):
    options = {"schedule": "cosine", "restart_period": period, "restart_factor": factor, "schedule_unit": "step"}
    ends = np.cumsum([period * factor**k for k in range(10)])
    found = rates(range(ends[-1] + 1), **options)
    assert np.array_equal(np.flatnonzero(found == BASE), [0, *ends])
    within = np.setdiff1d(np.arange(ends[-1]), ends - 1)
    assert (np.diff(found)[within] < 0).all()


def test_restarts_are_exact_far_into_a_run():
    """3^k - 1 over 2 periods of 3^j: logarithms in float64 miss some of these."""
    options = {"schedule": "cosine", "restart_period": 1, "restart_factor": 3, "schedule_unit": "step"}
    for power in range(1, 38):
        restart = (3**power - 1) // 2
        before, at = rates(range(restart - 1, restart + 1), **options)
        assert at == BASE
        assert before < BASE or power == 1


def test_cosine_over_the_whole_run_ends_at_the_minimum_and_stays():
    options = {"schedule": "cosine", "minimum_rate": 0.02, "schedule_steps": 40}
    by_step = rates(range(100), **options, schedule_unit="step")
    assert by_step[0] == BASE
    assert by_step[20] == pytest.approx((BASE + 0.02) / 2)
    assert (np.diff(by_step[:41]) < 0).all()
    assert (by_step[40:] == 0.02).all()
    by_epoch = rates(range(100), **options)  # 40 steps are 5 epochs and a part of the sixth
    assert len(set(by_epoch)) == 7
    assert by_epoch[6 * EPOCH - 1] > 0.02
    assert (by_epoch[6 * EPOCH :] == 0.02).all()


def test_warm_up_multiplies_every_schedule():
    for options in ({}, {"schedule": "exponential", "decay_steps": 3}, {"schedule": "cosine", "schedule_steps": 30}):
        factor = np.minimum(1, np.arange(1, 21) / 8)
        assert rates(range(20), **options, warmup_steps=8) == pytest.approx(rates(range(20), **options) * factor)
    assert rates(range(2), warmup_steps=1).tolist() == [BASE, BASE]


def test_plateau_lowers_to_the_minimum():
    options = {"schedule": "plateau", "decay_rate": 0.5, "minimum_rate": 0.06}
    found = [rates(range(3), reductions, **options) for reductions in range(5)]
    assert [each[0] for each in found] == [BASE, BASE / 2, BASE / 4, 0.06, 0.06]
    assert all((each == each[0]).all() for each in found)


def test_plateau_forgives_its_patience_then_counts_anew():
    schedule = ScheduleConfig("plateau", plateau_patience=2)
    assert [waited for waited in range(10) if lowers_rate(schedule, waited)] == [3, 6, 9]
    assert [waited for waited in range(3) if lowers_rate(ScheduleConfig("plateau", plateau_patience=0), waited)] == [
        1,
        2,
    ]
    assert not any(lowers_rate(ScheduleConfig("step"), waited) for waited in range(10))


SCHEDULES = st.one_of(
    st.builds(ScheduleConfig, st.just("constant"), warmup_steps=st.integers(0, 50)),
    st.builds(ScheduleConfig, st.sampled_from(["exponential", "step"]), st.floats(1e-3, 1), st.integers(1, 10**6)),
    st.builds(ScheduleConfig, st.just("plateau"), st.floats(1e-3, 1), minimum_rate=st.floats(0, BASE)),
    st.builds(
        ScheduleConfig,
        st.just("cosine"),
        restart_period=st.integers(1, 10**6),
        restart_factor=st.integers(1, 5),
        minimum_rate=st.floats(0, BASE),
        schedule_unit=st.sampled_from(["epoch", "step"]),
    ),
)


@given(SCHEDULES, st.integers(0, 10**12), st.integers(1, 10**4), st.integers(0, 1000))
def test_a_rate_lies_between_the_minimum_and_the_base(schedule, step, steps_per_epoch, reductions):
    (rate,) = learning_rates(schedule, BASE, range(step, step + 1), steps_per_epoch, reductions)
    least = 0.0 if schedule.warmup_steps else schedule.minimum_rate
    assert least * (1 - 1e-15) <= rate <= BASE * (1 + 1e-15)
    assert math.isfinite(rate)


@given(SCHEDULES, st.integers(0, 200), st.integers(0, 30), st.integers(0, 30))
def test_rates_do_not_depend_on_where_a_stack_begins(schedule, first, before, after):
    """What makes a resumed run the run that never stopped."""
    whole = learning_rates(schedule, BASE, range(first, first + before + after), EPOCH)
    cut = first + before
    parts = [learning_rates(schedule, BASE, each, EPOCH) for each in (range(first, cut), range(cut, cut + after))]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_schedule_is_settled_once():
    training = TrainingConfig(epochs=3, learning_rate=BASE)
    assert steps_of_run(training, EPOCH) == 21
    assert settled(ScheduleConfig("cosine"), training, EPOCH).schedule_steps == 21
    short = TrainingConfig(epochs=3, max_steps=10, learning_rate=BASE)
    assert settled(ScheduleConfig("cosine"), short, EPOCH).schedule_steps == 10
    assert settled(ScheduleConfig("cosine", schedule_steps=10), training, EPOCH).schedule_steps == 10
    for schedule in (ScheduleConfig(), ScheduleConfig("step"), ScheduleConfig("cosine", restart_period=2)):
        assert settled(schedule, training, EPOCH) == schedule


def test_a_minimum_above_the_rate_is_refused():
    training = TrainingConfig(learning_rate=1e-3)
    with pytest.raises(ConfigError, match=r"--minimum-rate 0.01 is above --learning-rate 0.001"):
        settled(ScheduleConfig("plateau", minimum_rate=0.01), training, EPOCH)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"restart_period": 3}, "--restart-period belongs to --schedule cosine"),
        ({"schedule": "cosine", "restart_factor": 2}, "--restart-factor needs --restart-period"),
        ({"schedule": "step", "schedule_unit": "step"}, "--schedule-unit belongs to"),
        ({"schedule": "step", "minimum_rate": 0.1}, "--minimum-rate belongs to"),
        ({"schedule": "cosine", "restart_period": 2, "schedule_steps": 9}, "--schedule-steps belongs to"),
        ({"schedule": "step", "decay_rate": 1.5}, "--decay-rate must lie in"),
        ({"schedule": "step", "decay_steps": 0}, "--decay-steps must be at least 1"),
    ],
)
def test_an_option_without_effect_is_refused(options, flag):
    with pytest.raises(ConfigError, match=flag):
        ScheduleConfig(**options)
