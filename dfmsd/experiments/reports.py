"""Records → whole sections: an experiment's tables, what they say, and how they were made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.outcomes import Outcome, experiment_outcomes, gain_of
from dfmsd.experiments.records import markdown_table, spread
from dfmsd.experiments.tables import SIZES, detail_table, findings, outcomes_table, words


def experiment_report(name: str, records: Iterable[dict[str, Any]]) -> str:
    """Markdown: question, tables, findings and provenance of an experiment; "not run" where so."""
    plan, outcomes = EXPERIMENTS[name], experiment_outcomes(name, records)
    found = [record for outcome in outcomes.values() for record in outcome.records]
    head = f"### {name}\n\n{plan.question}"
    if not found:
        rows, seeds = len(plan.rows), len(plan.seeds)
        what = f"{rows} rows, {seeds} seed{'s' * (seeds > 1)}: `dfmsd experiment {name}`"
        return f"{head}\n\n**not run** ({what})"
    if name.endswith("-weights"):
        body = [weights_table(weights_grid(outcomes))]
    else:
        body = [outcomes_table(outcomes), detail_table(outcomes), findings(outcomes)]
    return "\n\n".join([head, *body, provenance(found)])


def weights_grid(outcomes: Mapping[str, Outcome]) -> dict[str, dict[float, float | None]]:
    """Method → multiple of its balanced weight → AP in points, None: not run.

    Args:
        outcomes: of an experiment whose rows are `METHOD-MULTIPLE`, titled `TITLE × MULTIPLE`.
    """
    grid: dict[str, dict[float, float | None]] = {}
    for key, outcome in outcomes.items():
        title, multiple = outcome.title.rsplit(" × ", 1)[0], float(key.rsplit("-", 1)[1])
        grid.setdefault(title, {})[multiple] = next(iter(outcome.values()), None)
    return grid


def weights_table(grid: Mapping[str, Mapping[float, float | None]]) -> str:
    """Markdown: AP by multiple, the best of each method, and whether it ends the grid."""
    multiples = sorted({multiple for found in grid.values() for multiple in found})
    rows = []
    for title, found in grid.items():
        known = {multiple: ap for multiple, ap in found.items() if ap is not None}
        best = max(known, key=known.__getitem__, default=None)
        chosen = "not run" if best is None else f"× {best:g}"
        if best in (multiples[0], multiples[-1]):
            chosen += ", an end of the grid"
        shown = ("not run" if m not in known else f"{known[m]:.1f}" for m in multiples)
        rows.append([title, *shown, chosen])
    return markdown_table(["AP at", *(f"× {m:g}" for m in multiples), "best"], rows)


def teachers_table(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: every detector that `dfmsd train` recorded, or the way to a run."""
    rows = []
    for record in records:
        kind, _, name = record.get("arm", "").partition(" ")
        if kind != "train":
            continue
        made, metrics = record["settings"]["student"], record["metrics"]
        rows.append(
            [
                f"{record['preset']}: {name}",
                f"{made['kind']}, {made['trunk'].split(':')[-1]}",
                sum(record["steps"]),
                *(spread([metrics.get(key)]) for key in ("AP", "AP50", "AP75", *SIZES)),
                f"{record['cpu_s']:.0f}",
            ]
        )
    header = ["teacher", "made of", "steps", "AP", "AP50", "AP75", *SIZES, "CPU s"]
    return markdown_table(header, rows or [["not run", *[""] * 9]])


def cost_table(records: Iterable[dict[str, Any]], titles: Mapping[str, str]) -> str:
    """Markdown: CPU time of a step and peak memory by method, and what they add to no distillation.

    Args:
        records: of `benchmarks/method_cost.py`: every round measures every method once, each in a
            process of its own; differences are taken within a round.
        titles: method → its name in the table, "none" among them; without a record: "not run".
    """
    listed = [record for record in records if "cost_of" in record]
    by = {key: {r["round"]: r for r in listed if r["cost_of"] == key} for key in titles}
    rows = []
    for key, title in titles.items():
        if not by[key]:
            rows.append([title, "not run", *[""] * 5])
            continue
        rounds = [n for n in by[key] if n in by["none"]] if key != "none" else []
        pairs = [(by[key][n], by["none"][n]) for n in rounds]
        extra = gain_of([100 * (own["step_ms"] / none["step_ms"] - 1) for own, none in pairs])
        more = gain_of([own["memory_mb"] - none["memory_mb"] for own, none in pairs])
        found = list(by[key].values())
        rows.append(
            [
                title,
                len(found),
                spread([r["step_ms"] for r in found], scale=1, digits=0),
                words(extra, 0),
                spread([r["memory_mb"] for r in found], scale=1, digits=0),
                words(more, 0),
                f"{found[0]['parameters']:,}",
            ]
        )
    header = ["method", "rounds", "CPU ms per step", "extra % (95 %)", "peak MB", "extra MB (95 %)"]
    return markdown_table([*header, "own parameters"], rows)


def provenance(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: at which scale, on which data, with which seeds, where and when records were made.

    Whatever differs between the records is listed; what a record does not say is "unknown".
    """
    if not records:
        return "*Made from no record.*"
    scales = _each(records, lambda r: r["scale"])
    data = _each(records, lambda r: _data(r["settings"]["data"], r["settings"]["train"]))
    seeds = sorted({record["seed"] for record in records})
    named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    places = _each(records, lambda r: _place(r["environment"]))
    versions = _each(records, lambda r: _versions(r["environment"]["versions"]))
    commits = _each(records, lambda r: r["environment"]["commit"])
    days = sorted({record["finished"][:10] for record in records if "finished" in record})
    when = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "at an unknown time"
    return (
        f"*Made from {len(records)} run{'s' * (len(records) > 1)} at scale {scales}, {named}, "
        f"{when}. Data: {data}. Hardware: {places}. Versions: {versions}. "
        f"Commits (+: with changed files): {commits}.*"
    )


def _each(records: Sequence[dict[str, Any]], get: Callable[[dict[str, Any]], str]) -> str:
    """What the records say, every value once, in their order."""
    found = []
    for record in records:
        try:
            found.append(get(record))
        except KeyError:
            found.append("unknown")
    return " / ".join(dict.fromkeys(found))


def _data(data: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    if data["kind"] == "scenes":
        what = f"{data['train_images']} training and {data['val_images']} validation scenes"
    else:
        what = f"photographs of the folder {data['root'].rstrip('/').rsplit('/', 1)[-1]}"
    limits = f"small below {data['small']:g}, medium below {data['medium']:g}"
    return f"{what}, {data['size']} pixels ({limits}), batches of {train['batch_size']}"


def _place(environment: Mapping[str, Any]) -> str:
    gpus = ", ".join(environment["accelerators"]) or "no accelerator"
    threads = f"{environment['threads']} thread{'s' * (environment['threads'] > 1)}"
    return f"{environment['processor']}, {environment['cores']} cores, {threads}, {gpus}"


def _versions(versions: Mapping[str, str]) -> str:
    return f"Python {versions['python']}, torch {versions['torch']}"
