"""The framework's own layers. `torch.lstm` is all that the forward of `torch.nn.LSTM` calls; it takes the weights as
arguments, so they can be the canonical ones, inside the graph, and gradients and optimizer stay canonical."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from impl_torch.arrays import Array, Device
from impl_torch.gru import GRUWeights
from impl_torch.unroll import Cell, Record, cell_of
from shared.config import ModelConfig
from shared.errors import ImplementationError
from shared.parameters import cell_shapes

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rnn-tanh": torch.rnn_tanh,
    "rnn-relu": torch.rnn_relu,
    "lstm": torch.lstm,
    "gru-after": torch.gru,
}
MISSING = {
    "gru-before": "PyTorch's GRU, like cuDNN's, resets after the product: use --gru-reset after, or --engine scratch.",
    "wrnn": "No framework has a layer for --cell wrnn: use --engine scratch.",
}
LIBRARIES = {"Mkldnn": "oneDNN", "Cudnn": "cuDNN", "Miopen": "MIOpen"}
"""How autograd's names of a library's kernels begin."""


def require_native(model: ModelConfig, device: Device) -> None:
    """ImplementationError with the reason where the framework has no such layer."""
    if (name := cell_of(model).name) in MISSING:
        raise ImplementationError(MISSING[name])


def native_kernel(model: ModelConfig, device: Device) -> str:
    """The function, and the library that one step of it, tried here, came from: autograd names it."""
    cell, size = cell_of(model), model.hidden_size
    options: dict[str, Any] = {"dtype": device.layers, "device": device.handle, "requires_grad": True}
    shapes = cell_shapes(model, size, tokens=False)
    weights = cell.weights(*(torch.zeros(shapes[field], **options) for field in cell.weights._fields))
    state = cell.state(*(torch.zeros(1, size, **options) for _ in cell.state._fields))
    outputs, _, _ = unroll_native(cell, torch.zeros(1, 1, size, **options), state, weights, record=False)
    ran = list(nodes(outputs.grad_fn))
    library = next((library for start, library in LIBRARIES.items() for node in ran if node.startswith(start)), "ATen")
    if library == "cuDNN":
        library += f" {torch.backends.cudnn.version()}"
    return f"torch.{FUNCTIONS[cell.name].__name__}, {library} (torch {torch.__version__})"


def nodes(node: Any) -> Iterator[str]:
    """Names of a node of autograd's graph and of all behind it."""
    yield node.name()
    for before, _ in node.next_functions:
        if before is not None:
            yield from nodes(before)


def unroll_native(
    cell: Cell, inputs: Array, state: Any, weights: Any, record: bool
) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and no record: there is none."""
    if inputs.ndim == 2:
        inputs = torch.nn.functional.one_hot(inputs.long(), weights.weight_ih.shape[1]).to(weights.weight_ih.dtype)
    four = two_biases(weights)
    if inputs.is_cuda:
        four = in_one_buffer(four)
    before = tuple(field[None] for field in state)
    # Weights, two biases each, one layer, no dropout, backward possible, one direction, time first.
    options = four, True, 1, 0.0, torch.is_grad_enabled(), False, False
    outputs, *after = FUNCTIONS[cell.name](inputs, before if len(before) > 1 else before[0], *options)
    return outputs, cell.state(*(field[0] for field in after)), None


def two_biases(weights: Any) -> list[Array]:
    """The canonical weights as torch's: weight_ih, weight_hh, bias_ih, bias_hh; the last is zero but for bias_hn."""
    if isinstance(weights, GRUWeights):
        second = torch.nn.functional.pad(weights.bias_hn, (2 * len(weights.bias_hn), 0))
    else:
        second = torch.zeros_like(weights.bias)
    return [weights.weight_ih, weights.weight_hh, weights.bias, second]


def in_one_buffer(weights: list[Array]) -> list[Array]:
    """The same, one behind the other in memory, as cuDNN reads them: else torch copies them and warns, at each call."""
    pieces = torch.cat([weight.flatten() for weight in weights]).split([weight.numel() for weight in weights])
    return [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
