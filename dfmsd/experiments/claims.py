"""The claims of the paper, each beside the runs that test it; verdicts come from intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dfmsd.experiments.records import markdown_table
from dfmsd.experiments.results import detectable, gain_of, relative_to, results_frame
from dfmsd.experiments.tables import NBSP, format_gain


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and the two rows of an experiment whose difference tests it."""

    text: str
    experiment: str = ""  # none: it cannot be tested at this scale
    row: str = ""
    base: str = ""
    metric: str = "AP"
    test: str = ""  # what is compared, in words; of a claim without an experiment, why it is not


CLAIMS = (
    Claim(
        "Distillation with dual masks improves the student (abstract)",
        "few-methods",
        "dfmsd",
        "none",
        test="DFMSD in one stage against no distillation",
    ),
    Claim(
        "… beyond what longer training gives",
        "few-methods",
        "dfmsd",
        "none-long",
        test="DFMSD in one stage against no distillation in twice the steps",
    ),
    Claim(
        "It is better than the methods before it (abstract)",
        "few-methods",
        "dfmsd",
        "cwd",
        test="DFMSD in one stage against CWD, each at its own chosen weight",
    ),
    Claim(
        "A weaker teacher first is better than the strong one alone (figure 3)",
        "few-stages",
        "staged",
        "strong",
        test="weak → strong against strong alone, equal steps in all",
    ),
    Claim(
        "… and it is the weaker teacher that helps, not the restart",
        "few-stages",
        "staged",
        "restart",
        test="weak → strong against strong → strong",
    ),
    Claim(
        "Masks that follow the teacher's attention are better (abstract)",
        "few-parts",
        "dfmsd",
        "random",
        test="attention against random masks",
    ),
    Claim(
        "Spatial and channel masks together are better than one (abstract)",
        "few-parts",
        "dfmsd",
        "spatial",
        test="both branches against the spatial one",
    ),
    Claim(
        "Enhancement of high frequencies helps small objects (figure 5)",
        "few-parts",
        "dfmsd",
        "dual",
        "AP_S",
        test="AP of small objects with and without enhancement",
    ),
    Claim(
        "Semantic alignment at each level helps (abstract)",
        "few-parts",
        "dfmsd",
        "rebuild",
        test="with and without alignment",
    ),
    Claim(
        "A one-stage student learns from a two-stage teacher (figure 1)",
        "scenes-pairs",
        "retinanet",
        "retinanet-none",
        test="RetinaNet from Faster R-CNN against no distillation (far from its plateau)",
    ),
    Claim("38.4 → 42.2 → 42.9 AP on COCO (figure 3)", test="needs GPUs: notebook 10"),
)


def verdict(claim: Claim, differences: Iterable[float]) -> str:
    """*supported*, *not supported*, *contradicted* or *not tested*, by the 95 % interval."""
    gain = gain_of(differences)
    if gain is None or gain.interval is None:
        return "not testable at this scale" if not claim.experiment else "not run"
    if not gain.significant:
        return "not supported"
    return "supported" if gain.mean > 0 else "contradicted"


def claims_table(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: claim, test, effect with its interval, what could have been seen, verdict, command.

    The records are those of the whole folder (see `results_frame`).
    """
    records, rows = list(records), []
    for claim in CLAIMS:
        differences, command = [], ""
        if claim.experiment:
            frame = relative_to(results_frame(claim.experiment, records), claim.base)
            differences = frame.loc[claim.row, f"gain {claim.metric}"].dropna()
            command = f"`dfmsd experiment {claim.experiment}`"
        least = detectable(differences)
        seen = "" if least is None else f"{least:.1f}"
        effect = format_gain(gain_of(differences)).removesuffix(f"{NBSP}*")
        rows.append([claim.text, claim.test, effect, seen, verdict(claim, differences), command])
    header = ["the paper's claim", "tested by", "effect (95 %)", "could be seen"]
    return markdown_table([*header, "verdict", "command"], rows)
