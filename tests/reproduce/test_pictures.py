"""The pictures of the page, from rows of which every value is known."""

from xml.etree import ElementTree

import pytest

from rlsparse_ray.reproduce.pictures import draw_all
from tests.reproduce.rows import curve, evidence, masked, overlap, result

RUNS = [result(f"{a.lower()}-{n}", a, 0.5 + n / 10) for a in ("GRPO", "DPO") for n in (0, 1)]
FOUND = evidence(
    *RUNS,
    overlap_excess=(overlap("grpo-0", "grpo-1", 0.6), overlap("dpo-0", "dpo-1", 0.2)),
    masked_runs=(masked("grpo-0", "subnetwork", 1.0), masked("grpo-0", "random", 0.5)),
    trajectory=tuple(curve("grpo-0", 0.8, 0.7)),
)


def words(path):
    """The texts of a picture, line by line."""
    texts = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return {line for text in texts for line in text.itertext()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_all(FOUND, tmp_path_factory.mktemp("pictures") / "img", "page")


def test_text_is_text(drawn):
    assert list(drawn) == ["sparsity", "overlap", "subnetwork", "dynamics"]
    assert {"GRPO", "DPO", "exact", "at 1e-5", "100%"} <= words(drawn["sparsity"])
    assert {"another seed", "densities only", "rounding too"} <= words(drawn["overlap"])
    assert {"subnetwork", "random"} <= words(drawn["subnetwork"])
    assert "complement" not in words(drawn["subnetwork"])
    assert {"grpo-0", "optimizer step"} <= words(drawn["dynamics"])


def test_equal_evidence_gives_equal_bytes(drawn, tmp_path):
    for what, path in draw_all(FOUND, tmp_path, "page").items():
        assert path.read_bytes() == drawn[what].read_bytes()


def test_a_dot_a_run_and_a_bar_a_mean(drawn):
    """Two algorithms by two criteria: eight dots and four bars, on a band with its name."""
    groups = ElementTree.parse(drawn["sparsity"]).iter("{http://www.w3.org/2000/svg}g")
    marks = [group for group in groups if "role-mark layer" in group.get("class", "")]
    found = {(group.get("class").split()[0], len(group)) for group in marks}
    assert found == {("mark-symbol", 8), ("mark-rect", 4), ("mark-rect", 1), ("mark-text", 1)}


def test_a_picture_without_runs_is_gone(tmp_path):
    (tmp_path / "page-sparsity.svg").write_text("of an older page")
    assert draw_all(evidence(), tmp_path, "page") == {}
    assert list(tmp_path.iterdir()) == []


def test_it_stands_on_white_paper(drawn):
    """A page on dark ground shows it too."""
    for path in drawn.values():
        first = next(ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}rect"))
        assert first.get("fill") == "white"
