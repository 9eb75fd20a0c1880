"""Experiments far from the plateau: how fast a student learns (`scenes`, `photos`)."""

from __future__ import annotations

from dataclasses import replace

from dfmsd.experiments.plan import BALANCE, HELD_OUT, Experiment, Row

MULTIPLES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the balance, to choose each method's weight from
TITLES = {
    "fitnet": "FitNet",
    "mgd": "MGD",
    "amd": "AMD (our reading)",
    "dmkd": "DMKD (our reading)",
    "pkd": "PKD",
    "fgd": "FGD",
    "cwd": "CWD",
    "dfmsd": "DFMSD, one stage",
    "dfmsd-two": "DFMSD, two stages (halves)",
    "dfmsd-early": "DFMSD, two stages (a fifth, then the rest)",
}
BUDGET = ("scale=quick", "train.steps=800")  # the budget of the scenes' tables


STAGED = {"dfmsd-two": ("two", ()), "dfmsd-early": ("two-early", ("train.schedule_over=run",))}
"""DFMSD in two stages with as many steps in all as the others → its arm and settings."""
CHOSEN = dict.fromkeys(TITLES, 1.0) | {"pkd": 3.0, "dfmsd-two": 3.0}
"""Row → the multiple of its balance with the highest AP in `scenes-weights`; a test holds it."""


def chosen(name: str, multiple: float | None = None) -> tuple[str, str]:
    """Settings: the method of a row, at the multiple of its balance, or at the chosen one."""
    method, multiple = "dfmsd" if name in STAGED else name, multiple or CHOSEN[name]
    return (f"method.name={method}", f"method.factor={BALANCE[method] * multiple:.3g}")


def _row(key: str, title: str, multiple: float | None = None) -> Row:
    arm, staged = STAGED.get(key, ("one", ()))
    return Row(title, arm, (*chosen(key, multiple), *staged))


WEIGHTS = {
    f"{name}-{multiple:g}": _row(name, f"{title} × {multiple:g}", multiple)
    for multiple in MULTIPLES
    for name, title in TITLES.items()
}
METHODS = {
    "none": Row("no distillation", "none"),
    **{name: _row(name, title) for name, title in TITLES.items()},
    "none-long": Row("no distillation, twice the steps", "none-long", base="none-long"),
    "dfmsd-long": Row(
        "DFMSD, one stage, twice the steps", "one-long", chosen("dfmsd"), "none-long"
    ),
    "dfmsd-two-long": Row(
        "DFMSD, two stages, twice the steps", "two-long", chosen("dfmsd-two"), "none-long"
    ),
}


def _again(key: str, title: str) -> Row:
    """A row of `scenes-methods` under another title; its runs count here too."""
    return replace(METHODS[key], title=title, recorded=("scenes-methods", key))


ABLATION = {
    "align": ("alignment alone", ("method.reconstruction_weight=0",)),
    "rebuild": ("reconstruction alone", ("method.alignment_weight=0",)),
    "spatial": ("spatial branch only", ("method.channel=False",)),
    "channel": ("channel branch only", ("method.spatial=False",)),
    "dual": ("no enhancement", ("method.strength=0",)),
    "low": ("mask the least attended", ("method.select=low",)),
    "random": ("mask at random", ("method.select=random",)),
    "ratio-0.25": ("ratio 0.25", ("method.ratio_spatial=0.25", "method.ratio_channel=0.25")),
    "ratio-0.75": ("ratio 0.75", ("method.ratio_spatial=0.75", "method.ratio_channel=0.75")),
    "cold": ("temperature 0.1", ("method.temperature=0.1",)),
    "hot": ("temperature 2", ("method.temperature=2",)),
    "cutoff-0.1": ("cut-off 0.1", ("method.cutoff=0.1",)),
    "cutoff-0.5": ("cut-off 0.5", ("method.cutoff=0.5",)),
    "strength-3": ("strength 3", ("method.strength=3",)),
    "boxes": ("energy averaged in boxes", ("method.regions=boxes",)),
    "fine": ("without the level of stride 32", ("method.strides=4,8,16",)),
    "raw": ("raw reconstruction", ("method.target=raw",)),
    "masked": ("error on masked cells only", ("method.masked_only=True",)),
    "wide": ("generators of full width", ("method.generator_width=1",)),
    "rebuild-4": ("reconstruction weight 4", ("method.reconstruction_weight=4",)),
}
"""Row → what is changed against DFMSD's defaults in one stage."""

TWICE = ("student.strides=8,16,32", "train.steps=1600")  # one-stage students learn more slowly
CNN = ("strong.trunk=timm:resnet18", "strong.trunk_arguments={}", "strong_file=")
LARGER = (
    'strong.trunk_arguments={"embed_dim": 48, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], '
    '"window_size": [6, 6], "stem": "conv"}',
    "strong_file=",
    "teach.steps=3000",
)
"""Teachers that are trained on the way."""


def _pairs() -> dict[str, Row]:
    dfmsd, arm, early = chosen("dfmsd"), *STAGED["dfmsd-early"]
    first = ("weak_file=data/teachers/strong.safetensors", *early, *chosen("dfmsd-early"))
    rows = {
        "none": _again("none", "Faster R-CNN, no distillation"),
        "swin": _again("dfmsd", "Faster R-CNN, from Swin"),
        "cnn": Row("Faster R-CNN, from a CNN", "one", (*CNN, *dfmsd)),
        "larger": Row("Faster R-CNN, from a much stronger Swin", "one", (*LARGER, *dfmsd)),
    }
    title = "Faster R-CNN, from the strong Swin, then the much stronger"
    rows["larger-early"] = Row(title, arm, (*LARGER, *first))
    for kind, title in (("retinanet", "RetinaNet"), ("fcos", "FCOS")):
        student, base = (f"student.kind={kind}", *TWICE), f"{kind}-none"
        rows[base] = Row(f"{title}, no distillation, twice the steps", "none", student, base)
        title = f"{title}, from Faster R-CNN (Swin), twice the steps"
        rows[kind] = Row(title, "one", (*student, *dfmsd), base)
        by_index = (*student, "method.match=index", *dfmsd)  # from stride 8 on, the teacher's 4
        rows[f"{kind}-index"] = Row(f"{title}, levels paired by index", "one", by_index, base)
    return rows


PARTS = {
    "none": _again("none", "no distillation"),
    "dfmsd": _again("dfmsd", "DFMSD, one stage"),
    "stages": _again("dfmsd-early", "+ a first stage (a fifth of the steps)"),
    **{key: Row(title, "one", changed) for key, (title, changed) in ABLATION.items()},
}
PHOTOS = {key: METHODS[key] for key in ("none", "mgd", "dmkd", "pkd", "dfmsd", "dfmsd-early")}
SCENES = {
    "scenes-weights": Experiment(
        "Which weight does each method want, on a seed that no table reports?",
        WEIGHTS,
        HELD_OUT[:1],
        settings=BUDGET,
    ),
    "scenes-methods": Experiment(
        "Does it help, and compared with what?", METHODS, (0, 1, 2, 3, 4), settings=BUDGET
    ),
    "scenes-pairs": Experiment(
        "Does it matter what student and teacher are made of?", _pairs(), settings=BUDGET
    ),
    "scenes-ablation": Experiment("Which part of DFMSD helps?", PARTS, settings=BUDGET),
    "photos-methods": Experiment(
        "Does it help on real photographs?", PHOTOS, preset="photos", settings=("scale=quick",)
    ),
}
