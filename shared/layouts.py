"""Canonical parameters as the layers of PyTorch, Keras and flax hold them, and back.

A network's native arrays lie in one flat dictionary, "<layer>.<array>", under these names (k counts layers):

layout              embedding                recurrent layer            residual projection    decoder
torch               embedding.weight         rnn.weight_ih_l{k}, ...    residual.{k}.weight    decoder.weight, .bias
torch, residual                              rnn.{k}.weight_ih_l0, ...
keras               embedding.embeddings     rnn_{k}.kernel, ...        residual_{k}.kernel    decoder.kernel, .bias
linen, nnx          embedding.embedding      rnn_{k}.cell.<...>         residual_{k}.kernel    decoder.kernel, .bias

torch            torch.nn.RNN, LSTM, GRU: two biases; the canonical one is the first, the second zero but for bias_hn
keras            SimpleRNN, LSTM, GRU: kernels [in, out], gru blocks z r n; reset after: bias [2, 3H], before: [3H]
linen            SimpleCell, LSTMCell and OptimizedLSTMCell (the same tree), GRUCell: a kernel [in, out] for each gate
nnx              SimpleCell, LSTMCell (`if_` for `if`), GRUCell, which has no bias_hn
nnx-optimized    the same, but OptimizedLSTMCell: one kernel for all gates

There and back, nothing changes; of two biases that both are not zero, the sum comes back, since only that is felt. Tied
weights are written twice, since two layers hold them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from shared.config import ModelConfig
from shared.errors import ParameterError
from shared.parameters import check_arrays, parameter_shapes

Array = np.ndarray
Arrays = Mapping[str, Array]
LAYOUTS = {"torch": "PyTorch", "keras": "Keras", "linen": "flax linen", "nnx": "flax nnx", "nnx-optimized": "flax nnx"}
"""Layout -> whose layers have it."""
TABLES = {"torch": "embedding.weight", "keras": "embedding.embeddings"}
"""The embedding's array, where it is not flax' "embedding.embedding"."""
GATES = {"lstm": "ifgo", "gru": "rzn"}


class Network(NamedTuple):
    """A network of a library's own layers, in a file."""

    layout: str
    model: ModelConfig
    size: int
    """V."""
    names: dict[str, str]
    """Name in the layout -> name in the file; biases that the file does without are absent."""


def to_layers(layout: str, model: ModelConfig, parameters: Arrays) -> dict[str, Array]:
    """Canonical parameters -> native arrays, contiguous. ParameterError with the reason where the library has no such
    layer."""
    require_layers(layout, model, parameters)
    table = parameters.get("embedding.weight")
    layers: dict[str, Array] = {} if table is None else {TABLES.get(layout, "embedding.embedding"): table}
    for k in range(model.num_layers):
        native = cell_of(layout, model).to_native(cell_weights(parameters, k))
        layers |= {place(layout, model, k, field): each for field, each in native.items()}
        if f"rnn.residual_l{k}" in parameters:
            layers[residual_name(layout, k)] = turned(layout, parameters[f"rnn.residual_l{k}"])
    weight = parameters["embedding.weight" if model.tied_weights else "decoder.weight"]
    layers[decoder_name(layout)] = turned(layout, weight)
    layers["decoder.bias"] = parameters["decoder.bias"]
    return {name: np.ascontiguousarray(each) for name, each in layers.items()}


def from_layers(layout: str, model: ModelConfig, layers: Arrays) -> dict[str, Array]:
    """Native arrays -> canonical parameters, contiguous; an absent bias is zero. ParameterError names what is missing,
    unexpected or misshapen."""
    given = layers[decoder_name(layout)] if decoder_name(layout) in layers else np.zeros((0, 0))
    size = turned(layout, given).shape[0]
    layers = with_all_biases(layout, model, size, layers)
    found: dict[str, Array] = {}
    for k in range(model.num_layers):
        cell = cell_of(layout, model)
        fields = {field: layers[place(layout, model, k, field)] for field in cell.fields}
        found |= {f"rnn.{field}_l{k}": each for field, each in cell.to_canonical(fields).items()}
        if residual_name(layout, k) in layers:
            found[f"rnn.residual_l{k}"] = turned(layout, layers[residual_name(layout, k)])
    if model.embedding_size:
        found["embedding.weight"] = layers[TABLES.get(layout, "embedding.embedding")]
    found["decoder.weight"] = turned(layout, layers[decoder_name(layout)])
    found["decoder.bias"] = layers["decoder.bias"]
    if model.tied_weights and not np.array_equal(found.pop("decoder.weight"), found["embedding.weight"]):
        raise ParameterError("The weights should be tied, but the decoder's differ from the embedding's.")
    return {name: np.ascontiguousarray(found[name]) for name in parameter_shapes(model, size)}


def require_layers(layout: str, model: ModelConfig, parameters: Arrays) -> None:
    """ParameterError with the reason where no layer of the library computes what this model does."""
    library = LAYOUTS[layout]
    if model.cell == "wrnn":
        raise ParameterError(f"{library} has no layer for the wrnn, nor has any other library: it stays a checkpoint.")
    if variant(model) == "gru-before" and layout != "keras":
        raise ParameterError(
            f"The GRU of {library} resets after the product, this one before, and the weights of one are not those of "
            "the other. Keras has both: write a .keras or .weights.h5 file, or train with --gru-reset after."
        )
    hidden = [name for name, each in parameters.items() if "bias_hn" in name and np.any(each)]
    if layout.startswith("nnx") and hidden:
        raise ParameterError(
            f"nnx.GRUCell has no bias within the reset product, and {', '.join(hidden)} is not zero. "
            "Use --layout linen, whose GRUCell has it."
        )


def layer_shapes(layout: str, model: ModelConfig, size: int) -> dict[str, tuple[int, ...]]:
    """Native name -> shape, of a vocabulary of `size` symbols."""
    zeros = {name: np.zeros(shape) for name, shape in parameter_shapes(model, size).items()}
    return {name: each.shape for name, each in to_layers(layout, model, zeros).items()}


def with_all_biases(layout: str, model: ModelConfig, size: int, layers: Arrays) -> dict[str, Array]:
    """The arrays with zeros for absent biases; ParameterError where they do not fit the model then."""
    shapes = layer_shapes(layout, model, size)
    dtype = np.result_type(np.float32, *layers.values())
    missing = [name for name in shapes if "bias" in name and name not in layers]
    whole = {**layers, **{name: np.zeros(shapes[name], dtype) for name in missing}}
    check_arrays(f"The arrays of {LAYOUTS[layout]}'s layers", whole, shapes)
    return whole


class Cell(NamedTuple):
    """A recurrent layer of a library: its arrays, and the way between them and a layer's canonical fields."""

    fields: tuple[str, ...]
    to_native: Callable[[Arrays], dict[str, Array]]
    to_canonical: Callable[[Arrays], dict[str, Array]]


def cell_of(layout: str, model: ModelConfig) -> Cell:
    """The layer that computes the model's cell."""
    kind = variant(model)
    layout = "nnx" if layout == "nnx-optimized" and kind != "lstm" else layout
    return CELLS[layout, kind]


def variant(model: ModelConfig) -> str:
    """rnn, lstm, gru-after, gru-before, wrnn."""
    return f"gru-{model.gru_reset}" if model.cell == "gru" else model.cell


def cell_weights(parameters: Arrays, layer: int) -> dict[str, Array]:
    """Field -> canonical array of a layer, the residual projection left out."""
    end, fields = f"_l{layer}", ("weight_ih", "weight_hh", "bias", "bias_hn")
    return {field: parameters[f"rnn.{field}{end}"] for field in fields if f"rnn.{field}{end}" in parameters}


def place(layout: str, model: ModelConfig, layer: int, field: str) -> str:
    """The name of an array of a recurrent layer."""
    if layout == "torch":
        return f"rnn.{layer}.{field}_l0" if model.residual else f"rnn.{field}_l{layer}"
    return f"rnn_{layer}.{field}" if layout == "keras" else f"rnn_{layer}.cell.{field}"


def residual_name(layout: str, layer: int) -> str:
    return f"residual.{layer}.weight" if layout == "torch" else f"residual_{layer}.kernel"


def decoder_name(layout: str) -> str:
    return "decoder.weight" if layout == "torch" else "decoder.kernel"


def turned(layout: str, weight: Array) -> Array:
    """A weight [out, in] as the library's linear layers hold it, or back: all but PyTorch's are [in, out]."""
    return weight if layout == "torch" else weight.T


def two_biases(weights: Arrays) -> tuple[Array, Array]:
    """The canonical bias, and a second one that is zero but for bias_hn in the candidate's block."""
    second = np.zeros_like(weights["bias"])
    if "bias_hn" in weights:
        second[-len(weights["bias_hn"]) :] = weights["bias_hn"]
    return weights["bias"], second


def one_bias(cell: str, first: Array, second: Array) -> dict[str, Array]:
    """The sum of both, but for what a gru has within the reset product: the candidate's block of the second."""
    if cell != "gru":
        return {"bias": first + second}
    outside = second.copy()
    outside[len(second) // 3 * 2 :] = 0
    return {"bias": first + outside, "bias_hn": second[len(second) // 3 * 2 :].copy()}


def torch_cell(cell: str) -> Cell:
    def to_native(weights: Arrays) -> dict[str, Array]:
        first, second = two_biases(weights)
        return {
            "weight_ih": weights["weight_ih"],
            "weight_hh": weights["weight_hh"],
            "bias_ih": first,
            "bias_hh": second,
        }

    def to_canonical(native: Arrays) -> dict[str, Array]:
        kernels = {name: native[name] for name in ("weight_ih", "weight_hh")}
        return kernels | one_bias(cell, native["bias_ih"], native["bias_hh"])

    return Cell(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), to_native, to_canonical)


def keras_cell(cell: str, second_bias: bool = False) -> Cell:
    def to_native(weights: Arrays) -> dict[str, Array]:
        pair = [ordered(each) for each in two_biases(weights)]
        return {
            "kernel": ordered(weights["weight_ih"]).T,
            "recurrent_kernel": ordered(weights["weight_hh"]).T,
            "bias": np.stack(pair) if second_bias else pair[0],
        }

    def to_canonical(native: Arrays) -> dict[str, Array]:
        kernels = {
            "weight_ih": ordered(native["kernel"].T),
            "weight_hh": ordered(native["recurrent_kernel"].T),
        }
        if second_bias:
            return kernels | one_bias(cell, *(ordered(each) for each in native["bias"]))
        return kernels | {"bias": ordered(native["bias"])}

    def ordered(blocks: Array) -> Array:
        """Row blocks r z n of a gru as z r n, or back."""
        if cell != "gru":
            return blocks
        reset, update, candidate = np.split(blocks, 3)
        return np.concatenate([update, reset, candidate])

    return Cell(("kernel", "recurrent_kernel", "bias"), to_native, to_canonical)


def dense_cell(inputs: str, hidden: str, biased: str) -> Cell:
    """Two dense layers for all gates together, of which one has the bias."""

    def to_native(weights: Arrays) -> dict[str, Array]:
        kernels = {f"{inputs}.kernel": weights["weight_ih"].T, f"{hidden}.kernel": weights["weight_hh"].T}
        return {**kernels, f"{biased}.bias": weights["bias"]}

    def to_canonical(native: Arrays) -> dict[str, Array]:
        return {
            "weight_ih": native[f"{inputs}.kernel"].T,
            "weight_hh": native[f"{hidden}.kernel"].T,
            "bias": native[f"{biased}.bias"],
        }

    return Cell((f"{inputs}.kernel", f"{hidden}.kernel", f"{biased}.bias"), to_native, to_canonical)


def gates_cell(cell: str, forget: str = "if") -> Cell:
    """Two dense layers for each gate: an lstm's biases on the hidden side, a gru's on the input side, and bias_hn."""
    inputs = [forget if gate == "f" else f"i{gate}" for gate in GATES[cell]]
    hidden = [f"h{gate}" for gate in GATES[cell]]
    biased = hidden if cell == "lstm" else inputs

    def to_native(weights: Arrays) -> dict[str, Array]:
        native: dict[str, Array] = {}
        for names, end, field in (
            (inputs, "kernel", "weight_ih"),
            (hidden, "kernel", "weight_hh"),
            (biased, "bias", "bias"),
        ):
            blocks = np.split(weights[field], len(names))
            native |= {f"{name}.{end}": block.T for name, block in zip(names, blocks, strict=True)}
        return native | ({"hn.bias": weights["bias_hn"]} if cell == "gru" else {})

    def to_canonical(native: Arrays) -> dict[str, Array]:
        weights = {
            "weight_ih": np.concatenate([native[f"{name}.kernel"].T for name in inputs]),
            "weight_hh": np.concatenate([native[f"{name}.kernel"].T for name in hidden]),
            "bias": np.concatenate([native[f"{name}.bias"] for name in biased]),
        }
        return weights | ({"bias_hn": native["hn.bias"]} if cell == "gru" else {})

    fields = [f"{name}.kernel" for name in (*inputs, *hidden)] + [f"{name}.bias" for name in biased]
    return Cell((*fields, *(["hn.bias"] if cell == "gru" else [])), to_native, to_canonical)


def without_bias_hn(cell: Cell) -> Cell:
    """A gru's cell that has no such bias: zero comes back."""

    def to_canonical(native: Arrays) -> dict[str, Array]:
        weights = cell.to_canonical(native)
        return weights | {"bias_hn": np.zeros_like(weights["bias"][: weights["weight_hh"].shape[1]])}

    return Cell(cell.fields, cell.to_native, to_canonical)


CELLS: dict[tuple[str, str], Cell] = {
    ("torch", "rnn"): torch_cell("rnn"),
    ("torch", "lstm"): torch_cell("lstm"),
    ("torch", "gru-after"): torch_cell("gru"),
    ("keras", "rnn"): keras_cell("rnn"),
    ("keras", "lstm"): keras_cell("lstm"),
    ("keras", "gru-after"): keras_cell("gru", second_bias=True),
    ("keras", "gru-before"): keras_cell("gru"),
    ("linen", "rnn"): dense_cell("i", "h", biased="i"),
    ("linen", "lstm"): gates_cell("lstm"),
    ("linen", "gru-after"): gates_cell("gru"),
    ("nnx", "rnn"): dense_cell("dense_i", "dense_h", biased="dense_i"),
    ("nnx", "lstm"): gates_cell("lstm", forget="if_"),
    ("nnx", "gru-after"): without_bias_hn(dense_cell("dense_i", "dense_h", biased="dense_i")),
    ("nnx-optimized", "lstm"): dense_cell("dense_i", "dense_h", biased="dense_h"),
}
"""(layout, variant) -> the layer; what is not here, no library has."""
