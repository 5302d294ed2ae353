"""Discovery by the real client, on a hub with a tree of models of every kind."""

import json
import re
from datetime import UTC, datetime

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlsparse_ray.corpus import Corpus, PairEntry, load_corpus
from rlsparse_ray.discovery.guesses import SOURCE, clean
from rlsparse_ray.discovery.rules import Discovery, Found, discover, expand
from rlsparse_ray.discovery.text import as_yaml
from rlsparse_ray.entries import DiscoverRule
from rlsparse_ray.plan import make_plan
from rlsparse_ray.weights.hub_address import HubAddress
from rlsparse_ray.weights.hub_tree import descendants
from tests.builders import small_model, tuned_from, write_model
from tests.servers.hub import HubServer
from tests.servers.hub_repos import Settings
from tests.servers.proxy import Rule

pytestmark = pytest.mark.timeout(60)

BASE = "acme/Base-7B"
DPO = {"base_model": BASE, "tags": ["trl", "dpo"]}
TAGS = "no tag of the rule (tags)"
NAME = "a tag of the rule in its name alone (by_name)"
SEVERAL = "its card names several bases (several_bases)"
QUANTIZED = "seems to be quantized (relations)"
FEW = "fewer than 100 downloads (min_downloads)"
DENIED = "denied (deny)"

GOOD = {"downloads": 1000, "likes": 5, "created": "2025-05-01", "updated": "2025-06-01"}

# repository: its settings, and why RULE leaves it out (None: it takes it)
TREE: dict[str, tuple[dict, str | None]] = {
    "a/Base-7B-DPO": ({"card": DPO | {"datasets": ["a/pairs"], "license": "mit"}}, None),
    "a/Base-7B-GRPO-seed3": ({"card": {"base_model": BASE, "tags": ["GRPO"]}}, None),
    "a/list-of-one": ({"card": DPO | {"base_model": [BASE]}}, None),
    "a/odd-tags": ({"card": DPO | {"tags": ["dpo", 5, None]}}, None),
    "a/both": ({"card": DPO | {"tags": ["dpo", "grpo"]}}, None),
    "b/grpo-ed": ({"card": DPO | {"base_model_relation": "finetune"}}, None),
    "b/no-tags": ({"card": {"base_model": BASE}}, TAGS),
    "b/other-tags": ({"card": {"base_model": BASE, "tags": ["sft", "dpo-like"]}}, TAGS),
    "b/tagged-data": ({"card": {"base_model": BASE, "datasets": "dpo"}}, TAGS),
    "b/Base-DPO-by-name": ({"card": {"base_model": BASE}}, NAME),
    "b/Base_GRPO": ({"card": {"base_model": BASE, "tags": ["trl"]}}, NAME),
    "c/several": ({"card": DPO | {"base_model": [BASE, "acme/other"]}}, SEVERAL),
    "c/itself": (
        {"card": DPO | {"base_model": [BASE, "c/itself"]}},
        "its card names itself as a base",
    ),
    "c/gguf-tag": ({"card": DPO | {"tags": ["dpo", "gguf"]}}, QUANTIZED),
    "c/m-dpo-AWQ": ({"card": DPO}, QUANTIZED),
    "c/mlx": ({"card": DPO, "library": "mlx"}, QUANTIZED),
    "c/lora": ({"card": DPO, "library": "peft"}, "seems to be an adapter (relations)"),
    "c/mixed": ({"card": DPO | {"tags": ["dpo", "mergekit"]}}, "seems to be a merge (relations)"),
    "d/gated": ({"card": DPO, "gated": True}, "gated (gated)"),
    "d/few": ({"card": DPO, "downloads": 99}, FEW),
    "d/enough": ({"card": DPO, "downloads": 100}, None),
    "d/unliked": ({"card": DPO, "likes": 1}, "fewer than 2 likes (min_likes)"),
    "d/old": ({"card": DPO, "created": "2024-12-31"}, "created before 2025-01-01 (created_since)"),
    "d/new-years-day": ({"card": DPO, "created": "2025-01-01"}, None),
    "d/stale": (
        {"card": DPO, "updated": "2025-01-31"},
        "not updated since 2025-02-01 (updated_since)",
    ),
    "bad/one": ({"card": DPO}, DENIED),
    "bad/two": ({"card": DPO, "gated": True}, DENIED),
    "e/Not-This": ({"card": DPO}, DENIED),
    "e/not-this-one": ({"card": DPO}, None),
    "e/run-TEST-1": ({"card": DPO}, DENIED),
}

# these are not in what the hub lists for the rule at all
ELSEWHERE: dict[str, dict] = {
    BASE: {},
    "f/no-card": {"tags": ["dpo"]},
    "f/other-base": {"card": DPO | {"base_model": "acme/Base-7B-Instruct"}},
    "f/other-case": {"card": DPO | {"base_model": "acme/base-7b"}},
    "f/quantized": {"card": DPO | {"base_model_relation": "quantized"}},
    "f/adapter": {"card": DPO | {"base_model_relation": "adapter"}, "library": "peft"},
    "f/merge": {"card": DPO | {"base_model_relation": "merge", "base_model": [BASE, "acme/other"]}},
    "f/private": {"card": DPO, "private": True},
    "f/grandchild": {"card": DPO | {"base_model": "a/Base-7B-DPO"}},
    "f/broken": {"card": {"tags": 5}},
}

RULE = f"""
  - base: hf://{BASE}
    tags: [dpo, grpo]
    min_downloads: 100
    min_likes: 2
    created_since: 2025-01-01
    updated_since: 2025-02-01
    deny: [Bad, e/not-this, "*-test-*"]
"""
TAKEN = sorted(name for name, (_, reason) in TREE.items() if reason is None)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setenv("RLSPARSE_RETRY_SECONDS", "2")


@pytest.fixture
def tree(hub: HubServer) -> HubServer:
    everything = ELSEWHERE | {name: settings for name, (settings, _) in TREE.items()}
    for name, settings in everything.items():
        hub.folder(name)
        hub.repositories.settings[name] = Settings(**GOOD | settings)
    return hub


@pytest.fixture
def ruled(load):
    """A corpus file with one rule: RULE, or one for the base with other keys."""

    def ruled(**keys) -> Corpus:
        text = yaml.safe_dump([{"base": f"hf://{BASE}"} | keys]) if keys else RULE
        return load(f"version: 1\ndiscover:\n{text}")

    return ruled


def names(discovery: Discovery) -> list[str]:
    return [pair.name for pair in discovery.pairs]


def reasons(discovery: Discovery) -> dict[str, str]:
    return {model.repository: model.reason for model in discovery.left_out}


def asked(hub: HubServer) -> list[str]:
    return [request.path for request in hub.proxy.log]


# what is found


def test_every_model_of_the_tree(tree, ruled):
    found = discover(ruled())
    assert names(found) == TAKEN
    assert reasons(found) == {name: reason for name, (_, reason) in TREE.items() if reason}
    assert found.failed == {}
    assert list(found.reasons.items())[:3] == [(DENIED, 4), (TAGS, 3), (QUANTIZED, 3)]


def test_one_request(tree, ruled):
    discover(ruled())
    (path,) = asked(tree)
    assert path.startswith("/api/models?filter=base_model%3Afinetune%3Aacme%2FBase-7B&expand=")


def test_a_pair_says_that_it_guesses(tree, ruled):
    pairs = {pair.name: pair for pair in discover(ruled()).pairs}
    assert pairs["a/Base-7B-DPO"] == PairEntry(
        name="a/Base-7B-DPO",
        base=f"hf://{BASE}",
        tuned="hf://a/Base-7B-DPO",
        source=SOURCE,
        labels={
            "guessed_family": "Base-7B",
            "guessed_algorithm": "DPO",
            "guessed_stage": "preference",
            "guessed_dataset": "a/pairs",
            "card_license": "mit",
            "card_library": "transformers",
        },
    )
    assert pairs["a/Base-7B-GRPO-seed3"].labels["guessed_seed"] == "3"
    assert "guessed_algorithm" not in pairs["a/both"].labels
    for pair in pairs.values():
        facts = (pair.family, pair.algorithm, pair.stage, pair.dataset, pair.seed)
        assert facts == (None,) * 5


def test_why(tree, ruled):
    whys = {found.entry.name: found.why for found in discover(ruled(several_bases=True)).found}
    assert whys["c/several"] == (
        "finetune of acme/Base-7B by its card, which also names acme/other, "
        "1,000 downloads, 5 likes, created 2025-05-01"
    )
    (why,) = (f.why for f in discover(ruled()).found if f.entry.name == "a/both")
    assert why.startswith("tag dpo, tag grpo, finetune of acme/Base-7B by its card, 1,000 down")


@pytest.mark.parametrize(
    ("keys", "more"),
    [
        ({}, set()),
        ({"by_name": True}, {"b/Base-DPO-by-name", "b/Base_GRPO"}),
        ({"several_bases": True}, {"c/several"}),
        ({"gated": True}, {"bad/two", "d/gated"}),
        (
            {"relations": ["finetune", "quantized"]},
            {"c/gguf-tag", "c/m-dpo-AWQ", "c/mlx", "f/quantized"},
        ),
        ({"relations": ["finetune", "adapter"]}, {"c/lora", "f/adapter"}),
        (
            {"relations": ["finetune", "merge"], "several_bases": True},
            {"c/mixed", "c/several", "f/merge"},
        ),
    ],
)
def test_each_key_lets_in_what_it_says(tree, ruled, keys, more):
    plain = {"tags": ["dpo", "grpo"]}
    before, after = names(discover(ruled(**plain))), names(discover(ruled(**plain, **keys)))
    assert set(after) - set(before) == more
    assert set(before) <= set(after)


def test_tags_may_be_data_sets_and_licenses(tree, ruled):
    for tag in ("dataset:a/pairs", "license:mit"):
        assert names(discover(ruled(tags=[tag]))) == ["a/Base-7B-DPO"]


def test_no_tags_take_all(tree, ruled):
    assert {"b/no-tags", "b/other-tags"} <= set(names(discover(ruled(max_models=100))))


def test_a_family_that_the_rule_knows_is_a_fact(tree, ruled):
    pair = discover(ruled(family="Base", tags=["grpo"])).pairs[0]
    assert pair.family == "Base"
    assert "guessed_family" not in pair.labels


def test_private_models_are_nobody_elses_business(tree, ruled, monkeypatch):
    tree.tokens.add("hf_me")
    tree.settings("f/private").readers.add("hf_me")
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    assert reasons(discover(ruled()))["f/private"] == "private"


# which, and in what order


def test_the_oldest_go_first(tree, ruled):
    tree.settings("e/not-this-one").created = "2025-01-02"
    rule = {"tags": ["dpo", "grpo"], "created_since": "2025-01-01", "deny": ["c", "bad"]}
    two = discover(ruled(**rule, max_models=2))
    assert names(two) == ["d/new-years-day", "e/not-this-one"]
    assert reasons(two)["a/both"] == "newer than the first 2 (max_models)"
    tree.settings("a/both").downloads = 10**9
    assert names(discover(ruled(**rule, max_models=2))) == names(two)
    assert names(discover(ruled(**rule, max_models=3)))[0] == "a/Base-7B-DPO", "by name if as old"


def test_what_the_corpus_has_is_not_repeated(tree, ruled):
    corpus = ruled()
    there = PairEntry(name="mine", base=f"hf://{BASE}@main", tuned="hf://A/base-7b-dpo@abc")
    elsewhere = PairEntry(name="sft", base="hf://acme/other", tuned="hf://a/both")
    taken = PairEntry(name="a/list-of-one", base="/models/x", tuned="not hf://")
    pairs = (there, elsewhere, taken)
    found = discover(corpus.model_copy(update={"pairs": pairs}))
    assert set(TAKEN) - set(names(found)) == {"a/Base-7B-DPO", "a/list-of-one"}
    assert reasons(found)["a/Base-7B-DPO"] == "already in the corpus"
    assert reasons(found)["a/list-of-one"] == "its name is another pair's in the corpus"


def test_pasted_pairs_keep_their_places(tree, ruled):
    corpus = ruled(tags=["dpo"], max_models=3)
    first = discover(corpus)
    pasted = corpus.model_copy(update={"pairs": first.pairs})
    assert len(first.pairs) == 3
    assert names(discover(pasted)) == []


def test_two_rules(tree, load):
    text = f"version: 1\ndiscover:\n  - {{base: hf://{BASE}, tags: [grpo]}}{RULE}"
    found = discover(load(text))
    first = ["a/Base-7B-GRPO-seed3", "a/both"]
    assert names(found) == [*first, *(name for name in TAKEN if name not in first)]
    assert len(asked(tree)) == 1, "both rules ask for the same list"


def test_nothing_is_asked_without_rules(tree):
    corpus = Corpus(version=1, pairs=(PairEntry(name="p", base="/b", tuned="/t"),))
    assert discover(corpus) == Discovery()
    assert expand(corpus) == (corpus, {})
    assert asked(tree) == []


# the way to the hub


def test_pages(tree, ruled, monkeypatch):
    whole = discover(ruled())
    tree.proxy.forget()
    monkeypatch.setattr("tests.servers.hub.PAGE", 10)
    assert discover(ruled()) == whole
    assert len(asked(tree)) == -(-len(TREE) // 10)


@pytest.mark.parametrize(
    "fault",
    [
        Rule(match="cursor=20", times=2, status=429, headers={"Retry-After": "0.1"}),
        Rule(match="cursor=20", times=2, status=503),
        Rule(match="cursor=20", times=1, drop=True),
        Rule(match="cursor=20", times=1, cut=100),
    ],
    ids=["429", "503", "drop", "cut"],
)
def test_faults_go_by_and_cost_one_page(tree, ruled, monkeypatch, fault):
    monkeypatch.setattr("tests.servers.hub.PAGE", 10)
    times = fault.times
    tree.proxy.rules.append(fault)
    assert names(discover(ruled())) == TAKEN
    assert len(asked(tree)) == 3 + times


def test_a_rule_that_the_hub_does_not_answer_fails_alone(tree, load):
    text = f"version: 1\ndiscover:\n  - {{base: hf://acme/busy, tags: [dpo]}}{RULE}"
    tree.proxy.rules.append(
        Rule(match="busy", times=None, status=429, headers={"Retry-After": "999"})
    )
    found = discover(load(text))
    assert names(found) == TAKEN
    (name,) = found.failed
    assert name == "discover hf://acme/busy"
    assert "answers 429 (1 tries in 0 s): run again later" in found.failed[name]


def test_misspelled_bases(tree, load):
    write_model(tree.folder(BASE), small_model())
    tree.rename("Acme/Base-7b", BASE)
    text = "version: 1\ndiscover: [{base: 'hf://Acme/Base-7b'}, {base: 'hf://acme/none'}]"
    found = discover(load(text))
    assert list(found.failed.values()) == [
        f"hf://Acme/Base-7b: the hub calls it {BASE}, and no card names Acme/Base-7b: "
        f"write hf://{BASE}",
        "hf://acme/none: no such repository, or a private one: check the name; if it is private, "
        "`hf auth login` or set HF_TOKEN",
    ]


def test_a_base_of_which_nothing_was_made(tree, load):
    write_model(tree.folder("acme/lonely"), small_model())
    assert discover(load("version: 1\ndiscover: [{base: hf://acme/lonely}]")) == Discovery()


def test_offline(tree, ruled, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (message,) = discover(ruled()).failed.values()
    assert message.startswith(f"hf://{BASE}: HF_HUB_OFFLINE forbids asking the hub what was made")
    assert asked(tree) == []


def test_what_is_no_hub(tree, ruled, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{tree.endpoint}/api/models/{BASE}?")
    (message,) = discover(ruled()).failed.values()
    assert "gives no list of models: is it a hub? Check HF_ENDPOINT" in message


def test_a_refused_token(tree, ruled, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    (message,) = discover(ruled()).failed.values()
    assert (
        message == f"hf://{BASE}: the hub refuses your token: `hf auth login` or set HF_TOKEN anew"
    )


def test_what_the_tree_says_of_a_model(tree):
    found = {m.repository: m for m in descendants(HubAddress(BASE, None, ""), "finetune")}
    assert list(found) == sorted(TREE)
    model = found["c/several"]
    assert model.bases == {BASE, "acme/other"}
    assert model.created == datetime(2025, 5, 1, tzinfo=UTC)
    assert (model.downloads, model.likes, model.gated, model.private) == (1000, 5, False, False)
    assert found["d/gated"].gated


# from the rules to a plan


def test_a_plan_takes_the_rules_in(tree, ruled):
    base = small_model()
    write_model(tree.folder(BASE), base)
    write_model(tree.folder("a/both"), tuned_from(base, 1))
    write_model(tree.folder("a/Base-7B-GRPO-seed3"), tuned_from(base, 2))
    plan = make_plan(ruled(tags=["grpo"]))
    assert [pair.entry.name for pair in plan.pairs] == ["a/Base-7B-GRPO-seed3", "a/both"]
    assert plan.pairs[1].entry.labels["card_library"] == "transformers"


def test_a_plan_names_rules_that_failed(tree, load):
    plan = make_plan(load("version: 1\ndiscover: [{base: hf://acme/none}]"))
    assert (plan.pairs, list(plan.failed)) == ((), ["discover hf://acme/none"])


def test_expanded_corpora_have_no_rules_left(tree, ruled):
    corpus, failed = expand(ruled())
    assert ([pair.name for pair in corpus.entries()], corpus.discover, failed) == (TAKEN, (), {})
    tree.proxy.forget()
    assert expand(corpus) == (corpus, {})
    assert asked(tree) == []


# as text


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ruled.yaml"
    path.write_text(f"version: 1\ndiscover:\n{RULE}")
    return path


def test_the_command_prints_what_can_be_pasted(tree, rlsparse, file, load):
    answer = rlsparse("discover", file)
    assert answer.code == 0
    assert load(f"version: 1\npairs:\n{answer.out}").pairs == discover(load_corpus(file)).pairs
    lines = answer.out.splitlines()
    starts = [place for place, line in enumerate(lines) if line.startswith("  - name: ")]
    assert len(starts) == len(TAKEN) == sum(line.startswith("  # ") for line in lines)
    assert all(lines[place - 1].startswith("  # tag ") for place in starts)
    head, *counts = answer.err.splitlines()
    assert head == f"1 rule: {len(TAKEN)} pairs to add, {len(TREE) - len(TAKEN)} models left out"
    assert counts[0].split(maxsplit=1) == ["4", DENIED]
    assert sum(int(line.split()[0]) for line in counts) == len(TREE) - len(TAKEN)


def test_the_command_as_json(tree, rlsparse, file):
    answer = json.loads(rlsparse("discover", file, "--json").out)
    assert [pair["name"] for pair in answer["pairs"]] == TAKEN
    assert all(pair["why"] for pair in answer["pairs"])
    assert {m["repository"]: m["reason"] for m in answer["left_out"]}["d/few"] == FEW
    assert answer["failed"] == {}


def test_the_command_fails_with_a_rule(tree, rlsparse, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("version: 1\ndiscover: [{base: hf://acme/none}]")
    answer = rlsparse("discover", path)
    assert (answer.code, answer.out) == (1, "")
    assert "failed: discover hf://acme/none: hf://acme/none: no such repository" in answer.err


_label = st.text(max_size=30).map(clean).filter(bool)


@given(
    st.lists(
        st.builds(
            PairEntry,
            name=_label,
            base=st.just("hf://a/b@1"),
            tuned=st.just("hf://c/d"),
            family=st.none() | _label,
            source=st.just(SOURCE),
            labels=st.dictionaries(st.sampled_from(["guessed_seed", "card_license"]), _label),
        ),
        unique_by=lambda entry: entry.name,
        max_size=4,
    ),
    st.text().map(clean),
)
def test_any_text_comes_back_from_yaml(entries, why):
    text = as_yaml(Discovery(tuple(Found(entry, why) for entry in entries)))
    assert text.isascii()
    read = yaml.safe_load(f"pairs:\n{text}")["pairs"] or []
    assert tuple(PairEntry(**item) for item in read) == tuple(entries)


# what a file may say


def test_everything_that_a_rule_may_say(load):
    (rule,) = load("""
version: 1
discover:
  - base: hf://org/base@v1
    tags: [dpo, 7]
    by_name: yes
    relations: [finetune, adapter]
    several_bases: true
    gated: true
    min_downloads: 1_000
    min_likes: 3
    created_since: 2025-01-01
    updated_since: "2025-02-01"
    max_models: 5
    deny: [someone, some/model, "*-GGUF"]
    family: Base
""").discover
    assert (rule.tags, rule.min_downloads, rule.max_models) == (("dpo", "7"), 1000, 5)
    assert rule.updated_since.month == 2
    assert load("version: 1\ndiscover: [{base: hf://gpt2}]").discover == (
        DiscoverRule(base="hf://gpt2"),
    )


def test_wrong_rules(refused):
    refused(
        """version: 1
discover:
  - base: Qwen/Qwen2.5-7B
  - tag: [dpo]
    base: hf://a/b
    relations: []
    max_models: 0
    created_since: yesterday
    deny: [hf://a/b, a/b/c, ""]
  - {tags: dpo}
  - 7
""",
        "3: discover.0.base: Qwen/Qwen2.5-7B: no address on the hub: write "
        "hf://org/repo@revision/folder, of which @revision and /folder may be left out",
        "4: unknown key 'tag': did you mean 'tags'?",
        "6: discover.1.relations: write at least one, or leave the key out",
        "7: discover.1.max_models: Input should be greater than or equal to 1",
        "8: discover.1.created_since: Input should be a valid date or datetime, input is too short",
        "9: discover.1.deny.0: 'hf://a/b': write org, org/repo or a pattern such as *-GGUF",
        "9: discover.1.deny.1: 'a/b/c': write org, org/repo or a pattern such as *-GGUF",
        "9: discover.1.deny.2: write at least one character",
        "10: discover.2.tags: write a list",
        "10: key 'base' is missing",
        "11: discover.3: write a mapping",
    )


def test_a_rule_alone_is_a_corpus_and_is_not_asked_when_it_is_read(tree, ruled):
    assert ruled().entries() == ()
    assert asked(tree) == []


def test_the_keys_are_documented():
    assert all(field.description for field in DiscoverRule.model_fields.values())
    assert re.search(r"guessed", DiscoverRule.model_fields["family"].description)
