"""Files of PyTorch's own layers: a state dict, by `torch.save` (.pt) or as safetensors. Nothing is unpickled but
tensors."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from impl_torch.arrays import Array
from impl_torch.embedding import ACTIVATIONS
from shared.config import ModelConfig
from shared.errors import CheckpointError
from shared.layouts import Network

SHARED = 3
"""How many times the file's size its tensors may have: tied weights stand in it once."""


class Layers(nn.Module):
    """An embedding, a stack of PyTorch's recurrent layers, a decoder; `shared.layouts` has the names."""

    def __init__(self, model: ModelConfig, size: int) -> None:
        super().__init__()
        hidden, inputs = model.hidden_size, model.embedding_size or size
        kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[model.cell]
        options: dict[str, Any] = {"batch_first": True}
        if model.cell == "rnn":
            options["nonlinearity"] = model.nonlinearity
        self.model, self.size = model, size
        self.embedding = nn.Embedding(size, inputs) if model.embedding_size else None
        self.residual = nn.ModuleDict()
        if model.residual:  # what is added between layers lets no layer hold two
            widths = [inputs] + [hidden] * (model.num_layers - 1)
            self.rnn: Any = nn.ModuleList(kind(width, hidden, **options) for width in widths)
            for k, width in enumerate(widths):
                if width != hidden or (not k and not model.embedding_size):
                    self.residual[str(k)] = nn.Linear(width, hidden, bias=False)
        else:
            self.rnn = kind(inputs, hidden, model.num_layers, **options)
        self.decoder = nn.Linear(hidden, size)

    def forward(self, tokens: Array) -> Array:
        """tokens [B, T] -> logits [B, T, V], or [B, V] of a many-to-one model."""
        if self.embedding is None:
            x = nn.functional.one_hot(tokens, self.size).to(self.decoder.weight.dtype)
        else:
            x = ACTIVATIONS[self.model.embedding_activation](self.embedding(tokens))
        if self.model.residual:
            for k, layer in enumerate(self.rnn):
                x = layer(x)[0] + (self.residual[str(k)](x) if str(k) in self.residual else x)
        else:
            x = self.rnn(x)[0]
        return self.decoder(x[:, -1] if self.model.many_to_one else x)


def save_layers(path: Path, layers: Mapping[str, np.ndarray], network: Network) -> None:
    """Write the arrays of a network as a state dict."""
    state = {name: torch.from_numpy(each.copy()) for name, each in layers.items()}
    if path.suffix == ".safetensors":
        save_file(state, path, {"format": "pt"})
    else:
        torch.save(state, path)


def load_layers(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The file's arrays, by the names there, and what it says of the model beside them: nothing. CheckpointError."""
    return {name: in_numpy(value) for name, value in state_dict(path).items()}, {}


@torch.no_grad()
def logits_of_layers(path: Path, network: Network, tokens: np.ndarray) -> np.ndarray:
    """tokens [B, T] through PyTorch's own layers with the file's weights, computed in float64 -> logits."""
    module = Layers(network.model, network.size).double()
    for parameter in module.parameters():
        parameter.zero_()  # a bias that the file does without
    state = state_dict(path)
    wrong = module.load_state_dict({name: state[there] for name, there in network.names.items()}, strict=False)
    if wrong.unexpected_keys or any("bias" not in name for name in wrong.missing_keys):
        raise CheckpointError(f"its arrays do not fit PyTorch's layers: {wrong}.")
    logits: np.ndarray = module(torch.from_numpy(tokens).long()).numpy()
    return logits


def state_dict(path: Path) -> Mapping[str, Any]:
    """The one state dict in a file that has recurrent layers; it may lie in a dictionary with other things."""
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception:  # its text would advise to execute what the file holds
        raise CheckpointError(
            "not written by torch.save, damaged, or more than tensors in dictionaries, and nothing else is read, since "
            "that would execute what the file holds. Save it anew with torch.save(model.state_dict(), FILE)."
        ) from None
    found = [each for each in dictionaries(content) if any("weight_ih" in name for name in each if type(name) is str)]
    if len(found) != 1:
        raise CheckpointError(
            f"it holds {len(found)} state dicts with weights of torch.nn.RNN, LSTM or GRU (weight_ih_l0, ...); one "
            "is needed. Save it with torch.save(model.state_dict(), FILE)."
        )
    require_held(found[0], path.stat().st_size)
    return found[0]


def require_held(state: Mapping[Any, Any], size: int) -> None:
    """CheckpointError unless the names are strings and the tensors no larger than the file can hold, a few of them
    sharing what they hold: strides can make any size of a single number."""
    for name, value in state.items():
        if type(name) is not str or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{name!r} in the state dict is no tensor with a name, but {type(value).__name__}.")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{name} is a tensor without plain numbers ({value.layout}, on {value.device}).")
    if (total := sum(each.numel() * each.element_size() for each in state.values())) > SHARED * size:
        raise CheckpointError(f"its tensors would hold {total:,} bytes, and the file has {size:,}.")


def dictionaries(content: Any) -> Iterator[Mapping[str, Any]]:
    """The dictionaries in a file's content, at any depth, each once: one may hold itself."""
    waiting, seen = [content], set[int]()
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += each.values()


def in_numpy(value: Array) -> np.ndarray:
    """A tensor in NumPy; short floats as float32, which holds them exactly."""
    short = value.is_floating_point() and value.element_size() < 4
    return (value.float() if short else value).detach().resolve_conj().resolve_neg().contiguous().numpy().copy()
