"""The learning rate as a pure function of the step, in float64, the same numbers for every implementation. Step 0 is
the first update; t counts steps, for cosine whole epochs or steps, as --schedule-unit says.

    constant     base
    exponential  base r^(t / s)
    step         base r^floor(t / s)
    cosine       minimum + (base - minimum) (1 + cos(pi t_cur / T_i)) / 2, with warm restarts: t_cur counts from the
                 last, T_0 is the first period, each T_mult times as long as that before (Loshchilov and Hutter 2017)
    plateau      base r^reductions, at least minimum
    warm-up      times min(1, (step + 1) / warmup_steps)

r: decay_rate, s: decay_steps, minimum: minimum_rate, T_0: restart_period, T_mult: restart_factor.
"""

import math
from dataclasses import replace

import numpy as np

from shared.config import ScheduleConfig, TrainingConfig
from shared.errors import ConfigError


def learning_rates(
    schedule: ScheduleConfig, base: float, steps: range, steps_per_epoch: int, reductions: int = 0
) -> np.ndarray:
    """float64 [K], one for each step. `reductions`: how often plateau has lowered the rate. A cosine over the whole run
    counts on `schedule_steps`: see `settled`."""
    return np.array([learning_rate(schedule, base, step, steps_per_epoch, reductions) for step in steps], np.float64)


def learning_rate(schedule: ScheduleConfig, base: float, step: int, steps_per_epoch: int, reductions: int) -> float:
    """The rate of one step."""
    if schedule.schedule == "cosine":
        rate = cosine(schedule, base, step, steps_per_epoch)
    elif schedule.schedule == "plateau":
        rate = max(schedule.minimum_rate, base * schedule.decay_rate**reductions)
    else:
        rate = base * schedule.decay_rate ** decays(schedule, step)
    return rate * min(1.0, (step + 1) / max(1, schedule.warmup_steps))


def decays(schedule: ScheduleConfig, step: int) -> float:
    """How often, or how far, the rate has decayed by this step."""
    if schedule.schedule == "constant":
        return 0
    return step // schedule.decay_steps if schedule.schedule == "step" else step / schedule.decay_steps


def cosine(schedule: ScheduleConfig, base: float, step: int, steps_per_epoch: int) -> float:
    """From base to the minimum along half a cosine, again and again; or once, and then it stays there."""
    per_epoch = schedule.schedule_unit == "epoch"
    now = step // steps_per_epoch if per_epoch else step
    if schedule.restart_period:
        now, period = since_restart(now, schedule.restart_period, schedule.restart_factor)
    else:
        period = math.ceil(schedule.schedule_steps / steps_per_epoch) if per_epoch else schedule.schedule_steps
        now = min(now, period)
    return schedule.minimum_rate + (base - schedule.minimum_rate) * (1 + math.cos(math.pi * now / period)) / 2


def since_restart(now: int, period: int, factor: int) -> tuple[int, int]:
    """Time since the last restart, and the length of the period that began with it; in whole numbers, since a logarithm
    misses restarts by rounding."""
    if factor == 1:
        return now % period, period
    while now >= period:
        now, period = now - period, period * factor
    return now, period


def settled(schedule: ScheduleConfig, training: TrainingConfig, steps_per_epoch: int) -> ScheduleConfig:
    """The schedule with all that it counts on, fixed as the run begins, so that a longer run does not stretch it."""
    if schedule.minimum_rate > training.learning_rate:
        raise ConfigError(
            f"--minimum-rate {schedule.minimum_rate:g} is above --learning-rate {training.learning_rate:g}: "
            "the schedule would raise the rate."
        )
    if schedule.schedule != "cosine" or schedule.restart_period or schedule.schedule_steps:
        return schedule
    return replace(schedule, schedule_steps=steps_of_run(training, steps_per_epoch))


def steps_of_run(training: TrainingConfig, steps_per_epoch: int) -> int:
    """Updates of a run that nothing ends early."""
    every = training.epochs * steps_per_epoch
    return min(every, training.max_steps or every)


def lowers_rate(schedule: ScheduleConfig, waited: int) -> bool:
    """Whether plateau lowers the rate after the `waited`-th epoch since the best: it forgives `plateau_patience` of
    them, lowers at the next, and begins to count anew (torch's ReduceLROnPlateau with threshold 0)."""
    return schedule.schedule == "plateau" and waited > 0 and waited % (schedule.plateau_patience + 1) == 0
