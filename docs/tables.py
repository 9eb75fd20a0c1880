"""Writes the tables of README and docs from the records: `python docs/tables.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. The tests hold that running this
changes nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dfmsd.experiments.claims import claims_table
from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.plan import Row
from dfmsd.experiments.records import markdown_table, read_folder, read_records
from dfmsd.experiments.results import gain_of, relative_to, results_frame
from dfmsd.experiments.settings import Method
from dfmsd.experiments.tables import (
    NBSP,
    format_gain,
    gains_table,
    mean_sd,
    results_table,
    weights_grid,
    weights_table,
)

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.S)
SUMMARY = ("none", "none-long", "pseudo_labels", "pkd", "cwd", "best")
ELSEWHERE = {"name": "[results](results.md)", "factor": "[the weights](results.md#the-weights)"}
"""Settings whose measurements are whole tables."""
DEFAULTS = ("method.name=dfmsd", "method.factor=1")

Records = list[dict[str, Any]]


def claims(records: Records) -> str:
    """The paper's claims with their verdicts."""
    return claims_table(read_records(ROOT / "data" / "claims.jsonl"), records)


def summary(records: Records) -> str:
    """The rows of `few-methods` that the README shows."""
    frame, rows = results_frame("few-methods", records), []
    for key in SUMMARY:
        runs = frame.loc[key]
        gain = format_gain(gain_of(runs["gain AP"]))
        rows.append([runs["title"].iloc[0], runs["steps"].max(), mean_sd(runs["AP"]), gain])
    return markdown_table(["student", "steps", "AP", "gain (95 %)"], rows)


def ablation(name: str) -> Callable[[Records], str]:
    """The table of the parts of DFMSD, each counted from its defaults."""
    return lambda records: gains_table(relative_to(results_frame(name, records), "dfmsd"))


def repeats(records: Records) -> str:
    """The runs of `data/repeats.jsonl` beside the records of the same rows and seeds."""
    first = results_frame("few-methods", records)
    again = results_frame("few-methods", read_records(ROOT / "data" / "repeats.jsonl"))
    rows = []
    for _, runs in again.dropna(subset="AP").groupby(level="row", sort=False):
        before = first.loc[runs.index]
        moved = runs["AP"] - before["AP"]
        places = [frame["record"].iloc[0]["environment"] for frame in (before, runs)]
        chips = [(place["accelerators"] or [place["processor"]])[0] for place in places]
        processors = " → ".join(dict.fromkeys(chips))
        aps = [mean_sd(frame["AP"]) for frame in (before, runs)]
        texts = [format_gain(gain_of(moved)), f"{moved.abs().max():.1f}"]
        rows.append([runs["title"].iloc[0], processors, str(len(runs)), *aps, *texts])
    header = ["row", "processor", "seeds", "AP", "AP again", "difference (95 %)", "largest"]
    return markdown_table(header, rows)


def meanings() -> dict[str, str]:
    """Setting of `Method` → the comment beside it, or above it."""
    found, above = {}, []
    for line in inspect.getsource(Method).splitlines():
        code, _, comment = (part.strip() for part in line.partition("# "))
        if field := re.match(r"(\w+): ", code):
            found[field[1]] = " ".join([*above, comment]).strip()
        above = [*above, comment] if comment and not code else []
    return found


def changed(row: Row, base: Row) -> tuple[str, ...]:
    """What `row` changes in the method of `base`; nothing if it changes anything else."""
    more = [s for s in row.settings if s not in (*base.settings, *DEFAULTS)]
    fewer = [s for s in base.settings if s not in (*row.settings, *DEFAULTS)]
    own = [s for s in more if re.match(r"method\.(?!name|factor)", s)]
    return tuple(own) if row.arm == base.arm and own == more and not fewer else ()


def measurements(records: Records) -> Iterator[tuple[str, str]]:
    """(setting, what another value than the default did to AP), from every experiment."""
    for name, plan in EXPERIMENTS.items():
        if name.endswith("-weights"):
            continue
        frame = results_frame(name, records)
        for base in plan.rows:
            changes = {key: changed(row, plan.rows[base]) for key, row in plan.rows.items()}
            if not any(changes.values()):
                continue
            known = relative_to(frame, base)["gain AP"]
            for key, settings in changes.items():
                values = " ".join(s.removeprefix("method.") for s in settings)
                gain = format_gain(gain_of(known[key])) or "not run"
                place = name if base == "dfmsd" else f"{name}, “{plan.rows[base].title}”"
                for setting in settings:
                    field = setting.removeprefix("method.").partition("=")[0]
                    yield field, f"`{values}`: {gain} ({place})"


def settings(records: Records) -> str:
    """Every setting of the method: default, choices, meaning, and what was measured."""
    measured: dict[str, list[str]] = {}
    for field, text in measurements(records):
        measured.setdefault(field, []).append(text)
    rows, hints, texts = [], get_type_hints(Method), meanings()
    for field in dataclasses.fields(Method):
        values = f"`{field.default if field.default != () else 'all'}`"
        if get_origin(hints[field.name]) is Literal and field.name != "name":
            others = [f"`{c}`" for c in get_args(hints[field.name]) if c != field.default]
            values += f", or {', '.join(others)}"
        known = measured.get(field.name) or [ELSEWHERE.get(field.name, "not varied")]
        rows.append([f"`{field.name}`", values, texts[field.name], "<br>".join(known)])
    header = ["`method.`…", "default", "meaning", "what we measured: AP against the default (95 %)"]
    return markdown_table(header, rows)


def experiment(name: str) -> Callable[[Records], str]:
    """The table of an experiment."""
    if name.endswith("-weights"):
        return lambda records: weights_table(weights_grid(results_frame(name, records)))
    return lambda records: results_table(results_frame(name, records))


TABLES = {name: experiment(name) for name in EXPERIMENTS} | {
    "claims": claims,
    "repeats": repeats,
    "summary": summary,
    **{name: ablation(name) for name in ("scenes-ablation", "few-parts")},
    "settings": settings,
}


def render(text: str, records: Records) -> str:
    """The text with every table as the records have it; KeyError for an unknown table."""

    def table(block: re.Match[str]) -> str:
        return block[1] + TABLES[block[2]](records).replace(NBSP, " ").strip() + "\n" + block[3]

    return BLOCK.sub(table, text)


if __name__ == "__main__":
    all_records = read_folder(ROOT / "data" / "results")
    for page in PAGES:
        page.write_text(render(page.read_text(), all_records))
