"""Outcomes: gains pair seeds, intervals are Student's, and what has no record says so."""

from __future__ import annotations

import functools
import json
import statistics
from dataclasses import asdict

import pytest
import torch

from dfmsd.experiments.grids import EXPERIMENTS, Experiment, Row
from dfmsd.experiments.outcomes import (
    Gain,
    against,
    arm_outcomes,
    deciding,
    experiment_outcomes,
    experiment_records,
    gain_of,
    interval,
    quantile,
)
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.tables import (
    ap_by_arm,
    detail_table,
    findings,
    gains_table,
    outcomes_table,
    solid,
    words,
)

METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
PLAN = Experiment(
    "Does anything help?",
    "scenes",
    {
        "none": Row("no distillation", "none"),
        "pkd": Row("PKD", "one", ("method.name=pkd", "method.factor=0.5")),
        "mgd": Row("MGD", "one", ("method.name=mgd",)),
        "none-long": Row("no distillation, twice", "none-long", (), "none-long"),
        "long": Row("PKD, twice", "one-long", ("method.name=pkd",), "none-long"),
    },
    (0, 1, 2),
    ("scale=quick", "train.steps=4"),
)


@pytest.fixture(autouse=True)
def plan(monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "plan", PLAN)


@functools.cache
def settings_of(row):
    settings = resolve("scenes", [*PLAN.settings, *PLAN.rows[row].settings])
    return json.dumps(asdict(settings))


def record(row, seed, ap, *, cpu=10.0, finished="2026-01-01T00:00:00Z", **more):
    return {
        "preset": "scenes",
        "scale": "quick",
        "arm": PLAN.rows[row].arm,
        "seed": seed,
        "fingerprint": "f",
        "steps": [4],
        "metrics": dict.fromkeys(METRICS, ap),
        "curve": [],
        "cpu_s": cpu,
        "finished": finished,
        "settings": json.loads(settings_of(row)),
    } | more


def cells(table):
    table = table.replace("\N{NO-BREAK SPACE}", " ")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def full():
    """Differences of PKD 4, 2, 3 and of MGD 3.1, 2.9, 3.0 points; twice: -1, -2, -3."""
    found = []
    values = {
        "none": (0.10, 0.20, 0.15),
        "pkd": (0.14, 0.22, 0.18),
        "mgd": (0.131, 0.229, 0.18),
        "none-long": (0.4, 0.5, 0.6),
        "long": (0.39, 0.48, 0.57),
    }
    for row, aps in values.items():
        cpu = {"none": 10.0, "mgd": 15.0}.get(row, 20.0)
        found += [record(row, seed, ap, cpu=cpu) for seed, ap in enumerate(aps)]
    return found


def test_the_table_by_hand():
    rows = cells(outcomes_table(experiment_outcomes("plan", full())))
    # PKD: mean 3, sd 1, half 4.303 / √3 = 2.484; MGD: mean 3, sd 0.1, half 0.248
    ap = ["18.0 ± 4.0"] * 3
    none, pkd, mgd, base, long = rows
    assert none == ["no distillation", "4", "3", "15.0 ± 5.0", "", *["15.0 ± 5.0"] * 3, "10", ""]
    assert pkd == ["PKD", "4", "3", ap[0], "+3.0 (+0.5 to +5.5) *", *ap, "20", "+100 %"]
    assert mgd[4] == "+3.0 (+2.8 to +3.2) *"
    assert mgd[9] == "+50 %"
    assert base[4:] == ["", *["50.0 ± 10.0"] * 3, "20", ""]
    assert long[4] == "-2.0 (-4.5 to +0.5)"
    assert long[9] == "+0 %"


def test_without_its_record_a_row_says_not_run():
    single = [r for r in full() if r["seed"] == 0]
    assert "not run" not in outcomes_table(experiment_outcomes("plan", single))
    for gone in single:
        left = [r for r in single if r is not gone]
        rows = {row[0]: row for row in cells(outcomes_table(experiment_outcomes("plan", left)))}
        outcomes = experiment_outcomes("plan", left)
        silent = [o.title for o in outcomes.values() if not o.records]
        assert len(silent) == 1
        assert rows[silent[0]] == [silent[0], "not run", *[""] * 8]
        assert [title for title, row in rows.items() if row[1] == "not run"] == silent
        assert f"- Not run: {silent[0]}." in findings(outcomes)
    assert {row[1] for row in cells(outcomes_table(experiment_outcomes("plan", [])))} == {"not run"}


def test_a_row_with_a_seed_missing_tells_it_and_pairs_the_rest():
    left = [r for r in full() if (r["arm"], r["seed"]) != ("none", 2)]
    outcomes = experiment_outcomes("plan", left)
    none, pkd, *_ = cells(outcomes_table(outcomes))
    assert none[2] == "2 of 3"
    assert pkd[2] == "3"
    # differences 4 and 2: mean 3, sd √2, half = 12.706 · √2 / √2
    assert pkd[4] == "+3.0 (-9.7 to +15.7)"


def test_interrupted_runs_do_not_count_as_fast():
    found = full()
    for one in found:
        if one["arm"] == "one" and one["seed"] == 0:
            one |= {"cpu_s": 1.0, "resumed": True}
        elif one["arm"] == "none":
            one |= {"resumed": one["seed"] == 1}
    none, pkd, *_ = cells(outcomes_table(experiment_outcomes("plan", found)))
    assert (none[8], pkd[8], pkd[9]) == ("10", "20", "+100 %")  # PKD: seed 2 alone has a base
    for one in found:
        one["resumed"] = True
    assert cells(outcomes_table(experiment_outcomes("plan", found)))[1][8:] == ["", ""]


def test_detail_table_by_hand():
    changed = full()
    for one in changed:
        if one["arm"] == "one":
            one["metrics"] = one["metrics"] | {"AP_S": 0.0, "AP50": 0.5, "AP_L": None}
    _, pkd, *_ = cells(detail_table(experiment_outcomes("plan", changed)))
    assert pkd[1:] == [
        "50.0 ± 0.0",
        "18.0 ± 4.0",
        "-15.0 (-27.4 to -2.6) *",  # half 4.303 · 5 / √3 = 12.42
        "+3.0 (+0.5 to +5.5) *",
        "",
    ]


def test_gains_table_by_hand():
    changed = [r for r in full() if r["arm"] != "none-long" and (r["arm"], r["seed"]) != ("one", 2)]
    for one in changed:
        if one["arm"] == "one":
            one["metrics"] = one["metrics"] | {"AP_S": 0.0}
    none, pkd, _, base, _ = cells(gains_table(experiment_outcomes("plan", changed)))
    assert none == ["no distillation", "3", "15.0 ± 5.0", "", "15.0 ± 5.0", ""]
    # differences 4 and 2: half 12.706; AP_S: -10 and -20, half 12.706 · 5
    assert pkd[1:4] == ["2 of 3", "18.0 ± 5.7", "+3.0 (-9.7 to +15.7)"]
    assert pkd[4:] == ["0.0 ± 0.0", "-15.0 (-78.5 to +48.5)"]
    assert base[1:] == ["not run", "", "", "", ""]


def test_significant_is_said_only_where_the_interval_excludes_0():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(12):
        values = (torch.randn(5, 3, generator=generator) * 0.02 + 0.3).tolist()
        for shift, row in zip((0, 0.05, -0.05, 0, 0.01), values, strict=True):
            row[:] = [value + shift for value in row]
        listed = [
            record(row, seed, ap)
            for row, aps in zip(PLAN.rows, values, strict=True)
            for seed, ap in enumerate(aps)
        ]
        text = findings(experiment_outcomes("plan", listed))
        for key, base in (("pkd", 0), ("mgd", 0), ("long", 3)):
            own = values[list(PLAN.rows).index(key)]
            differences = [a - b for a, b in zip(own, values[base], strict=True)]
            mean, sd = statistics.fmean(differences), statistics.stdev(differences)
            t = mean / (sd / 3**0.5)  # the t test, instead of the interval
            verdict = "not significant (the interval holds 0)"
            if abs(t) > 4.303:
                verdict = f"significantly {'higher' if t > 0 else 'lower'}"
            (line,) = [line for line in text.splitlines() if f" {PLAN.rows[key].title} " in line]
            assert f", {verdict}: " in line
            seen.add(verdict)
    assert len(seen) == 3


def test_one_seed_gives_no_interval_and_no_claim():
    text = findings(experiment_outcomes("plan", [r for r in full() if r["seed"] == 1]))
    assert "significant" not in text
    assert (
        "- AP against “no distillation”, one seed in common, so no interval: MGD +2.9; PKD +2.0."
        in text
    )


def test_without_a_common_seed_there_is_no_gain():
    apart = [r for r in full() if (r["seed"] == 0) == (r["arm"] == "none")]
    text = findings(experiment_outcomes("plan", apart))
    assert "- AP against “no distillation”, no seed in common: MGD; PKD." in text
    rows = cells(outcomes_table(experiment_outcomes("plan", apart)))
    assert [row[4] for row in rows[:3]] == ["", "", ""]


def test_against_counts_from_another_row():
    outcomes = against(experiment_outcomes("plan", full()), "pkd")
    assert outcomes["pkd"].gain() is None
    assert outcomes["none"].gain().mean == pytest.approx(-3)
    assert outcomes["mgd"].gain().mean == pytest.approx(0)
    assert outcomes["long"].base_title == "PKD"


def test_extra_cpu_is_paired():
    listed = [record("none", 0, 0.1, cpu=10.0), record("none", 1, 0.1, cpu=20.0)]
    listed += [record("pkd", 0, 0.1, cpu=15.0), record("pkd", 1, 0.1, cpu=40.0)]
    extra = experiment_outcomes("plan", listed)["pkd"].extra_cpu()
    assert extra.mean == pytest.approx(75)  # 50 and 100
    assert extra.interval == pytest.approx((75 - 12.706 * 25, 75 + 12.706 * 25))


def test_curve_is_the_mean_over_seeds_in_steps_of_the_whole_run():
    def evaluations(a, b):
        return [{"stage": 0, "step": 1, "AP": a}, {"stage": 1, "step": 2, "AP": b}]

    listed = [record("pkd", 0, 0.1, curve=evaluations(0.1, 0.2), steps=[2, 3])]
    listed.append(record("pkd", 1, 0.1, curve=evaluations(0.3, 0.4), steps=[2, 3]))
    outcome = experiment_outcomes("plan", listed)["pkd"]
    assert outcome.steps == "2 + 3"
    assert outcome.curve() == [(2, pytest.approx(20)), (5, pytest.approx(30))]


def test_records_of_other_settings_do_not_count():
    other = record("pkd", 0, 0.5)
    other["settings"]["train"]["lr"] = 0.5
    assert not any(experiment_records("plan", [other, record("pkd", 7, 0.5)]).values())


def test_records_older_than_a_setting_count_as_its_default():
    old = record("none", 0, 0.5)
    for young in ("name", "factor", "strides"):
        del old["settings"]["method"][young]
    assert [len(found) for found in experiment_records("plan", [old]).values()] == [1, 0, 0, 0, 0]


def test_files_and_folders_do_not_decide():
    moved = record("none", 0, 0.5)
    moved["settings"] |= {"weak_file": "elsewhere", "out": "there", "seeds": [9]}
    moved["settings"]["data"]["root"] = "here"
    assert experiment_records("plan", [moved])["none"] == [moved]
    assert deciding(resolve("scenes")) == deciding(resolve("scenes", ["out=x", "weak_file=y"]))


def test_records_of_other_kinds_are_passed_over():
    found = [{"cost_of": "pkd", "round": 0}, {"arm": "train weak", "seed": 0}, *full()]
    assert experiment_outcomes("plan", found) == experiment_outcomes("plan", full())


def test_arms_name_their_steps_and_pair_equal_budgets():
    asked = {"arms": ["none", "one", "none-long", "one-long"], "seeds": [0, 1]}
    listed = []
    for arm, aps, steps in (
        ("none", (0.1, 0.2), [4]),
        ("one", (0.3, 0.5), [4]),
        ("none-long", (0.5, 0.5), [8]),
    ):
        listed += [record("none", s, ap, arm=arm, steps=steps) for s, ap in enumerate(aps)]
    for one in listed:
        one["settings"] = asked
    outcomes = arm_outcomes(listed)
    rows = cells(outcomes_table(outcomes))
    assert [row[0] for row in rows] == [
        "no distillation, 4",
        "DFMSD, one stage (strong), 4",
        "no distillation, 8",
        "DFMSD, one stage (strong)",
    ]
    assert rows[3][1] == "not run"
    assert outcomes["one"].gain().mean == pytest.approx(25)
    assert outcomes["none-long"].gain() is None
    assert list(ap_by_arm(listed).values()) == [[10.0, 20.0], [30.0, 50.0], [50.0, 50.0]]


def test_words():
    assert words(None) == ""
    assert words(Gain(1.26, None)) == "+1.3"
    assert words(Gain(-1.26, (-2.0, -0.52))).split() == ["-1.3", "(-2.0", "to", "-0.5)", "*"]
    assert words(Gain(0.0, (-1.0, 1.0)), 0) == solid("+0 (-1 to +1)")
    assert " " not in solid("+0 (-1 to +1)")
    assert not Gain(1.0, (0.0, 2.0)).significant
    assert gain_of([]) is None


def test_interval():
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert interval([1.0]) is None


@pytest.mark.parametrize("freedom", [*range(1, 13), 20, 40, 200])
def test_quantiles_of_t(freedom):
    """Against the integral of the density, by a fine sum."""
    x = torch.linspace(0, quantile(freedom), 200_001, dtype=torch.float64)
    log = torch.distributions.StudentT(torch.tensor(float(freedom)).double()).log_prob(x)
    assert 0.5 + torch.trapezoid(log.exp(), x).item() == pytest.approx(0.975, abs=2e-5)
