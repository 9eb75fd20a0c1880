"""Tables: gains pair seeds, intervals are Student's, and what has no record says so."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pandas as pd
import pytest
import torch

from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.grids_scenes import SCENES
from dfmsd.experiments.plan import Experiment, Row
from dfmsd.experiments.records import read_folder
from dfmsd.experiments.results import (
    Gain,
    arms_frame,
    gain_of,
    gains,
    learning_curve,
    ranked,
    relative_to,
    results_frame,
)
from dfmsd.experiments.settings import ARMS
from dfmsd.experiments.tables import (
    arms_table,
    cost_table,
    detail_table,
    experiment_report,
    experiment_tables,
    format_gain,
    gains_table,
    mean_sd,
    paper_table,
    provenance,
    results_table,
    summarise,
    weights_grid,
    weights_table,
)

RECORDS = read_folder(Path(__file__).parent.parent / "data/results")
METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
PLAN = Experiment(
    "Does anything help?",
    {
        "none": Row("no distillation", "none"),
        "pkd": Row("PKD", "one"),
        "mgd": Row("MGD", "one"),
        "none-long": Row("no distillation, twice", "none-long", (), "none-long"),
        "long": Row("PKD, twice", "one-long", (), "none-long"),
    },
    (0, 1, 2),
)


@pytest.fixture(autouse=True)
def plan(monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "plan", PLAN)


def record(row, seed, ap, *, cpu=10.0, **more):
    return {
        "preset": "scenes",
        "scale": "quick",
        "arm": PLAN.rows[row].arm,
        "experiment": "plan",
        "row": row,
        "seed": seed,
        "fingerprint": "f",
        "steps": [4],
        "metrics": dict.fromkeys(METRICS, ap),
        "curve": [],
        "cpu_s": cpu,
        "finished": "2026-01-01T00:00:00Z",
    } | more


def cells(table):
    table = table.replace("\N{NO-BREAK SPACE}", " ")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def full():
    """Differences of PKD 4, 2, 3 and of MGD 3.1, 2.9, 3.0 points; twice: -1, -2, -3."""
    values = {
        "none": (0.10, 0.20, 0.15),
        "pkd": (0.14, 0.22, 0.18),
        "mgd": (0.131, 0.229, 0.18),
        "none-long": (0.4, 0.5, 0.6),
        "long": (0.39, 0.48, 0.57),
    }
    cpu = {"none": 10.0, "mgd": 15.0}
    return [
        record(row, seed, ap, cpu=cpu.get(row, 20.0))
        for row, aps in values.items()
        for seed, ap in enumerate(aps)
    ]


def frame(records):
    return results_frame("plan", records)


def test_the_table_by_hand():
    # PKD: mean 3, sd 1, half 4.303 / √3 = 2.484; MGD: mean 3, sd 0.1, half 0.248
    ap = ["18.0 ± 4.0"] * 3
    none, pkd, mgd, base, long = cells(results_table(frame(full())))
    assert none == ["no distillation", "4", "3", "15.0 ± 5.0", "", *["15.0 ± 5.0"] * 3, "10", ""]
    assert pkd == ["PKD", "4", "3", ap[0], "+3.0 (+0.5 to +5.5) *", *ap, "20", "+100 %"]
    assert (mgd[4], mgd[9]) == ("+3.0 (+2.8 to +3.2) *", "+50 %")
    assert base[4:] == ["", *["50.0 ± 10.0"] * 3, "20", ""]
    assert (long[4], long[9]) == ("-2.0 (-4.5 to +0.5)", "+0 %")


def test_without_its_record_a_row_says_not_run():
    single = [r for r in full() if r["seed"] == 0]
    assert "not run" not in results_table(frame(single))
    for gone in single:
        left = frame([r for r in single if r is not gone])
        title = PLAN.rows[gone["row"]].title
        rows = [row for row in cells(results_table(left)) if row[1] == "not run"]
        assert rows == [[title, "not run", *[""] * 8]]
        assert f"- Not run: {title}." in summarise(left)
        assert title not in [row[0] for row in cells(detail_table(left))]
    assert {row[1] for row in cells(results_table(frame([])))} == {"not run"}


def test_a_row_with_a_seed_missing_tells_it_and_pairs_the_rest():
    left = [r for r in full() if (r["row"], r["seed"]) != ("none", 2)]
    none, pkd, *_ = cells(results_table(frame(left)))
    assert (none[2], pkd[2]) == ("2 of 3", "3")
    assert pkd[4] == "+3.0 (-9.7 to +15.7)"  # 4 and 2: mean 3, sd √2, half = 12.706 · √2 / √2


def test_interrupted_runs_do_not_count_as_fast():
    records = full()
    for one in records:
        if (one["row"], one["seed"]) == ("pkd", 0):
            one |= {"cpu_s": 1.0, "resumed": True}
        elif one["row"] == "none":
            one |= {"resumed": one["seed"] == 1}
    none, pkd, *_ = cells(results_table(frame(records)))
    assert (none[8], pkd[8], pkd[9]) == ("10", "20", "+100 %")  # PKD: seed 2 alone has a base
    table = results_table(frame([one | {"resumed": True} for one in records]))
    assert cells(table)[1][8:] == ["", ""]


def test_detail_and_gains_tables_by_hand():
    changed = [r for r in full() if r["row"] != "none-long"]
    for one in changed:
        if one["row"] == "pkd":
            one["metrics"] = one["metrics"] | {"AP_S": 0.0, "AP50": 0.5, "AP_L": None}
    _, pkd, *_ = cells(detail_table(frame(changed)))
    sizes = ["-15.0 (-27.4 to -2.6) *", "+3.0 (+0.5 to +5.5) *", ""]  # half 4.303 · 5 / √3 = 12.42
    assert pkd[1:] == ["50.0 ± 0.0", "18.0 ± 4.0", *sizes]
    two = [r for r in changed if (r["row"], r["seed"]) != ("pkd", 2)]
    none, pkd, _, base, _ = cells(gains_table(frame(two)))
    assert none == ["no distillation", "3", "15.0 ± 5.0", "", "15.0 ± 5.0", ""]
    # differences 4 and 2: half 12.706; AP_S: -10 and -20, half 12.706 · 5
    assert pkd[1:4] == ["2 of 3", "18.0 ± 5.7", "+3.0 (-9.7 to +15.7)"]
    assert pkd[4:] == ["0.0 ± 0.0", "-15.0 (-78.5 to +48.5)"]
    assert base[1:] == ["not run", "", "", "", ""]


def test_significant_is_said_only_where_the_interval_excludes_0():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(6):
        values = (torch.randn(5, 3, generator=generator) * 0.02 + 0.3).tolist()
        for shift, row in zip((0, 0.05, -0.05, 0, 0.01), values, strict=True):
            row[:] = [value + shift for value in row]
        by_row = dict(zip(PLAN.rows, values, strict=True))
        text = summarise(
            frame([record(r, s, ap) for r in by_row for s, ap in enumerate(by_row[r])])
        )
        for key, base in (("pkd", "none"), ("mgd", "none"), ("long", "none-long")):
            differences = [a - b for a, b in zip(by_row[key], by_row[base], strict=True)]
            mean, sd = statistics.fmean(differences), statistics.stdev(differences)
            t = mean / (sd / 3**0.5)  # the t test, instead of the interval
            verdict = "not significant (the interval holds 0)"
            if abs(t) > 4.303:
                verdict = f"significantly {'higher' if t > 0 else 'lower'}"
            (line,) = [line for line in text.splitlines() if f" {PLAN.rows[key].title} " in line]
            assert f", {verdict}: " in line
            seen.add(verdict)
    assert len(seen) == 3


def test_without_two_common_seeds_there_is_no_claim():
    text = summarise(frame([r for r in full() if r["seed"] == 1]))
    assert "significant" not in text
    start = "- AP against “no distillation”, "
    assert f"{start}one seed in common, so no interval: MGD +2.9; PKD +2.0." in text
    apart = frame([r for r in full() if (r["seed"] == 0) == (r["row"] == "none")])
    assert f"{start}no seed in common: MGD; PKD." in summarise(apart)
    assert [row[4] for row in cells(results_table(apart))[:3]] == ["", "", ""]


def test_gains_count_from_another_row():
    other = relative_to(frame(full()), "pkd")
    found = gains(other)
    assert found["PKD"] is None
    assert found["no distillation"].mean == pytest.approx(-3)
    assert found["MGD"].mean == pytest.approx(0)
    assert set(other["base"]) == {"PKD", ""}


def test_extra_cpu_is_paired():
    records = [record("none", 0, 0.1, cpu=10.0), record("none", 1, 0.1, cpu=20.0)]
    records += [record("pkd", 0, 0.1, cpu=15.0), record("pkd", 1, 0.1, cpu=40.0)]
    extra = gains(frame(records), "extra CPU")["PKD"]
    assert extra.mean == pytest.approx(75)  # 50 and 100
    assert extra.interval == pytest.approx((75 - 12.706 * 25, 75 + 12.706 * 25))


def test_times_of_two_machines_are_not_compared():
    place = {"environment": {"processor": "P", "accelerators": []}}
    gpu = {"environment": {"processor": "P", "accelerators": ["G"]}}
    records = [record("none", seed, 0.1, cpu=10.0, **place) for seed in (0, 1)]
    records += [record("pkd", 0, 0.1, cpu=15.0, **place), record("pkd", 1, 0.1, cpu=99.0, **gpu)]
    assert gains(frame(records), "extra CPU")["PKD"] == (pytest.approx(50), None)
    none, pkd, *_ = cells(results_table(frame(records)))
    assert (none[8], pkd[8]) == ("10", "15")


def test_a_learning_curve_is_the_mean_over_runs_in_steps_of_the_whole_run():
    def run(a, b):
        curve = [{"stage": 0, "step": 1, "AP": a}, {"stage": 1, "step": 2, "AP": b}]
        return {"steps": [2, 3], "curve": curve}

    curve = learning_curve([run(0.1, 0.2), run(0.3, 0.4)])
    assert curve == [(2, pytest.approx(20)), (5, pytest.approx(30))]
    assert learning_curve([]) == []


def test_only_records_of_the_row_count_and_the_newest_of_a_seed():
    others = [record("pkd", 0, 0.5, experiment="plans"), record("pkd", 7, 0.5)]
    others += [{"cost_of": "pkd", "round": 0}, {"arm": "one", "seed": 0}]
    assert frame(others)["record"].isna().all()
    twice = [record("pkd", 0, 0.1), record("pkd", 0, 0.3)]
    assert frame([*others, *twice]).loc[("pkd", 0), "AP"] == pytest.approx(30)


def test_a_newer_record_of_other_data_hides_none_of_these():
    def of(data, row, ap, day):
        return record(row, 0, ap, fingerprint=f"f-{data}", finished=f"2026-01-{day:02}T00:00:00Z")

    mixed = [of("x", "none", 0.1, 1), of("y", "none", 0.9, 2), of("x", "pkd", 0.3, 3)]
    assert frame(mixed).loc[("pkd", 0), "gain AP"] == pytest.approx(20)


def test_a_row_may_share_the_runs_of_another(monkeypatch):
    rows = {"none": Row("again", "none", recorded=("plan", "none"))}
    monkeypatch.setitem(EXPERIMENTS, "second", Experiment("?", rows, (0, 1)))
    assert results_frame("second", full())["AP"].tolist() == pytest.approx([10, 20])


def test_arms_name_their_steps_and_pair_equal_budgets():
    asked = {"settings": {"arms": ["none", "one", "none-long", "one-long"]}}
    records = [
        record("none", seed, ap, arm=arm, steps=steps) | asked
        for arm, aps, steps in (
            ("none", (0.1, 0.2), [4]),
            ("one", (0.3, 0.5), [4]),
            ("none-long", (0.5, 0.5), [8]),
        )
        for seed, ap in enumerate(aps)
    ]
    old = record("none", 0, 0.9, fingerprint="old", finished="2025-01-01") | asked
    table = arms_frame([old, *records])
    assert table["title"].unique().tolist() == [
        "no distillation, 4",
        "DFMSD, one stage (strong), 4",
        "no distillation, 8",
        "DFMSD, one stage (strong)",
    ]
    found = gains(table)
    assert found["DFMSD, one stage (strong), 4"].mean == pytest.approx(25)
    assert found["no distillation, 8"] is None
    none, one, _, missing = cells(arms_table([old, *records]))
    assert none[:5] == ["no distillation", "4", "2", "15.0 ± 7.1", ""]  # never of two settings
    assert one[3:5] == ["40.0 ± 14.1", "+25.0 (-38.5 to +88.5)"]  # t = 12.71
    assert missing == ["DFMSD, one stage (strong)", "not run", *[""] * 8]
    assert [row[1] for row in cells(arms_table([]))] == ["not run"] * len(ARMS)


def test_another_method_is_called_by_its_name():
    made = {"arm": "one", "settings": {"arms": ["none", "one"], "method": {"name": "pkd"}}}
    records = [record("none", 0, 0.1) | made | {"arm": "none"}, record("pkd", 0, 0.2) | made]
    titles = [row[0] for row in cells(arms_table(records))]
    assert titles == ["no distillation", "pkd, one stage (strong)"]
    assert all("DFMSD" not in title for title in arms_frame(records)["title"])


def test_gain_and_its_words():
    assert gain_of([]) is None
    assert gain_of([1.0]) == Gain(1.0, None)
    low, high = gain_of([1.0, 2.0, float("nan"), 3.0]).interval
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert not gain_of([1.0, 1.0, -2.0]).significant
    assert gain_of([2.0, 2.0]) == Gain(2.0, (2.0, 2.0))
    assert not Gain(1.0, (0.0, 2.0)).significant
    assert format_gain(None) == ""
    assert format_gain(Gain(1.26, None)) == "+1.3"
    text = format_gain(Gain(-1.26, (-2.0, -0.52)))
    assert text.split("\N{NO-BREAK SPACE}") == ["-1.3", "(-2.0", "to", "-0.5)", "*"]
    assert format_gain(Gain(0.0, (-1.0, 1.0)), 0).split() == ["+0", "(-1", "to", "+1)"]
    assert mean_sd([40, 42, 44]) == "42.0 ± 2.0"
    assert [mean_sd(values) for values in ([50], [None, 50], [])] == ["50.0", "50.0", "–"]


def test_weights_by_hand():
    values = {"a-0.1": 0.25, "b-two-0.1": 0.5, "a-1": 0.5, "b-two-1": None, "a-10": 0.125}
    values |= {"b-two-10": 0.25, "c-1": None}
    titles = {"a": "A", "b-two": "B × 2", "c": "C"}
    rows = pd.DataFrame(
        {
            "title": [f"{titles[key[: key.rindex('-')]]} × {key.split('-')[-1]}" for key in values],
            "AP": [None if ap is None else 100 * ap for ap in values.values()],
        },
        pd.MultiIndex.from_product([values, [100]], names=["row", "seed"]),
    )
    grid = weights_grid(rows)
    assert grid.loc["A"].to_dict() == {0.1: 25.0, 1.0: 50.0, 10.0: 12.5}
    table = weights_table(grid)
    assert table.splitlines()[0] == "| AP at | × 0.1 | × 1 | × 10 | best |"
    assert cells(table) == [
        ["A", "25.0", "50.0", "12.5", "× 1"],
        ["B × 2", "50.0", "not run", "25.0", "× 0.1, an end of the grid"],
        ["C", "not run", "not run", "not run", "not run"],
    ]


def test_a_weight_without_all_seeds_is_not_compared():
    index = pd.MultiIndex.from_product([["a-1", "a-3"], [100, 101]], names=["row", "seed"])
    values = [10.0, 20.0, 90.0, None]
    grid = weights_grid(pd.DataFrame({"title": ["A × 1"] * 2 + ["A × 3"] * 2, "AP": values}, index))
    assert grid.loc["A", 1.0] == 15.0
    assert pd.isna(grid.loc["A", 3.0])


def test_cost_by_hand():
    def measured(name, number, ms, mb):
        values = {"step_ms": ms, "memory_mb": mb, "parameters": 1200}
        return {"cost_of": name, "round": number} | values

    records = [measured("none", 0, 100.0, 500), measured("none", 1, 200.0, 510)]
    records += [measured("pkd", 0, 110.0, 520), measured("pkd", 1, 240.0, 540), {"arm": "one"}]
    titles = {"none": "no distillation", "pkd": "PKD", "mgd": "MGD"}
    none, pkd, mgd = cells(cost_table(records, titles))
    assert none == ["no distillation", "2", "150 ± 71", "", "505 ± 7", "", "1,200"]
    # extra 10 and 20 %: 15 ± 12.706 · 7.07 / √2 = 63.5; memory 20 and 30: 25 ± 63.5
    assert pkd[2:] == ["175 ± 92", "+15 (-49 to +79)", "530 ± 14", "+25 (-39 to +89)", "1,200"]
    assert mgd == ["MGD", "not run", *[""] * 5]
    assert {row[1] for row in cells(cost_table([], titles))} == {"not run"}


@pytest.mark.parametrize("name", SCENES)
def test_every_experiment_reports_what_its_records_hold(name):
    plan = EXPERIMENTS[name]
    report = experiment_report(name, RECORDS)
    assert plan.question in report
    assert f"Made from {len(plan.rows) * len(plan.seeds)} run" in report
    for line in report.splitlines():
        assert line.count(" | ") <= 9, line  # ten columns at most can be read on the web
    empty = experiment_report(name, [])
    assert "**not run**" in empty
    assert f"`dfmsd experiment {name}`" in empty
    assert not re.search(r"\d\.\d", empty)


def test_a_folded_report_shows_its_main_table_first():
    plain = experiment_tables("scenes-methods", RECORDS)
    shown, _, hidden = experiment_tables("scenes-methods", RECORDS, fold=True).partition(
        "<details>"
    )
    assert plain.startswith(shown.strip())
    assert "Commits" in hidden
    assert hidden.endswith("\n\n</details>")
    assert "<details>" not in plain
    assert experiment_tables("scenes-methods", [], fold=True).startswith("**not run**")


def test_rows_are_ranked_by_their_mean_and_those_not_run_last():
    rows = {"a": Gain(1.0, None), "b": None, "c": Gain(2.0, (1.0, 3.0))}
    assert list(ranked(rows)) == ["c", "a", "b"]


def test_paper_numbers_stand_as_figure_3_states_them():
    assert [row[1] for row in cells(paper_table())] == ["38.4", "42.2", "42.9", "42.3"]


def made(**changes):
    data = {"kind": "scenes", "root": "", "train_images": 9, "val_images": 4, "size": 96}
    place = {"processor": "A", "cores": 2, "threads": 1, "accelerators": [], "commit": "abc"}
    return {
        "scale": "quick",
        "seed": 0,
        "finished": "2026-01-02T03:04:05Z",
        "settings": {"data": data | {"small": 14.0, "medium": 28.0}, "train": {"batch_size": 8}},
        "environment": place | {"versions": {"python": "3", "torch": "2"}},
    } | changes


def test_provenance_says_how_and_lists_what_differs():
    text = provenance([made()])
    for part in (
        "Made from 1 run at scale quick, seed 0, 2026-01-02.",
        "9 training and 4 validation scenes, 96 pixels (small below 14, medium below 28)",
        "batches of 8",
        "A, 2 cores, 1 thread, no accelerator",
        "Python 3, torch 2",
        "abc",
    ):
        assert part in text
    gpu = made()["environment"] | {"accelerators": ["B"], "threads": 4, "commit": "def+"}
    two = [made(), made(seed=3, finished="2026-02-01T00:00:00Z", environment=gpu), made(seed=3)]
    text = provenance(two)
    assert "Made from 3 runs at scale quick, seeds 0, 3, 2026-01-02 to 2026-02-01." in text
    assert "no accelerator / A, 2 cores, 4 threads, B." in text
    assert "abc / def+" in text
    old = made()
    del old["environment"], old["finished"]
    assert "unknown" in provenance([old])
    assert provenance([]) == "*Made from no record.*"


def test_provenance_names_a_folder_without_its_place():
    one = made()
    one["settings"]["data"] |= {"kind": "coco", "root": "somewhere/else/aquarium/"}
    assert "photographs of the folder aquarium, 96 pixels" in provenance([one])
    assert "somewhere" not in provenance([one])
