"""The notebooks run from the first cell to the last, and keep no output."""

import ast
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.demo_store import make_demo

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("examples"))


def cells(path):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def run(source, names):
    """What a notebook does with a cell: run it, and show what its last line is worth.

    Returns:
        The value and what is shown of it.
    """
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    value = last and eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    if hasattr(value, "_repr_svg_"):
        return value, value._repr_svg_()
    return value, value._repr_html_()


def words(shown):
    """The texts of a picture."""
    found = ElementTree.fromstring(shown[1]).iter("{http://www.w3.org/2000/svg}text")
    return {line for text in found for line in text.itertext()}


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["first_look.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells(path))


def test_first_look(demo, monkeypatch):
    monkeypatch.setenv("RLSPARSE_STORE", str(demo / "store"))
    names = {}
    shown = [run("".join(c["source"]), names) for c in cells(NOTEBOOKS[0])]
    assert all("tiny-a-sft-seed0" in html for _, html in shown[:2])
    kinds, rounding, matrix, mask, strata = shown[2:]
    assert {"GRPO", "SFT", "DPO", "embedding", "attention"} <= words(kinds)
    assert {"uniform", "magnitude"} <= words(rounding)
    # the ten of the five runs of one base have a lift, and nothing crosses bases or is a checkpoint
    assert sum(v is not None for v in matrix[0].rows["lift_magnitude"].to_pylist()) == 10
    assert {"tiny-a-dpo-seed0", "tiny-b-grpo-seed0"} <= words(matrix)
    changed = set(zip(*(mask[0].rows[c].to_pylist() for c in ("output", "input")), strict=True))
    assert changed == {(i, j) for i in range(64) for j in range(64) if names["mask"][i, j]}
    assert max(strata[0].rows["density"].to_pylist()) > 0 and "changed" in words(strata)
