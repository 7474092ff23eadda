"""PyTorch as its tutorials write it: nn.LSTM or nn.GRU, cross_entropy, clip_grad_norm_, torch.optim.Adam."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from runner.timing.workloads import LEARNING_RATE, Workload
from shared.contract import Batch
from shared.layouts import to_layers

IGNORED = -100
"""The target that cross_entropy leaves out."""


class Network(nn.Module):
    def __init__(self, workload: Workload) -> None:
        super().__init__()
        model, self.size = workload.model, workload.vocabulary_size
        self.embedding = nn.Embedding(self.size, model.embedding_size) if model.embedding_size else None
        layer = nn.LSTM if model.cell == "lstm" else nn.GRU
        self.rnn = layer(model.embedding_size or self.size, model.hidden_size, model.num_layers, batch_first=True)
        self.decoder = nn.Linear(model.hidden_size, self.size)

    def forward(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        if self.embedding is not None:
            inputs = self.embedding(tokens)
        else:
            inputs = one_hot(tokens, self.size).to(self.decoder.weight.dtype)
        outputs, state = self.rnn(inputs, state)
        return self.decoder(outputs), state


class Peer:
    def __init__(self, workload: Workload, parameters: dict[str, np.ndarray], device: str, **options: Any) -> None:
        cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        self.device = torch.device(device if ":" in device else "cuda" if cuda else "cpu")
        # nn.LSTM computes in TF32 on a GPU unless told otherwise.
        torch.backends.cudnn.allow_tf32 = False
        self.network = Network(workload)
        layers = to_layers("torch", workload.model, parameters)
        self.network.load_state_dict({name: torch.from_numpy(value) for name, value in layers.items()})
        self.network.to(self.device, torch.from_numpy(parameters["decoder.bias"]).dtype)
        one_trained_bias(self.network.rnn)
        trained = [each for each in self.network.parameters() if each.requires_grad]
        self.trained, self.optimizer = trained, torch.optim.Adam(trained, lr=LEARNING_RATE, **options)
        self.carried = not workload.padded
        self.state: Any = None
        adam = "Adam(fused=True)" if options.get("fused") else "Adam"
        self.kernel = f"nn.{type(self.network.rnn).__name__}, {adam} (torch {torch.__version__})"

    def train(self, batches: Batch) -> np.ndarray:
        losses = []
        for tokens, targets, mask in zip(batches.tokens, batches.targets, batches.mask, strict=True):
            wanted = np.where(mask, targets, IGNORED)
            losses.append(self.step(torch.from_numpy(tokens), torch.from_numpy(wanted)))
        return np.array([float(loss) for loss in losses])

    def step(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        tokens, targets = tokens.to(self.device).long(), targets.to(self.device).long()
        self.optimizer.zero_grad()
        logits, state = self.network(tokens, self.state)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        if self.carried:
            self.state = tuple(each.detach() for each in state) if isinstance(state, tuple) else state.detach()
        return loss.detach()

    @torch.no_grad()
    def sample(self, first: np.ndarray, length: int, greedy: bool) -> np.ndarray:
        tokens, state, written = torch.from_numpy(first).to(self.device).long()[:, None], None, []
        for _ in range(length):
            logits, state = self.network(tokens, state)
            probabilities = torch.softmax(logits[:, -1], dim=-1)
            tokens = probabilities.argmax(-1, keepdim=True) if greedy else torch.multinomial(probabilities, 1)
            written.append(tokens)
        return torch.cat(written, dim=1).cpu().numpy()


def one_trained_bias(rnn: Any) -> None:
    """nn.LSTM and nn.GRU train two biases, which together move twice as far and count twice in the norm. The second
    stays zero here, but for the gru's candidate, whose second bias stands within the reset product."""
    for name, parameter in rnn.named_parameters():
        if "bias_hh" not in name:
            continue
        if isinstance(rnn, nn.LSTM):
            parameter.requires_grad_(False)
        else:
            kept = torch.zeros_like(parameter)
            kept[2 * rnn.hidden_size :] = 1
            parameter.register_hook(kept.__mul__)


PEERS: dict[str, Callable[..., Peer]] = {"adam": Peer, "fused-adam": partial(Peer, fused=True)}


def multiplier(m: int, k: int, n: int) -> Callable[[], Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.ones(m, k, device=device), torch.ones(k, n, device=device)
    return lambda: (a @ b)[0, 0].item()


def transfer(arrays: tuple[np.ndarray, ...]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for each in arrays:
        torch.from_numpy(each).to(device, copy=True)
    if device == "cuda":
        torch.cuda.synchronize()


def operations(call: Callable[[], Any]) -> list[tuple[str, float, int]]:
    """Name, seconds and calls of every operation of a call, each without those that it calls itself."""
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as watch:
        call()
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    return [(each.key, getattr(each, field) / 1e6, each.count) for each in watch.key_averages()]
