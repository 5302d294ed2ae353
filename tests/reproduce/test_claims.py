"""Every claim can hold, hold in part, fail and go untested."""

import math
from dataclasses import replace

import pytest
from scipy import stats

from rlsparse_ray.reproduce.claims import CLAIMS, judge
from rlsparse_ray.reproduce.claims.claim import Verdict, heeding_runs, interval, student
from tests.reproduce.rows import (
    beside,
    curve,
    ends,
    evidence,
    masked,
    overlap,
    result,
)

HOLDS, PART, FAILS, UNTESTED = Verdict.holds, Verdict.in_part, Verdict.fails, Verdict.untested
BY_NUMBER = {claim.number: claim for claim in CLAIMS}
GRPO = result("g", "GRPO", 0.8)


def several(*sparsity):
    names = ("GRPO", "DPO", "KTO")
    return evidence(*(result(n, n, s) for n, s in zip(names, sparsity, strict=True)))


def spread(share, busiest, quietest):
    row = {"name": "g", "matrices_changed_share": share}
    row |= {"busiest_layer_ratio": busiest, "quietest_layer_ratio": quietest}
    return evidence(GRPO, update_spread=(row,))


def ranks(matrix, effective):
    shares = ("rank_1e6", "energy_rank_99", "energy_rank_90")
    row = {"name": "g", "algorithm": "GRPO", "measured": 4, "stable_rank_unweighted": 3.0}
    row |= {f"{name}_share_unweighted": 0.5 for name in shares}
    row |= {"matrix_rank_share_unweighted": matrix, "effective_rank_share_unweighted": effective}
    return evidence(GRPO, rank_by_pair=(row,))


def overlaps(differs, *excess):
    runs = [result(f"r{n}", "GRPO", 0.8) for n in range(4)]
    sides = [("r0", "r1"), ("r0", "r2"), ("r1", "r2"), ("r2", "r3")]
    rows = [overlap(*pair, value, differs) for pair, value in zip(sides, excess, strict=True)]
    return evidence(*runs, overlap_excess=tuple(rows))


def one_overlap(differs):
    runs = [result(f"r{n}", "GRPO", 0.8) for n in range(2)]
    return evidence(*runs, overlap_excess=(overlap("r0", "r1", 0.5, differs),))


def trained(*gains, equal=(0.95, 0.5), of=()):
    """Gains of (subnetwork, random) runs; of which algorithms, where it is not GRPO."""
    names = of or ["GRPO"] * len(gains)
    runs = [result(f"g{n}", name, 0.8) for n, name in enumerate(names)]
    rows = [
        row
        for n, (own, random) in enumerate(gains)
        for row in (
            masked(f"g{n}", "subnetwork", own, equal[0], algorithm=names[n]),
            masked(f"g{n}", "random", random, equal[1], algorithm=names[n]),
        )
    ]
    return evidence(*runs, masked_runs=tuple(rows))


def sgd(density, **more):
    return beside("optimizer", ("GRPO", "sgd", 0.8, 1 - density), **more)


def own_samples(sparsity, base="smollm2-135m-instruct", **more):
    return beside("data", ("SFT", "sampled", 0.1, sparsity), base=base, **more)


def unclipped(*changed, **more):
    """A GRPO run, and one of DPO."""
    runs = zip(("GRPO", "DPO"), changed, strict=True)
    return beside("clipping", *((name, False, 0.8, value) for name, value in runs), **more)


def slow_sft(sparsity):
    """SFT at 60 points less than RL; how sparse is it at RL's learning rate?"""
    found = beside("learning_rate", ("SFT", 1e-5, 0.2, sparsity))
    return evidence(*found.run_results, GRPO, study=found.study)


def fp32(real, cast=0.9):
    found = beside("precision", ("GRPO", "fp32", 0.8, cast), precision="fp32")
    wide = result("variant-0-in-fp32", "GRPO", real, study="in-fp32", precision="fp32")
    return evidence(*found.run_results, wide, study=found.study)


def falling(*sparsity):
    return evidence(GRPO, trajectory=tuple(curve("g", *sparsity)))


def ended(back, outside):
    return evidence(GRPO, trajectory_summary=(ends("g", back, outside),))


TWICE = ("DPO", "DPO", "SFT", "SFT")
THRICE = (*TWICE, "GRPO", "GRPO")

CASES = {
    "1a": [
        (HOLDS, several(0.8, 0.7, 0.99)),
        (PART, several(0.8, 0.69, 0.3)),
        (FAILS, several(0.1, 0.69, 0.3)),
    ],
    "1b": [
        (HOLDS, evidence(result("s", "SFT", 0.15))),
        (PART, evidence(result("s", "SFT", 0.4))),
        (FAILS, evidence(result("s", "SFT", 0.6))),
    ],
    "2a": [
        (HOLDS, spread(1.0, 1.9, 0.6)),
        (PART, spread(0.97, 2.1, 0.6)),
        (FAILS, spread(0.9, 1, 1)),
    ],
    "2b": [
        (HOLDS, evidence(GRPO)),
        (PART, evidence(GRPO | {"sparsity_norms": 0.95})),
        (FAILS, evidence(GRPO | {"sparsity_norms": 0.5})),
    ],
    "2c": [(HOLDS, ranks(0.99, 0.6)), (PART, ranks(0.99, 0.2)), (FAILS, ranks(0.5, 0.6))],
    **{
        number: [
            (HOLDS, overlaps(differs, 0.5, 0.4, 0.3, 0.4)),
            (PART, overlaps(differs, 0.05, 0.04, 0.03, 0.06)),
            (FAILS, overlaps(differs, 0.05, -0.06, -0.02, 0.03)),
            (UNTESTED, overlaps("nothing of this", 0.5, 0.5, 0.5, 0.5)),
            (UNTESTED, one_overlap(differs)),
        ]
        for number, differs in (
            ("3a", "seed"),
            ("3b", "dataset"),
            ("3c", "algorithm"),
            ("3d", "algorithm, dataset, seed"),
        )
    },
    "4a": [
        (HOLDS, trained((1.1, 0.5), (0.8, 0.5))),
        (PART, trained((0.6, 0.5), (0.6, 0.5))),
        (FAILS, trained((0.2, 0.5), (0.6, 0.5))),
    ],
    "4b": [
        (HOLDS, trained((1.0, 0.5), (0.9, 0.5), (1.0, 0.6))),
        (HOLDS, trained((1, 0.5), (1, 0.4), (1, 0.9), (1, 0.89), of=TWICE)),
        # pooled, these six would be three standard errors above nothing
        (
            PART,
            trained((1, 0.5), (1, 0.4), (1, 0.98), (1, 0.97), (1, 0.5), (1, 0.4), of=THRICE),
        ),
        (FAILS, trained((1.0, 0.98), (1.0, 0.97), (1.0, 0.98))),
        (FAILS, trained((1.0, 0.5), (0.9, 1.1), (1.0, 0.9))),
        (UNTESTED, trained((1.0, 0.5), (1.0, 0.5), of=("DPO", "SFT"))),
        (UNTESTED, trained((1.0, 0.5))),
    ],
    "4c": [
        (HOLDS, trained((1, 1), equal=(0.95, 0.5))),
        (PART, trained((1, 1), equal=(0.8, 0.5))),
        (PART, trained((1, 1), equal=(0.95, 0.96))),
        (FAILS, trained((1, 1), equal=(0.8, 0.9))),
    ],
    **{
        number: [
            (HOLDS, beside(varies, ("GRPO", 1, 0.8, 0.84), ("PPO", 1, 0.8, 0.77))),
            (PART, beside(varies, ("GRPO", 1, 0.8, 0.8), ("PPO", 1, 0.8, 0.72))),
            (FAILS, beside(varies, ("GRPO", 1, 0.8, 0.8), ("PPO", 1, 0.8, 0.95))),
            (UNTESTED, beside("data", ("SFT", "sampled", 0.1, 0.9))),
        ]
        for number, varies in (("5a", "kl"), ("5c", "updates_per_sample"))
    },
    "5b": [
        (HOLDS, beside("clipping", ("GRPO", False, 0.8, 0.84), updates=4)),
        (PART, beside("clipping", ("GRPO", False, 0.8, 0.72), updates=4)),
        (PART, unclipped(0.8, 0.8)),
        (FAILS, unclipped(0.8, 0.5)),
        # the ratio of a run that never acted says nothing
        (PART, unclipped(0.8, 0.5, unmoved=("variant-1",))),
        (UNTESTED, unclipped(0.8, 0.8, unmoved=("variant-0", "variant-1"))),
    ],
    "5d": [
        (HOLDS, own_samples(0.9)),
        (PART, own_samples(0.2)),
        (FAILS, own_samples(0.05)),
        (UNTESTED, own_samples(0.9, base="tiny-a")),
        (UNTESTED, own_samples(0.9, reward_after=0.65)),
    ],
    "5e": [(HOLDS, falling(0.95, 0.8)), (FAILS, falling(0.95, 0.94))],
    "5f": [(HOLDS, slow_sft(0.3)), (PART, slow_sft(0.7)), (FAILS, slow_sft(0.8))],
    "5g": [
        (HOLDS, sgd(0.0002)),
        (PART, sgd(0.005)),
        (FAILS, sgd(0.2, reward_after=0.63)),
        (UNTESTED, sgd(0.0002, reward_after=0.65)),
        (UNTESTED, sgd(0.2, reward_after=0.55)),
    ],
    "6a": [
        (HOLDS, falling(0.9, 0.85, 0.84)),
        (PART, falling(0.9, 0.85, 0.81)),
        (FAILS, falling(0.9, 0.8, 0.7)),
        (UNTESTED, falling(0.9)),
    ],
    "6b": [(HOLDS, ended(0.08, 0)), (PART, ended(0.005, 0)), (FAILS, ended(0.0, 0))],
    "6c": [(HOLDS, ended(0, 0.085)), (PART, ended(0, 0.15)), (FAILS, ended(0, 0.3))],
    "7": [(HOLDS, fp32(0.75)), (PART, fp32(0.3)), (FAILS, fp32(0.01))],
}


@pytest.mark.parametrize(
    ("number", "verdict", "found"),
    [
        pytest.param(number, *case, id=f"{number} {case[0]} {n}")
        for number, cases in CASES.items()
        for n, case in enumerate(cases)
    ],
)
def test_a_verdict_that_is_known(number, verdict, found):
    measured = BY_NUMBER[number].test(found)
    assert measured.verdict is verdict
    assert (measured.runs == 0) == (verdict is UNTESTED)
    assert all(row.keys() == measured.rows[0].keys() for row in measured.rows)


def test_every_claim_has_cases_and_nothing_to_go_by_is_said():
    assert CASES.keys() == BY_NUMBER.keys()
    assert {found.measured.verdict for found in judge(evidence())} == {UNTESTED}
    assert all(found.measured.text for found in judge(evidence()))


def test_what_learned_nothing_does_not_count():
    idle = {"learned": False}
    found = evidence(GRPO, result("h", "GRPO", 0.1, **idle), result("s", "SFT", 0.1, **idle))
    verdicts = {f.claim.number: f.measured for f in judge(found)}
    assert verdicts["1a"].verdict is PART and verdicts["1a"].runs == 1
    assert verdicts["1b"].verdict is UNTESTED
    assert [row["name"] for row in found.idle()] == ["h", "s"]
    # neither does what was trained with the mask of such a run, or beside it
    row = masked("h", "subnetwork", 1.0)
    assert BY_NUMBER["4a"].test(evidence(*found.run_results, masked_runs=(row,))).runs == 0
    beside_idle = beside("kl", ("GRPO", 1, 0.8, 0.2), **idle)
    assert BY_NUMBER["5a"].test(beside_idle).verdict is UNTESTED


def test_few_runs_hold_in_part_at_most():
    found = {n: several(*[0.8] * 3).run_results[:n] for n in (2, 3)}
    two, three = (judge(evidence(*found[n]))[0].measured for n in (2, 3))
    assert (two.verdict, three.verdict) == (PART, HOLDS)
    assert two.text.endswith("; from 2 runs only") and "only" not in three.text
    failing = judge(ended(0.0, 0.3))
    worst = {f.claim.number: f.measured for f in failing}["6c"]
    assert worst.verdict is FAILS and worst.text.endswith("; from 1 run only")
    assert judge(evidence())[0].measured.text == "no RL run learned"


def test_a_run_that_never_acted_is_left_out_and_shown():
    measured = BY_NUMBER["5b"].test(unclipped(0.79, 0.8, unmoved=("variant-1",)))
    assert measured.runs == 2
    assert "; never acted: 1 DPO (every bit as in the main run" in measured.text
    assert "at one update a sample the ratio of probabilities is 1" in measured.text
    assert [row["equal in every bit"] for row in measured.rows] == [0, 1]
    # the larger difference would win, were it not left out
    assert "-1.0 points (GRPO" in measured.text
    both = BY_NUMBER["5a"].test(beside("kl", ("GRPO", 1, 0.8, 0.8), unmoved=("variant-0",)))
    assert both.verdict is UNTESTED and both.text.startswith("never acted: 1 GRPO")
    assert len(both.rows) == 1


def test_gains_that_are_not_alike_are_said():
    measured = BY_NUMBER["5g"].test(sgd(0.2, reward_after=1.0))
    assert measured.text.startswith("gain in reward with SGD 0.600, with AdamW 0.200; ")
    assert measured.rows[0]["gain, of the usual"] == "3.00"


def test_one_right_answer_is_no_other_distribution():
    measured = BY_NUMBER["5d"].test(own_samples(0.9, base="tiny-a"))
    assert "each question has one right answer" in measured.text
    assert [row["difference"] for row in measured.rows] == ["+80.0 points"]


def test_the_masks_of_subnetworks_are_shown():
    runs = (result("g", "GRPO", 0.8), result("s", "SFT", 0.1))
    rows = [
        masked(run["name"], mask, 1.0, algorithm=run["algorithm"])
        for run in runs
        for mask in ("subnetwork", "random", "complement")
    ]
    shown = BY_NUMBER["4a"].test(evidence(*runs, masked_runs=tuple(rows))).rows
    assert [row["weights trained"] for row in shown] == [
        *("20.0 %", "20.0 %", "80.0 %"),
        *("90.0 %", "90.0 %", "10.0 %"),
    ]


def test_the_error_of_a_lead_is_that_of_its_algorithm():
    measured = BY_NUMBER["4b"].test(trained((1, 0.5), (1, 0.3), (1, 0.9), (1, 0.9), of=TWICE))
    assert [row["standard error"] for row in measured.rows] == ["10.0", "0.0"]
    assert "clear for 2 of 2 algorithms: DPO +60.0 points (mask of 20 %)" in measured.text
    assert measured.text.endswith("mean of the algorithms +35.0 points, standard error 25.0")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((0.8, 0.8), "from 1 comparison only"),  # two algorithms: 4 runs, one seed of each
        ((0.8,), "from 1 comparison only"),
    ],
)
def test_a_comparison_counts_its_seeds(changes, said):
    runs = zip(("GRPO", "PPO"), changes, strict=False)
    found = beside("kl", *((name, 0.05, 0.8, value) for name, value in runs))
    measured = BY_NUMBER["5a"].test(found)
    assert measured.verdict is HOLDS and measured.runs == 2 * len(changes)
    judged = heeding_runs(measured)
    assert judged.verdict is PART and judged.text.endswith(said)


def test_a_main_run_beside_two_variants_is_one_run():
    first = beside("kl", ("GRPO", 0.05, 0.8, 0.8), ("GRPO", 0.1, 0.8, 0.8))
    one, other = first.study.variants
    study = replace(first.study, variants=(one, replace(other, reference=one.reference)))
    found = evidence(*(r for r in first.run_results if r["name"] != "main-1"), study=study)
    assert heeding_runs(BY_NUMBER["5a"].test(found)).runs == 3
    assert heeding_runs(BY_NUMBER["5a"].test(found)).verdict is PART
    seeds = beside("kl", *(("GRPO", 0.05, 0.8, 0.8) for _ in range(3)))
    assert heeding_runs(BY_NUMBER["5a"].test(seeds)).verdict is HOLDS


@pytest.mark.parametrize("rl", [0.4, 0.5])
def test_where_rl_is_no_sparser_there_is_no_gap(rl):
    found = beside("learning_rate", ("SFT", 1e-5, 0.5, 0.6))
    found = evidence(*found.run_results, GRPO | {"sparsity": rl}, study=found.study)
    measured = BY_NUMBER["5f"].test(found)
    assert measured.verdict is UNTESTED and "there is no gap" in measured.text


@pytest.mark.parametrize(
    "other", [{"reward_after": 0.65}, {"dataset": "subtraction"}, {"base_source": "tiny-b"}]
)
def test_slow_sft_is_beside_rl_that_learned_as_much_of_the_same(other):
    found = beside("learning_rate", ("SFT", 1e-5, 0.2, 0.3))
    rl = (GRPO, result("d", "DPO", 0.5) | other)
    measured = BY_NUMBER["5f"].test(evidence(*found.run_results, *rl, study=found.study))
    assert "RL that learned as much (GRPO) 80 %" in measured.text and measured.runs == 3
    measured = BY_NUMBER["5f"].test(evidence(*found.run_results, rl[1], study=found.study))
    assert measured.verdict is UNTESTED


def test_equal_weights_hold_in_part_without_random_masks_to_compare_them_with():
    found = trained((1, 1), equal=(0.95, 0.5))
    alone = evidence(*found.run_results, masked_runs=found.masked_runs[:1])
    measured = BY_NUMBER["4c"].test(alone)
    assert measured.verdict is PART
    assert measured.text.endswith("no random masks to compare them with")
    far = evidence(*found.run_results, masked_runs=(masked("g0", "subnetwork", 1, 0.5),))
    assert BY_NUMBER["4c"].test(far).verdict is FAILS


def test_where_nothing_is_sparse_no_share_of_it_is_rounding():
    measured = BY_NUMBER["7"].test(fp32(0.0, cast=0.0))
    assert measured.verdict is FAILS and "rounding" not in measured.text


def test_the_interval_leaves_out_units_and_not_pairs():
    # two runs of each of four algorithms: all that differs is the algorithm
    sides = [(name, name) for name in "abcd" for _ in range(2)]
    values = [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4]
    low, high = interval(values, sides)
    # Student's interval of the four means: 0.25 -+ 3.182 * 0.1291 / 2
    assert math.isclose(low, 0.25 - 0.2054, abs_tol=1e-4)
    assert math.isclose(high, 0.25 + 0.2054, abs_tol=1e-4)
    assert interval([0.5], [("a", "b")]) is None
    assert interval([0.5, 0.4], [("a", "b"), ("a", "c")]) is None, "without a nothing is left"
    same = interval([0.3] * 3, [("a", "b"), ("b", "c"), ("a", "c")])
    assert all(math.isclose(end, 0.3) for end in same)


@pytest.mark.parametrize("freedom", [2, 3, 4, 5, 6, 7, 12, 30])
def test_quantiles_of_student(freedom):
    assert math.isclose(student(freedom), stats.t.ppf(0.975, freedom), abs_tol=1e-3)


def test_an_overlap_is_over_algorithms_where_there_are_enough_of_them():
    names = ("GRPO", "DPO", "KTO", "PPO")
    runs = [result(f"{name}-{n}", name, 0.8) for name in names for n in range(3)]
    # within an algorithm all alike; over runs the interval would be above 0
    rows = [
        overlap(f"{name}-{a}", f"{name}-{b}", excess)
        for name, excess in zip(names, (0.0, 0.02, 0.05, 0.3), strict=True)
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    measured = BY_NUMBER["3a"].test(evidence(*runs, overlap_excess=tuple(rows)))
    assert measured.verdict is FAILS and "interval over 4 algorithms" in measured.text
    alike = (row | {"excess_share_magnitude": 0.1} for row in rows[3:])
    few = BY_NUMBER["3a"].test(evidence(*runs, overlap_excess=tuple(alike)))
    assert few.verdict is PART
    assert "interval over runs, for DPO and KTO and PPO alone" in few.text
