"""A store asked from Python says what the command line says."""

import numpy as np
import pytest

import rlsparse_ray
from rlsparse_ray.errors import QueryError, StoreError
from tests.builders import (
    extract_directly,
    small_model,
    sparsely_changed,
    write_corpus,
    write_model,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of one pair, and which of its weights differ."""
    folder = tmp_path_factory.mktemp("handle")
    base = small_model(vocabulary=1400)
    tuned = {name: sparsely_changed(array, 7) for name, array in base.items()}
    write_model(folder / "base", base)
    write_model(folder / "tuned", tuned)
    pair = {"name": "it's <one>", "base": "base", "tuned": "tuned", "algorithm": "GRPO"}
    store = folder / "store"
    extract_directly(write_corpus(folder / "corpus.yaml", [pair], criteria=["exact"]), store)
    differ = {n.removeprefix("model."): base[n].view("u2") != tuned[n].view("u2") for n in base}
    return store, differ


@pytest.fixture
def store(made):
    with rlsparse_ray.open_store(made[0]) as store:
        yield store


def test_masks_are_the_weights_that_differ(store, made):
    """The embedding has three blocks, the last one shorter."""
    for tensor, differ in made[1].items():
        mask = store.mask("it's <one>", tensor)
        assert mask.numpy().dtype == np.bool_
        np.testing.assert_array_equal(mask.numpy(), differ)


def test_relations(store, made):
    changed = sum(int(differ.sum()) for differ in made[1].values())
    text = "SELECT sum(changed) FROM counts WHERE criterion = $rule"
    assert store.sql(text, rule="exact").fetchall() == [(changed,)]
    answer = store.query("sparsity_by_pair")
    store.query("tolerance_sweep")
    (found,) = answer.df().to_dict("records")
    assert found["changed"] == changed
    assert answer.filter("changed > 0").to_arrow_table().num_rows == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.query("sparsity_by_pair"),
        lambda store: store.mask("it's <one>", "norm.weight"),
        repr,
        lambda store: store._repr_html_(),
    ],
)
def test_a_reader_that_is_open_is_named(store, ask):
    reader = store.query("sparsity_by_pair").arrow()
    with pytest.raises(QueryError, match=r"read what `.arrow\(\)` gave .*`.to_arrow_table\(\)`"):
        ask(store)
    assert reader.read_all().num_rows == 1
    assert ask(store) is not None


def test_how_it_looks(store):
    assert "GRPO" in repr(store)
    assert str(store.place) in repr(store)
    assert "<td>it&#x27;s &lt;one&gt;</td>" in store._repr_html_()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("it's <ome>", "norm.weight"), "no pair .*the nearest is it's <one>"),
        (("it's <one>", "model.norm.weight"), "no tensor 'model.norm.weight'; did you .*norm.wei"),
        (("it's <one>", "norm.weight", "abs:1e-5"), "keeps no masks of 'abs:1e-5', only of exact"),
    ],
)
def test_no_such_mask(store, words, message):
    with pytest.raises(QueryError, match=message):
        store.mask(*words)


def test_two_pairs_of_one_name(tmp_path):
    base = small_model()
    write_model(tmp_path / "base", base)
    pairs = []
    for every in (5, 9):
        tuned = {name: sparsely_changed(array, every) for name, array in base.items()}
        write_model(tmp_path / f"tuned-{every}", tuned)
        pairs.append({"name": "seed0", "base": "base", "tuned": f"tuned-{every}"})
    for number, pair in enumerate(pairs):
        corpus = write_corpus(tmp_path / f"corpus-{number}.yaml", [pair], criteria=["exact"])
        extract_directly(corpus, tmp_path / "store")
    with rlsparse_ray.open_store(tmp_path / "store") as store:
        ids = [i for (i,) in store.sql("SELECT pair_id FROM pairs ORDER BY pair_id").fetchall()]
        assert len(ids) == 2
        assert store._repr_html_().count("<td>seed0</td>") == 2
        with pytest.raises(QueryError, match=f"ambiguous: ids {ids[0]}, {ids[1]}"):
            store.mask("seed0", "norm.weight")
        first, second = (store.mask(i, "embed_tokens.weight") for i in ids)
        assert first.shape == second.shape and not first.equal(second)


def test_refusals(store, tmp_path):
    with pytest.raises(QueryError, match="nowhere"):
        store.sql("FROM nowhere")
    with pytest.raises(QueryError, match="did you mean 'overlap'"):
        store.query("overlapp")
    with pytest.raises(StoreError):
        rlsparse_ray.open_store(tmp_path)


def test_every_name_of_the_package_is_there():
    assert {*rlsparse_ray.__all__} <= {*rlsparse_ray._HOMES}
    for name in rlsparse_ray._HOMES:
        assert callable(getattr(rlsparse_ray, name))
