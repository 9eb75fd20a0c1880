"""Frames of runs → the tables of README and notebooks, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.records import markdown_table
from dfmsd.experiments.results import (
    METRICS,
    Gain,
    arm_titles,
    arms_frame,
    gain_of,
    gains,
    newest,
    results_frame,
)

SIZES = METRICS[3:]
NBSP = "\N{NO-BREAK SPACE}"  # a cell of a table stays on one line


def mean_sd(values: Iterable[float | None], digits: int = 1) -> str:
    """`mean ± sd`; `–` for no value, no sd for a single one."""
    known = pd.Series(values, dtype=float).dropna()
    texts = [f"{value:.{digits}f}" for value in (known.mean(), known.std()) if not pd.isna(value)]
    return " ± ".join(texts) or "–"


def format_gain(gain: Gain | None, digits: int = 1) -> str:
    """`+3.0 (+1.2 to +4.8) *`: mean, interval if there is one, a star where it excludes 0."""
    if gain is None:
        return ""
    mean, *ends = (f"{value:+.{digits}f}" for value in (gain.mean, *(gain.interval or ())))
    text = f"{mean} ({' to '.join(ends)})" if ends else mean
    return (text + " *" * gain.significant).replace(" ", NBSP)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"


def _table(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Markdown: one row per row of the frame, the columns by their headers (see `_cell`)."""
    machine = frame.loc[frame["record"].notna(), "hardware"].mode()[:1]  # that of most runs
    frame = frame.assign(cpu_s=frame["cpu_s"].where(frame["hardware"].isin(machine)))
    rows = []
    for _, runs in frame.groupby(level="row", sort=False):
        cells = ["not run", *[""] * (len(columns) - 1)]
        if runs["record"].notna().any():
            cells = [_cell(runs, column).replace("nan", "") for column in columns]
        rows.append([runs["title"].iloc[0], *cells])
    return markdown_table(["student", *columns], rows)


def _cell(runs: pd.DataFrame, column: str) -> str:
    count, asked = runs["record"].count(), len(runs)
    if column == "seeds":
        return str(count) if count == asked else f"{count} of {asked}"
    if column == "CPU s":
        return f"{runs['cpu_s'].mean():.0f}"
    if column == "extra CPU":
        return f"{runs['extra CPU'].mean():+.0f} %".replace("+nan %", "")
    if column == "steps":
        return runs["steps"].max().replace(" ", NBSP)
    if column.endswith("gain (95 %)"):
        metric = column.removesuffix("gain (95 %)").removesuffix(": ") or "AP"
        return format_gain(gain_of(runs[f"gain {metric}"]))
    return mean_sd(runs[column]).replace(" ", NBSP)


def results_table(frame: pd.DataFrame) -> str:
    """Markdown: AP as mean ± sd, the paired gain with its 95 % interval, sizes and CPU time.

    CPU time is that of the runs on one machine, which most runs of the table had, and `extra CPU`
    the mean beyond the base on the same one; runs that were interrupted do not count.
    """
    columns = ["steps", "seeds", "AP", "gain (95 %)", *SIZES, "CPU s", "extra CPU"]
    return _table(frame, columns)


def detail_table(frame: pd.DataFrame) -> str:
    """Markdown: AP50 and AP75, and the gain by size of the objects, of the rows that were run."""
    done = frame["record"].notna().groupby(level="row").transform("any")
    return _table(frame[done], ["AP50", "AP75", *(f"{size}: gain (95 %)" for size in SIZES)])


def gains_table(frame: pd.DataFrame) -> str:
    """Markdown: AP and AP_S as mean ± sd, and their gains with the 95 % interval."""
    return _table(frame, ["seeds", "AP", "AP: gain (95 %)", "AP_S", "AP_S: gain (95 %)"])


def arms_table(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: one row per arm of `dfmsd distill`, as in `results_table`, without breaks."""
    frame, titles = arms_frame(records), arm_titles(newest(records))
    frame["title"] = [titles[row] for row in frame.index.get_level_values("row")]
    columns = ["steps", "seeds", "AP", "gain (95 %)", "AP50", *SIZES, "CPU s"]
    return _table(frame, columns).replace(NBSP, " ")


def paper_table() -> str:
    """Markdown: COCO val2017 AP as figure 3 of the paper states it."""
    rows = {
        "Faster R-CNN R50, no distillation": "38.4",
        "stage 1: from Swin-T": "42.2",
        "stage 2: then from Swin-S": "42.9",
        "straight from Swin-S": "42.3",
    }
    return markdown_table(["paper, COCO val2017 (figure 3)", "AP"], rows.items())


def summarise(frame: pd.DataFrame) -> str:
    """Markdown list: which rows gain or lose significantly, which do not, which were not run."""
    lines = []
    done = frame[frame["record"].notna()]
    for base, rows in done[done["base"] != ""].groupby("base", sort=False):
        texts: dict[tuple[int, str], list[tuple[float, str]]] = {}
        for title, gain in gains(rows).items():
            text = f"{title} {format_gain(gain)}".rstrip(f"* {NBSP}")
            texts.setdefault(_verdict(gain), []).append((-gain.mean if gain else 0.0, text))
        for (_, verdict), rows_of_it in sorted(texts.items()):
            titles = "; ".join(text for _, text in sorted(rows_of_it))
            lines.append(f"- AP against “{base}”, {verdict}: {titles}.")
    missing = [title for title in frame["title"].unique() if title not in set(done["title"])]
    return "\n".join([*lines, *([f"- Not run: {'; '.join(missing)}."] if missing else [])])


def _verdict(gain: Gain | None) -> tuple[int, str]:
    """Its place in a list, and the verdict; "significant" only where the interval excludes 0."""
    if gain is None:
        return 4, "no seed in common"
    if gain.interval is None:
        return 3, "one seed in common, so no interval"
    if not gain.significant:
        return 1, "not significant (the interval holds 0)"
    return (0, "significantly higher") if gain.mean > 0 else (2, "significantly lower")


def weights_grid(frame: pd.DataFrame) -> pd.DataFrame:
    """Method by multiple → AP in points (NaN: a seed is missing), of rows `TITLE × MULTIPLE`."""
    titles = frame["title"].str.rsplit(" × ", n=1).str[0]
    multiples = frame.index.get_level_values("row").str.rsplit("-", n=1).str[1].astype(float)
    grid = frame["AP"].groupby([titles, multiples]).agg(lambda runs: runs.mean(skipna=False))
    grid = grid.unstack()
    return grid.reindex(index=titles.unique())


def weights_table(grid: pd.DataFrame) -> str:
    """Markdown: AP by multiple, the best of each method, and whether it ends the grid."""
    rows = []
    for title, values in grid.iterrows():
        best = None if values.isna().all() else values.idxmax()
        chosen = "not run" if best is None else f"× {best:g}"
        chosen += ", an end of the grid" * (best in (grid.columns[0], grid.columns[-1]))
        cells = ("not run" if pd.isna(value) else f"{value:.1f}" for value in values)
        rows.append([title, *cells, chosen])
    return markdown_table(["AP at", *(f"× {m:g}" for m in grid.columns), "best"], rows)


def cost_table(records: Iterable[dict[str, Any]], titles: Mapping[str, str]) -> str:
    """Markdown: CPU time of a step and peak memory by method, and what they add to "none".

    The records are those of `benchmarks/method_cost.py`: every round measures every method once;
    differences are taken within a round. `titles`: method → its name in the table.
    """
    runs = pd.DataFrame([record for record in records if "cost_of" in record])
    rows = []
    for key, title in titles.items():
        if runs.empty or key not in set(runs["cost_of"]):
            rows.append([title, "not run", *[""] * 5])
            continue
        own, none = (runs[runs["cost_of"] == name].set_index("round") for name in (key, "none"))
        extra = [100 * (own["step_ms"] / none["step_ms"] - 1), own["memory_mb"] - none["memory_mb"]]
        more = ["" if key == "none" else format_gain(gain_of(values), 0) for values in extra]
        shares = [mean_sd(own[column], 0) for column in ("step_ms", "memory_mb")]
        parameters = f"{own['parameters'].iloc[0]:,}"
        rows.append([title, len(own), shares[0], more[0], shares[1], more[1], parameters])
    header = ["method", "rounds", "CPU ms per step", "extra % (95 %)", "peak MB", "extra MB (95 %)"]
    return markdown_table([*header, "own parameters"], rows)


def experiment_report(name: str, records: Iterable[dict[str, Any]]) -> str:
    """Markdown: question, tables, findings and provenance of an experiment; "not run" where so."""
    return f"### {name}\n\n{EXPERIMENTS[name].question}\n\n{experiment_tables(name, records)}"


def experiment_tables(name: str, records: Iterable[dict[str, Any]], *, fold: bool = False) -> str:
    """The report without its heading; `fold` hides all but the main table behind a click."""
    plan, frame = EXPERIMENTS[name], results_frame(name, records)
    if frame["record"].isna().all():
        size = f"{len(plan.rows)} rows, {_count(len(plan.seeds), 'seed')}"
        return f"**not run** ({size}: `dfmsd experiment {name}`)"
    if name.endswith("-weights"):
        return _folded([weights_table(weights_grid(frame))], frame, fold)
    return _folded([results_table(frame), detail_table(frame), summarise(frame)], frame, fold)


def _folded(parts: list[str], frame: pd.DataFrame, fold: bool) -> str:
    first, *rest = [*parts, provenance(frame["record"].dropna())]
    more = "Gains by size, every row in words, how it was made" if rest[1:] else "How it was made"
    return "\n\n".join([first, folded(more, *rest)] if fold else [first, *rest])


def folded(summary: str, *parts: str) -> str:
    """Markdown that a page shows only after a click on `summary`."""
    return "\n\n".join([f"<details><summary>{summary}</summary>", *parts, "</details>"])


def provenance(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: scale, data, seeds, machine and time of records, with all that differs in them."""
    records = list(records)
    if not records:
        return "*Made from no record.*"

    def each(describe: Callable[..., str]) -> str:
        texts = []
        for record in records:
            try:
                texts.append(describe(**record))
            except (KeyError, TypeError):  # a part of the record is missing
                texts.append("unknown")
        return " / ".join(dict.fromkeys(texts))

    seeds = sorted({record["seed"] for record in records})
    days = sorted({record["finished"][:10] for record in records if "finished" in record})
    when = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "at an unknown time"
    versions = "Python {environment[versions][python]}, torch {environment[versions][torch]}"
    return (
        f"*Made from {_count(len(records), 'run')} at scale {each('{scale}'.format)}, "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, {when}. "
        f"Data: {each(_data)}. Hardware: {each(_hardware)}. Versions: {each(versions.format)}. "
        f"Commits (+: with changed files): {each('{environment[commit]}'.format)}.*"
    )


def _data(settings: Mapping[str, Any], **_: Any) -> str:
    data, train = settings["data"], settings["train"]
    if data["kind"] == "scenes":
        what = f"{data['train_images']} training and {data['val_images']} validation scenes"
    else:
        what = f"photographs of the folder {data['root'].rstrip('/').rsplit('/', 1)[-1]}"
    limits = f"small below {data['small']:g}, medium below {data['medium']:g}"
    return f"{what}, {data['size']} pixels ({limits}), batches of {train['batch_size']}"


def _hardware(environment: Mapping[str, Any], **_: Any) -> str:
    gpus = ", ".join(environment["accelerators"]) or "no accelerator"
    cores, threads = environment["cores"], _count(environment["threads"], "thread")
    return f"{environment['processor']}, {cores} cores, {threads}, {gpus}"
