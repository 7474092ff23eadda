import dataclasses
import json
from pathlib import Path

import pytest

from shared.config import (
    CorpusConfig,
    ModelConfig,
    OptimizerConfig,
    RuntimeConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainingConfig,
    from_json,
    to_json,
)
from shared.errors import ConfigError

KINDS = (ModelConfig, OptimizerConfig, ScheduleConfig, TrainingConfig, CorpusConfig, RuntimeConfig, SamplingConfig)
CHANGED = (
    ModelConfig(cell="gru", hidden_size=3, num_layers=2, embedding_size=0, initializer="xavier"),
    OptimizerConfig(optimizer="sgd", betas=(0.5, 0.99), epsilon=1e-3, clip_norm=0.0, clip_layers=("l0=1", "l1=2")),
    ScheduleConfig(schedule="cosine", restart_period=2, restart_factor=3, minimum_rate=1e-5),
    CorpusConfig(corpus="x.txt", reader="titled", data_dir=Path("/data"), minimum_count=3),
)


@pytest.mark.parametrize("config", [*(kind() for kind in KINDS), *CHANGED], ids=lambda config: type(config).__name__)
def test_json_round_trip(config):
    assert from_json(type(config), json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_and_small(kind):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), dataclasses.fields(kind)[0].name, None)
    assert len(dataclasses.fields(kind)) <= 15


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ModelConfig(hidden_size=0), "--hidden-size must be at least 1, got 0"),
        (lambda: ModelConfig(num_layers=-1), "--num-layers"),
        (lambda: ModelConfig(embedding_size=-1), "--embedding-size must be at least 0"),
        (lambda: ModelConfig(dropout=1.0, num_layers=2), r"--dropout must lie in \[0, 1\)"),
        (lambda: ModelConfig(dropout=0.1), "--dropout acts between layers"),
        (lambda: ModelConfig(nonlinearity="relu"), "--nonlinearity belongs to --cell rnn"),
        (lambda: ModelConfig(gru_reset="before"), "--gru-reset belongs to --cell gru"),
        (lambda: ModelConfig(cell="gru", forget_bias=1.0), "--forget-bias belongs to --cell lstm"),
        (lambda: ModelConfig(embedding_size=0, embedding_activation="tanh"), "--embedding-activation needs"),
        (lambda: ModelConfig(tied_weights=True), "--tied-weights needs --embedding-size equal to --hidden-size"),
        (lambda: OptimizerConfig(centered=True), "--centered belongs to --optimizer rmsprop"),
        (lambda: OptimizerConfig(rmsprop_momentum=0.1), "--rmsprop-momentum belongs"),
        (lambda: OptimizerConfig(initial_accumulator=0.1), "--initial-accumulator belongs to --optimizer adagrad"),
        (lambda: OptimizerConfig(momentum=1.0), "--momentum must lie"),
        (lambda: OptimizerConfig(clip_value=-1.0), "--clip-value must be 0"),
        (lambda: OptimizerConfig(clip_layers=("l0",)), "--clip-layers takes entries such as"),
        (lambda: OptimizerConfig(clip_layers=("head=1",)), "got 'head=1'"),
        (lambda: OptimizerConfig(clip_layers=("l0=nan",)), "got 'l0=nan'"),
        (lambda: ScheduleConfig(decay_rate=0.0), "--decay-rate"),
        (lambda: ScheduleConfig(restart_factor=0), "--restart-factor must be at least 1"),
        (lambda: TrainingConfig(carry_state=True), "--carry-state needs --stride"),
        (lambda: CorpusConfig(held_out=0.6), "--held-out"),
        (lambda: CorpusConfig(minimum_length=9, maximum_length=5), "no poem could pass"),
        (lambda: CorpusConfig(subwords=500, minimum_count=2), "--subwords"),
        (lambda: OptimizerConfig(epsilon=0.0), "--epsilon"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "--betas"),
        (lambda: OptimizerConfig(clip_norm=float("inf")), "--clip-norm"),
        (lambda: TrainingConfig(seq_length=0), "--seq-length"),
        (lambda: TrainingConfig(learning_rate=float("nan")), "--learning-rate"),
        (lambda: TrainingConfig(seed=2**63), "--seed"),
        (lambda: CorpusConfig(corpus=""), "--corpus"),
        (lambda: RuntimeConfig(device="cuda:"), "--device"),
        (lambda: RuntimeConfig(device="cpu:1"), "--device"),
        (lambda: SamplingConfig(temperature=-0.1), "--temperature"),
        (lambda: SamplingConfig(top_p=0.0), "--top-p"),
    ],
)
def test_impossible_values_name_their_flag(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "JSON object"),
        ({"hidden_size": 5}, "missing or unexpected"),
        (to_json(ModelConfig()) | {"extra": 1}, "extra"),
        (to_json(ModelConfig()) | {"hidden_size": "5"}, "hidden_size must be int"),
        (to_json(ModelConfig()) | {"hidden_size": True}, "hidden_size must be int"),
        (to_json(ModelConfig()) | {"cell": "mystery"}, "cell must be one of rnn, lstm, gru, wrnn"),
        (to_json(ModelConfig()) | {"hidden_size": 0}, "at least 1"),
    ],
)
def test_stored_values_are_not_trusted(values, words):
    with pytest.raises(ConfigError, match=words):
        from_json(ModelConfig, values)
