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
    TrainingConfig,
    from_json,
    to_json,
)
from shared.errors import ConfigError

KINDS = (ModelConfig, OptimizerConfig, TrainingConfig, CorpusConfig, RuntimeConfig, SamplingConfig)
CHANGED = (
    ModelConfig(cell="gru", hidden_size=3, num_layers=2, embedding_size=0, initializer="xavier"),
    OptimizerConfig(optimizer="sgd", betas=(0.5, 0.99), epsilon=1e-3, clip_norm=0.0),
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
        (to_json(ModelConfig()) | {"cell": "mystery"}, "cell must be one of rnn, lstm, gru"),
        (to_json(ModelConfig()) | {"hidden_size": 0}, "at least 1"),
    ],
)
def test_stored_values_are_not_trusted(values, words):
    with pytest.raises(ConfigError, match=words):
        from_json(ModelConfig, values)
