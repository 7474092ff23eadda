"""Out of memory, on the host or the device: which sizes to lower. Frameworks are known by the names and words of their
errors, so that none is imported for it."""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

from runner.cli import Train
from shared.errors import OutOfMemoryError, UserError
from shared.optimizers import rule
from shared.parameters import GATES, parameter_shapes

NAMES = {"OutOfMemoryError", "ResourceExhaustedError"}
"""Of PyTorch and CuPy, and of TensorFlow."""
WORDS = re.compile(
    "RESOURCE_EXHAUSTED|out of memory|(can't|cannot|unable to|failed to) allocate|bad_alloc|ALLOC_FAILED|"
    "array is too big|maximum allowed dimension exceeded|storage size calculation overflowed",
    re.IGNORECASE,
)
"""Of JAX (XlaRuntimeError), of PyTorch's allocator on the host, of cuBLAS, of arrays that no machine could address."""
LONGEST = 300
"""Characters that are quoted of an error; TensorFlow adds a list of every allocation."""


OTHERWISE = {
    "sample": "Write less at a time: lower --length, or give fewer --start-characters.",
    "compare": "Lower --hidden-size, --num-layers, --batch-size or --seq-length, or compare fewer with --impl.",
    "check": "Examine fewer at a time with --impl.",
}
"""What may help a command that does not say it itself."""


@contextmanager
def shortage_explained(advice: Callable[[], str]) -> Iterator[None]:
    """Where memory runs out in the block, OutOfMemoryError with the advice; what was saved before stays."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_shortage(error):
            raise
        said = " ".join(str(error).split())[:LONGEST] or type(error).__name__
        raise OutOfMemoryError(f"Out of memory. {advice()} Checkpoints saved before are kept. ({said})") from None


def is_shortage(error: Exception) -> bool:
    """Whether an error of Python, NumPy or a framework means that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ in NAMES:
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError | ValueError) and WORDS.search(str(error)) is not None


def sizes_to_lower(options: Train, vocabulary_size: int) -> str:
    """What takes most memory in training, the largest first, and the options that decide it, with their values."""
    shares = sorted(memory(options, vocabulary_size).items(), key=lambda share: -share[1][0])
    named = [f"{what} take {amount(size)} ({flags(options, names)})" for what, (size, names) in shares]
    return f"{'; '.join(named)}; the vocabulary has {vocabulary_size} symbols. Lower one of these."


def memory(options: Train, vocabulary_size: int) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Kind of array -> bytes of all of them together, about, and the options that decide them."""
    model, training = options.model, options.training
    number = 8 if options.runtime.dtype == "float64" else 4
    weights = sum(map(prod, parameter_shapes(model, vocabulary_size).values()))
    copies = 2 + len(rule(options.optimizer).slots)  # the parameters, their gradients, the optimizer's slots
    places = training.batch_size * training.seq_length
    kept = GATES[model.cell] + 2  # of a step: gates, state and output, for the way back
    batch = ("batch_size", "seq_length")
    return {
        "parameters, gradients and optimizer": (
            number * copies * weights,
            ("hidden_size", "num_layers", "embedding_size", "subwords"),
        ),
        "gates and states": (
            number * kept * places * model.hidden_size * model.num_layers,
            (*batch, "hidden_size", "num_layers"),
        ),
        "logits and their gradient": (number * 2 * places * vocabulary_size, (*batch, "subwords")),
    }


def flags(options: Train, names: tuple[str, ...]) -> str:
    """Options as they are typed, with their values; --subwords only where there are some."""
    parts = options.model, options.training, options.corpus
    values = {name: getattr(part, name) for name in names for part in parts if hasattr(part, name)}
    return ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items() if value)


def amount(size: int) -> str:
    """Bytes, as "1.5 MB", "640 GB"."""
    value, unit = next(
        ((size / 1000**power, unit) for power, unit in ((4, "TB"), (3, "GB"), (2, "MB")) if size >= 1000**power),
        (size / 1000, "kB"),
    )
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
