"""Typed settings; every one of them can be changed by `key=value`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Scale = Literal["smoke", "quick", "full"]
SCALES: tuple[str, ...] = get_args(Scale)
_COUNTS = ("steps", "batch_size", "save_every", "log_every", "jobs", "size", "accumulate")
_POSITIVE = {"coco": _COUNTS, "scenes": (*_COUNTS, "train_images", "val_images")}


class SettingsError(ValueError):
    """A setting that does not exist, or a value it cannot take; names the nearest valid one."""


@dataclass(frozen=True)
class Data:
    """Where the images come from and how they are augmented."""

    kind: Literal["scenes", "coco"] = "scenes"  # generated scenes, or a COCO-format folder
    root: str = ""  # the COCO-format folder; unused for scenes
    train_images: int = 1000  # generated scenes for training; a folder gives all it has
    val_images: int = 400  # number of validation images; 0 = all
    curve_images: int = 100  # validation images for the evaluations during training
    size: int = 96  # side of a scene, or the longest side to which photographs are reduced, pixels
    short: int = 0  # shorter side in the detector, the longer at most `size`; 0 = as it is
    horizontal_flip: float = 0.5  # probability
    vertical_flip: float = 0.0  # probability
    zoom: tuple[float, float] = (1.0, 1.0)  # random rescaling of the image, from and to
    colour: float = 0.0  # strength of colour jitter, 0 to 1
    small: float = 32.0  # objects below this side squared are small, pixels
    medium: float = 96.0  # objects below this side squared are medium, pixels
    cache: bool = True  # keep decoded images in memory
    exif: Literal["turn", "ignore"] = "turn"  # EXIF turns that the stated size does not settle
    workers: int = 0  # loader processes


@dataclass(frozen=True)
class Detector:
    """A detector: its head, its trunk, its pyramid."""

    kind: Literal["faster_rcnn", "retinanet", "fcos"] = "faster_rcnn"  # the head
    trunk: str = "timm:resnet10t"  # `torchvision:NAME`, `timm:NAME` or `swin`
    trunk_arguments: str = "{}"  # arguments of the trunk, as JSON
    weights: str = ""  # file with the state dict of an ImageNet trunk; `hub` fetches it
    strides: tuple[int, ...] = (4, 8, 16, 32)  # strides of the pyramid levels taken from the trunk
    fpn_channels: int = 64  # channels of the pyramid
    anchor_scale: float = 0.0  # factor on torchvision's anchor sizes; 0 = by the image size
    frozen_norm: bool = False  # batch norm keeps the statistics and scales of the trunk's weights
    frozen_stride: int = 0  # the trunk is not trained up to this stride; 0 = all of it is

    def __post_init__(self) -> None:
        """Check the JSON early."""
        with contextlib.suppress(json.JSONDecodeError):
            if isinstance(json.loads(self.trunk_arguments), dict):
                return
        raise SettingsError(f"trunk_arguments={self.trunk_arguments!r}: not a JSON object")


@dataclass(frozen=True)
class Train:
    """One training run."""

    steps: int = 400  # steps that count as 1 in `ARMS`
    batch_size: int = 8  # images per step, over all processes
    optimizer: Literal["adamw", "sgd"] = "adamw"  # AdamW (0.9, 0.99) or SGD (momentum 0.9)
    lr: float = 2e-3  # peak learning rate
    batch_of_lr: int = 0  # batch that `lr` is for, scaled linearly to `batch_size`; 0 = any
    trunk: float = 1.0  # share of the learning rate for the trunk
    weight_decay: float = 0.05  # not applied to vectors
    warmup: float = 0.1  # share of the steps with linear warm-up
    schedule: Literal["cosine", "step"] = "cosine"  # to 0, or x0.1 at 2/3 and 8/9 of the steps
    schedule_over: Literal["stage", "run"] = "stage"  # restarts with each stage, or runs on
    clip: float = 5.0  # largest gradient norm
    save_every: int = 100  # steps between checkpoints
    log_every: int = 1  # steps between rows of the log
    evaluations: int = 4  # evaluations on `curve_images` during one run

    @property
    def peak(self) -> float:
        """The peak learning rate at this batch size. Source: Goyal et al., arXiv 1706.02677."""
        same = self.batch_of_lr in (0, self.batch_size)
        return self.lr if same else self.lr * self.batch_size / self.batch_of_lr


@dataclass(frozen=True)
class Engine:
    """How a run is computed, divided and kept."""

    save_minutes: float = 0.0  # between checkpoints, beside `train.save_every`; 0 = no clock
    accumulate: int = 1  # parts of each process's images of a step, to need less memory
    channels_last: bool = False  # memory layout, faster on GPUs in bf16 and fp16
    compile: bool = False  # compile trunk and pyramid with torch.compile
    tensorboard: bool = False  # scalars for TensorBoard too, in `tensorboard` of the run's folder


Baselines = Literal["fitnet", "mgd", "amd", "dmkd", "pkd", "fgd", "cwd", "norm_cwd", "score_l2"]


@dataclass(frozen=True)
class Method:
    """The method of the distillation; most settings are DFMSD's (see `dfmsd.loss.DFMSDLoss`)."""

    # DFMSD; a baseline (takes `factor`, `adapter`, `match`, `strides`); or a teacher's detections
    name: Literal["dfmsd", Baselines, "pseudo_labels"] = "dfmsd"
    factor: float = 1.0  # on every weight of the method
    threshold: float = 0.7  # pseudo_labels: least score of the teacher's detections that count
    spatial: bool = True  # spatial masking branch
    channel: bool = True  # channel masking branch
    ratio_spatial: float = 0.5  # share of the cells that is hidden
    ratio_channel: float = 0.5  # share of the channels that is hidden
    temperature: float = 0.5  # of the attention
    attention_on: Literal["standardised", "raw"] = "standardised"  # the teacher's feature
    select: Literal["high", "low", "random"] = "high"  # hide the most, the least attended, or any
    target: Literal["standardised", "raw"] = "standardised"  # what is rebuilt
    masked_only: bool = False  # count the error on hidden cells only
    fusion: Literal["learned"] | float = "learned"  # share of the spatial branch, learned or fixed
    cutoff: float = 0.25  # radial cut-off of the high-pass filter, share of Nyquist
    strength: float = 1.0  # of the frequency enhancement; 0 = off
    regions: Literal["cells", "boxes"] = "cells"  # enhance by cell or by candidate box
    # 1x1 on the student's features, or none, or a 1x1 fitted by least squares before a stage begins
    adapter: Literal["conv", "identity", "fitted"] = "conv"
    generator_width: float = 0.5  # width of the generators, share of the channels
    match: Literal["stride", "index"] = "stride"  # how pyramid levels pair
    strides: tuple[int, ...] = ()  # levels of the pyramids that take part; none named: all
    align: Literal["pearson", "distribution"] = "pearson"  # of channels, or as shares of the cells
    reconstruction_weight: float = 1.0  # per element
    alignment_weight: float = 10.0  # of 1 - Pearson: half the squared standardised difference
    fade: float = 0.0  # last share of each stage in which the method's weights fall to 0
    anchor: float = 0.0  # weight of staying near the student of the stage before; 0 = off

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        for name, most in (("fade", 1), ("anchor", float("inf"))):
            if not 0 <= getattr(self, name) <= most:
                raise SettingsError(f"method.{name}={getattr(self, name)}: expected 0 to {most}")
        if self.name == "pseudo_labels" and (self.anchor or self.adapter == "fitted"):
            raise SettingsError("method.name=pseudo_labels: has no features to anchor or to fit")


@dataclass(frozen=True)
class Arm:
    """Which teachers in turn, and how long each, in units of `train.steps`."""

    title: str
    teachers: tuple[str, ...]
    lengths: tuple[float, ...]


ARMS: dict[str, Arm] = {
    "none": Arm("no distillation", (), (1.0,)),
    "one": Arm("DFMSD, one stage (strong)", ("strong",), (1.0,)),
    "two": Arm("DFMSD, two stages (weak → strong)", ("weak", "strong"), (0.5, 0.5)),
    "two-early": Arm("DFMSD, two stages (a fifth weak → strong)", ("weak", "strong"), (0.2, 0.8)),
    "strong-strong": Arm("DFMSD, two stages (strong → strong)", ("strong", "strong"), (0.5, 0.5)),
    "weak": Arm("DFMSD, one stage (weak)", ("weak",), (1.0,)),
    "none-long": Arm("no distillation", (), (2.0,)),
    "one-long": Arm("DFMSD, one stage (strong)", ("strong",), (2.0,)),
    "two-long": Arm("DFMSD, two stages (weak → strong)", ("weak", "strong"), (1.0, 1.0)),
    "strong-strong-long": Arm(
        "DFMSD, two stages (strong → strong)", ("strong", "strong"), (1.0, 1.0)
    ),
    "weak-long": Arm("DFMSD, one stage (weak)", ("weak",), (2.0,)),
}
"""Two budgets: a stage of "two-long" is as long as the only stage of "one". "two-early" goes on to
the stronger teacher after a fifth of the steps; it is meant for `train.schedule_over=run`.
"strong-strong" is what the restart between two stages does alone."""


@dataclass(frozen=True)
class Settings:
    """Everything that a job needs."""

    preset: str = "scenes"  # name of the preset these settings came from
    scale: Scale = "smoke"  # how much of the job is run
    seeds: tuple[int, ...] = (0,)  # one run per arm and seed
    arms: tuple[str, ...] = ("none", "one", "two")  # rows of the table, see `ARMS`
    data: Data = field(default_factory=Data)  # images
    student: Detector = field(default_factory=Detector)  # the detector that is distilled
    weak: Detector = field(default_factory=Detector)  # the weaker teacher
    strong: Detector = field(default_factory=Detector)  # the stronger teacher
    weak_file: str = ""  # weights of the weaker teacher; trained into the run folder when empty
    strong_file: str = ""  # weights of the stronger teacher; trained into the run folder when empty
    train: Train = field(default_factory=Train)  # training of the student
    teach: Train = field(default_factory=Train)  # training of the teachers, by `dfmsd train`
    weak_steps: int = 800  # steps of the weaker teacher
    inherit: Literal["no", "neck", "neck+head"] = "no"  # what every row's student starts from,
    inherit_from: Literal["weak", "strong"] = "strong"  # and of which teacher
    teacher_images: int = 6000  # generated scenes for the teachers; the first are the student's
    method: Method = field(default_factory=Method)  # the distillation
    out: str = "data/runs"  # folder of checkpoints and weights
    records: str = ""  # JSON-lines file that takes the records; OUT/records.jsonl when empty
    device: Literal["auto", "cpu"] = "auto"  # the GPU when there is one, or the CPU
    precision: Literal["no", "bf16", "fp16"] = "no"  # mixed precision
    engine: Engine = field(default_factory=Engine)  # how a run is computed, divided and kept
    jobs: int = 1  # runs at a time, one CPU thread each when several; one with torchrun

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        for arm in set(self.arms) - ARMS.keys():
            raise SettingsError(f"arms={arm}: no such arm{nearest(arm, list(ARMS))}")
        if self.data.kind == "coco" and not self.data.root:
            raise SettingsError("data.root: give the COCO-format folder, data.root=PATH")
        for key, several in (("seeds", self.seeds), ("arms", self.arms)):
            if not 0 < len(several) == len(set(several)):
                raise SettingsError(f"{key}={several}: expected at least one, and none twice")
        for key, value in flat(self).items():
            least = int(key.split(".")[-1] in _POSITIVE[self.data.kind])
            if (type(value) is int or key == "engine.save_minutes") and not value >= least:
                raise SettingsError(f"{key}={value}: must be at least {least}")


def nearest(word: str, valid: Sequence[str]) -> str:
    """` (did you mean X?)` or ` (one of A, B, C)`, to end an error message with."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if not close:  # a part of a dotted name may be enough to tell
        close = [name for name in valid if name.split(".")[-1] == word.split(".")[-1]][:1]
    return f"; did you mean {close[0]!r}?" if close else f"; one of {', '.join(valid)}"


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name → value of every setting, of a dataclass or of the dict in a record."""
    nested = dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) else settings
    values: dict[str, Any] = {}
    for key, value in nested.items():
        name = prefix + key
        values |= flat(value, name + ".") if isinstance(value, dict) else {name: value}
    return values
