"""Claims: the smallest effect that could be seen, and verdicts that intervals carry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dfmsd.experiments.claims import claims_table, verdict
from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.records import read_records
from dfmsd.experiments.results import detectable, gain_of

CLAIMS = read_records(Path(__file__).parent.parent / "data/claims.jsonl")


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_a_detectable_difference_is_seen_in_four_of_five_simulated_experiments(count):
    rng = np.random.default_rng(count)
    unit = rng.normal(size=count)
    unit = 2.5 * (unit - unit.mean()) / unit.std(ddof=1)  # of spread 2.5 exactly
    shift = detectable(unit + 7)  # the mean itself plays no part
    trials = rng.normal(shift, 2.5, size=(20_000, count))
    seen = stats.ttest_1samp(trials, 0, axis=1)
    share = np.mean((seen.pvalue < 0.05) & (trials.mean(1) > 0))
    assert share == pytest.approx(0.8, abs=0.012)


def test_ten_pairs_see_one_standard_deviation():
    """G*Power: a paired two-sided t test at 5 % with power 0.8 of dz = 1 wants 10 pairs."""
    differences = stats.norm.ppf((np.arange(10) + 0.5) / 10)
    ratio = detectable(differences) / np.std(differences, ddof=1)
    assert 0.99 < ratio < 1.0
    assert detectable([1.0]) is None
    assert detectable([]) is None


def test_verdicts_follow_the_interval():
    assert verdict(gain_of([1.0, 1.2, 0.9])) == "supported"
    assert verdict(gain_of([-1.0, -1.2, -0.9])) == "contradicted"
    assert verdict(gain_of([-1.0, 2.0, 1.0])) == "not supported"
    assert (verdict(gain_of([1.0])), verdict(gain_of([]))) == ("open: one seed", "not run")


def test_every_claim_names_rows_of_its_experiment():
    for claim in CLAIMS:
        if "experiment" in claim:
            rows = EXPERIMENTS[claim["experiment"]].rows
            assert {claim["row"], claim["base"]} <= rows.keys(), claim["text"]


def test_the_table_counts_a_claim_between_its_two_rows():
    def record(row, seed, **metrics):
        labels = {"experiment": "few-parts", "row": row, "seed": seed, "steps": [9]}
        return labels | {"metrics": metrics, "finished": ""}

    records = [record("dual", seed, AP=0.5, AP_S=0.1 + 0.01 * seed) for seed in range(3)]
    methods = [record("dfmsd", seed, AP=0.4, AP_S=0.13 + 0.01 * seed) for seed in range(3)]
    methods[2]["metrics"]["AP_S"] += 0.006
    records += [r | {"experiment": "few-methods"} for r in methods]
    (line,) = [x for x in claims_table(CLAIMS, records).splitlines() if "small objects" in x]
    # differences 3, 3, 3.6 points: mean 3.2, t(2) = 4.303, standard error 0.2
    assert "+3.2\N{NO-BREAK SPACE}(+2.3\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}+4.1)" in line
    assert "| supported |" in line
    assert "`dfmsd experiment few-parts`" in line
    assert claims_table(CLAIMS, []).count("| not run |") == len(CLAIMS) - 1
    assert claims_table(CLAIMS, []).count("| not testable at this scale |") == 1
