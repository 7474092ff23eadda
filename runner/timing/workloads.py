"""What `bench` times: models, sizes and batches, the same for every implementation and every peer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from shared.batching import stack
from shared.config import ModelConfig
from shared.contract import Batch
from shared.initializers import initial_parameters
from shared.parameters import GATES
from shared.random_bits import uniforms

LEARNING_RATE = 2.0**-10
"""About 1e-3; float32, in which Keras keeps it whatever the precision of the model, holds it exactly."""
SHORTEST_POEM = 0.3
"""Share of its row that the shortest poem of a padded batch fills."""
LARGE = ((2048, 2048, 2048), (3136, 512, 2048))
"""Rows, inner and columns of the matrix products that say how fast the machine is."""


@dataclass(frozen=True)
class Workload:
    """A model and what it is fed. One step is forward, backward, clipping by global norm 1, Adam, and the carried
    state; padded batches are poems, which start from the zero state."""

    name: str
    model: ModelConfig
    vocabulary_size: int
    batch_size: int
    seq_length: int
    stack: int
    """K, batches of one call."""
    padded: bool = False
    sampled: tuple[int, ...] = ()
    """Texts written side by side; empty: training is timed."""
    length: int = 1000
    """Tokens of each text."""
    products: tuple[tuple[int, int, int], ...] = LARGE

    def describe(self) -> str:
        """One line."""
        m = self.model
        reads = f"embedding {m.embedding_size}" if m.embedding_size else "one-hot"
        size = f"V={self.vocabulary_size} {reads}, {m.num_layers} x {m.cell.upper()} {m.hidden_size}"
        if self.sampled:
            return f"{self.name}: {size}, sampling {self.length:,} tokens"
        return f"{self.name}: {size}, B={self.batch_size} T={self.seq_length}" + (", padded" if self.padded else "")

    def parameters(self, dtype: str) -> dict[str, np.ndarray]:
        """The weights that everyone starts from, canonical."""
        values = initial_parameters(self.model, self.vocabulary_size, seed=1)
        return {name: value.astype(dtype) for name, value in values.items()}

    def stacks(self) -> Iterator[Batch]:
        """[K, B, T], without end. Low tokens are frequent, so that there is something to learn at once."""
        step = 0
        while True:
            yield stack([self.batch(step + k) for k in range(self.stack)])
            step += self.stack

    def batch(self, step: int) -> Batch:
        """Batch number `step` of a running text; of poems, if padded."""
        rows, length = self.batch_size, self.seq_length
        drawn = uniforms(7, f"bench.{step}", rows * (length + 1)).reshape(rows, length + 1)
        tokens = (drawn**2 * self.vocabulary_size).astype(np.int32)
        mask = np.ones((rows, length), bool)
        if self.padded:
            share = SHORTEST_POEM + (1 - SHORTEST_POEM) * uniforms(9, f"bench.{step}", rows)
            mask = np.arange(length) < np.sort(np.ceil(share * length))[::-1, None]
        reset = np.full(rows, self.padded or step == 0)
        return Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), mask, reset)

    def single(self) -> "Workload":
        """The first row alone, as min-char-rnn reads it."""
        return replace(self, batch_size=1)

    def operations(self) -> int:
        """Floating-point operations that a step cannot do without: two for each multiplication and addition of the
        matrix products, three times (forward, and backward to inputs and to weights). Of padding nothing is needed. A
        one-hot input picks rows; so does an embedding of few symbols, whose product with the weights is made once for
        each symbol.
        """
        m, positions = self.model, int(self.batch(0).mask.sum())
        gates = GATES[m.cell] * m.hidden_size
        products = positions * m.hidden_size * gates * (2 * m.num_layers - 1)
        products += positions * m.hidden_size * self.vocabulary_size
        products += min(positions, self.vocabulary_size) * m.embedding_size * gates
        return 6 * products


LSTM_1 = ModelConfig(hidden_size=256, embedding_size=0)
LSTM_2 = ModelConfig(hidden_size=512, embedding_size=512, num_layers=2)
LSTM_3 = ModelConfig(hidden_size=512, embedding_size=512)
TINY = ModelConfig(hidden_size=16, embedding_size=0)
W0 = Workload("W0", TINY, 20, 4, 6, stack=5, products=((128, 128, 128),))
W1 = Workload("W1", LSTM_1, 28, 32, 35, stack=16)
W2 = Workload("W2", LSTM_2, 65, 64, 100, stack=1)
W3 = Workload("W3", LSTM_3, 5416, 64, 49, stack=1, padded=True)
WORKLOADS: dict[str, tuple[Workload, ...]] = {
    "W0": (W0, replace(W0, name="W0 sampling", sampled=(1, 4), length=40)),
    "W1": (W1,),
    "W2": (W2,),
    "W3": (W3,),
    "W4": (replace(W2, name="W4", model=replace(LSTM_2, cell="gru")),),
    "W5": (
        replace(W1, name="W5 at W1's size", sampled=(1, 64)),
        replace(W3, name="W5 at W3's size", sampled=(1, 64)),
    ),
}
