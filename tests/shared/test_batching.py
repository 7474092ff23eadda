"""Every prediction exactly once an epoch, in a fixed shape, as a function of (epoch, index)."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import batching
from shared.batching import (
    Batches,
    LastTargets,
    PoemBatches,
    StreamBatches,
    WindowBatches,
    stack,
    stretches,
    unmasked_targets,
)
from shared.contract import Batch
from shared.errors import CorpusError, VocabularyError
from shared.vocabulary import Vocabulary, build_vocabulary

POEMS = ("abc", "de", "f", "bad", "cafe", "bead", "ace")
VOCABULARY = build_vocabulary(POEMS, 1, poems=True)


def poem_batches(
    texts: tuple[str, ...] = POEMS, batch_size: int = 3, seq_length: int = 5, seed: int = 1, shuffle: bool = True
) -> PoemBatches:
    return PoemBatches([VOCABULARY.encode(text) for text in texts], batch_size, seq_length, VOCABULARY, seed, shuffle)


def epoch_of(batches: Batches, epoch: int = 0) -> list[Batch]:
    return [batches.batch(epoch, index) for index in range(len(batches))]


def rows_read(batches: PoemBatches, epoch: int) -> list[str]:
    """The poems of an epoch, as the targets have them."""
    rows = [
        (row, mask) for batch in epoch_of(batches, epoch) for row, mask in zip(batch.targets, batch.mask, strict=True)
    ]
    return [VOCABULARY.decode(row[mask]) for row, mask in rows if mask.any()]


def check_form(batch: Batch, batch_size: int, seq_length: int) -> None:
    """Shapes, types, and padding at the end of rows only."""
    assert batch.tokens.shape == batch.targets.shape == batch.mask.shape == (batch_size, seq_length)
    assert batch.reset.shape == (batch_size,)
    assert (batch.tokens.dtype, batch.targets.dtype) == (np.int32, np.int32)
    assert (batch.mask.dtype, batch.reset.dtype) == (np.bool_, np.bool_)
    assert not (~batch.mask[:, :-1] & batch.mask[:, 1:]).any()


def test_a_stream_by_hand() -> None:
    batches = StreamBatches(np.arange(10, 22), 2, 4)  # 11 predictions: rows of 5 and 6
    assert len(batches) == 2
    first, second = epoch_of(batches)
    assert first.tokens.tolist() == [[10, 11, 12, 13], [15, 16, 17, 18]]
    assert first.targets.tolist() == [[11, 12, 13, 14], [16, 17, 18, 19]]
    assert first.mask.all()
    assert first.reset.tolist() == [True, True]
    assert second.tokens.tolist() == [[14, 0, 0, 0], [19, 20, 0, 0]]
    assert second.targets.tolist() == [[15, 0, 0, 0], [20, 21, 0, 0]]
    assert second.mask.tolist() == [[True, False, False, False], [True, True, False, False]]
    assert second.reset.tolist() == [False, False]


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, int, int]:
    """N, B, T of a stream that fills a batch."""
    batch_size, seq_length = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    return draw(st.integers(batch_size * seq_length + 1, 400)), batch_size, seq_length


@settings(deadline=None)
@given(streams())
def test_a_stream_loses_and_duplicates_nothing(sizes: tuple[int, int, int]) -> None:
    count, batch_size, seq_length = sizes
    batches = StreamBatches(np.arange(count) + 1, batch_size, seq_length)
    seen: list[tuple[int, int]] = []
    for batch in epoch_of(batches):
        check_form(batch, batch_size, seq_length)
        seen += zip(batch.tokens[batch.mask].tolist(), batch.targets[batch.mask].tolist(), strict=True)
    assert sorted(seen) == [(token, token + 1) for token in range(1, count)]
    lengths = sum(batch.mask.sum(axis=1) for batch in epoch_of(batches))
    assert np.ptp(lengths) <= 1


@settings(deadline=None)
@given(streams())
def test_rows_of_a_stream_go_on_where_they_stopped(sizes: tuple[int, int, int]) -> None:
    count, batch_size, seq_length = sizes
    epoch = epoch_of(StreamBatches(np.arange(count) + 1, batch_size, seq_length))
    assert [batch.reset.all() for batch in epoch] == [True] + [False] * (len(epoch) - 1)
    for before, after in pairwise(epoch):
        going_on = after.mask[:, 0]
        assert (before.targets[going_on, -1] == after.tokens[going_on, 0]).all()


def test_large_tokens_survive() -> None:
    tokens = np.array([0, 70_000, 300, 65_536, 1], np.int32)
    batch = StreamBatches(tokens, 1, 4).batch(0, 0)
    assert batch.tokens.tolist() == [[0, 70_000, 300, 65_536]]
    assert batch.targets.tolist() == [[70_000, 300, 65_536, 1]]


def test_a_batch_larger_than_the_text_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"batch is larger than the text.*--batch-size 9"):
        StreamBatches(np.arange(9), 9, 1)
    with pytest.raises(CorpusError, match="batch is larger"):
        StreamBatches(np.arange(0), 1, 1)


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(
        CorpusError, match=r"shorter than a window: 12 characters in 3 rows leave 4 steps.*--seq-length"
    ):
        StreamBatches(np.arange(12), 3, 5)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_batch_outside_the_epoch_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match="epoch of 2"):
        StreamBatches(np.arange(10, 22), 2, 4).batch(0, index)


def test_poems_by_hand() -> None:
    batch = poem_batches(shuffle=False).batch(0, 2)  # "ace" and two rows that are missing
    pad, _, bos, eos, *_ = range(len(VOCABULARY))
    a, c, e = VOCABULARY.encode("ace")
    assert batch.tokens.tolist() == [[bos, a, c, e, pad], [pad] * 5, [pad] * 5]
    assert batch.targets.tolist() == [[a, c, e, eos, pad], [pad] * 5, [pad] * 5]
    assert batch.mask.tolist() == [[True] * 4 + [False], [False] * 5, [False] * 5]
    assert batch.reset.tolist() == [True] * 3


@settings(deadline=None)
@given(
    st.lists(st.text("abcdef", max_size=9), min_size=1, max_size=30).map(tuple),
    st.integers(1, 4),
    st.integers(1, 10),
    st.integers(0, 2**63 - 1),
    st.integers(0, 5),
)
def test_poems_are_neither_lost_nor_duplicated(
    texts: tuple[str, ...], batch_size: int, seq_length: int, seed: int, epoch: int
) -> None:
    fitting = Counter(text for text in texts if len(text) < seq_length)
    if fitting.total() < batch_size:
        with pytest.raises(CorpusError, match="--seq-length"):
            poem_batches(texts, batch_size, seq_length, seed)
        return
    batches = poem_batches(texts, batch_size, seq_length, seed)
    assert batches.left_out == len(texts) - fitting.total()
    assert Counter(rows_read(batches, epoch)) == fitting
    for batch in epoch_of(batches, epoch):
        check_form(batch, batch_size, seq_length)
        assert batch.reset.all()
        assert (np.diff(batch.mask.sum(axis=1)) <= 0).all()
        assert (batch.targets[batch.mask] == VOCABULARY.eos).sum() == batch.mask.any(axis=1).sum()
        assert (batch.tokens[batch.mask.any(axis=1), 0] == VOCABULARY.bos).all()


def test_poems_are_shuffled_anew_every_epoch() -> None:
    orders = [rows_read(poem_batches(), epoch) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert rows_read(poem_batches(seed=2), 0) != orders[0]
    size, unshuffled = 3, list(POEMS)
    in_order = [sorted(unshuffled[k : k + size], key=len, reverse=True) for k in range(0, len(unshuffled), size)]
    assert rows_read(poem_batches(shuffle=False), 3) == [poem for batch in in_order for poem in batch]


def test_batches_depend_on_epoch_and_index_alone() -> None:
    places = [(2, 1), (0, 0), (2, 0), (1, 2), (2, 1)]
    kept = poem_batches()
    for epoch, index in places:
        again = poem_batches().batch(epoch, index)
        for field, expected in zip(kept.batch(epoch, index), again, strict=True):
            np.testing.assert_array_equal(field, expected)


def test_poems_that_are_all_too_long_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"shortest of 2 takes 4 steps.*Raise --seq-length"):
        poem_batches(("abc", "cafe"), batch_size=1, seq_length=3)


def test_fewer_poems_than_rows_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"larger than the text: 2 of 3 poems fit.*--batch-size is 3"):
        poem_batches(("abc", "de", "cafebead"), batch_size=3)


def test_a_poem_that_is_cut_has_no_end() -> None:
    texts = ("cafe", "bead", "abc", "de")
    batches = PoemBatches([VOCABULARY.encode(text) for text in texts], 2, 4, VOCABULARY, 1, shuffle=False, cut=True)
    assert (batches.left_out, batches.cut) == (0, 2)
    first, second = epoch_of(batches)
    bos, eos = VOCABULARY.bos, VOCABULARY.eos
    c, a, f, e = VOCABULARY.encode("cafe")
    assert first.tokens[0].tolist() == [bos, c, a, f]
    assert first.targets[0].tolist() == [c, a, f, e]
    assert first.mask.all()
    assert (second.targets == eos).sum(axis=1).tolist() == [1, 1]
    assert rows_read(batches, 0) == list(texts)


def test_cut_poems_leave_none_out() -> None:
    batches = PoemBatches([VOCABULARY.encode(text) for text in POEMS], 7, 2, VOCABULARY, 1, shuffle=True, cut=True)
    assert sorted(rows_read(batches, 3)) == sorted(text[:2] for text in POEMS)


def test_poems_need_a_vocabulary_with_marks() -> None:
    with pytest.raises(VocabularyError, match="begins and ends"):
        PoemBatches([np.array([0, 1])], 1, 4, Vocabulary(("a", "b")), 0, shuffle=False)


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        ([6, 3, 1], ((0, 1, 3), (1, 3, 2), (3, 6, 1))),
        ([6, 6, 6], ((0, 6, 3),)),
        ([5, 2, 0], ((0, 2, 2), (2, 5, 1))),
        ([0, 0, 0], ((0, 1, 1),)),
        ([6, 5, 5, 5, 4, 3, 2, 1], ((0, 2, 8), (2, 4, 6), (4, 5, 4), (5, 6, 2))),  # by quarters of 8
        ([4, 6, 1], ((0, 6, 3),)),  # not the longest first
    ],
)
def test_stretches_by_hand(lengths: list[int], found: tuple[tuple[int, int, int], ...]) -> None:
    assert stretches(np.arange(6) < np.array(lengths)[:, None]) == found


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(1, 20), st.integers(1, 9))
def test_stretches_cover_all_that_is_not_padding(lengths: list[int], T: int, parts: int) -> None:
    mask = np.arange(T) < np.sort(np.minimum(lengths, T))[::-1, None]
    covered, done = np.zeros_like(mask), 0
    for start, stop, rows in stretches(mask, parts):
        assert start == done < stop
        covered[:rows, start:stop], done = True, stop
    assert (covered >= mask).all()
    assert len(stretches(mask, parts)) <= parts
    assert (covered.sum(axis=0) - mask.sum(axis=0) <= max(1, -(-len(lengths) // parts))).all()


def test_stack_adds_a_leading_axis() -> None:
    batches = epoch_of(poem_batches())
    stacked = stack(batches)
    assert stacked.tokens.shape == (3, 3, 5)
    assert stacked.reset.shape == (3, 3)
    for index, batch in enumerate(batches):
        for field, expected in zip(stacked, batch, strict=True):
            np.testing.assert_array_equal(field[index], expected)
            assert field.dtype == expected.dtype


# Windows

TINY_SHAKESPEARE = 1_115_394


def starts_of(batches: WindowBatches, epoch: int) -> list[int]:
    """Where the windows of an epoch begin, of tokens that are their own places."""
    return [int(row[0]) for batch in epoch_of(batches, epoch) for row in batch.tokens]


def test_windows_by_hand() -> None:
    batches = WindowBatches(np.arange(10, 23), 2, 4, 3, seed=1, shuffle=False)  # starts 10, 13, 16: 23 would be needed
    assert len(batches) == 2
    first, second = epoch_of(batches)
    assert first.tokens.tolist() == [[10, 11, 12, 13], [13, 14, 15, 16]]
    assert first.targets.tolist() == [[11, 12, 13, 14], [14, 15, 16, 17]]
    assert second.tokens.tolist() == [[16, 17, 18, 19], [0] * 4]
    assert second.targets.tolist() == [[17, 18, 19, 20], [0] * 4]
    assert second.mask.tolist() == [[True] * 4, [False] * 4]
    assert all(batch.reset.all() for batch in (first, second))


def test_an_epoch_of_tiny_shakespeare_has_4356_steps() -> None:
    assert len(WindowBatches(np.zeros(TINY_SHAKESPEARE, np.uint8), 256, 100, 1, seed=0)) == 4_356


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 6), st.integers(0, 200), st.integers(0, 2**63 - 1))
def test_every_window_comes_at_most_once_an_epoch(B: int, T: int, stride: int, more: int, seed: int) -> None:
    tokens = np.arange(T + (B - 1) * stride + 1 + more)
    windows = range(0, len(tokens) - T, stride)
    batches = WindowBatches(tokens, B, T, stride, seed)
    starts = starts_of(batches, epoch=2)
    assert len(batches) == len(windows) // B
    assert len(set(starts)) == len(starts) == len(batches) * B
    assert set(starts) <= set(windows)
    for batch in epoch_of(batches, 2):
        check_form(batch, B, T)
        assert batch.mask.all()
        assert (batch.targets == batch.tokens + 1).all()
        assert (np.diff(batch.tokens, axis=1) == 1).all()
    in_order = WindowBatches(tokens, B, T, stride, seed, shuffle=False)
    read = [
        int(row[0])
        for batch in epoch_of(in_order)
        for row, mask in zip(batch.tokens, batch.mask, strict=True)
        if mask.all()
    ]
    assert read == list(windows)


def test_windows_are_shuffled_anew_every_epoch_and_found_at_random() -> None:
    batches = WindowBatches(np.arange(90), 4, 5, 2, seed=1)
    orders = [starts_of(batches, epoch) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert starts_of(WindowBatches(np.arange(90), 4, 5, 2, seed=2), 0) != orders[0]
    again = WindowBatches(np.arange(90), 4, 5, 2, seed=1).batch(1, 3)
    for field, expected in zip(batches.batch(1, 3), again, strict=True):
        np.testing.assert_array_equal(field, expected)


def test_only_the_first_windows_are_reset_where_the_state_is_carried() -> None:
    batches = WindowBatches(np.arange(30), 3, 4, 2, seed=1, carry_state=True)
    assert [batch.reset.tolist() for batch in epoch_of(batches, 1)] == [[True] * 3] + [[False] * 3] * 3


def test_windows_that_fill_no_batch_are_refused() -> None:
    with pytest.raises(
        CorpusError, match=r"10 tokens hold 2 windows of 4 steps at a stride of 4, and --batch-size is 3"
    ):
        WindowBatches(np.arange(10), 3, 4, 4, seed=0)
    with pytest.raises(CorpusError, match="hold 0 windows"):
        WindowBatches(np.arange(3), 1, 4, 1, seed=0)


# Many-to-one


def test_the_last_step_of_a_window_predicts() -> None:
    batches = LastTargets(WindowBatches(np.arange(10, 23), 2, 4, 3, seed=1, shuffle=False))
    first, second = epoch_of(batches)  # type: ignore[arg-type]
    assert first.targets.tolist() == [14, 17]
    assert first.targets.dtype == np.int32
    assert second.targets.tolist() == [20, 0]
    assert second.mask.shape == (2, 4)
    assert unmasked_targets(second).tolist() == [20]
    assert unmasked_targets(stack([first, second])).tolist() == [14, 17, 20]


def test_the_last_step_of_a_short_row_predicts() -> None:
    batches = LastTargets(StreamBatches(np.arange(10, 22), 2, 4))  # rows of 5 and 6
    assert [batch.targets.tolist() for batch in epoch_of(batches)] == [[14, 19], [15, 21]]
    assert [batch.tokens.shape for batch in epoch_of(batches)] == [(2, 4)] * 2


def test_a_row_without_a_step_counts_nothing() -> None:
    batches = LastTargets(StreamBatches(np.arange(1, 13), 3, 3))  # rows of 3, 4 and 4
    last = batches.batch(0, 1)
    assert last.mask.any(axis=1).tolist() == [False, True, True]
    assert last.targets.tolist() == [0, 8, 12]
    assert unmasked_targets(last).tolist() == [8, 12]


# Counts


def test_counts_are_of_what_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "COUNTED", 3)
    tokens = np.array([4, 0, 1, 1, 0, 2, 1, 4, 0], np.int32)
    for batches in (StreamBatches(tokens, 2, 3), poem_batches(), poem_batches(seq_length=4)):
        predicted = np.concatenate([unmasked_targets(batch) for batch in epoch_of(batches, 1)])
        assert batches.counts(11).tolist() == np.bincount(predicted, minlength=11).tolist()
    windows = WindowBatches(tokens, 2, 3, 1, seed=0)
    assert windows.counts(6).tolist() == LastTargets(windows).counts(6).tolist() == [3, 3, 1, 0, 1, 0]
