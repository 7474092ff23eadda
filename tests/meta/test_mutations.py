"""The tests catch mistakes in shared and in NumPy's mathematics: seven mutations of `mutate`, and how they are made."""

import ast
import shutil
from functools import cache

import mutate
import pytest
from mutate import CASES, MODULES, ROOT, SHARED, Mutation, Stage

CONTRACT = "tests/conformance/test_contract.py"
SLOPES = "tests/reference/test_gradients.py::test_gradients_are_the_slopes_of_the_loss"
FIXED = [
    ("shared/initializers.py", "np.sqrt(6 / (fan_in + fan_out))", "np.sqrt(6 / (fan_in - fan_out))"),
    ("shared/schedules.py", "(step + 1) / max(1,", "(step + 2) / max(1,"),
    ("shared/batching.py", "mask = steps < lengths[:, None]", "mask = steps <= lengths[:, None]"),
    ("shared/statistics.py", "-sum(share * math.log2(share)", "-sum(share / math.log2(share)"),
    ("shared/layouts.py", "np.concatenate([update, reset, candidate])", "np.concatenate([reset, update, candidate])"),
    ("impl_numpy/generate.py", "ranked - ranked[:, :1]", "ranked[:, :1] - ranked"),
    ("impl_numpy/wrnn.py", "after.first * (1 - after.first)", "after.first * (1 + after.first)"),
]
"""Module, text, and the text that stands there after the mutation."""
STAGES = {
    "impl_numpy/wrnn.py": Stage("numpy", (f"{SLOPES}[wrnn one-hot, many-to-one]",)),
    "impl_numpy/generate.py": Stage("numpy", (CONTRACT, "-k", "sampling or ties")),
}
"""What NumPy alone can be asked; of shared, the first of `tests_of`."""


def stage_of(path: str) -> Stage:
    return STAGES.get(path) or mutate.tests_of(path)[0]


@pytest.fixture(scope="module")
def folder():
    with mutate.project_copy() as folder:
        yield folder


def test_without_a_mutation_the_same_tests_pass(folder):
    wanted = [stage_of(path) for path, _, _ in FIXED]
    plain = [argument for stage in wanted if "-k" not in stage.arguments for argument in stage.arguments]
    for stage in (Stage("numpy", tuple(plain)), *(stage for stage in wanted if "-k" in stage.arguments)):
        assert mutate.run(folder, stage).outcome == "passed"


@pytest.mark.parametrize(("path", "old", "new"), FIXED, ids=[path for path, _, _ in FIXED])
def test_a_mutation_is_caught(folder, path, old, new):
    mutation = mutate.replacement(folder, path, old, new)
    with mutate.mutated(folder, mutation):
        ran = mutate.run(folder, stage_of(path))
    assert ran.outcome == "failed"
    assert ran.by.startswith("tests/"), ran.by  # a test, not an import that broke
    assert (folder / path).read_text("utf-8") == (ROOT / path).read_text("utf-8")


@cache
def of(path: str) -> list[Mutation]:
    return mutate.mutations_of(path, (ROOT / path).read_text("utf-8"))


@pytest.mark.parametrize("path", [path for path in MODULES if path.startswith("shared")])
def test_every_mutation_is_another_valid_program(path):
    source = (ROOT / path).read_text("utf-8")
    tree = ast.dump(ast.parse(source))
    assert len(of(path)) >= 10
    assert all(ast.dump(ast.parse(mutation.applied(source))) != tree for mutation in of(path)[::8])


SAMPLE = '''"""Text: 1 + 1."""

from a import b

LIMIT: Literal[3] = 5


def f(x: tuple[int, 2], axis: int = 0) -> dict[str, 1]:
    """More text: 2 - 1."""
    if not x and axis < 3:
        raise ValueError(f"{x + 1} < 2")
    y, z = x.sum(axis=-1), a[1:]
    return tanh(y, z), "é" + "b", c.T @ d if y else min(y, 2.0)
'''
EXPECTED = {
    "5 -> 6", "0 -> 1", "-1 -> 0", "3 -> 4", "not x -> x", "axis < 3 -> (axis <= 3)",
    "not x and axis < 3 -> (not x or axis < 3)", "1 -> 2", "axis=-1 -> axis=0", "1: -> 1 + 1:", "1: -> 1 - 1:",
    "x.sum -> x.mean", "x.sum(axis=-1) -> x.sum()", "y, z = x.sum(axis=-1), a[1:] -> z, y = (x.sum(axis=-1), a[1:])",
    "tanh(y, z) -> tanh(z, y)", "c.T -> c", "c.T @ d -> (d @ c.T)", "min -> max", "2.0 -> 2.02",
    "c.T @ d if y else min(y, 2.0) -> (min(y, 2.0) if y else c.T @ d)",
    'return tanh(y, z), "é" + "b", c.T @ d if y else min(y, 2.0) -> '
    "return ('é' + 'b', tanh(y, z), c.T @ d if y else min(y, 2.0))",
    'return tanh(y, z), "é" + "b", c.T @ d if y else min(y, 2.0) -> '
    "return (tanh(y, z), c.T @ d if y else min(y, 2.0), 'é' + 'b')",
}  # fmt: skip


def test_the_mathematics_is_mutated_and_nothing_else():
    found = mutate.mutations_of("sample.py", SAMPLE)
    assert {f"{mutate.flat(each.old)} -> {mutate.flat(each.new)}" for each in found} == EXPECTED
    assert {kind for kind, _ in mutate.OPERATORS} - {each.kind for each in found} == {"arithmetic"}


def test_what_is_excluded_is_there():
    for module, _, held, reason in mutate.EXCLUDED:
        sources = [(ROOT / path).read_text("utf-8") for path in MODULES if mutate.re.search(module, path)]
        assert any(mutate.re.search(held, source, mutate.re.M) for source in sources), reason


def test_a_choice_is_even_and_always_the_same():
    chosen = mutate.chosen(ROOT, 40, 1, "shared|numpy")
    assert chosen == mutate.chosen(ROOT, 60, 1, "shared|numpy")[:40]
    counts = [sum(each.path == path for each in chosen) for path in MODULES if "shared" in path or "numpy" in path]
    assert set(counts) <= {0, 1, 2}
    assert counts.count(0) == 1  # impl_numpy/native.py has no mathematics
    assert chosen != mutate.chosen(ROOT, 40, 2, "shared|numpy")


def test_a_copy_that_is_not_the_copy_is_noticed(folder, tmp_path):
    shutil.copytree(folder / "tests", tmp_path / "tests")
    try:
        ran = mutate.run(tmp_path, Stage("numpy", ("tests/shared/test_sampling.py",)))
    finally:
        mutate.close_nurseries(tmp_path)
    assert ran == ("failed", "AssertionError: the copy is not what is tested", ran.seconds)


def test_the_limit_is_kept(folder):
    (folder / "tests/shared/test_endless.py").write_text("def test_endless():\n    while True: pass\n")
    assert mutate.run(folder, Stage("numpy", ("tests/shared/test_endless.py",)), 2).outcome == "too long"


def test_the_table_of_tests_is_whole():
    # parallel.py is compared with one worker, and is not mutated itself.
    files = {path.stem for path in (ROOT / "impl_numpy").glob("*.py")} - {"__init__", "parallel"}
    assert set(CASES) == files
    for path in MODULES:
        assert (ROOT / path).exists()
        for stage in mutate.stages_of(path):
            assert (ROOT / stage.arguments[0].partition("::")[0]).exists()
    assert set(SHARED) <= {path.removeprefix("shared/").removesuffix(".py") for path in MODULES}
