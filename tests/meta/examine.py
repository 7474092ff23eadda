"""Whether an implementation agrees with NumPy in some parts of a case of `check`: as tests/conformance/test_check.py,
but part by part, so that what compiles stops at the first difference.

    python tests/meta/examine.py jax "lstm many-to-one" forward gradients
"""

import sys

from runner import environment
from shared.config import RuntimeConfig

environment.prepare(RuntimeConfig(device="cpu", threads=1))  # before NumPy loads

from runner.examination.bounds import compare  # noqa: E402
from runner.examination.cases import CASES, make_case  # noqa: E402
from runner.examination.examinee import Examinee  # noqa: E402


def main(impl: str, name: str, *parts: str) -> int:
    """1 where a quantity differs. Parts that the case does not have are passed over."""
    case = make_case(name, CASES[name])
    case = case._replace(parts=tuple(part for part in parts if part in case.parts))
    pair = (Examinee(each, "cpu").parts(case, "float64") for each in (impl, "numpy"))
    for measured, expected in zip(*pair, strict=True):
        if wrong := [row["quantity"] for row in compare(measured, expected, "float64") if not row["ok"]]:
            print(f"FAILED check {name}: {wrong[0]}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
