"""Batches of a fixed shape [B, T] as pure functions of (epoch, index), so that a run can be resumed anywhere without a
random state. A short window is padded at the right, where its mask is False."""

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from shared.contract import Batch
from shared.errors import CorpusError, VocabularyError
from shared.random_bits import mix, permutation, raw
from shared.vocabulary import Vocabulary

Array = np.ndarray
COUNTED = 2**22
"""Tokens counted at a time."""
ORDERED = 2**22
"""Rows of an epoch whose shuffled order is held; that of more would take up to 20 times the memory of their text."""
Stretch = tuple[int, int, int]
"""The first step, the one behind the last, and rows."""
WIDTHS = 4
"""Numbers of rows that stretches have at most: each costs a copy of the weights."""
PARTS = 8
"""Numbers of rows of logits at most, so that who compiles for fixed shapes has no more programs."""


class StreamBatches:
    """A running text, tokens [N]: its N-1 predictions are dealt to B rows in contiguous, balanced pieces, each read in
    windows of T. The state is carried from batch to batch; only the first batch of an epoch is reset. The tokens may
    lie on a memory map."""

    def __init__(self, tokens: Array, batch_size: int, seq_length: int) -> None:
        predictions = len(tokens) - 1
        check_stream(predictions, batch_size, seq_length)
        edges = np.arange(batch_size + 1) * predictions // batch_size
        self._tokens, self._seq_length = compact(tokens), seq_length
        self._starts, self._ends = edges[:-1], edges[1:]

    def counts(self, size: int) -> Array:
        """int64 [V], how often each token is to be predicted in an epoch."""
        return count_tokens(self._tokens[1:], size)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-int((self._ends - self._starts).max()) // self._seq_length)

    def batch(self, _epoch: int, index: int) -> Batch:
        """The same in every epoch."""
        starts = self._starts + in_range(index, len(self)) * self._seq_length
        reset = np.full(len(starts), index == 0)
        return Batch(*windows(self._tokens, starts, self._ends - starts, self._seq_length, padding=0), reset)


class WindowBatches:
    """A running text, tokens [N]: windows of T, one every `stride` tokens, each predicting the token after each of its
    own. Windows are shuffled anew in every epoch, and what fills no batch is dropped; without a shuffle they come in
    order, and rows that the last batch lacks are all padding. Every row is reset, or with `carry_state` only those of
    an epoch's first batch."""

    def __init__(
        self,
        tokens: Array,
        batch_size: int,
        seq_length: int,
        stride: int,
        seed: int,
        shuffle: bool = True,
        carry_state: bool = False,
    ) -> None:
        self._count = max(0, (len(tokens) - 1 - seq_length) // stride + 1)
        check_windows(len(tokens), self._count, batch_size, seq_length, stride)
        self._tokens, self._batch_size, self._seq_length = compact(tokens), batch_size, seq_length
        self._stride, self._carry_state = stride, carry_state
        self._order = Order(seed, self._count) if shuffle else None

    def counts(self, size: int) -> Array:
        """int64 [V], how often each token stands in the text behind another, however many windows it is in."""
        return count_tokens(self._tokens[1:], size)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._count // self._batch_size if self._order else -(-self._count // self._batch_size)

    def batch(self, epoch: int, index: int) -> Batch:
        """Shuffled anew in every epoch where that was asked for."""
        size, T = self._batch_size, self._seq_length
        first = in_range(index, len(self)) * size
        places = np.arange(first, min(first + size, self._count))
        chosen = self._order(epoch, places) if self._order else places
        starts, lengths = np.zeros((2, size), np.int64)
        starts[: len(chosen)], lengths[: len(chosen)] = chosen * self._stride, T
        reset = np.full(size, not self._carry_state or index == 0)
        return Batch(*windows(self._tokens, starts, lengths, T, padding=0), reset)


class PoemBatches:
    """Poems, each tokens [n]: BOS and the characters predict the characters and EOS. Every row is reset, and those of a
    batch stand longest first (`stretches`). Poems of more than T steps are left out and counted, or with `cut` read so
    far, without an end; rows that the last batch lacks are all padding."""

    def __init__(
        self,
        poems: Iterable[Array],
        batch_size: int,
        seq_length: int,
        vocabulary: Vocabulary,
        seed: int,
        shuffle: bool,
        cut: bool = False,
    ) -> None:
        pad, bos, eos = vocabulary.pad, vocabulary.bos, vocabulary.eos
        if pad is None or bos is None or eos is None:
            raise VocabularyError(
                "This model learned a running text and has no marks for where a poem begins and ends."
            )
        held, lengths, longer = bytearray(), array("q"), array("q")
        dtype = np.min_scalar_type(len(vocabulary) - 1)
        begin, end = dtype.type(bos).tobytes(), dtype.type(eos).tobytes()
        for poem in poems:
            whole = len(poem) < seq_length
            if not whole:
                longer.append(len(poem))
            if whole or cut:
                held += begin + poem[:seq_length].astype(dtype).tobytes() + end * whole
                lengths.append(min(len(poem) + 1, seq_length))
        self.left_out, self.cut = (0, len(longer)) if cut else (len(longer), 0)
        check_poems(longer, self.left_out + len(lengths), len(lengths), batch_size, seq_length)
        steps, self._tokens = np.frombuffer(lengths, np.int64), np.frombuffer(held, dtype)
        self._lengths, self._starts = compact(steps), compact(np.cumsum(steps + 1) - steps - 1)
        self._batch_size, self._seq_length, self._padding, self._bos = batch_size, seq_length, pad, bos
        self._order = Order(seed, len(lengths)) if shuffle else None

    def counts(self, size: int) -> Array:
        """int64 [V], how often each token is to be predicted in an epoch."""
        counts = count_tokens(self._tokens, size)
        counts[self._bos] -= len(self._starts)
        return counts

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self._lengths) // self._batch_size)

    def batch(self, epoch: int, index: int) -> Batch:
        """Shuffled anew in every epoch where that was asked for."""
        size = self._batch_size
        first = in_range(index, len(self)) * size
        places = np.arange(first, min(first + size, len(self._lengths)))
        chosen = self._order(epoch, places) if self._order else places
        starts, lengths = np.zeros((2, size), np.int64)
        chosen = chosen[np.argsort(-self._lengths[chosen].astype(np.int64), kind="stable")]
        starts[: len(chosen)], lengths[: len(chosen)] = self._starts[chosen], self._lengths[chosen]
        return Batch(*windows(self._tokens, starts, lengths, self._seq_length, self._padding), np.full(size, True))


class Order:
    """The shuffled orders of the epochs of so many rows. Those of few are held, an epoch at a time; of many, only the
    places that are asked for are computed."""

    def __init__(self, seed: int, count: int) -> None:
        self._seed, self._count = seed, count
        self._held = (-1, np.arange(0))  # of the epoch last asked for

    def __call__(self, epoch: int, places: Array) -> Array:
        """int64, the rows that stand at these places."""
        if self._count > ORDERED:
            return scattered(self._seed, f"epoch.{epoch}", self._count, places)
        if self._held[0] != epoch:
            order = permutation(self._seed, f"epoch.{epoch}", self._count)
            self._held = epoch, order.astype(np.min_scalar_type(self._count))
        return self._held[1][places].astype(np.int64)


def scattered(seed: int, place: str, count: int, places: Array) -> Array:
    """int64, what stands at these places of a permutation of 0..count-1, which is never held: a Feistel network (Luby
    and Rackoff 1988) permutes the numbers of an even number of bits, and what is too large is permuted again (Black and
    Rogaway 2002)."""
    half = max(1, -(-(count - 1).bit_length() // 2))
    keys = raw(seed, place, 6).astype(np.uint32)
    found = permuted(places, half, keys)
    while len(large := np.flatnonzero(found >= count)):
        found[large] = permuted(found[large], half, keys)
    return found


def permuted(numbers: Array, half: int, keys: Array) -> Array:
    """int64, a permutation of the numbers below 2**(2 half), one round for each key."""
    low = np.uint32(2**half - 1)
    left, right = (numbers >> half).astype(np.uint32), numbers.astype(np.uint32) & low
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & low)
    return left.astype(np.int64) << half | right


class LastTargets:
    """Batches for many-to-one: of each row, only what its last unmasked step is to predict, targets [B]; a row without
    such a step counts nothing, and its target is 0."""

    def __init__(self, batches: StreamBatches | WindowBatches) -> None:
        self._batches = batches

    def counts(self, size: int) -> Array:
        """int64 [V], of the text that the windows are cut from."""
        return self._batches.counts(size)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._batches)

    def batch(self, epoch: int, index: int) -> Batch:
        """As the others', but for the targets."""
        batch = self._batches.batch(epoch, index)
        last = np.maximum(batch.mask.sum(axis=1) - 1, 0)
        return batch._replace(targets=batch.targets[np.arange(len(last)), last])


Batches = StreamBatches | WindowBatches | PoemBatches | LastTargets


def unmasked_targets(batch: Batch) -> Array:
    """int32 [n], what a batch predicts."""
    return batch.targets[batch.mask if batch.targets.ndim == batch.mask.ndim else batch.mask.any(axis=-1)]


def unmasked_rows(mask: Array, parts: int = PARTS) -> Array | None:
    """Where mask [K, B, T] is True in each [T, B], flat: int32 [K, R]. R is the number in the fullest batch rounded up
    to a whole `parts`-th of T B, so that few shapes occur; masked places fill it up. None where R = T B."""
    masked = ~mask.swapaxes(1, 2).reshape(len(mask), -1)
    size = masked.shape[1]
    fullest = max(size - int(masked.sum(axis=1).min()), 1)
    rows = in_parts(fullest, size, parts)
    return None if rows == size else masked.argsort(axis=1, kind="stable")[:, :rows].astype(np.int32)


def stretches(mask: Array, parts: int = WIDTHS) -> tuple[Stretch, ...]:
    """What of mask [B, T] need be computed where the rows stand longest first: stretches of steps, one after the other,
    and of how many rows, the first ones; B rows or a `parts`-th less at a time, so that stretches are few. Where rows
    stand otherwise, one of everything."""
    B, T = mask.shape
    if (mask[1:] > mask[:-1]).any():
        return ((0, T, B),)
    rows = in_parts(mask.sum(axis=0), B, parts)  # [T], falling
    rows[0] = max(rows[0], 1)
    ends = np.flatnonzero(np.diff(rows, append=0)) + 1
    return tuple((start, stop, int(rows[start])) for start, stop in pairwise([0, *ends.tolist()]))


def in_parts(count: Any, size: int, parts: int) -> Any:
    """A number of `size`, or several, rounded up to whole `parts`-ths of it."""
    return -(-count * parts // size) * size // parts


def stack(batches: Sequence[Batch]) -> Batch:
    """One batch with a leading axis K."""
    return Batch(*(np.stack(field) for field in zip(*batches, strict=True)))


def windows(data: Array, starts: Array, lengths: Array, T: int, padding: int) -> tuple[Array, Array, Array]:
    """tokens, targets, mask [B, T]: row b has `lengths[b]` predictions, or T if it has more, from `starts[b]` on."""
    steps = np.arange(T)
    mask = steps < lengths[:, None]  # [B, T]
    places = np.where(mask, starts[:, None] + steps, 0)
    tokens, targets = (np.where(mask, data[places + ahead], padding).astype(np.int32) for ahead in (0, 1))
    return tokens, targets, mask


def compact(tokens: Array) -> Array:
    """The tokens in the smallest unsigned type that holds them; tokens of an unsigned type are left as they are."""
    return tokens if tokens.dtype.kind == "u" else tokens.astype(np.min_scalar_type(tokens.max()))


def count_tokens(tokens: Array, size: int) -> Array:
    """int64 [V], how often each token occurs, counted part by part, since bincount copies what it counts."""
    parts = (tokens[start : start + COUNTED] for start in range(0, len(tokens), COUNTED))
    return sum((np.bincount(part, minlength=size) for part in parts), np.zeros(size, np.int64))


def in_range(index: int, count: int) -> int:
    """The index, if an epoch has such a batch."""
    if not 0 <= index < count:
        raise IndexError(f"batch {index} of an epoch of {count}")
    return index


def check_stream(predictions: int, batch_size: int, seq_length: int) -> None:
    """Raise CorpusError where the text does not fill one batch."""
    if predictions < batch_size:
        raise CorpusError(
            f"The batch is larger than the text: {predictions + 1} characters make {max(predictions, 0)} predictions, "
            f"and --batch-size {batch_size} asks for that many rows. Lower --batch-size, or take a longer text."
        )
    longest = -(-predictions // batch_size)
    if longest < seq_length:
        raise CorpusError(
            f"The text is shorter than a window: {predictions + 1} characters in {batch_size} rows leave {longest} "
            f"steps a row, and a window has {seq_length}. Lower --seq-length or --batch-size, or take a longer text."
        )


def check_windows(tokens: int, count: int, batch_size: int, seq_length: int, stride: int) -> None:
    """Raise CorpusError where the windows do not fill one batch."""
    if count < batch_size:
        raise CorpusError(
            f"The batch is larger than the text: {tokens} tokens hold {count} windows of {seq_length} steps at a "
            f"stride of {stride}, and --batch-size is {batch_size}. Lower --batch-size, --seq-length or --stride, or "
            "take a longer text."
        )


def check_poems(longer: Sequence[int], poems: int, fitting: int, batch_size: int, seq_length: int) -> None:
    """Raise CorpusError where the poems do not fill one batch; `longer` are the lengths of those that are too long."""
    if longer and not fitting:
        raise CorpusError(
            f"Every poem is longer than --seq-length {seq_length}: the shortest of {poems} takes "
            f"{min(longer) + 1} steps, its end included. Raise --seq-length."
        )
    if fitting < batch_size:
        raise CorpusError(
            f"The batch is larger than the text: {fitting} of {poems} poems fit into --seq-length "
            f"{seq_length}, and --batch-size is {batch_size}. Lower --batch-size, raise --seq-length, or take more "
            "poems."
        )
