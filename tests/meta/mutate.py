"""Mutation testing of the tests: does a small mistake in the mathematics make a test fail?

    python tests/meta/mutate.py --count 100 --seed 1 --json docs/measurements/mutations.json

A copy of the project gets one mutation, a single changed expression, and the tests that concern its module run there;
the checkout is never changed. The mutation is caught if a test fails, or breaks, or does not end within the limit. The
same tests pass in the copy without a mutation: that is tried too. A run with --json goes on from what that file holds
and tries survivors again; begin a new file after a change. Processor time is counted: a busy machine changes nothing.

What is mutated: the modules in `MODULES`, there everything but text, annotations, errors and `EXCLUDED`.
"""

import argparse
import ast
import builtins
import copy
import difflib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shared.files import write_atomically  # noqa: E402

PACKAGES = ("shared", "runner", "impl_numpy", "impl_torch", "impl_jax", "impl_tf")
FRAMEWORKS = {"torch": ("torch",), "jax": ("jax", "flax", "optax"), "tf": ("tensorflow", "keras")}
LIMIT_S, UNMUTATED_S = 30, 20
"""Of processor time, for one pytest, and for the same without a mutation."""
ENOUGH = 0.98


class Mutation(NamedTuple):
    """One changed expression."""

    path: str
    line: int
    kind: str
    start: int
    """Offset of the expression in the file, in characters; it is `old`, and becomes `new`."""
    old: str
    new: str

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line} {self.kind}: {flat(self.old)} -> {flat(self.new)}"

    def applied(self, source: str) -> str:
        """The module's text with the mutation."""
        end = self.start + len(self.old)
        assert source[self.start : end] == self.old
        return source[: self.start] + self.new + source[end:]


def flat(code: str) -> str:
    """On one line."""
    return " ".join(code.split())


# --- Which tests concern which module. -------------------------------------------------------------------------------

CONTRACT = "tests/conformance/test_contract.py"
LAYERS = {
    "native": "tests/conformance/test_check.py::test_the_native_layer_agrees_or_says_why_it_cannot",
    "fused": "tests/conformance/test_check.py::test_the_fused_engine_agrees_or_says_why_it_cannot",
}
EXAMINE = "tests/meta/examine.py"
BRIEFLY = ("finite or norm or rows", "ties or round or bit or common or float32", "trace")
"""Of the contract's tests, what JAX and TensorFlow, which compile, are asked, a few at a time."""
ENGINES: dict[str, list[tuple[str, ...]]] = {
    "numpy native": [],
    "numpy fused": [("tests/reference/test_fused.py",), ("tests/conformance/test_engine_numpy.py",)],
    "torch native": [("tests/conformance/test_engine_torch.py",)],
    "torch fused": [("tests/conformance/test_engine_torch.py",)],
    "jax native": [("tests/conformance/test_engine_jax.py", "-k", "cudnn")],
    "jax fused": [("tests/conformance/test_engine_jax.py", "-k", "fused")],
    "tf native": [],
    "tf fused": [("tests/conformance/test_engine_tf.py", "-k", "fused or fold")],
}
"""Tests of an implementation's engines, beside `check`."""
SHARED: dict[str, list[tuple[str, ...]]] = {
    "initializers": [("tests/shared/test_initializers.py",), ("tests/parity/test_library_initializers.py",)],
    "schedules": [("tests/shared/test_schedules.py",), ("tests/parity/test_library_schedules.py",)],
    "optimizers": [("tests/shared/test_optimizers.py",), ("tests/parity/test_library_optimizers.py", "-k", "torch")],
    "random_bits": [("tests/shared/test_random_bits.py",)],
    "sampling": [("tests/shared/test_sampling.py",)],
    "evaluation": [("tests/shared/test_evaluation.py",)],
    "batching": [("tests/shared/test_batching.py",)],
    "parameters": [("tests/shared/test_parameters.py",), (CONTRACT,)],
    "layouts": [("tests/shared/test_layouts.py",)],
    "statistics": [("tests/shared/test_statistics.py",)],
    "corpora/splitting": [("tests/shared/test_corpora.py", "-k", "split or held_out or share")],
    "vocabulary": [("tests/shared/test_vocabulary.py",)],
}
"""Module of shared -> the tests, one pytest after the other until one fails."""
CASES: dict[str, list[str]] = {
    "embedding": ["rnn relu, activation", "wrnn residual, sigmoid", "lstm many-to-one", "rnn one-hot"],
    "rnn": ["rnn one-hot", "rnn relu, activation"],
    "lstm": ["lstm"],
    "gru": ["gru reset before", "gru"],
    "wrnn": ["wrnn"],
    "dropout": ["lstm dropout, tied"],
    "unroll": ["lstm one-hot, residual", "lstm dropout, tied", "rnn"],
    "loss": ["lstm many-to-one", "rnn"],
    "optimizer": [
        "rnn one-hot",
        "gru reset before",
        "rnn relu, activation",
        "lstm one-hot, residual",
        "lstm dropout, tied",
    ],
    "generate": ["rnn"],
    "model": ["rnn", "lstm many-to-one", "lstm dropout, tied"],
    "arrays": ["rnn one-hot"],
    "native": ["rnn relu, activation", "lstm one-hot, residual", "gru"],
    "fused": ["lstm one-hot, residual", "gru", "lstm dropout, tied"],
}
"""Module of an implementation -> the cases of `check` that concern it most, in this order."""
EVERY = ("forward", "evaluation", "gradients", "traced", "tokens", "training")
PARTS: dict[str, tuple[str, ...]] = {
    "embedding": ("forward", "gradients"),
    **dict.fromkeys(("rnn", "lstm", "gru", "wrnn"), ("forward", "traced")),
    "dropout": ("gradients",),
    "unroll": ("forward", "gradients", "traced"),
    "loss": ("evaluation", "gradients"),
    "optimizer": ("training",),
    "generate": ("tokens",),
    "model": EVERY,
    "arrays": ("forward", "evaluation", "training"),
}
"""What JAX and TensorFlow, which compile each part, are asked of them."""
MODULES = [
    *(f"shared/{name}.py" for name in SHARED),
    *(f"impl_{impl}/{name}.py" for impl in ("numpy", "torch", "jax", "tf") for name in CASES),
]


class Stage(NamedTuple):
    """One pytest: the implementation that its tests are run for, and its arguments."""

    impl: str
    arguments: tuple[str, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """Implementations whose frameworks must be installed."""
        return tuple(FRAMEWORKS) if self.arguments[0].startswith("tests/parity") else (self.impl,)


def tests_of(path: str) -> list[Stage]:
    """The tests that concern a module and can run here, one pytest after the other until one fails."""
    return [stage for stage in stages_of(path) if all(map(installed, stage.needs))]


def stages_of(path: str) -> list[Stage]:
    """A mistake in NumPy's mathematics is seen by its own tests, or where PyTorch is compared with it."""
    package, _, module = path.removesuffix(".py").partition("/")
    if package == "shared":
        return [Stage("numpy", arguments) for arguments in SHARED[module]]
    impl = package.removeprefix("impl_")
    cases, compiles = CASES[module], impl in ("jax", "tf")
    if module in LAYERS:
        asked = [f"{LAYERS[module]}[{impl}-{case}]" for case in cases]
        layers = [Stage(impl, (each,)) for each in asked] if compiles else [Stage(impl, tuple(asked))]
        return layers + [Stage(impl, arguments) for arguments in ENGINES[f"{impl} {module}"]]
    other = "torch" if impl == "numpy" else impl
    parts = PARTS[module] if compiles else EVERY
    examined = [Stage(other, (EXAMINE, other, case, *parts)) for case in cases]
    contract = [(CONTRACT, "-k", some) for some in BRIEFLY] if compiles else [(CONTRACT,)]
    return [*examined, *(Stage(impl, arguments) for arguments in contract)]


# --- What is not mutated. --------------------------------------------------------------------------------------------

EXCLUDED = [
    # modules, name of a function or class, what its statement holds, why
    (r"impl_.*/arrays", "open_device|kernel", "", "chooses hardware and precision: needs a GPU"),
    (r"impl_numpy/arrays", "to_numpy|add_rows", r"cupy|isinstance\(", "CuPy's branch: needs a GPU"),
    (r"impl_numpy/native", "", "", "holds a refusal and no mathematics"),
    (r"impl_torch/arrays", "to_array|to_numpy", r"bfloat16|detach", "no number of float32 or float64 depends on it"),
    (r"impl_.*/native", "native_kernel|nodes", "", "names what ran: text"),
    (r"impl_.*/native", "native_engine|on_cudnn|unroll_cudnn|in_one_buffer", "", "cuDNN: needs a GPU"),
    (r"impl_torch/native", "unroll_native", "is_cuda", "cuDNN: needs a GPU"),
    (r"impl_.*/fused", "fused_kernel|why_no_onednn|by_hand", "", "chooses and names what runs: speed"),
    (r"impl_.*/fused", "fold.*", r"^ *if ", "whether folding pays: speed"),
    (r"impl_numpy/fused", "projections", "COLUMNS", "how many steps go together: speed"),
    (r"impl_numpy/fused", "blocks|", r"^    most =|^UNPACKED =", "how large a product is made at once: speed"),
    (r"impl_numpy/fused", "inputs_backward", r"len\(weight\)", "which of two ways is faster"),
    (r"impl_numpy/fused", "stepper|project", r"len\(inputs\) <", "which of two ways is faster"),
    (r"impl_tf/fused", "unroll_fused", r"shape\[0\] == 1", "which of two ways is faster"),
    (r"impl_tf/unroll", "", "maximum_iterations", "a bound that the condition has already: helps the compiler"),
    (r"impl_tf/unroll", "empty_list", "", "room for a list: memory"),
    (r"impl_tf/arrays", "compiled|", r"jit_compile|set_level|determinism", "how functions are compiled: speed"),
    (r"shared/initializers", "truncated", r"count // 8", "how many more are drawn than used: any surplus will do"),
    (r"shared/initializers", "orthonormal", "threadpool_limits", "threads"),
    (r"shared/(batching|vocabulary)", "", r"^(COUNTED|GATHERED) =", "sizes of pieces: memory"),
]
"""Beside these, everywhere: text, annotations, what is raised, decorators, imports, assertions."""
TYPES = {"Callable", "Mapping", "Sequence", "Iterable", "Iterator", "Literal", "tuple", "dict", "list", "set", "type"}
UNTOUCHED = (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Assert, ast.Global)


def excluded(path: str, name: str, statement: str) -> bool:
    """Whether a statement of the function is left alone."""
    return any(
        re.search(module, path) and (not names or re.fullmatch(names, name)) and re.search(held, statement, re.M)
        for module, names, held, _ in EXCLUDED
    )


EQUIVALENT = {
    ("impl_torch/dropout.py", "(2 ** 31)"): "in 32 bits, -2^31 and 2^31 are the one word with only the highest bit set",
    ("shared/statistics.py", "SEVENS, FIVES = "): "the two are alternatives of one expression, and no text fits both",
}
"""Module, and how the text begins that a mutation writes there -> why no test can see it."""


# --- The mutations of one expression. --------------------------------------------------------------------------------

ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
COMPARISON: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.MatMult, ast.Pow, ast.Mod)
PAIRS = [
    ("tanh", "sigmoid"),
    ("tanh_step", "relu_step"),
    ("min", "max"),
    ("minimum", "maximum"),
    ("any", "all"),
    ("sin", "cos"),
    ("argmax", "argmin"),
    ("floor", "ceil"),
    ("ones", "zeros"),
    ("ones_like", "zeros_like"),
    ("sum", "mean"),
    ("isfinite", "isnan"),
    ("hidden", "cell"),
    ("hidden", "first"),
    ("weight_ih", "weight_hh"),
    ("forget_gate", "input_gate"),
    ("tokens", "targets"),
]
COMMUTATIVE = {"min", "max", "minimum", "maximum", "isinstance", "zip", "print", "array_equal"}


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What kind of mutation, and the expression after it."""
    for kind, change in OPERATORS:
        for changed in change(node):
            yield kind, changed


def changed(node: Any, **fields: Any) -> Any:
    """A copy with other fields."""
    made = copy.copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def is_container(node: ast.AST) -> bool:
    """Sums of texts and lists, unions of dictionaries and sets: no arithmetic."""
    if isinstance(node, ast.BinOp):
        return is_container(node.left) or is_container(node.right)
    return isinstance(node, ast.Dict | ast.DictComp | ast.List | ast.ListComp | ast.Tuple | ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not is_container(node):
        yield changed(node, op=ARITHMETIC[type(node.op)]())
    if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC and not is_container(node.value):
        yield changed(node, op=ARITHMETIC[type(node.op)]())


def operands(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ORDERED):
        yield changed(node, left=node.right, right=node.left)
    if isinstance(node, ast.Call) and len(node.args) > 1 and called(node) not in COMMUTATIVE:
        first, second, *rest = node.args
        if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
            yield changed(node, args=[second, first, *rest])


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def comparison(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for k, op in enumerate(node.ops):
            yield changed(node, ops=[*node.ops[:k], COMPARISON[type(op)](), *node.ops[k + 1 :]])


def constant(node: ast.AST) -> Iterator[ast.AST]:
    """The next whole number, 1 % more, or the other truth value."""
    value = number(node)
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield literal(value + 1)
    elif isinstance(value, float):
        yield literal(value * 1.01 or 1.0)


def number(node: ast.AST) -> Any:
    """What a number's literal stands for, its sign included."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value  # type: ignore[operator]
    return node.value if isinstance(node, ast.Constant) else None


def literal(value: float) -> ast.expr:
    return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if value < 0 else ast.Constant(value)


def axis(node: ast.AST) -> Iterator[ast.AST]:
    """Axis 1 for 0, 0 for another."""
    if isinstance(node, ast.keyword) and node.arg in ("axis", "dim"):
        first = isinstance(node.value, ast.Constant) and node.value.value == 0
        yield changed(node, value=ast.Constant(int(first)))


def function(node: ast.AST) -> Iterator[ast.AST]:
    field = {ast.Name: "id", ast.Attribute: "attr"}.get(type(node))  # type: ignore[call-overload]
    if field and isinstance(getattr(node, "ctx", None), ast.Load):
        for pair in (*PAIRS, *(pair[::-1] for pair in PAIRS)):
            if getattr(node, field) == pair[0]:
                yield changed(node, **{field: pair[1]})


def transpose(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Attribute) and node.attr == "T" and isinstance(node.ctx, ast.Load):
        yield node.value


def bound(node: ast.AST) -> Iterator[ast.AST]:
    """A slice that begins or ends one later, or earlier."""
    if isinstance(node, ast.Slice) and node.step is None:
        for name in ("lower", "upper"):
            if edge := getattr(node, name):
                yield changed(node, **{name: ast.BinOp(edge, ast.Add(), ast.Constant(1))})
                yield changed(node, **{name: ast.BinOp(edge, ast.Sub(), ast.Constant(1))})


def negation(node: ast.AST) -> Iterator[ast.AST]:
    """`not`, `~` or a sign dropped, a condition turned round."""
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    if isinstance(node, ast.IfExp):
        yield changed(node, body=node.orelse, orelse=node.body)


def connective(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BoolOp):
        yield changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def order(node: ast.AST) -> Iterator[ast.AST]:
    """Two neighbours in a tuple that is returned, or unpacked, swapped."""
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        yield from (changed(node, value=swapped) for swapped in neighbours(node.value))
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
        yield from (changed(node, targets=[swapped, *node.targets[1:]]) for swapped in neighbours(node.targets[0]))


def neighbours(node: ast.Tuple) -> Iterator[ast.Tuple]:
    each = node.elts
    for k in range(len(each) - 1):
        yield changed(node, elts=[*each[:k], each[k + 1], each[k], *each[k + 2 :]])


def argument(node: ast.AST) -> Iterator[ast.AST]:
    """One argument by name dropped; not what needs a second device to matter."""
    if isinstance(node, ast.Call):
        for k, each in enumerate(node.keywords):
            if each.arg and each.arg not in ("strict", "device"):
                yield changed(node, keywords=[*node.keywords[:k], *node.keywords[k + 1 :]])


Operator = Callable[[ast.AST], Iterator[ast.AST]]
OPERATORS: list[tuple[str, Operator]] = [
    (made.__name__, made)
    for made in (
        arithmetic,
        operands,
        comparison,
        constant,
        axis,
        function,
        transpose,
        bound,
        negation,
        connective,
        order,
        argument,
    )
]


def mutations_of(path: str, source: str) -> list[Mutation]:
    """Every mutation of a module, in its order."""
    found: list[Mutation] = []
    for statement, name in statements(ast.parse(source)):
        head = segment(source, statement)
        if not excluded(path, name, head):
            found += [each for node in expressions(statement) for each in written(path, source, node)]
    return found


def statements(tree: ast.AST, name: str = "") -> Iterator[tuple[ast.stmt, str]]:
    """Every statement that holds mathematics, and the function or class that it stands in; of a compound one its head
    comes alone, without its body."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from statements(node, node.name)
        elif isinstance(node, ast.stmt):
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if not docstring and not isinstance(node, UNTOUCHED):
                yield node, name
                yield from statements(node, name)
        elif isinstance(node, ast.ExceptHandler):
            yield from statements(node, name)
    if isinstance(tree, ast.FunctionDef):
        defaults = [each for each in (*tree.args.defaults, *tree.args.kw_defaults) if each is not None]
        yield from ((ast.copy_location(ast.Expr(each), each), name) for each in defaults)


def expressions(node: ast.AST) -> Iterator[ast.AST]:
    """A statement, or an expression, and all below it that may be mutated; no statement below it."""
    yield node
    if number(node) is not None:
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST) and not isinstance(each, (ast.stmt, ast.ExceptHandler, *UNTOUCHED)):
                typed = isinstance(each, ast.Subscript) and getattr(each.value, "id", "") in TYPES
                if not typed and not (isinstance(each, ast.Call) and called(each) == "isinstance"):
                    yield from expressions(each)


def written(path: str, source: str, node: Any) -> Iterator[Mutation]:
    """The mutations of one node as changes of the text."""
    if not hasattr(node, "lineno"):
        return
    old, start = segment(source, node), place(source, node.lineno, node.col_offset)
    for kind, after in variants(node):
        new = ast.unparse(after)
        if isinstance(node, ast.expr) and not isinstance(node, ast.Slice):
            new = new if isinstance(after, ast.Constant | ast.Name | ast.Attribute | ast.Call) else f"({new})"
        mutation = Mutation(path, node.lineno, kind, start, old, new)
        if ast.dump(after) != ast.dump(node) and known(kind, after, source):
            yield mutation


def known(kind: str, after: Any, source: str) -> bool:
    """Whether what a function is exchanged for exists: else every mutation of that kind would be caught for nothing."""
    if kind != "function":
        return True
    name = getattr(after, "id", getattr(after, "attr", ""))
    public = hasattr(builtins, name) if isinstance(after, ast.Name) else hasattr(np, name)
    return public or re.search(rf"\b{name}\b", source) is not None


def segment(source: str, node: Any) -> str:
    """The text of a node, as `ast.get_source_segment`, which takes all lines apart each time."""
    return source[place(source, node.lineno, node.col_offset) : place(source, node.end_lineno, node.end_col_offset)]


def place(source: str, line: int, column: int) -> int:
    """A place in the tree, which counts bytes in a line, in characters of the text."""
    start, text = lines_of(source)[line - 1]
    return start + len(text.encode()[:column].decode())


@cache
def lines_of(source: str) -> list[tuple[int, str]]:
    """Where each line begins, and the line."""
    lines = source.split("\n")
    return list(zip(accumulate((len(line) + 1 for line in lines), initial=0), lines, strict=False))


# --- The choice, and the trial. --------------------------------------------------------------------------------------


def chosen(root: Path, count: int, seed: int, only: str = "") -> list[Mutation]:
    """So many mutations, evenly over the modules, and in a module evenly over the kinds; the first n of a longer choice
    are the choice of n. Modules whose framework is not installed, or without a mutation left, are passed over."""
    paths = [path for path in MODULES if installed(package_of(path)) and re.search(only, path)]
    left = {path: mutations_of(path, (root / path).read_text("utf-8")) for path in paths}
    found: list[Mutation] = []
    for turn in range(count):
        for path in random.Random(f"{seed} {turn}").sample(paths, len(paths)):
            if left[path]:
                draw = random.Random(f"{seed} {turn} {path}")
                kind = draw.choice(sorted({each.kind for each in left[path]}))
                found.append(draw.choice([each for each in left[path] if each.kind == kind]))
                left[path] = [each for each in left[path] if each.start != found[-1].start]
    return found[:count]


def installed(impl: str) -> bool:
    return all(find_spec(name) for name in FRAMEWORKS.get(impl, ()))


def package_of(path: str) -> str:
    """shared, numpy, torch, jax or tf."""
    return path.partition("/")[0].removeprefix("impl_")


@contextmanager
def project_copy() -> Iterator[Path]:
    """What the tests need of the project, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="mutated-") as folder:
        for name in (*PACKAGES, "tests"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        try:
            yield Path(folder)
        finally:
            close_nurseries(Path(folder))


@contextmanager
def mutated(folder: Path, mutation: Mutation) -> Iterator[None]:
    """The copy with one mutation."""
    file = folder / mutation.path
    source = file.read_text("utf-8")
    file.write_text(mutation.applied(source), "utf-8")
    try:
        yield
    finally:
        file.write_text(source, "utf-8")


def replacement(root: Path, path: str, old: str, new: str) -> Mutation:
    """A mutation by hand, of a text that stands in the module once."""
    source = (root / path).read_text("utf-8")
    assert source.count(old) == 1, f"{path} holds {old!r} {source.count(old)} times"
    return Mutation(path, source[: source.index(old)].count("\n") + 1, "by hand", source.index(old), old, new)


class Run(NamedTuple):
    """How one pytest went."""

    outcome: str
    """passed, failed, or too long."""
    by: str
    """The first test that failed."""
    seconds: float
    """Of processor time."""


NURSERY = """
import json, os, resource, runpy, sys, traceback
from runner import environment
from shared.config import RuntimeConfig

environment.prepare(RuntimeConfig(device="cpu", threads=1))  # before NumPy loads
for name in sys.argv[1:]:
    __import__(name)
for name in [name for name in sys.modules if name.partition(".")[0] in ("runner", "shared")]:
    del sys.modules[name]  # they are loaded again with each mutation

def work(limit, output, arguments):
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    import shared
    assert shared.__file__.startswith(os.getcwd()), "the copy is not what is tested"
    if arguments[0].endswith("examine.py"):
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    import pytest
    return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line", *arguments])

for line in sys.stdin:
    if not (child := os.fork()):
        try:
            status = int(work(**json.loads(line)))
        except SystemExit as end:
            status = int(end.code)
        except BaseException:
            status = 1
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    _, status, used = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime]), flush=True)
"""
"""A process that has loaded what no mutation changes, a framework above all, and forks for each pytest; jobs come in
and answers go out as lines of JSON."""
PRELOADED = {"numpy": (), "torch": ("torch",), "jax": ("jax", "jax.numpy", "optax"), "tf": ("tensorflow",)}
NURSERIES: dict[tuple[Path, str], "subprocess.Popen[str]"] = {}


def nursery(folder: Path, impl: str) -> "subprocess.Popen[str]":
    """The process that forks for an implementation's tests in a copy."""
    if (folder, impl) not in NURSERIES:
        settings = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # a mutation can leave a file's size and second as they were
            "ROSETTA_IMPLEMENTATIONS": impl,
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", NURSERY, "numpy", "pytest", *PRELOADED[impl]]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        NURSERIES[folder, impl] = subprocess.Popen(command, cwd=folder, env=settings, text=True, **pipes)
    return NURSERIES[folder, impl]


def close_nurseries(folder: Path) -> None:
    for key in [key for key in NURSERIES if key[0] == folder]:
        with NURSERIES.pop(key) as process:
            process.kill()


def run(folder: Path, stage: Stage, limit: int = LIMIT_S) -> Run:
    """The tests in the copy."""
    process = nursery(folder, stage.impl)
    assert process.stdin
    assert process.stdout
    output = folder / "output"
    output.unlink(missing_ok=True)
    process.stdin.write(json.dumps({"limit": limit, "output": str(output), "arguments": stage.arguments}) + "\n")
    process.stdin.flush()
    status, spent = json.loads(process.stdout.readline())
    spent = round(spent, 1)
    if status == -signal.SIGXCPU:
        return Run("too long", "", spent)
    return Run("failed", first_failure(output.read_text("utf-8")), spent) if status else Run("passed", "", spent)


def first_failure(output: str) -> str:
    """The test that failed, or what broke before any."""
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", output, re.M)
    return failed[1] if failed else (output.strip().splitlines() or ["no output"])[-1]


def difference(root: Path, mutation: Mutation) -> str:
    """The mutation as a diff."""
    source = (root / mutation.path).read_text("utf-8")
    before, after = source.splitlines(), mutation.applied(source).splitlines()
    return "\n".join(difflib.unified_diff(before, after, mutation.path, mutation.path, lineterm="", n=1))


def tried(folder: Path, mutation: Mutation, passed: dict[str, float]) -> dict[str, Any]:
    """What became of a mutation. `passed` says which tests pass without one, and in how many seconds."""
    spent, ran = 0.0, Run("passed", "", 0.0)
    for stage in tests_of(mutation.path):
        with mutated(folder, mutation):
            ran = run(folder, stage)
        spent += ran.seconds
        if ran.outcome != "passed":
            require_passing(folder, stage, passed)
            break
    return {"outcome": ran.outcome, "by": ran.by, "seconds": round(spent, 1), "diff": changed_lines(folder, mutation)}


def require_passing(folder: Path, stage: Stage, passed: dict[str, float]) -> None:
    """SystemExit unless these tests pass without a mutation, well within the limit: that they caught one would mean
    nothing."""
    name = " ".join((f"{stage.impl}:", *stage.arguments))
    if name not in passed:
        ran = run(folder, stage, UNMUTATED_S)
        if ran.outcome != "passed":
            raise SystemExit(
                f"Without a mutation, {name} does not pass within {UNMUTATED_S} s: {ran.by or ran.outcome}"
            )
        passed[name] = ran.seconds


def changed_lines(folder: Path, mutation: Mutation) -> list[str]:
    return [line for line in difference(folder, mutation).splitlines()[3:] if line[0] in "+-"]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=100, help="how many mutations")
    options.add_argument("--seed", type=int, default=1, help="which")
    options.add_argument("--only", default="", help="modules whose path this regular expression finds")
    options.add_argument("--json", type=Path, help="keep the results here, and go on from what it holds")
    options.add_argument("--list", action="store_true", help="show the mutations and try none")
    given = options.parse_args()
    kept: dict[str, Any] = {"passed_unmutated": {}, "mutations": {}}
    if given.json and given.json.exists():
        kept = json.loads(given.json.read_text("utf-8"))
    with project_copy() as folder:
        mutations = chosen(folder, given.count, given.seed, given.only)
        if given.list:
            print(*(difference(folder, each) for each in mutations), sep="\n")
            return 0
        for k, mutation in enumerate(mutations, 1):
            if kept["mutations"].get(mutation.name, {"outcome": "passed"})["outcome"] == "passed":
                kept["mutations"][mutation.name] = tried(folder, mutation, kept["passed_unmutated"])
            result = kept["mutations"][mutation.name]
            result["seeds"] = sorted({*result.get("seeds", ()), given.seed})
            if given.json:
                write_atomically(given.json, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
            print(f"{k:4} {shown(result):9} {result['seconds']:5.1f} s  {mutation.name}", flush=True)
        return report(folder, mutations, kept["mutations"])


def shown(result: Mapping[str, Any]) -> str:
    return "SURVIVED" if result["outcome"] == "passed" else "caught"


def reason(mutation: Mutation) -> str:
    """Why a mutation survives."""
    known = (why for (path, new), why in EQUIVALENT.items() if path == mutation.path and mutation.new.startswith(new))
    return next((f"It changes nothing: {why}." for why in known), "A test is missing.")


def report(folder: Path, mutations: Sequence[Mutation], results: Mapping[str, Any]) -> int:
    """The survivors and the sum; the exit status."""
    survivors = [each for each in mutations if results[each.name]["outcome"] == "passed"]
    for each in survivors:
        print(f"\n{difference(folder, each)}\n{reason(each)}")
    caught = len(mutations) - len(survivors)
    print(f"\n{caught} of {len(mutations)} mutations are caught.")
    return int(caught < ENOUGH * len(mutations))


if __name__ == "__main__":
    sys.exit(main())
