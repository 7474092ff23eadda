"""What the workers of tests hold: objects that fail in the way that they are asked for. The module imports little,
since every worker imports it."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from shared.errors import ConfigError, NotFiniteError, OutOfMemoryError


class Fragile:
    """What a worker holds; fails in the way that it is asked for."""

    def __init__(self, how="", marker=None):
        self.how = how
        if how == "import":
            raise ImportError("libframework.so.9: cannot open shared object file")
        if marker:
            Path(marker, f"{os.getpid()}.pid").touch()

    def answer(self):
        return 42

    def pid(self):
        return os.getpid()

    def fail(self, how=None):
        ways = {
            "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "abort": lambda: os.kill(os.getpid(), signal.SIGABRT),
            "hang": lambda: time.sleep(600),
            "leave": lambda: sys.exit(7),
            "memory": lambda: bytearray(2**62),
            "lambda": lambda: lambda: None,
            "unreadable": Unreadable,
            "explained": self.run_out,
            "broken down": self.break_down,
            "mistaken": self.be_mistaken,
        }
        return ways.get(self.how if how is None else how, self.answer)()

    def run_out(self):
        raise OutOfMemoryError("lower --hidden-size")

    def break_down(self):
        raise NotFiniteError("the loss is not a number")

    def be_mistaken(self):
        raise ConfigError("no such device")

    def shout(self):
        """Through Python and past it, and what would steer a terminal."""
        print("\x1b[2Jgarbage", flush=True)
        os.write(1, b"\xff\x00garbage\r\n" * 1000)
        os.write(2, b"garbage")
        return "done"

    # What Participant has.

    def introduce(self):
        return {"impl": self.how}

    def train(self, start, stop):
        self.fail(self.how if self.how in ("die", "hang") and start else "")
        return {"losses": [2.0] * (stop - start), "tokens": 5, "seconds": 0.1}

    def held_out(self):
        return {"loss": float("nan") if self.how == "nan" else 2.0, "perplexity": 7.4}

    def begin(self, dtype):
        """Load what takes long to load."""
        import numpy  # noqa: F401 - for `parameters`

    def parameters(self):
        if self.how == "die later":
            self.how = "die"
        import numpy as np

        return {"a": np.array([0.0, 0.0]), "b": np.array([1.0, 3.0 + (self.how == "other")])}

    def sample(self, temperature):
        return "a text", 0.1


class Unreadable:
    """Can be sent and not be received."""

    def __reduce__(self):
        return int, ("no number",)


class Computing(Fragile):
    """Deep in Python."""

    def compute(self):
        while True:
            pass


class Stuck(Fragile):
    """Deep in a native call that lets no other thread of Python's run."""

    def compute(self):
        ctypes.PyDLL(None).sleep(600)
