"""Which network a file of PyTorch's, Keras' or flax' layers holds: its cell, its sizes, and what each array is.

Shapes decide wherever they can; prefixes such as `lstm.`, `module.` or `params.` do not matter. Every array must have
its place: a file that holds more than an embedding, one stack of recurrent layers and a decoder is refused, since to
leave something out would make another network of it.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from shared.config import ModelConfig
from shared.errors import ParameterError
from shared.layouts import CELLS, TABLES, Network, decoder_name, place, residual_name

Array = np.ndarray
Arrays = Mapping[str, Array]
FIELDS = {
    "torch": re.compile(r"(.*?)((?:weight|bias)_(?:ih|hh|hr))(?:_l(\d+))?(_reverse)?"),
    "keras": re.compile(r"(.*\.)(kernel|recurrent_kernel|bias)()()"),
    "flax": re.compile(r"((?:.*\.)?)((?:[ih][ifgorzn]?|if_|dense_[ih])\.(?:kernel|bias))()()"),
}
"""Library -> the names of a recurrent layer's arrays: module, field, layer, and whether it runs backwards."""
KERNELS = {
    "torch": [("torch", {"weight_ih", "weight_hh"})],
    "keras": [("keras", {"kernel", "recurrent_kernel"})],
    "flax": [(key[0], {field for field in cell.fields if "kernel" in field}) for key, cell in CELLS.items()],
}
"""Library -> layouts, and what a recurrent layer of it must have."""
CELL_OF = {1: "rnn", 3: "gru", 4: "lstm"}
"""Number of gates -> cell."""


class Stack(NamedTuple):
    """The recurrent layers of a file."""

    layout: str
    cell: str
    inputs: int
    hidden: int
    layers: list[dict[str, str]]
    """Of each, the field in the layout -> the name in the file."""


class Dense(NamedTuple):
    """An array that could be a decoder, an embedding or a projection, with its bias, if it has one."""

    module: str
    names: tuple[str, ...]
    inputs: int
    outputs: int


def recognise(library: str, arrays: Arrays, like: ModelConfig | None = None, **options: Any) -> Network:
    """The network in a file's arrays. `like`: its model, where it is known; else `options`, what no array tells, as
    fields of ModelConfig. ParameterError where something has no place, or more than one."""
    for name, each in arrays.items():
        if each.dtype.kind != "f" or not each.size:
            refuse(f"{name} holds {each.dtype if each.size else 'nothing'}, no real numbers")
    stack = find_stack(library, arrays)
    used = {name for layer in stack.layers for name in layer.values()}
    rest = {name: each for name, each in arrays.items() if name not in used}
    projections = {k: each for each in dense_layers(library, rest) if (k := residual_of(each.module)) is not None}
    rest = {name: each for name, each in rest.items() if all(name not in each.names for each in projections.values())}
    table, decoder = find_ends(library, stack, rest)
    found = {
        "cell": stack.cell,
        "hidden_size": stack.hidden,
        "num_layers": len(stack.layers),
        "embedding_size": stack.inputs if table else 0,
    }
    if stack.cell == "gru":
        known = like.gru_reset if like else options.get("gru_reset", "")
        found["gru_reset"] = reset_of(stack, arrays, known) if library == "keras" else "after"
    if projections:
        found["residual"] = True
    if table and stack.inputs == stack.hidden and not like:
        found["tied_weights"] = np.array_equal(arrays[table], outputs_first(library, arrays[decoder.names[0]]))
    model = model_of(found, like, options)
    names = {
        place(stack.layout, model, k, f): name for k, fields in enumerate(stack.layers) for f, name in fields.items()
    }
    names |= {residual_name(stack.layout, k): each.names[0] for k, each in projections.items()}
    names |= dict(zip((decoder_name(stack.layout), "decoder.bias"), decoder.names, strict=False))
    if table:
        names[TABLES.get(stack.layout, "embedding.embedding")] = table
    return Network(stack.layout, model, decoder.outputs, names)


def find_stack(library: str, arrays: Arrays) -> Stack:
    """The recurrent layers, in order."""
    modules: dict[tuple[str, str], dict[str, str]] = {}
    for name in arrays:
        if match := FIELDS[library].fullmatch(name):
            module, field, layer, backwards = match.groups()
            if backwards or field.endswith("hr"):
                what = "a layer that runs backwards" if backwards else "a projection (proj_size)"
                refuse(f"{name} belongs to {what}, which no model here has")
            modules.setdefault((module, layer or ""), {})[field] = name
    kinds = {key: kind for key, fields in modules.items() if (kind := layout_of(library, fields, arrays))}
    if not kinds:
        held = ", ".join(list(arrays)[:8])
        refuse(
            f"no recurrent layer of {library.capitalize()} is among its arrays ({held}{', ...' * (len(arrays) > 8)})"
        )
    if library != "keras" and len({stems(module) for module, _ in kinds}) > 1:
        several = ", ".join(sorted({module.rstrip(".") for module, _ in kinds}))
        refuse(f"it holds several recurrent modules ({several}), and no names tell how they are joined")
    places = list(kinds) if library == "keras" else sorted(kinds, key=lambda each: (natural(each[0]), natural(each[1])))
    for module in dict(places):
        numbers = [int(layer or 0) for each, layer in places if each == module]
        if numbers != list(range(len(numbers))):
            refuse(f"{module.rstrip('.')} has the layers {', '.join(map(str, numbers))}, so one is missing")
    shapes = [sizes(library, modules[each], arrays) for each in places]
    cell, inputs, hidden = shapes[0]
    for k, shape in enumerate(shapes[1:], 1):
        if shape != (cell, hidden, hidden):
            refuse(
                f"its layers are not alike: the first is {cell} with {hidden} units, number {k + 1} is {shape[0]} with "
                f"{shape[2]} that reads {shape[1]} numbers. Here all layers of a model have the same cell and size"
            )
    return Stack(kinds[places[0]], cell, inputs, hidden, [modules[each] for each in places])


def layout_of(library: str, fields: Mapping[str, str], arrays: Arrays) -> str:
    """The layout of a module with these fields; nothing where it is no recurrent layer."""
    kernels = {field for field in fields if "bias" not in field}
    fitting = [layout for layout, needed in KERNELS[library] if kernels == needed]
    if not fitting or any(arrays[name].ndim != 2 for field, name in fields.items() if field in kernels):
        return ""
    if "nnx-optimized" in fitting:  # nnx' SimpleCell, GRUCell and OptimizedLSTMCell have the same names
        inputs, gates = arrays[fields["dense_h.kernel"]].shape
        return "nnx-optimized" if gates == 4 * inputs else "nnx"
    return fitting[0]


def sizes(library: str, fields: Mapping[str, str], arrays: Arrays) -> tuple[str, int, int]:
    """Cell, I and H of a recurrent layer: the gates are as many as H goes into what its input kernels give."""
    kernels = {
        field: outputs_first(library, arrays[name]).shape for field, name in fields.items() if "bias" not in field
    }
    recurrent = {
        field: shape for field, shape in kernels.items() if field.startswith(("weight_hh", "rec", "h", "dense_h"))
    }
    given = [shape for field, shape in kernels.items() if field not in recurrent]
    hidden, inputs = next(iter(recurrent.values()))[1], given[0][1]
    gates, left = divmod(sum(outputs for outputs, _ in given), hidden)
    if left or gates not in CELL_OF:
        shapes = ", ".join(f"{name} {list(arrays[name].shape)}" for name in fields.values())
        refuse(f"no rnn, gru or lstm has arrays of such shapes: {shapes}")
    return CELL_OF[gates], inputs, hidden


def outputs_first(library: str, kernel: Array) -> Array:
    """A kernel as [out, in]; all but PyTorch's are [in, out]."""
    return kernel if library == "torch" else kernel.T


def reset_of(stack: Stack, arrays: Arrays, known: str) -> str:
    """Where a Keras GRU resets: after the product if it has two biases. Without any, only what is `known` tells."""
    if bias := stack.layers[0].get("bias"):
        return "after" if arrays[bias].ndim == 2 else "before"
    if not known:
        refuse("its GRU has no bias, which would tell where it resets; save the whole model as .keras, or give --like")
    return known


def find_ends(library: str, stack: Stack, rest: Arrays) -> tuple[str, Dense]:
    """The embedding's array (none: one-hot input) and the decoder, which between them use up the rest."""
    tables = {name: each for name, each in rest.items() if is_table(library, name, each)}
    pairs: list[tuple[str, Dense]] = []
    for decoder in dense_layers(library, rest):
        if decoder.inputs != stack.hidden:
            continue
        left = rest.keys() - set(decoder.names)
        if not left and decoder.outputs == stack.inputs:
            pairs.append(("", decoder))
        pairs += [
            (name, decoder)
            for name in left & tables.keys()
            if left == {name} and tables[name].shape == (decoder.outputs, stack.inputs)
        ]
    if len(pairs) > 1:  # two arrays of one shape: names decide
        pairs = [
            (table, decoder)
            for table, decoder in pairs
            if "emb" in table.lower() and "emb" not in decoder.module.lower()
        ]
    if len(pairs) != 1:
        described = ", ".join(f"{name} {list(each.shape)}" for name, each in rest.items()) or "nothing"
        refuse(
            f"beside its {stack.cell} (input {stack.inputs}, hidden {stack.hidden}) there must be a decoder from "
            f"{stack.hidden} numbers to the V symbols and, unless its input is one-hot, an embedding "
            f"[V, {stack.inputs}]; there is {described}. Leave out what is no part of the network, and where two could "
            "be either, name them embedding and decoder"
        )
    return pairs[0]


def dense_layers(library: str, arrays: Arrays) -> list[Dense]:
    """The linear layers among the arrays; PyTorch's without a bias could be embeddings as well."""
    leaf, found = "weight" if library == "torch" else "kernel", []
    for name, each in arrays.items():
        module, _, last = name.rpartition(".")
        if last == leaf and each.ndim == 2:
            outputs, inputs = outputs_first(library, each).shape
            bias = f"{module}.bias"
            fits = bias in arrays and arrays[bias].shape == (outputs,)
            found.append(Dense(module, (name, bias) if fits else (name,), inputs, outputs))
    return found


def is_table(library: str, name: str, array: Array) -> bool:
    """Whether an array could be an embedding [V, E]."""
    leaf = {"torch": "weight", "keras": "embeddings", "flax": "embedding"}[library]
    return array.ndim == 2 and name.rpartition(".")[2] == leaf


def model_of(found: Mapping[str, Any], like: ModelConfig | None, options: Mapping[str, Any]) -> ModelConfig:
    """The model, all told; ParameterError where it should be like another and is not."""
    if not like:
        return ModelConfig(**{**options, **found})
    for name, value in found.items():
        if (wanted := getattr(like, name)) != value:
            refuse(f"its {name} is {value}, and that of --like {wanted}")
    return like


def residual_of(module: str) -> int | None:
    """The layer whose input a module projects, by the name that `shared.layouts` gives it."""
    match = re.fullmatch(r"(?:.*\.)?residual[._](\d+)", module)
    return int(match[1]) if match else None


def natural(name: str) -> list[tuple[str, int]]:
    """A name as parts that sort as people count: lstm, lstm2, lstm10."""
    parts = (re.fullmatch(r"(.*?)_?(\d*)", part) for part in name.split("."))
    return [(match[1], int(match[2] or 0)) for match in parts if match]


def stems(name: str) -> tuple[str, ...]:
    """A name without its numbers."""
    return tuple(stem for stem, _ in natural(name))


def refuse(reason: str) -> NoReturn:
    """Raise ParameterError."""
    raise ParameterError(f"This network is not understood: {reason}.")
