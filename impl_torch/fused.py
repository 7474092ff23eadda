"""lstm and gru as fast as PyTorch can, the mathematics unchanged.

torch.lstm is hard to beat: oneDNN holds its weights packed for all steps. On the processor torch.gru is no such layer:
that one is a loop written here, with the way back by hand. Around either, a small vocabulary's vectors are multiplied
with the input weight before they are looked up, not after; and oneDNN makes the logits, the widest product.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

from impl_torch.arrays import Array, Device
from impl_torch.embedding import ACTIVATIONS
from impl_torch.native import native_kernel, unroll_native
from impl_torch.unroll import Cell, Record, cell_of, project
from shared.batching import Stretch
from shared.config import ModelConfig


def fused_kernel(model: ModelConfig, device: Device) -> str:
    """What loops over time, and what makes the logits."""
    loop = native_kernel(model, device)
    if by_hand(cell_of(model), device.handle):
        loop = f"ATen loop with its own backward (torch {torch.__version__})"
    missing = why_no_onednn(device.layers, device.handle.type)
    return f"{loop}; logits: {f'ATen ({missing})' if missing else 'oneDNN'}"


def by_hand(cell: Cell, device: torch.device) -> bool:
    """Whether the loop is this file's: cuDNN has a gru."""
    return cell.name == "gru-after" and device.type == "cpu"


def unroll_fused(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and no record: there is none."""
    if not by_hand(cell, inputs.device):
        return unroll_native(cell, inputs, state, weights, record)
    outputs = GRULoop.apply(project(inputs, weights), state.hidden, weights.weight_hh, weights.bias_hn)
    return outputs, cell.state(outputs[-1]), None


def unroll_stretches(
    stretches: Sequence[Stretch], cell: Cell, inputs: Array, state: Any, weights: Any, record: bool
) -> tuple[Array, Any, Record | None]:
    """As `unroll_fused`, but only the steps and rows of these stretches (`shared.batching.stretches`) are computed.
    Outputs of the others are zero, and so is the state of the rows that have none in the last."""
    (T, B), outputs, after = inputs.shape[:2], [], state
    lengths = [stop - start for start, stop, _ in stretches]
    # Split, not sliced: the gradient of a slice is zero elsewhere, and written everywhere.
    *parts, left = inputs.split([*lengths, T - sum(lengths)])
    for part, (*_, rows) in zip(parts, stretches, strict=True):
        after = cell.state(*(field[:rows] for field in after))
        some, after, _ = unroll_fused(cell, part[:, :rows], after, weights, record)
        outputs.append(pad(some, (0, 0, 0, B - rows)))
    after = cell.state(*(pad(field, (0, 0, 0, B - len(field))) for field in after))
    return torch.cat([*outputs, after.hidden.new_zeros(*left.shape[:2], after.hidden.shape[1])]), after, None


class GRULoop(torch.autograd.Function):
    """projected [T, B, 3H], hidden [B, H], weight_hh [3H, H], bias_hn [H] -> outputs [T, B, H]."""

    @staticmethod
    def forward(ctx: Any, projected: Array, hidden: Array, weight: Array, bias: Array) -> Array:
        """As impl_torch.gru.gru_step."""
        T, H = len(projected), hidden.shape[1]
        gates, bias = torch.empty_like(projected), pad(bias, (2 * H, 0))
        outputs, recurrent = projected.new_empty(T + 1, *hidden.shape), projected.new_empty(T, *hidden.shape)
        outputs[0] = hidden
        for t in range(T):
            product = torch.addmm(bias, outputs[t], weight.T)
            recurrent[t] = product[:, 2 * H :]
            both, candidate = gates[t, :, : 2 * H], gates[t, :, 2 * H :]
            torch.add(projected[t, :, : 2 * H], product[:, : 2 * H], out=both).sigmoid_()
            torch.addcmul(projected[t, :, 2 * H :], both[:, :H], recurrent[t], out=candidate).tanh_()
            torch.lerp(candidate, outputs[t], both[:, H:], out=outputs[t + 1])
        ctx.save_for_backward(gates, outputs, recurrent, weight)
        return outputs[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Array) -> tuple[Array, ...]:
        """With a the sum that a gate or the candidate is the function of, and s that product which r multiplies:

        da_n = dh' (1 - z) (1 - n^2)     da_z = dh' (h - n) z (1 - z)     da_r = da_n s r (1 - r)     ds = da_n r
        dh = dh' z + U^T (da_r, da_z, ds)
        """
        gates, outputs, recurrent, weight = ctx.saved_tensors
        T, _, H = d_outputs.shape
        reset, update, candidate = gates.chunk(3, dim=-1)
        before, keep = outputs[:T], 1 - update
        to_candidate = keep * (1 - candidate * candidate)
        to_update = keep.mul_(update).mul_(before - candidate)
        to_reset = recurrent * reset * (1 - reset)
        d_product, d_candidate = torch.empty_like(gates), torch.empty_like(recurrent)
        d_hidden = torch.zeros_like(outputs[0])
        for t in reversed(range(T)):
            d_hidden = d_hidden + d_outputs[t]
            torch.mul(d_hidden, to_candidate[t], out=d_candidate[t])
            torch.mul(d_candidate[t], to_reset[t], out=d_product[t, :, :H])
            torch.mul(d_hidden, to_update[t], out=d_product[t, :, H : 2 * H])
            torch.mul(d_candidate[t], reset[t], out=d_product[t, :, 2 * H :])
            d_hidden = torch.addmm(d_hidden * update[t], d_product[t], weight)
        d_weight = d_product.flatten(0, 1).T @ before.flatten(0, 1)
        d_projected = torch.cat([d_product[..., : 2 * H], d_candidate], dim=-1)
        return d_projected, d_hidden, d_weight, d_product[..., 2 * H :].sum((0, 1))


def fold(model: ModelConfig, weights: dict[str, Array], steps: int) -> dict[str, Array]:
    """The weights without an embedding, its vectors E multiplied into the input weight, W_ih f(E)^T [G*H, V], so that
    tokens are read as one-hot vectors: W_ih f(E)^T onehot = W_ih f(E[token]). As they are where that is more work in
    `steps` = B T steps, and where a residual connection adds the vectors themselves.
    """
    vectors = weights.get("embedding.weight")
    if vectors is None or model.residual or not folding_pays(len(vectors), vectors.shape[1], steps):
        return weights
    folded = weights["rnn.weight_ih_l0"] @ ACTIVATIONS[model.embedding_activation](vectors).T
    rest = {name: value for name, value in weights.items() if name != "embedding.weight"}
    return rest | {"rnn.weight_ih_l0": folded}


def folding_pays(V: int, E: int, steps: int) -> bool:
    """Whether V vectors of E numbers and then steps of V numbers are fewer products than steps of E numbers."""
    return V * (E + steps) < E * steps


class OneDNN(torch.autograd.Function):
    """inputs [N, I], weight [O, I], bias [O] -> [N, O], and its gradients, as torch.nn.functional.linear."""

    @staticmethod
    def forward(ctx: Any, inputs: Array, weight: Array, bias: Array) -> Array:
        ctx.save_for_backward(inputs, weight)
        return onednn(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Array) -> tuple[Array, ...]:
        inputs, weight = ctx.saved_tensors
        return onednn(d_outputs, weight.T), onednn(d_outputs.T, inputs.T), d_outputs.sum(0)


def onednn(inputs: Array, weight: Array, bias: Array | None = None) -> Array:
    """inputs [N, I] times weight [O, I] from the left, plus bias (contiguous), by oneDNN, which torch gives in this
    private way only. On AMD's processors its products are up to twice as fast as MKL's."""
    product: Array = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


@cache
def why_no_onednn(dtype: torch.dtype, device: str) -> str:
    """Why the private operation is not used; "" where it is there and multiplies as it should."""
    if device != "cpu" or dtype != torch.float32:
        return "oneDNN's product is for float32 on the processor"
    left, right, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4).T, torch.arange(4.0)
    try:
        same = torch.equal(onednn(left, right, bias), linear(left, right, bias))
    except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
        return f"this torch has no oneDNN product: {str(error).splitlines()[0]}"
    return "" if same else "oneDNN's product is another here"


def dense(inputs: Array, weight: Array, bias: Array) -> Array:
    """W x + b of inputs [..., I] -> [..., O], by oneDNN where it is to be had."""
    if why_no_onednn(inputs.dtype, inputs.device.type):
        return linear(inputs, weight, bias)
    product: Array = OneDNN.apply(inputs.reshape(-1, inputs.shape[-1]), weight, bias)
    return product.view(*inputs.shape[:-1], len(weight))
