"""When a run of a search need not go on: the rules of the reports, on the training loss of each step."""

import math
from collections.abc import Iterable

DECAY = 0.999
"""Of the smoothed loss, as in min-char-rnn: it remembers about a thousand steps."""


class Stall:
    """Watches the smoothed loss, nats per token. `steps` without a new lowest, or `whole_steps` in which the
    whole-number part of the loss of a whole window (times `length`) has not fallen, are a reason to end; 0: never."""

    def __init__(self, steps: int, whole_steps: int, length: int) -> None:
        self.steps, self.whole_steps, self.length = steps, whole_steps, length
        self.smoothed = self.lowest = self.lowest_whole = math.inf
        self.waited = self.waited_whole = 0

    def reason(self, losses: Iterable[float]) -> str:
        """Take in the losses of the next steps; why the run should end at one of them, or nothing."""
        for loss in losses:
            self.take(loss)
            if 0 < self.steps <= self.waited:
                return f"the smoothed loss has not improved for {self.steps} steps"
            if 0 < self.whole_steps <= self.waited_whole:
                return f"the whole-number part of the smoothed loss has not fallen for {self.whole_steps} steps"
        return ""

    def take(self, loss: float) -> None:
        """One more step."""
        first = math.isinf(self.smoothed)
        self.smoothed = loss if first else DECAY * self.smoothed + (1 - DECAY) * loss
        whole = math.floor(self.smoothed * self.length)
        self.waited = 0 if self.smoothed < self.lowest else self.waited + 1
        self.waited_whole = 0 if whole < self.lowest_whole else self.waited_whole + 1
        self.lowest, self.lowest_whole = min(self.lowest, self.smoothed), min(self.lowest_whole, whole)
