"""Killed twice in the middle and resumed twice, in every implementation: the same bits as if nothing had happened."""

import random

import kill_and_resume as script

from shared.checkpoint import load_checkpoint

DESIGN = {"numpy": "gru-windows", "torch": "lstm-poems", "jax": "lstm-streams", "tf": "gru-poems"}
"""Each implementation one here; the script takes all, and as many kills as one likes."""


def test_killed_and_resumed_is_never_killed(impl, tmp_path):
    folders = [script.folder_with_texts(tmp_path, name, seed=7) for name in ("whole", "parts")]
    whole = script.undisturbed(impl, DESIGN[impl], folders[0], epochs=3)
    draw = random.Random(f"moments of {impl}")
    steps_of_epoch = whole.lines // whole.epochs
    first = draw.randrange(whole.stack + 1, steps_of_epoch)  # within the first epoch, and after a checkpoint
    second = draw.randrange(first + whole.stack, whole.lines - steps_of_epoch)
    saved = []

    def watched(moment):
        def come(run):
            if moment(run):
                saved.append(load_checkpoint(run / "last.safetensors").progress)
                return True
            return False

        return come

    moments = [watched(script.at_line(number)) for number in (first, second)]
    kills = script.disturbed(whole, folders[1], script.INTERVALS[1], moments)
    assert [kill.phase for kill in kills] == ["training", "training"]
    assert 0 < saved[0]["index"] < steps_of_epoch
    assert saved[0]["step"] < saved[1]["step"]
    assert all(0 <= kill.done_again <= whole.stack for kill in kills)
    assert script.differences(*folders) == []
