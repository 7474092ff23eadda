"""A user's file at work, in a process of its own: loaded, called with copies of what is examined, and its answers made
plain. Whatever goes wrong becomes one sentence with the line of the user's file."""

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner.module.frameworks import FRAMEWORKS, differentiate, to_framework
from runner.module.watch import Heard, MisbehaviourError, watched
from runner.registry import require
from runner.text import visible
from shared.config import ModelConfig
from shared.errors import ConfigError, ImplementationError, UserError
from shared.parameters import check_arrays

Arrays = dict[str, np.ndarray]
CELLS: dict[str, dict[str, Any]] = {
    "rnn": {"cell": "rnn"},
    "rnn-relu": {"cell": "rnn", "nonlinearity": "relu"},
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "gru-before": {"cell": "gru", "gru_reset": "before"},
    "wrnn": {"cell": "wrnn"},
}
"""What CELL may say -> options of the model."""
INTERFACE = """A file for --module holds one of these (docs/check-module.md tells more):
  a cell   CELL = "lstm" (rnn, rnn-relu, lstm, gru, gru-before or wrnn)
           def forward(x, state, weights): return the new state, a dict like state
           def backward(d_state, x, state, weights): return d_x, d_previous_state, d_weights   (optional)
           FRAMEWORK = "torch" (or jax, tf): the arrays are that framework's, and it takes the gradients   (optional)
  a model  MODEL = {"cell": "lstm", ...} with the options of a model
           def loss_and_gradients(parameters, tokens, targets, mask, state): return loss, gradients"""


class InterfaceError(UserError):
    """A file that has nothing to examine."""


class Subject:
    """The file of a path; each call may take `timeout` seconds."""

    def __init__(self, path: str, timeout: float) -> None:
        self._path, self._timeout, self._heard, self._single = Path(path), timeout, Heard(), False

    def load(self) -> dict[str, Any]:
        """Run the file -> what it holds; InterfaceError where that cannot be examined."""
        with Path(os.devnull).open("w") as nowhere:  # for what is not Python's to catch; answers take another way
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        os.environ.pop("TF_USE_LEGACY_KERAS", None)  # set for our own speed; the user's file may want Keras
        os.environ["JAX_ENABLE_X64"] = "1"
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(self._path.resolve().parent))
        spec = importlib.util.spec_from_file_location("module_under_examination", self._path)
        if spec is None or spec.loader is None:
            raise InterfaceError(f"{self._path.name} is not a Python file (NAME.py).\n{INTERFACE}")
        self._module = importlib.util.module_from_spec(spec)
        try:
            with watched(self._path, self._timeout, self._heard, self._path.name):
                spec.loader.exec_module(self._module)
        except MisbehaviourError as error:
            raise InterfaceError(visible(str(error))) from None
        return self._description()

    def forward(self, x: np.ndarray, state: Arrays, weights: Arrays) -> Arrays:
        """The user's state after one step."""
        with watched(self._path, self._timeout, self._heard, "forward"):
            after = self._module.forward(*self._given(x, state, weights))
            return self._fields(
                "forward: the returned state", after, {name: each.shape for name, each in state.items()}
            )

    def backward(
        self, d_state: Arrays, x: np.ndarray, state: Arrays, weights: Arrays
    ) -> tuple[np.ndarray, Arrays, Arrays]:
        """The user's gradients at x, at the state before and of the weights, by hand or by the framework."""
        if self._by_hand:
            with contextlib.suppress(UserError):
                self.forward(x, state, weights)  # a backward may use what its forward kept
        what = "backward" if self._by_hand else "forward, differentiated,"
        with watched(self._path, self._timeout, self._heard, what):
            given = self._given(d_state, x, state, weights)
            by_framework = (self._framework, self._module.forward, *given)
            found = self._module.backward(*given) if self._by_hand else differentiate(*by_framework)
            if not isinstance(found, tuple | list) or len(found) != 3:
                raise MisbehaviourError(
                    f"backward returned {kind(found)}, expected three things: d_x, d_previous_state, d_weights "
                    f"({self._line_of('backward')})."
                )
            d_x, d_before, d_weights = found
            shapes = {name: each.shape for name, each in state.items()}
            return (
                self._fields("backward: d_x", {"d_x": d_x}, {"d_x": x.shape})["d_x"],
                self._fields("backward: d_previous_state", d_before, shapes),
                self._fields("backward: d_weights", d_weights, {name: each.shape for name, each in weights.items()}),
            )

    def loss_and_gradients(
        self, parameters: Arrays, tokens: np.ndarray, targets: np.ndarray, mask: np.ndarray, state: Arrays
    ) -> tuple[float, Arrays]:
        """The user's loss of a batch and its gradients."""
        with watched(self._path, self._timeout, self._heard, "loss_and_gradients"):
            copies = {name: each.copy() for name, each in parameters.items()}
            states = {name: each.copy() for name, each in state.items()}
            found = self._module.loss_and_gradients(copies, tokens.copy(), targets.copy(), mask.copy(), states)
            if not isinstance(found, tuple | list) or len(found) != 2:
                line = self._line_of("loss_and_gradients")
                raise MisbehaviourError(
                    f"loss_and_gradients returned {kind(found)}, expected loss, gradients ({line})."
                )
            loss = self._fields("loss_and_gradients: the loss", {"loss": found[0]}, {"loss": ()})["loss"]
            shapes = {name: each.shape for name, each in parameters.items()}
            return float(loss), self._fields("loss_and_gradients: the gradients", found[1], shapes)

    def notes(self) -> dict[str, Any]:
        """What else there is to say: what was printed, and whether answers came in float32."""
        return {"printed": self._heard.first.split("\n")[0], "lines": self._heard.lines, "float32": self._single}

    def _description(self) -> dict[str, Any]:
        """What the file holds, after a look at it."""
        module, name = self._module, self._path.name
        framework = getattr(module, "FRAMEWORK", "numpy")
        if framework not in FRAMEWORKS:
            raise InterfaceError(f"{name}: FRAMEWORK must be one of {', '.join(FRAMEWORKS)}, got {framework!r}.")
        if hasattr(module, "CELL") == hasattr(module, "MODEL"):
            number = "both CELL and MODEL" if hasattr(module, "CELL") else "neither CELL nor MODEL"
            raise InterfaceError(f"{name} has {number}.\n{INTERFACE}")
        cell = getattr(module, "CELL", "")
        if cell and not (isinstance(cell, str) and cell in CELLS):
            raise InterfaceError(f"{name}: CELL must be one of {', '.join(CELLS)}, got {cell!r}.")
        wanted = "forward" if cell else "loss_and_gradients"
        if not callable(getattr(module, wanted, None)):
            raise InterfaceError(f"{name} has no function {wanted}.\n{INTERFACE}")
        self._framework, self._by_hand = framework, callable(getattr(module, "backward", None))
        if framework != "numpy":
            try:
                require(framework)
            except ImplementationError as error:
                raise InterfaceError(f"{name}: FRAMEWORK = {framework!r} cannot run. {error}") from None
        options = getattr(module, "MODEL", None)
        if not cell:
            self._check_options(options)
        return {"cell": cell, "model": options, "framework": framework, "by_hand": self._by_hand}

    def _check_options(self, options: Any) -> None:
        """InterfaceError unless they are a model's."""
        try:
            ModelConfig(**options)
        except (TypeError, ConfigError) as error:
            fields = ", ".join(ModelConfig.__dataclass_fields__)
            raise InterfaceError(f"{self._path.name}: MODEL is no model: {error} Its options are {fields}.") from None

    def _line_of(self, function: str) -> str:
        """Where a function of the user's stands."""
        code = getattr(getattr(self._module, function, None), "__code__", None)
        return f"{self._path.name}, line {code.co_firstlineno}" if code else self._path.name

    def _given(self, *values: Any) -> tuple[Any, ...]:
        """Copies as arrays of the user's framework; dicts entry by entry."""
        return tuple(
            {name: to_framework(self._framework, each) for name, each in value.items()}
            if isinstance(value, Mapping)
            else to_framework(self._framework, value)
            for value in values
        )

    def _fields(self, what: str, value: Any, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """A dict of the user's as float64 arrays; MisbehaviourError where names, shapes or kinds are others."""
        wanted = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        place = self._line_of(what.partition(":")[0])
        if not isinstance(value, Mapping):
            raise MisbehaviourError(f"{what} is {kind(value)}, expected a dict with {wanted} ({place}).")
        arrays = {}
        for name, each in value.items():
            array = np.asarray(each.detach().cpu() if hasattr(each, "detach") else each)
            if array.dtype.kind not in "fiub":
                raise MisbehaviourError(f"{what}: {name} is {kind(each)}, expected an array of numbers ({place}).")
            self._single = self._single or array.dtype == np.float32
            arrays[name] = array.astype(np.float64)
        if "hidden" in shapes:
            arrays = {name: each for name, each in arrays.items() if name in shapes}  # a state may hold more
        try:
            check_arrays(what, arrays, shapes)
        except UserError as error:
            raise MisbehaviourError(
                f"{str(error).replace(' do not fit the model', '').rstrip('.')} ({place})."
            ) from None
        return arrays


def kind(value: Any) -> str:
    """What a value is, for a message."""
    shape = getattr(value, "shape", None)
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return "None" if value is None else f"{type(value).__name__}{size}{'' if shape is None else f' {list(shape)}'}"
