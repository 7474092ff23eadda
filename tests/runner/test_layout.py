"""The house: same files, same symbols, same signatures, same order in the four implementations; who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("impl_numpy", "impl_torch", "impl_jax", "impl_tf")
FRAMEWORKS = {"torch", "jax", "jaxlib", "flax", "optax", "tensorflow", "keras", "cupy", "cupyx"}
BY_HAND = {
    # NumPy has no autograd, no sigmoid, and no scatter that CuPy shares.
    "arrays.py": {"sigmoid", "product", "add_rows"},
    "embedding.py": {"SLOPES", "embed_backward"},
    "rnn.py": {"tanh_step_backward", "relu_step_backward", "rnn_weights_backward"},
    "lstm.py": {"lstm_step_backward", "lstm_weights_backward"},
    "gru.py": {
        "gru_step_backward",
        "gru_weights_backward",
        "reset_before_step_backward",
        "reset_before_weights_backward",
    },
    "wrnn.py": {"wrnn_step_backward", "wrnn_weights_backward"},
    "fused.py": {"unroll_fused_backward"},
    "unroll.py": {"Layer", "unroll_backward", "unroll_layers_backward", "multiply_backward", "shift"},
    "loss.py": {"mean_nats_backward", "predictions_backward", "unmasked_backward"},
}
COMMON = {
    "arrays.py": ["Array", "Device", "open_device", "kernel", "to_array", "to_numpy"],
    "embedding.py": ["ACTIVATIONS", "embed"],
    "rnn.py": ["RNNState", "RNNWeights", "RNNGates", "tanh_step", "relu_step"],
    "lstm.py": ["LSTMState", "LSTMWeights", "LSTMGates", "lstm_step"],
    "gru.py": [
        "GRUState",
        "GRUWeights",
        "GRUGates",
        "ResetBeforeWeights",
        "ResetBeforeGates",
        "gru_step",
        "reset_before_step",
    ],
    "wrnn.py": ["WRNNState", "WRNNWeights", "WRNNGates", "wrnn_step"],
    "dropout.py": ["Dropout", "keep_mask", "drop"],
    "unroll.py": [
        "Cell",
        "CELLS",
        "Record",
        "cell_of",
        "layer_weights",
        "multiply",
        "unroll",
        "unroll_layers",
        "shortcut",
    ],
    "native.py": ["require_native", "native_kernel", "unroll_native"],
    "fused.py": ["unroll_fused"],
    "formats.py": ["save_layers", "load_layers", "logits_of_layers"],
    "loss.py": ["token_nats", "mean_nats", "score", "predictions", "unmasked"],
    "optimizer.py": ["Arrays", "init_slots", "global_norm", "clip", "clip_by_value", "clip_by_global_norm", "update"],
    "parallel.py": ["Team", "open_team"],
    "generate.py": ["Advance", "draw", "generate", "read"],
    "model.py": ["create_model", "Model", "zero_rows"],
}
"""Public symbols that every implementation has, in this order; each may have helpers of its own between them."""
MISSING = {
    ("impl_numpy", "native.py"): {"native_kernel", "unroll_native"},
    ("impl_numpy", "loss.py"): {"mean_nats"},
    ("impl_numpy", "parallel.py"): {"Team"},
}
"""NumPy has no layers of its own and no messages, and says so; its loss comes with the gradient, in one pass."""
ABSENT = {("impl_numpy", "formats.py")}
"""Nor are there files of such layers."""
FILES = [(package, file) for package in PACKAGES for file in COMMON if (package, file) not in ABSENT]


def tree(package, file):
    return ast.parse((ROOT / package / file).read_text("utf-8"))


def symbols(package, file):
    """Names defined at the top of a module, in order."""
    names = []
    for node in tree(package, file).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def signature(package, file, name):
    found = next((node for node in tree(package, file).body if getattr(node, "name", None) == name), None)
    return ast.unparse(found.args) if isinstance(found, ast.FunctionDef) else None


def methods(package):
    model = next(node for node in tree(package, "model.py").body if getattr(node, "name", None) == "Model")
    found = [node for node in model.body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.unparse(node.args) for node in found if not node.name.startswith("_")}


@pytest.mark.parametrize("package", PACKAGES)
def test_same_files(package):
    common = [file for each, file in FILES if each == package]
    assert sorted(path.name for path in (ROOT / package).glob("*.py")) == sorted([*common, "__init__.py"])


@pytest.mark.parametrize(("package", "file"), FILES)
def test_same_symbols_in_the_same_order(package, file):
    shared = [name for name in symbols(package, file) if name in COMMON[file]]
    assert shared == [name for name in COMMON[file] if name not in MISSING.get((package, file), set())]
    if package != "impl_numpy":
        assert not BY_HAND.get(file, set()) & set(symbols(package, file))


@pytest.mark.parametrize("package", PACKAGES[1:])
@pytest.mark.parametrize("file", COMMON)
def test_same_signatures(package, file):
    pattern = "impl_torch" if file in ("native.py", "fused.py", "unroll.py", "loss.py", "formats.py") else "impl_numpy"
    for name in COMMON[file]:
        if (file, name) == ("optimizer.py", "update"):
            continue  # the step is a number on the host in NumPy, an array elsewhere: names are compared below
        assert signature(package, file, name) == signature(pattern, file, name), name


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_the_same_arguments_where_types_differ(package):
    def names(of, file, function):
        found = next(node for node in tree(of, file).body if getattr(node, "name", None) == function)
        return [argument.arg for argument in found.args.args]

    assert names(package, "optimizer.py", "update") == names("impl_numpy", "optimizer.py", "update")
    # What an engine is differs: NumPy's holds the way back, too.
    assert names(package, "unroll.py", "unroll_layers") == names("impl_numpy", "unroll.py", "unroll_layers")
    for name in ("cell_of", "layer_weights", "multiply", "unroll", "shortcut"):
        assert signature(package, "unroll.py", name) == signature("impl_numpy", "unroll.py", name), name


@pytest.mark.parametrize("package", PACKAGES)
def test_the_contract_is_implemented_whole(package):
    contract = ast.parse((ROOT / "shared/contract.py").read_text("utf-8"))
    protocol = next(node for node in contract.body if getattr(node, "name", None) == "LanguageModel")
    promised = [node.name for node in protocol.body if isinstance(node, ast.FunctionDef)]
    assert list(methods(package)) == promised
    assert methods(package) == methods("impl_numpy")


@pytest.mark.parametrize("package", ["shared", "runner", *PACKAGES])
def test_who_may_import_whom(package):
    allowed = {
        "shared": {"shared"},
        "runner": {"shared", "runner"},
        **{each: {"shared", each} for each in PACKAGES},
    }[package]
    own = {
        "impl_numpy": {"cupy", "cupyx"},
        "impl_torch": {"torch"},
        "impl_jax": {"jax", "flax", "optax"},
        "impl_tf": {"tensorflow", "keras"},
    }
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {module.partition(".")[0] for module in modules}:
                assert top not in {"shared", "runner", *PACKAGES} - allowed, f"{path} imports {top}"
                assert top not in FRAMEWORKS - own.get(package, set()), f"{path} imports {top}"


@pytest.mark.parametrize(
    "command",
    [["--help"], ["train", "--help"], ["check", "--help"], ["--impl", "nobody"]],
    ids=lambda command: " ".join(command),
)
def test_help_loads_neither_numpy_nor_a_framework(command):
    code = (
        "import sys, runner.__main__ as m\n"
        f"try: m.main({command!r})\n"
        "except SystemExit: pass\n"
        f"print('LOADED', sorted({FRAMEWORKS | {'numpy', 'matplotlib'}!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "LOADED []" in done.stdout


def test_nothing_executes_from_data():
    forbidden = {"eval", "exec", "pickle", "marshal", "shelve", "dill", "joblib"}
    for package in ("shared", "runner", *PACKAGES):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = {node.func.id} if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else set()
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = {alias.name.partition(".")[0] for alias in node.names}
                assert not names & forbidden, f"{path}: {names & forbidden}"
