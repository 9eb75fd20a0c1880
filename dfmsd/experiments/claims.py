"""The paper's claims beside the runs that test them: the verdicts come from the intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dfmsd.experiments.records import markdown_table
from dfmsd.experiments.results import Gain, detectable, gain_of, relative_to, results_frame
from dfmsd.experiments.tables import NBSP, format_gain


def verdict(gain: Gain | None) -> str:
    """*supported*, *not supported*, *contradicted*, by the 95 % interval; *open* for one seed."""
    if gain is None:
        return "not run"
    if gain.interval is None:
        return "open: one seed"
    if not gain.significant:
        return "not supported"
    return "supported" if gain.mean > 0 else "contradicted"


def claims_table(claims: Iterable[dict[str, str]], records: Iterable[dict[str, Any]]) -> str:
    """Markdown: claim, test, effect with its interval, what could have been seen, verdict, command.

    Args:
        claims: those of `data/claims.jsonl`: `text` and `test` in words, and the `experiment` whose
            `row` is compared with `base` by `metric`; one without an experiment is not testable.
        records: those of the whole folder (see `results_frame`).
    """
    records, rows = list(records), []
    for claim in claims:
        cells = ["", "", "not testable at this scale", ""]
        if name := claim.get("experiment"):
            frame = relative_to(results_frame(name, records), claim["base"])
            differences = frame.loc[claim["row"], f"gain {claim['metric']}"]
            gain, least = gain_of(differences), detectable(differences)
            effect = format_gain(gain).removesuffix(f"{NBSP}*")
            seen = "" if least is None else f"{least:.1f}"
            cells = [effect, seen, verdict(gain), f"`dfmsd experiment {name}`"]
        rows.append([claim["text"], claim["test"], *cells])
    header = ["the paper's claim", "tested by", "effect (95 %)", "could be seen"]
    return markdown_table([*header, "verdict", "command"], rows)
