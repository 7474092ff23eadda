"""`check --accuracy`: how far float32, and what is rounded further, lies from float64 truth, as sequences grow longer.

The unit in the last place is that of the tensor's largest number in float32: what one rounding there can do.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from runner.cli import Check
from runner.console import console, say, show_table
from runner.registry import chosen, create_model
from runner.workers import Worker
from shared.config import Dtype, ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ImplementationError
from shared.files import strict_json, write_atomically
from shared.initializers import initial_parameters
from shared.random_bits import uniforms

LENGTHS = (35, 100, 1000)
B, V, H, E = 4, 41, 64, 24
MODEL = ModelConfig(cell="lstm", hidden_size=H, num_layers=2, embedding_size=E)
SWITCHES: dict[Dtype, str] = {
    "float32": "float32, TF32 off (PyTorch allow_tf32=False, JAX precision highest, TensorFlow tensor_float_32 off)",
    "tf32": "float32 with products rounded to TF32",
    "bfloat16": "layers in bfloat16",
}
Arrays = dict[str, np.ndarray]


class Gauge:
    """An implementation in its own process."""

    def __init__(self, impl: str, device: str) -> None:
        self._impl, self._device = impl, device

    def measure(self, length: int, dtype: Dtype) -> dict[str, Any]:
        """Logits and gradients of one batch, as float64; or why this precision is refused."""
        try:
            runtime = RuntimeConfig(device=self._device, dtype=dtype)
            model = create_model(self._impl, MODEL, OptimizerConfig(), V, runtime)
        except ImplementationError as error:
            return {"refused": str(error)}
        # Rounded to float32 first, so that what is measured is arithmetic and not the weights.
        weights = {name: each.astype(np.float32) for name, each in initial_parameters(MODEL, V, 3).items()}
        model.load_parameters({name: each.astype(np.float64) for name, each in weights.items()})
        tokens = (uniforms(5, f"accuracy.{length}", B * (length + 1)).reshape(B, -1) * V).astype(np.int32)
        batch = Batch(tokens[:, :-1], tokens[:, 1:], np.ones((B, length), bool), np.ones(B, bool))
        logits, _ = model.logits(batch.tokens, model.initial_state(B))
        _, gradients, _ = model.loss_and_gradients(batch, model.initial_state(B))
        found = {"logits": logits, **gradients.parameters}
        return {"kernel": model.kernel, "device": model.device, "arrays": {k: np.float64(v) for k, v in found.items()}}


def run(options: Check, open_worker: Callable[..., Any] = Worker, lengths: tuple[int, ...] = LENGTHS) -> int:
    """Measure, show, write."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        reference = stack.enter_context(open_worker("reference", Gauge, "numpy", "cpu"))
        gauges = {
            name: stack.enter_context(open_worker(name, Gauge, name, options.device)) for name in chosen(options.impl)
        }
        for length in lengths:
            with console.status(f"{length} steps: {', '.join(gauges)}"):
                truth = reference.call("measure", length, "float64")["arrays"]
                for dtype in SWITCHES:
                    rows += league(gauges, truth, length, dtype)
    show(rows)
    if options.json:
        write_atomically(options.json, strict_json({"model": "lstm, 2 layers of 64", "rows": rows}))
    return 0


def league(gauges: Mapping[str, Any], truth: Arrays, length: int, dtype: Dtype) -> list[dict[str, Any]]:
    """A row for each implementation that has this precision."""
    rows = []
    for name, gauge in gauges.items():
        found = gauge.call("measure", length, dtype)
        if "refused" in found:
            continue
        errors = {each: ulps(found["arrays"][each], truth[each]) for each in truth}
        logits, worst = errors.pop("logits"), max(errors, key=errors.__getitem__)
        place = {"impl": name, "dtype": dtype, "length": length, "kernel": found["kernel"], "device": found["device"]}
        rows.append(place | {"logits_ulps": logits, "gradients_ulps": errors[worst], "worst_gradient": worst})
    return rows


def ulps(got: np.ndarray, truth: np.ndarray) -> float:
    """The largest error, in units in the last place of the tensor's largest number in float32."""
    unit = float(np.spacing(np.float32(np.abs(truth).max())))
    return float(np.abs(got - truth).max()) / unit


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each implementation and precision, two columns for each length."""
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    lines: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: list(SWITCHES).index(row["dtype"])):
        cells = lines.setdefault(f"{row['impl']} {row['dtype']}", [])
        cells += [f"{row['logits_ulps']:.3g}", f"{row['gradients_ulps']:.3g}"]
    columns = [f"{what} {length}" for length in lengths for what in ("logits", "grads")]
    table = [(name, *cells) for name, cells in lines.items()]
    title = "Largest error over so many steps, in units in the last place of each tensor's largest number in float32"
    show_table(title, ("", *columns), table, range(1, 1 + len(columns)))
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        say(f"{dtype}: {SWITCHES[dtype]}", "dim")
