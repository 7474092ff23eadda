"""Files of flax' own layers, linen's and nnx': a tree of parameters, as msgpack or, with dots between the levels, as
safetensors. flax is loaded only when asked for."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.flax import load_file, save_file

from impl_jax.arrays import Array
from impl_jax.embedding import ACTIVATIONS
from impl_jax.native import LAYERS
from impl_jax.unroll import cell_of
from shared.errors import CheckpointError, ImplementationError
from shared.layouts import Network


def save_layers(path: Path, layers: Mapping[str, np.ndarray], network: Network) -> None:
    """Write the arrays of a network as a tree; linen's under "params", as its modules take it."""
    require_flax()
    from flax import serialization, traverse_util

    above = "params." if network.layout == "linen" else ""
    arrays = {above + name: each for name, each in layers.items()}
    if path.suffix == ".safetensors":
        save_file({name: jnp.asarray(each) for name, each in arrays.items()}, path, {"format": "flax"})
    else:
        path.write_bytes(serialization.msgpack_serialize(traverse_util.unflatten_dict(arrays, sep=".")))


def load_layers(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The file's arrays, by their paths there, and what it says of the model beside them: nothing. CheckpointError."""
    return {name: in_numpy(name, value) for name, value in flat_tree(path).items()}, {}


def logits_of_layers(path: Path, network: Network, tokens: np.ndarray) -> np.ndarray:
    """tokens [B, T] through flax' own layers with the file's weights, computed in float64 -> logits."""
    from flax import linen

    model, size = network.model, network.size
    tree = flat_tree(path)
    weights = {name: jnp.asarray(tree[there], jnp.float64) for name, there in network.names.items()}
    if model.embedding_size:
        table: Any = linen.Embed(size, model.embedding_size, param_dtype=jnp.float64)
        x: Array = ACTIVATIONS[model.embedding_activation](table.apply({"params": below("embedding", weights)}, tokens))
    else:
        x = jax.nn.one_hot(tokens, size, dtype=jnp.float64)
    for k in range(model.num_layers):
        outputs = recurrent(network, x, below(f"rnn_{k}.cell", weights))
        if model.residual:
            projection = below(f"residual_{k}", weights)
            outputs += dense(x, projection, model.hidden_size) if projection else x
        x = outputs
    return np.asarray(dense(x[:, -1] if model.many_to_one else x, below("decoder", weights), size))


def dense(x: Array, weights: dict[str, Array], outputs: int) -> Array:
    """linen.Dense."""
    from flax import linen

    layer: Any = linen.Dense(outputs, use_bias="bias" in weights, param_dtype=jnp.float64)
    result: Array = layer.apply({"params": weights}, x)
    return result


def recurrent(network: Network, x: Array, weights: dict[str, Array]) -> Array:
    """x [B, T, I] through one of flax' recurrent layers -> [B, T, H]."""
    from flax import linen, nnx, traverse_util

    name, hidden = cell_of(network.model).name, network.model.hidden_size
    options: dict[str, Any] = {"param_dtype": jnp.float64, "dtype": jnp.float64}
    if name == "rnn-relu":
        options["activation_fn"] = jax.nn.relu
    if network.layout == "linen":
        tree: Any = linen.RNN(getattr(linen, LAYERS[name])(hidden, **options))
        absent = jax.eval_shape(tree.init, jax.random.key(0), x)["params"]["cell"]
    else:
        layer = "LSTMCell" if network.layout == "nnx" and name == "lstm" else LAYERS[name]
        cell = getattr(nnx, layer)(x.shape[-1], hidden, rngs=nnx.Rngs(0), **options)
        absent = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
    known = traverse_util.flatten_dict(absent, sep=".")
    given = {each: weights.get(each, jnp.zeros(value.shape)) for each, value in known.items()}  # an absent bias is zero
    whole = traverse_util.unflatten_dict(given, sep=".")
    if network.layout == "linen":
        outputs: Array = tree.apply({"params": {"cell": whole}}, x)
        return outputs
    nnx.update(cell, whole)
    return nnx.RNN(cell)(x)


def flat_tree(path: Path) -> dict[str, Any]:
    """The file's tree with dots between the levels."""
    require_flax()
    from flax import serialization, traverse_util

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        tree = serialization.msgpack_restore(path.read_bytes())
        return dict(traverse_util.flatten_dict(tree, sep="."))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"no tree of parameters as flax.serialization writes it: {reason}") from None


def require_flax() -> None:
    """ImplementationError where flax is missing, which JAX can do without."""
    if find_spec("flax") is None:
        raise ImplementationError("This needs flax, not installed here. Install with: pip install 'rosetta-rnn[jax]'.")


def below(module: str, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of a module, by the rest of their names."""
    start = f"{module}."
    return {name.removeprefix(start): each for name, each in weights.items() if name.startswith(start)}


def in_numpy(name: str, value: Any) -> np.ndarray:
    """An array in NumPy; half precisions as float32, which holds them exactly."""
    if not isinstance(value, np.ndarray | jax.Array):
        raise CheckpointError(f"{name} in the tree is no array, but {type(value).__name__}.")
    short = value.dtype in (jnp.float16, jnp.bfloat16)
    return np.array(value.astype(jnp.float32) if short else value)
