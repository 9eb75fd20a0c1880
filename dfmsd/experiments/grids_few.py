"""Experiments near the plateau: few labelled scenes, a student that learns all it can (`few`).

The rule, written before the runs. On the held-out seeds every method has the same three multiples
of its balance; the one with the highest mean AP is taken. Then DFMSD's readings are compared at
that multiple, and the one with the highest mean AP is "the best reading" of the tables, whatever
the tables then say. Seeds 0 to 7 are looked at once, afterwards.

One change, after the three multiples were run: the highest was the best of nearly every method, so
multiples go on by factors of about 3, for all methods alike, until a method's mean AP falls.
The best reading came out as the one that fades, by 0.1 AP over DFMSD as it is: the rule decides.
"""

from __future__ import annotations

from dataclasses import replace

from dfmsd.experiments.grids_scenes import ABLATION, TITLES
from dfmsd.experiments.plan import BALANCE, HELD_OUT, Experiment, Row

MULTIPLES = (0.3, 1.0, 3.0, 10.0)
SEEDS = tuple(range(8))
PRESET = {"preset": "few", "settings": ("scale=quick",)}
DISTRIBUTION = ("method.align=distribution",)
METHODS = {
    **{name: title for name, title in TITLES.items() if name in BALANCE},
    "norm_cwd": "normalise + CWD",
    "score_l2": "score-weighted L2",
    "distribution": "DFMSD, alignment as distributions",
}
"""What has a weight to choose → its title."""
RISING = {
    30.0: ("dfmsd", "distribution", "pkd", "cwd", "norm_cwd", "fgd", "fitnet"),
    100.0: ("cwd",),
}
"""A multiple beyond those → the methods whose mean AP had not fallen at the multiple before it."""
CHOSEN = {
    **dict.fromkeys(("dfmsd", "distribution", "pkd", "norm_cwd", "fgd", "fitnet"), 10.0),
    **dict.fromkeys(("mgd", "dmkd", "score_l2"), 3.0),
    "amd": 1.0,
    "cwd": 30.0,
}
"""Method → the multiple of its balance with the highest mean AP in `few-weights`."""


def _chosen(key: str, multiple: float | None = None) -> tuple[str, ...]:
    """Settings: the method of a row, at the multiple of its balance, or at the chosen one."""
    name, reading = ("dfmsd", DISTRIBUTION) if key == "distribution" else (key, ())
    factor = BALANCE[name] * (multiple or CHOSEN[key])
    return (f"method.name={name}", f"method.factor={factor:.3g}", *reading)


WEIGHTS = {
    f"{key}-{multiple:g}": Row(f"{title} × {multiple:g}", "one", _chosen(key, multiple))
    for multiple, names in (dict.fromkeys(MULTIPLES, METHODS) | RISING).items()
    for key, title in METHODS.items()
    if key in names
}
DFMSD = _chosen("dfmsd")
FADED = (*DFMSD, "method.fade=0.33")


def _again(key: str, title: str) -> Row:
    """The row of `few-weights` with the chosen weight, under another title; its runs count here."""
    row = f"{key}-{CHOSEN[key]:g}"
    return replace(WEIGHTS[row], title=title, recorded=("few-weights", row))


READINGS = {
    "none": Row("no distillation", "none"),
    "pearson": _again("dfmsd", "DFMSD as it is"),
    "distribution": _again("distribution", "alignment as distributions"),
    "fade": Row("faded over the last third", "one", FADED),
    "fitted": Row("adapters fitted before", "one", (*DFMSD, "method.adapter=fitted")),
    "none-long": Row("no distillation, twice the steps", "none-long"),
}
TABLE = {
    "none": Row("no distillation", "none"),
    "none-long": Row("no distillation, twice the steps", "none-long"),
    "pseudo_labels": Row("pseudo-labels", "one", ("method.name=pseudo_labels",)),
    **{key: Row(title, "one", _chosen(key)) for key, title in METHODS.items()},
    "best": Row("DFMSD, best reading: faded over the last third", "one", FADED),
    "dfmsd-long": Row("DFMSD, one stage, twice the steps", "one-long", DFMSD, "none-long"),
}
OWN = ("align", "rebuild", "spatial", "channel", "dual", "low", "random", "boxes", "raw")
PARTS = {key: replace(TABLE[key], recorded=("few-methods", key)) for key in ("none", "dfmsd")} | {
    key: Row(ABLATION[key][0], "one", (*DFMSD, *ABLATION[key][1])) for key in OWN
}
HEIR = (*DFMSD, "inherit=neck+head")
STAGES = {
    "strong": replace(
        TABLE["dfmsd-long"],
        title="strong, one stage",
        base="",
        recorded=("few-methods", "dfmsd-long"),
    ),
    "weak": Row("weak, one stage", "weak-long", DFMSD, "strong"),
    "staged": Row("weak → strong", "two-long", DFMSD, "strong"),
    "restart": Row("strong → strong", "strong-strong-long", DFMSD, "strong"),
    "fitted": Row(
        "weak → strong, adapters fitted", "two-long", (*DFMSD, "method.adapter=fitted"), "strong"
    ),
    "anchor": Row("weak → strong, anchored", "two-long", (*DFMSD, "method.anchor=1"), "strong"),
    "heir": Row("strong, one stage, inherits from it", "one-long", HEIR, "strong"),
    "staged-heir": Row(
        "weak → strong, inherits from the weak", "two-long", (*HEIR, "inherit_from=weak"), "heir"
    ),
}
"""Two base budgets each: what a stage before the strong teacher is worth."""
PLATEAU = {key: TABLE[key] for key in ("none", "none-long", "pkd", "cwd", "dfmsd", "best")}
"""On an eighth of the photographs, 56 of 448, from teachers that saw all."""

FEW = {
    "few-weights": Experiment("Which weight does each method want?", WEIGHTS, HELD_OUT, **PRESET),
    "few-readings": Experiment("Which reading of DFMSD is best?", READINGS, HELD_OUT, **PRESET),
    "few-methods": Experiment("What is a teacher worth near the plateau?", TABLE, SEEDS, **PRESET),
    "few-parts": Experiment(
        "Which part of DFMSD helps near the plateau?", PARTS, SEEDS[:5], **PRESET
    ),
    "few-stages": Experiment(
        "Does a weaker teacher first help, in equal steps?", STAGES, SEEDS, **PRESET
    ),
    "photos-plateau": Experiment(
        "What is a teacher worth when photographs are few?",
        PLATEAU,
        SEEDS[:5],
        "photos",
        ("scale=quick", "data.train_share=0.125"),
    ),
}
