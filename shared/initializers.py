"""Initial values of the canonical parameters, in float64, computed once in NumPy for every implementation: each a pure
function of (seed, name, shape), so that no option disturbs a parameter it does not concern.

`INITIALIZERS` says which rule draws which role. Fans are those of one gate's block, [H, I] or [H, H], unless a rule
says otherwise. The sets `torch`, `keras` and `flax` have the distributions of those libraries' own layers; what a
library has no layer for (wrnn, gru reset-before in torch and flax, projected residuals) follows the rule of its role.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from shared.config import ModelConfig
from shared.parameters import parameter_shapes
from shared.random_bits import normals, uniforms

Array = np.ndarray


@dataclass(frozen=True)
class Parameter:
    """An array that waits for its initial values."""

    model: ModelConfig
    seed: int
    name: str
    shape: tuple[int, ...]

    @property
    def field(self) -> str:
        """The name without its layer: weight_hh of rnn.weight_hh_l1, decoder.bias of decoder.bias."""
        return self.name.removeprefix("rnn.").rpartition("_l")[0] if self.name.startswith("rnn.") else self.name

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Gates, fan_out and fan_in of a weight: the shape of its gates' stack."""
        fan_out = self.model.hidden_size if self.name.startswith("rnn.") else self.shape[0]
        return self.shape[0] // fan_out, fan_out, self.shape[1]

    @property
    def forget_rows(self) -> slice:
        """Where the forget gate stands in a bias; nowhere in a cell that has none."""
        hidden = self.model.hidden_size
        return slice(hidden, 2 * hidden) if self.model.cell == "lstm" and self.field == "bias" else slice(0)

    def symmetric(self, copies: int = 1) -> Array:
        """Uniform in [-1, 1), in the parameter's shape, or [copies, *shape]."""
        shape = self.shape if copies == 1 else (copies, *self.shape)
        return 2 * uniforms(self.seed, self.name, int(np.prod(shape))).reshape(shape) - 1

    def gaussian(self) -> Array:
        """Standard normal, in the parameter's shape."""
        return normals(self.seed, self.name, int(np.prod(self.shape))).reshape(self.shape)

    def truncated(self) -> Array:
        """Normal, cut at 2 and scaled back to variance 1, in the parameter's shape."""
        count = int(np.prod(self.shape))
        drawn = normals(self.seed, self.name, count + count // 8 + 64)  # 4.6 % lie outside; this many never do
        return drawn[np.abs(drawn) <= 2][:count].reshape(self.shape) / TRUNCATED_DEVIATION


TRUNCATED_DEVIATION = 0.87962566103423978
"""Standard deviation of a standard normal variable that is cut at -2 and 2."""

Rule = Callable[[Parameter], Array]


class Rules(NamedTuple):
    """A rule for each role."""

    embedding: Rule  # embedding.weight
    input: Rule  # weight_ih, and wrnn's weight_ab, the input of its second half
    recurrent: Rule  # weight_hh; wrnn's weight_skip and weight_bb
    bias: Rule  # bias, bias_hn, bias_b
    dense: Rule  # decoder.weight, and residual, a linear layer without a bias
    dense_bias: Rule  # decoder.bias


ROLES = {
    "embedding.weight": "embedding",
    **dict.fromkeys(("weight_ih", "weight_ab"), "input"),
    **dict.fromkeys(("weight_hh", "weight_skip", "weight_bb"), "recurrent"),
    **dict.fromkeys(("bias", "bias_hn", "bias_b"), "bias"),
    **dict.fromkeys(("decoder.weight", "residual"), "dense"),
    "decoder.bias": "dense_bias",
}
"""Field -> role."""


def initial_parameters(model: ModelConfig, vocabulary_size: int, seed: int) -> dict[str, Array]:
    """Canonical name -> float64 values, by the model's initializer; the lstm's forget bias is added to any of them."""
    rules, values = INITIALIZERS[model.initializer], {}
    for name, shape in parameter_shapes(model, vocabulary_size).items():
        parameter = Parameter(model, seed, name, shape)
        values[name] = getattr(rules, ROLES[parameter.field])(parameter)
        values[name][parameter.forget_rows] += model.forget_bias
    return values


def zeros(parameter: Parameter) -> Array:
    return np.zeros(parameter.shape)


def normal(deviation: float) -> Rule:
    """normal(0, deviation^2)"""
    return lambda parameter: deviation * parameter.gaussian()


def uniform(bound: float) -> Rule:
    """uniform(-bound, bound)"""
    return lambda parameter: bound * parameter.symmetric()


def hidden_uniform(parameter: Parameter) -> Array:
    """uniform(-1/sqrt(H), 1/sqrt(H)), as PyTorch's recurrent layers."""
    return parameter.symmetric() / np.sqrt(parameter.model.hidden_size)


def torch_dense(parameter: Parameter) -> Array:
    """uniform(-1/sqrt(fan_in), 1/sqrt(fan_in)), as torch.nn.Linear."""
    return parameter.symmetric() / np.sqrt(parameter.shape[1])


def torch_bias(parameter: Parameter) -> Array:
    """The sum of PyTorch's two biases, each uniform(-1/sqrt(H), 1/sqrt(H)). The candidate's two, which the gru's reset
    product keeps apart, are one each: the n block and bias_hn."""
    hidden = parameter.model.hidden_size
    first, second = parameter.symmetric(2) / np.sqrt(hidden)
    if parameter.model.cell == "gru" and parameter.model.gru_reset == "after":
        second[0 if parameter.field == "bias_hn" else 2 * hidden :] = 0
    return first + second


def xavier(parameter: Parameter) -> Array:
    """Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010), for each gate alone."""
    _, fan_out, fan_in = parameter.blocks
    return parameter.symmetric() * np.sqrt(6 / (fan_in + fan_out))


def keras_xavier(parameter: Parameter) -> Array:
    """The same with the fan_out of all gates together, since Keras holds them in one kernel [I, G*H]."""
    return parameter.symmetric() * np.sqrt(6 / sum(parameter.shape))


def kaiming(parameter: Parameter) -> Array:
    """Uniform with variance 2 / fan_in, the gain for relu (He et al. 2015); an embedding's fan_in is E, as in torch."""
    return parameter.symmetric() * np.sqrt(6 / parameter.shape[1])


def flax_kernel(parameter: Parameter) -> Array:
    """Truncated normal with variance 1 / fan_in (LeCun)."""
    return parameter.truncated() / np.sqrt(parameter.shape[1])


def flax_embedding(parameter: Parameter) -> Array:
    """normal(0, 1 / E), not truncated."""
    return parameter.gaussian() / np.sqrt(parameter.shape[1])


def orthogonal(parameter: Parameter) -> Array:
    """Each gate's block orthogonal; the shorter side orthonormal where it is not square (Saxe et al. 2014)."""
    return orthonormal(parameter.gaussian().reshape(parameter.blocks)).reshape(parameter.shape)


def keras_orthogonal(parameter: Parameter) -> Array:
    """Orthonormal columns of the stack of all gates [G*H, H], Keras' kernel transposed; no gate alone is orthogonal."""
    return orthonormal(parameter.gaussian())


def keras_bias(parameter: Parameter) -> Array:
    """Zero, and 1 for the lstm's forget gate (unit_forget_bias)."""
    values = np.zeros(parameter.shape)
    values[parameter.forget_rows] = 1
    return values


def orthonormal(gaussian: Array) -> Array:
    """[..., n, m] standard normal -> [..., n, m] with orthonormal columns, or rows if n < m, uniformly distributed.
    One thread: with several, LAPACK's last bits depend on how many there are."""
    wide = gaussian.shape[-2] < gaussian.shape[-1]
    with threadpool_limits(1, "blas"):
        q, r = np.linalg.qr(gaussian.swapaxes(-2, -1) if wide else gaussian)
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]  # makes the factorisation unique
    return q.swapaxes(-2, -1) if wide else q


INITIALIZERS = {
    #               embedding        input           recurrent         bias            dense           dense_bias
    "uniform": Rules(normal(0.1), hidden_uniform, hidden_uniform, hidden_uniform, hidden_uniform, hidden_uniform),
    "normal": Rules(normal(0.01), normal(0.01), normal(0.01), zeros, normal(0.01), zeros),
    "xavier": Rules(xavier, xavier, xavier, zeros, xavier, zeros),
    "kaiming": Rules(kaiming, kaiming, kaiming, zeros, kaiming, zeros),
    "orthogonal": Rules(orthogonal, orthogonal, orthogonal, zeros, orthogonal, zeros),
    "zero": Rules(zeros, zeros, zeros, zeros, zeros, zeros),
    "torch": Rules(normal(1.0), hidden_uniform, hidden_uniform, torch_bias, torch_dense, hidden_uniform),
    "keras": Rules(uniform(0.05), keras_xavier, keras_orthogonal, keras_bias, keras_xavier, zeros),
    "flax": Rules(flax_embedding, flax_kernel, orthogonal, zeros, flax_kernel, zeros),
}
