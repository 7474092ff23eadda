"""NumPy as textbooks write it: a loop over time, a Python list entry for each step, rows are sequences; and in the
manner of min-char-rnn (Karpathy 2015), one sequence, column vectors, no batch."""

from collections.abc import Callable

import numpy as np

from runner.timing.workloads import LEARNING_RATE, Workload
from shared.contract import Batch
from shared.errors import ImplementationError

Array = np.ndarray
Arrays = dict[str, Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


class Adam:
    """Clipping by global norm 1, then Adam, a parameter at a time."""

    def __init__(self, parameters: Arrays) -> None:
        self.m = {name: np.zeros_like(value) for name, value in parameters.items()}
        self.v = {name: np.zeros_like(value) for name, value in parameters.items()}
        self.step = 0

    def update(self, parameters: Arrays, gradients: Arrays) -> None:
        self.step += 1
        norm = float(np.sqrt(sum(np.sum(g * g) for g in gradients.values())))
        for name, g in gradients.items():
            g = g / max(norm, 1.0)
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g * g
            m = self.m[name] / (1 - 0.9**self.step)
            v = self.v[name] / (1 - 0.999**self.step)
            parameters[name] -= LEARNING_RATE * m / (np.sqrt(v) + 1e-8)


class Loop:
    """Batches, layer after layer, step after step."""

    kernel, device = "loop over time, batch first", "cpu"

    def __init__(self, workload: Workload, parameters: Arrays, device: str) -> None:
        model = workload.model
        self.layers, self.hidden, self.size = model.num_layers, model.hidden_size, workload.vocabulary_size
        self.lstm, self.carried = model.cell == "lstm", not workload.padded
        # Row-major: a weight [in, out] multiplies rows from the right.
        self.p = {name: np.ascontiguousarray(value.T) for name, value in parameters.items()}
        if "embedding.weight" in parameters:
            self.p["embedding.weight"] = parameters["embedding.weight"].copy()
        self.dtype = self.p["decoder.bias"].dtype
        self.adam, self.state = Adam(self.p), self.zeros(workload.batch_size)

    def zeros(self, rows: int) -> list[tuple[Array, Array]]:
        return [(np.zeros((rows, self.hidden), self.dtype),) * 2 for _ in range(self.layers)]

    def train(self, batches: Batch) -> Array:
        losses = []
        for tokens, targets, mask in zip(batches.tokens, batches.targets, batches.mask, strict=True):
            state = self.state if self.carried else self.zeros(len(tokens))
            loss, gradients, self.state = self.loss_and_gradients(tokens, targets, mask, state)
            self.adam.update(self.p, gradients)
            losses.append(loss)
        return np.array(losses, np.float64)

    def loss_and_gradients(
        self, tokens: Array, targets: Array, mask: Array, state: list[tuple[Array, Array]]
    ) -> tuple[float, Arrays, list[tuple[Array, Array]]]:
        rows, steps, count = np.arange(len(tokens)), range(tokens.shape[1]), mask.sum()
        gradients = {name: np.zeros_like(value) for name, value in self.p.items()}
        inputs, caches, after = [self.look_up(tokens[:, t]) for t in steps], [], []
        for k in range(self.layers):
            h, c = state[k]
            outputs, cache = [], []
            for x in inputs:
                h, c, kept = self.step(k, x, h, c)
                outputs.append(h)
                cache.append(kept)
            inputs = outputs
            caches.append(cache)
            after.append((h, c))
        loss, above = 0.0, []
        for t in steps:
            logits = inputs[t] @ self.p["decoder.weight"] + self.p["decoder.bias"]
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities = e / e.sum(axis=1, keepdims=True)
            loss -= np.sum(np.log(probabilities[rows, targets[:, t]]) * mask[:, t]) / count
            probabilities[rows, targets[:, t]] -= 1
            d = probabilities * (mask[:, t, None] / count).astype(self.dtype)
            gradients["decoder.weight"] += inputs[t].T @ d
            gradients["decoder.bias"] += d.sum(axis=0)
            above.append(d @ self.p["decoder.weight"].T)
        for k in reversed(range(self.layers)):
            dh, dc = np.zeros_like(state[k][0]), np.zeros_like(state[k][1])
            for t in reversed(steps):
                above[t], dh, dc = self.step_backward(k, above[t] + dh, dc, caches[k][t], gradients)
        if "embedding.weight" in gradients:
            for t in steps:
                np.add.at(gradients["embedding.weight"], tokens[:, t], above[t])
        return float(loss), gradients, after

    def look_up(self, tokens: Array) -> Array:
        """Rows of the embedding, or one-hot vectors."""
        if "embedding.weight" in self.p:
            return self.p["embedding.weight"][tokens]
        return np.eye(self.size, dtype=self.dtype)[tokens]

    def step(self, k: int, x: Array, h: Array, c: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        """One step of a layer, and what its way back needs."""
        of_input = x @ self.p[f"rnn.weight_ih_l{k}"] + self.p[f"rnn.bias_l{k}"]
        of_state = h @ self.p[f"rnn.weight_hh_l{k}"]
        if not self.lstm:
            (xr, xz, xn), (hr, hz, hn) = np.split(of_input, 3, axis=1), np.split(of_state, 3, axis=1)
            r, z, hn = sigmoid(xr + hr), sigmoid(xz + hz), hn + self.p[f"rnn.bias_hn_l{k}"]
            n = np.tanh(xn + r * hn)
            return (1 - z) * n + z * h, c, (x, h, r, z, n, hn)
        i, f, g, o = np.split(of_input + of_state, 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        after = f * c + i * g
        tanh = np.tanh(after)
        return o * tanh, after, (x, h, i, f, g, o, c, tanh)

    def step_backward(
        self, k: int, dh: Array, dc: Array, kept: tuple[Array, ...], gradients: Arrays
    ) -> tuple[Array, Array, Array]:
        """To the input, the state and the cell before; adds to the gradients."""
        x, h, *gates = kept
        if self.lstm:
            i, f, g, o, c, tanh = gates
            dc = dc + dh * o * (1 - tanh**2)
            blocks = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2), dh * tanh * o * (1 - o)
            dx_gates = dh_gates = np.concatenate(blocks, axis=1)
            dh, dc = np.zeros_like(dh), dc * f
        else:
            r, z, n, hn = gates
            dn = dh * (1 - z) * (1 - n**2)
            dr, dz = dn * hn * r * (1 - r), dh * (h - n) * z * (1 - z)
            dx_gates, dh_gates = np.concatenate((dr, dz, dn), axis=1), np.concatenate((dr, dz, dn * r), axis=1)
            gradients[f"rnn.bias_hn_l{k}"] += (dn * r).sum(axis=0)
            dh = dh * z
        gradients[f"rnn.weight_ih_l{k}"] += x.T @ dx_gates
        gradients[f"rnn.weight_hh_l{k}"] += h.T @ dh_gates
        gradients[f"rnn.bias_l{k}"] += dx_gates.sum(axis=0)
        return dx_gates @ self.p[f"rnn.weight_ih_l{k}"].T, dh + dh_gates @ self.p[f"rnn.weight_hh_l{k}"].T, dc

    def sample(self, first: Array, length: int, greedy: bool) -> Array:
        tokens, state, generator, written = first, self.zeros(len(first)), np.random.default_rng(0), []
        for _ in range(length):
            x = self.look_up(tokens)
            for k, (h, c) in enumerate(state):
                x, c, _ = self.step(k, x, h, c)
                state[k] = x, c
            logits = x @ self.p["decoder.weight"] + self.p["decoder.bias"]
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            sums = np.cumsum(e, axis=1)
            drawn = (sums > generator.random((len(first), 1)) * sums[:, -1:]).argmax(axis=1)
            tokens = logits.argmax(axis=1) if greedy else drawn
            written.append(tokens)
        return np.stack(written, axis=1)


class MinCharRnn:
    """One sequence, column vectors, outer products: an LSTM in the words of the famous gist."""

    kernel, device = "min-char-rnn style, B=1", "cpu"

    def __init__(self, workload: Workload, parameters: Arrays, device: str) -> None:
        model = workload.model
        if model.cell != "lstm" or model.num_layers > 1 or model.embedding_size or workload.padded:
            raise ImplementationError("min-char-rnn reads one-hot characters of a running text, with one layer.")
        self.hidden, self.size = model.hidden_size, workload.vocabulary_size
        self.p = {name: (v.copy() if v.ndim == 2 else v[:, None].copy()) for name, v in parameters.items()}
        self.dtype = self.p["decoder.bias"].dtype
        self.adam, self.state = Adam(self.p), (np.zeros((self.hidden, 1), self.dtype),) * 2

    def train(self, batches: Batch) -> Array:
        losses = []
        for tokens, targets in zip(batches.tokens[:, 0], batches.targets[:, 0], strict=True):
            loss, gradients, self.state = self.loss_and_gradients(tokens, targets, *self.state)
            self.adam.update(self.p, gradients)
            losses.append(loss)
        return np.array(losses, np.float64)

    def loss_and_gradients(
        self, tokens: Array, targets: Array, h: Array, c: Array
    ) -> tuple[float, Arrays, tuple[Array, Array]]:
        hs, cs, xs, gates, ps, loss = {-1: h}, {-1: c}, {}, {}, {}, 0.0
        for t, token in enumerate(tokens):
            xs[t], gates[t], hs[t], cs[t] = self.step(token, hs[t - 1], cs[t - 1])
            y = np.dot(self.p["decoder.weight"], hs[t]) + self.p["decoder.bias"]
            ps[t] = np.exp(y - y.max()) / np.sum(np.exp(y - y.max()))
            loss -= np.log(ps[t][targets[t], 0]) / len(tokens)
        grads = {name: np.zeros_like(value) for name, value in self.p.items()}
        dh_next, dc_next = np.zeros_like(h), np.zeros_like(c)
        for t in reversed(range(len(tokens))):
            dy = ps[t].copy()
            dy[targets[t]] -= 1
            dy /= len(tokens)
            grads["decoder.weight"] += np.dot(dy, hs[t].T)
            grads["decoder.bias"] += dy
            i, f, g, o = gates[t]
            dh = np.dot(self.p["decoder.weight"].T, dy) + dh_next
            tanh = np.tanh(cs[t])
            dc = dh * o * (1 - tanh**2) + dc_next
            blocks = dc * g * i * (1 - i), dc * cs[t - 1] * f * (1 - f), dc * i * (1 - g**2), dh * tanh * o * (1 - o)
            d = np.concatenate(blocks)
            grads["rnn.weight_ih_l0"] += np.dot(d, xs[t].T)
            grads["rnn.weight_hh_l0"] += np.dot(d, hs[t - 1].T)
            grads["rnn.bias_l0"] += d
            dh_next, dc_next = np.dot(self.p["rnn.weight_hh_l0"].T, d), dc * f
        last = len(tokens) - 1
        return float(loss), grads, (hs[last], cs[last])

    def step(self, token: int, h: Array, c: Array) -> tuple[Array, tuple[Array, ...], Array, Array]:
        x = np.zeros((self.size, 1), self.dtype)
        x[token] = 1
        z = np.dot(self.p["rnn.weight_ih_l0"], x) + np.dot(self.p["rnn.weight_hh_l0"], h) + self.p["rnn.bias_l0"]
        i, f, g, o = np.split(z, 4)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c = f * c + i * g
        return x, (i, f, g, o), o * np.tanh(c), c

    def sample(self, first: Array, length: int, greedy: bool) -> Array:
        if len(first) > 1:
            raise ImplementationError("min-char-rnn writes one text at a time.")
        token, h, c, written = int(first[0]), *(np.zeros((self.hidden, 1), self.dtype),) * 2, []
        for _ in range(length):
            _, _, h, c = self.step(token, h, c)
            y = np.dot(self.p["decoder.weight"], h) + self.p["decoder.bias"]
            p = np.exp(y - y.max(), dtype=np.float64) / np.sum(np.exp(y - y.max(), dtype=np.float64))
            token = int(y.argmax()) if greedy else int(np.random.choice(self.size, p=p.ravel()))
            written.append(token)
        return np.array([written])


PEERS = {"loop": Loop, "min-char-rnn": MinCharRnn}


def multiplier(m: int, k: int, n: int) -> Callable[[], Array]:
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    return lambda: np.matmul(a, b)


def transfer(arrays: tuple[Array, ...]) -> None:
    for each in arrays:
        each.copy()
