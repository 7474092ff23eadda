"""What each optimizer means; the implementations' optimizer.py compute it. No array is updated here.

PyTorch's formulas. g is the clipped gradient, t counts the updates from 1, lr is the learning rate of the step:

    sgd   p -= lr g
    adam  m = beta1 m + (1 - beta1) g             (slot exp_avg)
          v = beta2 v + (1 - beta2) g g           (slot exp_avg_sq)
          p -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

Sources: torch.optim.SGD, torch.optim.Adam (Kingma and Ba 2015; epsilon outside the root and after the bias correction:
Keras adds it before, which is another algorithm). Clipping by global norm: g *= c / max(norm, c).
"""

from shared.config import OptimizerConfig

SLOTS = {"sgd": (), "adam": ("exp_avg", "exp_avg_sq")}
"""Arrays that an optimizer keeps for each parameter, zero at first."""

Shapes = dict[str, tuple[int, ...]]


def slot_shapes(optimizer: OptimizerConfig, parameters: Shapes) -> Shapes:
    """The names "<slot>.<parameter>" and their shapes, in canonical order."""
    slots = SLOTS[optimizer.optimizer]
    return {f"{slot}.{name}": shape for slot in slots for name, shape in parameters.items()}
