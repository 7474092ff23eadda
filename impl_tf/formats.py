"""Files of Keras' own layers: a whole model (.keras), or its weights alone (.weights.h5). Keras loads only where it is
asked for, and no file makes it execute anything."""

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from impl_tf.native import LAYERS
from impl_tf.unroll import cell_of
from shared.config import ModelConfig
from shared.errors import CheckpointError, ImplementationError
from shared.layouts import Network

GATED: dict[str, tuple[Any, ...]] = {
    "activation": ("tanh",),
    "recurrent_activation": ("sigmoid",),
    "go_backwards": (False,),
}
KNOWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "SimpleRNN": {"activation": ("tanh", "relu"), "go_backwards": (False,)},
    "LSTM": GATED,
    "GRU": GATED,
    "Embedding": {"mask_zero": (False,)},
    "Activation": {"activation": ("tanh", "relu", "sigmoid", "softmax", "linear")},
    "Dense": {"activation": ("linear", "softmax")},
    **{kind: {} for kind in ("TimeDistributed", "Add", "InputLayer", "Dropout", "SpatialDropout1D")},
}
"""Classes of layers that models here can have, and the values of the options that matter."""
PLAIN = {
    "keras": {"DTypePolicy", "Sequential", "Functional", "Model"},
    "keras.src.models.functional": {"Functional"},
    "keras.src.models.sequential": {"Sequential"},
    "keras.src.ops.numpy": {"GetItem", "Add", "Subtract", "Multiply", "Divide", "TrueDivide"},
    "keras.layers": set(KNOWN),
    None: {"__keras_tensor__", "__slice__", "__tuple__"},
}
"""Module -> classes that the description of such a model names, beside initializers and the like; nothing else is
looked up, since a name may be that of any function."""
HARMLESS = re.compile(r"keras\.(initializers|regularizers|constraints)")
PLACE = re.compile(r"layers/([^/]+)/(cell/|layer/)?vars/(\d)")
"""Of an array in a .weights.h5 file: the layer, whether it is its cell's, the number."""


def save_layers(path: Path, layers: Mapping[str, np.ndarray], network: Network) -> None:
    """Write the arrays of a network as a model of Keras', or as the weights of one."""
    model = make_model(network.model, network.size, layers["decoder.kernel"].dtype.name)
    assign(model, layers)
    if path.suffix == ".keras":
        model.save(path)
    else:
        model.save_weights(path)


def load_layers(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The file's arrays, "<layer>.<array>" in the order of the layers, and what it says of the model beside them: of a
    .keras file, fields of ModelConfig. CheckpointError."""
    if path.suffix != ".keras":
        return read_weights(path), {}
    model = load_model(path)
    arrays = {name: in_numpy(variable) for name, variable in variables(model)}
    return arrays, described(model)


def logits_of_layers(path: Path, network: Network, tokens: np.ndarray) -> np.ndarray:
    """tokens [B, T] through Keras' own layers with the file's weights, computed in float64 -> logits. A .keras file's
    own network computes; a softmax at its end is left out."""
    if path.suffix == ".keras":
        model = in_float64(load_model(path))
    else:
        stored, model = read_weights(path), make_model(network.model, network.size, "float64")
        assign(model, {name: stored[there] for name, there in network.names.items()})
    one_hot = len(model.input_shape) == 3
    inputs = tf.one_hot(tokens, network.size, dtype=tf.float64) if one_hot else tf.constant(tokens)
    return np.asarray(model(inputs))


def make_model(model: ModelConfig, size: int, dtype: str) -> Any:
    """Keras' layers under the names of `shared.layouts`, all weights zero: tokens [B, T], or one-hot vectors, to logits
    [B, T, V], or [B, V] of a many-to-one model."""
    keras = require_keras()
    make = keras.layers
    if model.embedding_size:
        inputs = keras.Input((None,), dtype="int32")
        x = make.Embedding(size, model.embedding_size, dtype=dtype, name="embedding")(inputs)
        if model.embedding_activation != "none":
            x = make.Activation(model.embedding_activation, dtype=dtype, name="embedding_activation")(x)
    else:
        x = inputs = keras.Input((None, size), dtype=dtype)
    layer, options = LAYERS[cell_of(model).name]
    for k in range(model.num_layers):
        every = model.residual or k + 1 < model.num_layers or not model.many_to_one
        named = {"dtype": dtype, "name": f"rnn_{k}", "return_sequences": every}
        outputs = getattr(make, layer)(model.hidden_size, **named, **options)(x)
        if model.residual:
            project = x.shape[-1] != model.hidden_size or (not k and not model.embedding_size)
            dense = partial(make.Dense, model.hidden_size, use_bias=False, dtype=dtype)
            outputs = make.Add(dtype=dtype)([outputs, dense(name=f"residual_{k}")(x) if project else x])
        x = outputs
    if model.residual and model.many_to_one:
        x = x[:, -1]
    whole = keras.Model(inputs, make.Dense(size, dtype=dtype, name="decoder")(x))
    for variable in whole.weights:
        variable.assign(np.zeros(variable.shape))  # a bias that a file does without
    return whole


def assign(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Set a model's weights by their names."""
    places = dict(variables(model))
    for name, each in arrays.items():
        places[name].assign(each)


def require_keras() -> Any:
    """Keras; ImplementationError where it is set to another backend than TensorFlow."""
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend == "tensorflow":
        import keras

        if keras.backend.backend() == backend:
            return keras
    raise ImplementationError(f"Files of Keras need it on TensorFlow, but it is set to {backend}: unset KERAS_BACKEND.")


def variables(model: Any) -> Iterator[tuple[str, Any]]:
    """The names and variables of a model's layers, in order, without the states of random generators."""
    for layer in model.layers:
        for variable in layer.weights:
            if "seed" not in variable.path:
                yield f"{layer.name}.{variable.name}", variable


def load_model(path: Path) -> Any:
    """The model in a .keras file; one that brings code with it is refused."""
    keras = require_keras()
    try:
        require_plain(path)
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"no model that Keras alone can load: {first_line(error)}") from None


def require_plain(path: Path) -> None:
    """CheckpointError unless the model in a .keras file is made of known classes alone, of sizes that the file can
    hold, and its weights are in it; before Keras makes anything."""
    import h5py

    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        described, weights = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    described.pop("compile_config", None)  # is not looked at
    for each in dictionaries(described):
        module, kind = each.get("module"), each.get("class_name")
        if "class_name" in each and not (HARMLESS.fullmatch(str(module)) or kind in PLAIN.get(module, ())):
            raise CheckpointError(
                f"no model that Keras alone can load, of layers that models here have: it holds a part of class {kind} "
                f"({module}) and is not opened."
            )
        sizes = [each.get(name) for name in ("units", "input_dim", "output_dim")]
        rows, columns = sizes[0] or sizes[1] or 0, sizes[0] or sizes[2] or 0
        recurrent = "recurrent_initializer" in each or "input_dim" in each
        if rows * (columns if recurrent else 1) > size:
            raise CheckpointError(f"its model has a layer of {rows} x {columns} numbers, and the file {size} bytes.")
    with h5py.File(io.BytesIO(weights)) as file:
        require_held(file, len(weights))


def dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    """The objects in a JSON value, at any depth."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from dictionaries(each)


def require_held(file: Any, size: int) -> None:
    """CheckpointError unless the arrays of an HDF5 file lie in it whole, and not in another file."""
    import h5py

    held = 0

    def visit(place: str, entry: Any) -> None:
        nonlocal held
        if isinstance(entry, h5py.Dataset):
            if entry.external or entry.is_virtual:
                raise CheckpointError(f"{place} lies in another file, which is not opened.")
            held += entry.nbytes

    file.visititems(visit)
    if held > size:
        raise CheckpointError(f"its arrays would hold {held:,} bytes, and the file has {size:,}.")


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .weights.h5 file, which names a layer by its class and number, and holds its name beside."""
    import h5py

    found: dict[str, np.ndarray] = {}

    def visit(place: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            found[place] = in_numpy(entry[()])

    try:
        with h5py.File(path) as file:
            require_held(file, path.stat().st_size)
            file.visititems(visit)
            layers = {place.split("/")[1] for place in found if place.startswith("layers/")}
            given = {layer: str(file[f"layers/{layer}"]["vars"].attrs["name"]) for layer in layers}
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"no weights as Keras 3 saves them: {first_line(error)}") from None
    unique = len(set(given.values())) == len(given)
    named: dict[str, np.ndarray] = {}
    for place in sorted(found, key=counted):
        match = PLACE.fullmatch(place)
        layer, inside, number = match.groups() if match else ("", "", "")
        kind = "cell" if inside == "cell/" else re.sub(r"_\d+$", "", layer)
        fields = {"cell": ("kernel", "recurrent_kernel", "bias"), "embedding": ("embeddings",)}.get(kind)
        if kind in ("dense", "time_distributed"):
            fields = ("kernel", "bias")
        if fields and int(number) < len(fields):
            named[f"{given[layer] if unique else layer}.{fields[int(number)]}"] = found[place]
        elif not place.startswith("optimizer/") and "seed_generator" not in place:
            raise CheckpointError(f"{place} belongs to no layer that a model here has.")
    return named


def described(model: Any) -> dict[str, Any]:
    """Fields of ModelConfig that the layers of a .keras file tell; CheckpointError names a layer that no model here
    has, or an option of one."""
    told: dict[str, Any] = {"many_to_one": len(model.output_shape) == 2}
    for layer in model.layers:
        kind, config = type(layer).__name__, layer.get_config()
        odd = [f"{name}={config[name]!r}" for name, usual in KNOWN.get(kind, {}).items() if config[name] not in usual]
        if kind not in KNOWN or odd:
            options = f" with {', '.join(odd)}" if odd else ""
            raise CheckpointError(f"no model here has a layer like its {layer.name!r}, of class {kind}{options}.")
        if kind == "SimpleRNN":
            told["nonlinearity"] = config["activation"]
        if kind == "GRU":
            told["gru_reset"] = "after" if config["reset_after"] else "before"
        if kind == "Activation" and config["activation"] in ("tanh", "relu", "sigmoid"):
            told["embedding_activation"] = config["activation"]
        if kind == "Add":
            told["residual"] = True
    return told


def in_float64(model: Any) -> Any:
    """The same network with the same weights in float64, of any batch size and length, without softmax."""
    keras = require_keras()

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.InputLayer):
            shape = config["batch_shape"]
            return keras.layers.InputLayer.from_config({**config, "batch_shape": (None, None, *shape[2:])})
        for part in (config, config.get("layer", {}).get("config", {})):
            wanted = {"dtype": "float64", "stateful": False}
            if part.get("activation") == "softmax":
                wanted["activation"] = "linear"
            part.update({name: value for name, value in wanted.items() if name in part})
        return type(layer).from_config(config)

    cloned = keras.models.clone_model(model, clone_function=clone)
    cloned.set_weights([np.asarray(each) for each in model.get_weights()])
    return cloned


def counted(place: str) -> list[tuple[str, int]]:
    """A path as parts that sort as people count."""
    parts = (re.fullmatch(r"(.*?)_?(\d*)", part) for part in place.split("/"))
    return [(match[1], int(match[2] or 0)) for match in parts if match]


def in_numpy(values: Any) -> np.ndarray:
    """A variable or array in NumPy; half precisions as float32, which holds them exactly."""
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.itemsize == 2 and array.dtype.kind not in "iub" else array


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
