"""Tables of published COCO numbers with their sources: to be read beside ours, never among them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dfmsd.experiments.records import markdown_table


def pairs_table(published: Iterable[dict[str, Any]], kind: str) -> str:
    """Markdown: a row per student and teacher, every method's AP with its gain; then the notes.

    Args:
        published: lines of `data/published.jsonl`: COCO val2017 box AP as the sources print it.
        kind: "same": the same kind of detector on both sides; "other": not so.
    """
    rows, notes = [], []
    for pair in published:
        if pair["kind"] != kind:
            continue
        base, mark = pair["base"], ""
        if pair["note"]:
            mark = f" ({len(notes) + 1})"
            notes.append(f"({len(notes) + 1}) {pair['note'][0].upper()}{pair['note'][1:]}.")
        found = (f"{name} {ap:.1f} ({ap - base:+.1f})" for name, ap in pair["methods"].items())
        teacher = "–" if pair["teacher_ap"] is None else f"{pair['teacher_ap']:.1f}"
        cells = [f"{pair['student']}{mark}", f"{base:.1f}", pair["teacher"], teacher]
        rows.append([*cells, pair["schedule"], ", ".join(found), pair["source"]])
    header = ["student", "without", "teacher", "its AP", "schedule", "with (gain)", "source"]
    return "\n\n".join([markdown_table(header, rows), *notes])


def abstracts_table(published: Iterable[dict[str, Any]]) -> str:
    """Markdown: what only an abstract states."""
    found = [line for line in published if line["kind"] == "abstract"]
    rows = [[line[key] for key in ("method", "teacher", "said", "source")] for line in found]
    return markdown_table(["method", "teacher", "AP or gain", "abstract of"], rows)


def published_sizes_table(published: Iterable[dict[str, Any]]) -> str:
    """Markdown: AP by size of the objects, in the one repository that prints it."""
    found = [line for line in published if line["kind"] == "size"]
    keys = ("AP", "AP_S", "AP_M", "AP_L")
    rows = [[line["method"], *(f"{line[key]:.1f}" for key in keys)] for line in found]
    return markdown_table(["GFL R101 → R50, 1x (README of LD)", *keys], rows)
