"""The implementations, by name only: each is imported when a model is asked for, never before."""

import importlib
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

from shared.config import ModelConfig, OptimizerConfig, ParallelConfig, RuntimeConfig
from shared.contract import LanguageModel, Team
from shared.errors import ConfigError, ImplementationError


class Entry(NamedTuple):
    """What must be there for an implementation to run."""

    title: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    extra: str


IMPLEMENTATIONS = {
    "numpy": Entry("NumPy", ("numpy",), ("numpy",), ""),
    "torch": Entry("PyTorch", ("torch",), ("torch",), "torch"),
    "jax": Entry("JAX", ("jax", "optax"), ("jax", "jaxlib", "optax"), "jax"),
    "tf": Entry("TensorFlow", ("tensorflow",), ("tensorflow",), "tf"),
}


def create_model(
    impl: str,
    model: ModelConfig,
    optimizer: OptimizerConfig,
    vocabulary_size: int,
    runtime: RuntimeConfig,
    seed: int = 0,
    team: Team | None = None,
) -> LanguageModel:
    """A model of the named implementation; ImplementationError says which extra to install."""
    require(impl)
    package = import_quietly(f"impl_{impl}")
    created: LanguageModel = package.create_model(model, optimizer, vocabulary_size, runtime, seed, team)
    return created


def open_team(impl: str, parallel: ParallelConfig, runtime: RuntimeConfig) -> Team:
    """The workers of which this process is one, or all; ImplementationError where there cannot be so many. To be called
    before the first model, since frameworks divide a processor into devices only once."""
    require(impl)
    team: Team = import_quietly(f"impl_{impl}.parallel").open_team(parallel, runtime)
    return team


def formats(impl: str) -> Any:
    """The module for files of the framework's own layers; ImplementationError as for a model."""
    require(impl)
    return import_quietly(f"impl_{impl}.formats")


def import_quietly(name: str) -> Any:
    """A module, without what its C++ parts say of drivers that nobody asked for; all of it where the import fails."""
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            module = importlib.import_module(name)
        except BaseException:
            log.seek(0)
            os.write(stderr, log.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    return module


def require(impl: str) -> None:
    """ImplementationError unless the implementation's framework is installed."""
    entry = IMPLEMENTATIONS[impl]
    if missing := [name for name in entry.modules if find_spec(name) is None]:
        raise ImplementationError(
            f"--impl {impl} needs {' and '.join(missing)}, not installed here. Install with: pip install "
            f"'rosetta-rnn[{entry.extra}]' (in a checkout: pip install -c constraints.txt -e '.[{entry.extra}]')."
        )


def installed() -> list[str]:
    """Names of the implementations that can be imported, NumPy, the reference, first."""
    return [name for name, entry in IMPLEMENTATIONS.items() if all(map(find_spec, entry.modules))]


def chosen(names: str) -> list[str]:
    """The implementations that `--impl torch,jax` names, or all that are installed; NumPy, the reference, first."""
    if names == "all":
        return installed()
    given = [name.strip() for name in names.split(",") if name.strip()]
    if not given or (unknown := sorted(set(given) - set(IMPLEMENTATIONS))):
        wrong = f"unknown {', '.join(unknown)}" if given else "none given"
        raise ConfigError(f"--impl: {wrong}; choose among {', '.join(IMPLEMENTATIONS)} (comma between), or all.")
    for name in given:
        require(name)
    return [name for name in IMPLEMENTATIONS if name in given]


def versions(impl: str) -> dict[str, str]:
    """Distribution -> version of what the implementation stands on, and of NumPy."""
    found = {}
    for name in ("numpy", *IMPLEMENTATIONS[impl].distributions):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a framework built from source need not be a distribution
            found[name] = "unknown"
    return found
