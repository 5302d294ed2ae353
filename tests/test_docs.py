"""The pages say what is true: generated ones are up to date, and what they show runs."""

import importlib.util
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import rlsparse_ray
from rlsparse_ray.entries import Corpus
from tests.demo_store import RUNS, make_demo

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}
MINE = ["cite.md", "cookbook.md", "corpus.md", "python.md", "quickstart.md"]
COOKBOOK = {
    int(number): (title, body)
    for number, title, body in re.findall(
        r"^### (\d+)\. (.+?)\n(.*?)(?=^##|\Z)", PAGES["cookbook.md"], re.MULTILINE | re.DOTALL
    )
}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def of_pages(language):
    return [
        pytest.param(block, id=f"{name}-{n}")
        for name, text in PAGES.items()
        for n, block in enumerate(blocks(text, language))
        if name in MINE
    ]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="module")
def store(demo):
    with rlsparse_ray.open_store(demo / "store") as store:
        yield store


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_the_site_builds_without_a_warning(tmp_path):
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = Path(sys.executable).with_name("zensical")
    subprocess.run([command, "build", "--strict"], cwd=tmp_path, check=True)
    made = {path.stem for path in (tmp_path / "dist" / "site").glob("*.html")}
    assert made >= {Path(name).stem for name in PAGES}


def test_generated_pages_are_up_to_date(generate):
    assert list(generate.outdated()) == [], "run: .venv/bin/python docs/generate.py"


def test_a_changed_page_is_noticed(generate, tmp_path, monkeypatch, capsys):
    for name in generate.PAGES:
        (tmp_path / name).write_text(PAGES[name])
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    assert generate.main(["--check"]) == 0
    text = PAGES["corpus.md"].replace("Optimizer steps.", "Steps.")
    (tmp_path / "corpus.md").write_text(text)
    assert generate.main(["--check"]) == 1
    assert (tmp_path / "corpus.md").read_text() == text
    assert generate.main([]) == 0
    assert (tmp_path / "corpus.md").read_text() == PAGES["corpus.md"]
    assert capsys.readouterr().out.count("corpus.md") == 2


def test_every_query_and_every_column_is_there():
    from rlsparse_ray import sql, tables

    for name in sql.queries():
        assert f"\n## {name}\n" in PAGES["queries.md"]
    for name in sql.audits():
        assert f"| `{name}` |" in PAGES["queries.md"]
    for name, schema in {**tables.SCHEMAS, **tables.NAMED_SCHEMAS}.items():
        section = PAGES["tables.md"].split(f"\n## {name}\n")[1].split("\n## ")[0]
        listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert listed[-len(schema.names) :] == schema.names


def test_every_variable_of_the_environment_is_listed():
    listed = PAGES["commands.md"].split("\n## Environment variables\n")[1]
    code = "".join(path.read_text() for path in (ROOT / "rlsparse_ray").rglob("*.py"))
    assert {*re.findall(r"\bRLSPARSE_[A-Z_]+", code)} == {*re.findall(r"RLSPARSE_[A-Z_]+", listed)}


def anchors(text):
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", PAGES[name]):
        if "://" in target:
            continue
        assert not target or (DOCS / target).exists(), target
        assert not anchor or anchor in anchors(PAGES[target or name]), anchor


def test_the_site_has_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = [page for part in nav for page in _pages(part)]
    assert sorted(listed) == sorted(PAGES)


def _pages(part):
    if isinstance(part, str):
        return [part]
    return [
        page
        for value in (part.values() if isinstance(part, dict) else part)
        for page in _pages(value)
    ]


@pytest.mark.parametrize("block", of_pages("yaml"))
def test_corpus_files_load(block, load):
    corpus = load(block)
    assert corpus.entries() or corpus.discover


def test_every_key_of_a_corpus_file_is_shown():
    """The long example has each key of the file, of settings and of a pair at least once."""
    example = yaml.safe_load(blocks(PAGES["corpus.md"], "yaml")[1])
    assert example.keys() == Corpus.model_fields.keys()
    shown = set().union(*example["pairs"])
    models = {"Corpus": example, "Settings": example["settings"], "PairEntry": shown}
    for name, keys in models.items():
        section = PAGES["corpus.md"].split(f"<!-- keys: {name} -->")[1].split("<!-- end")[0]
        assert set(keys) == set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))


@pytest.mark.parametrize("block", of_pages("sql"))
def test_sql_gives_rows(block, store):
    rows = store.sql(block).fetchall()
    assert rows
    numbers = [value for row in rows for value in row if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))


@pytest.mark.parametrize("name", ["python.md", "quickstart.md"])
def test_python_runs(name, demo, monkeypatch):
    monkeypatch.chdir(demo.parent)
    names = {}
    for block in blocks(PAGES[name], "python"):
        exec(compile(block, name, "exec"), names)
    if name == "python.md":
        both = names["mask"] & names["other"]
        assert names["shared"] == both.sum() > 0
        assert len(names["plan"].pairs) > len(RUNS)
        names["store"].close()


def commands():
    return [
        pytest.param(line.removeprefix("$ "), id=f"{name}-{line[2:50]}")
        for name, text in PAGES.items()
        for block in blocks(text, "console")
        for line in block.splitlines()
        if line.startswith("$ rlsparse ") and not line.endswith("\\")
    ]


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command, monkeypatch):
    """Verb, arguments and options are those of the command line; nothing is run."""
    import typer

    from rlsparse_ray.cli.app import app

    monkeypatch.setenv("RLSPARSE_STORE", "store")  # as quickstart.md says
    words = shlex.split(command.partition(" > ")[0].partition(" | ")[0])[1:]
    found, context = typer.main.get_command(app), None
    while hasattr(found, "commands") and words and words[0] in found.commands:
        found = found.commands[words.pop(0)]
    assert not hasattr(found, "commands"), f"no such verb: {words[:1]}"
    with found.make_context("rlsparse", words, parent=context) as parsed:
        assert parsed.args == []


def test_twenty_questions_with_a_way_to_read_each():
    assert list(COOKBOOK) == list(range(1, 21))
    for title, body in COOKBOOK.values():
        assert title.endswith("?")
        assert len(blocks(body, "sql")) == 1
        assert len(body.split("```")[-1].split()) > 15


def ask(store, number):
    relation = store.sql(blocks(COOKBOOK[number][1], "sql")[0])
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def masks_of(store, pair):
    names = "SELECT tensor FROM tensors WHERE status IN ('compared', 'identical') AND pair_id = "
    found = store.sql(f"{names} pair_id_of($pair)", pair=pair).fetchall()
    return {tensor: store.mask(pair, tensor).numpy() for (tensor,) in found}


def test_question_3_against_the_masks(store):
    masks = masks_of(store, "tiny-a-grpo-seed0")
    top = sorted((mask.mean() for mask in masks.values()), reverse=True)[:10]
    assert [row["density"] for row in ask(store, 3)] == pytest.approx(top)


def test_question_10_against_the_masks(store):
    masks = masks_of(store, "tiny-a-grpo-seed0")
    for row in ask(store, 10):
        per_row = np.sort(masks[row["tensor"]].sum(axis=-1))[::-1]
        tenth = math.ceil(len(per_row) / 10)
        assert row["in_busiest_tenth"] == pytest.approx(per_row[:tenth].sum() / per_row.sum())
        assert row["rows_untouched"] == (per_row == 0).sum()


def test_question_11_against_the_masks(store):
    per_token = store.mask("tiny-a-sft-seed0", "embed_tokens.weight").sum(dim=1).numpy()
    rows = ask(store, 11)
    assert [row["changed"] for row in rows] == sorted(per_token, reverse=True)[:10]
    assert all(per_token[row["token"]] == row["changed"] for row in rows)


def test_question_12_against_the_mask(store):
    mask = store.mask("tiny-a-grpo-seed0", "layers.0.mlp.up_proj.weight").numpy()
    rows = ask(store, 12)
    assert [row["index"] for row in rows] == list(np.flatnonzero(mask)[:10])
    assert all(mask[row["row"], row["column"]] for row in rows)


def test_questions_15_and_16_against_the_masks(store):
    grpo = [masks_of(store, name) for name, run in RUNS.items() if run[:2] == ("tiny-a", "GRPO")]
    (row,) = ask(store, 15)
    numel = sum(mask.size for mask in grpo[0].values())
    in_all = sum(np.logical_and.reduce([m[t] for m in grpo]).sum() for t in grpo[0])
    in_any = sum(np.logical_or.reduce([m[t] for m in grpo]).sum() for t in grpo[0])
    assert (row["runs"], row["parameters"]) == (3, numel)
    assert (row["in_all"], row["in_any"]) == pytest.approx((in_all / numel, in_any / numel))
    sft = masks_of(store, "tiny-a-sft-seed0")
    alone = {row["kind"]: row["grpo_alone"] for row in ask(store, 16)}
    head = grpo[0]["lm_head.weight"]
    assert alone["head"] == pytest.approx((head & ~sft["lm_head.weight"]).sum() / head.sum())


def test_question_19_against_the_masks(store):
    # every other row is there halfway, and none goes back
    final = masks_of(store, "tiny-a-grpo-seed0")
    numel = sum(mask.size for mask in final.values())
    first, last = ask(store, 19)
    half = sum(mask[::2].sum() for mask in final.values())
    assert first["ever_touched"] == pytest.approx(half / numel)
    assert last["ever_touched"] == pytest.approx(sum(m.sum() for m in final.values()) / numel)
    assert last["for_the_first_time"] == pytest.approx(last["moved_in_interval"])
