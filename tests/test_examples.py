"""The notebooks run from the first cell to the last, and keep no output."""

import ast
import json
from pathlib import Path

import matplotlib as mpl
import pytest

from tests.demo_store import make_demo

mpl.use("agg")

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("examples"))


def cells(path):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def run(source, names):
    """What a notebook does with a cell: run it, and show what its last line is worth."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    value = last and eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return value._repr_html_() if hasattr(value, "_repr_html_") else None


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["first_look.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells(path))


def test_first_look(demo, monkeypatch):
    from matplotlib import pyplot as plt

    monkeypatch.setenv("RLSPARSE_STORE", str(demo / "store"))
    monkeypatch.setattr(plt, "show", lambda: None)
    names = {}
    shown = [run("".join(c["source"]), names) for c in cells(NOTEBOOKS[0])]
    assert all("tiny-a-sft-seed0" in table for table in shown[:2])
    figures = [plt.figure(number).axes[0] for number in plt.get_fignums()]
    plt.close("all")
    kinds, lifts, mask, strata = figures
    assert {t.get_text() for t in kinds.get_legend().get_texts()} == {"GRPO", "SFT", "DPO"}
    # ten of the five runs of one base, and nothing that crosses bases or is a checkpoint
    assert len(lifts.get_yticklabels()) == 10
    assert (mask.images[0].get_array() == names["mask"][:256, :256].numpy()).all()
    assert strata.lines[0].get_ydata().max() > 0
