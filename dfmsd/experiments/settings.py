"""Typed settings; every one of them can be changed by `key=value`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from dfmsd.detectors.recipe import Recipe
from dfmsd.experiments.validation import check_name
from dfmsd.ranges import Cutoff, Range, Share, check_fields

Weight = Annotated[float, Range(0, 1e6)]
Side = Annotated[float, Range(0, 1e5, open=True)]
Stride = Annotated[int, Range(1, 256)]
Count = Annotated[int, Range(1, 1e9)]
CountOrNone = Annotated[int, Range(0, 1e9)]  # where 0 has a meaning of its own
PartOf = Annotated[float, Range(0, 1, open=True)]
Zoom = Annotated[float, Range(0.1, 10)]

Scale = Literal["smoke", "quick", "full"]
SCALES: tuple[str, ...] = get_args(Scale)


@dataclass(frozen=True)
class Data:
    """Where the images come from and how they are augmented."""

    kind: Literal["scenes", "coco"] = "scenes"  # generated scenes, or a COCO-format folder
    root: str = ""  # the COCO-format folder; unused for scenes
    train_images: Count = 1000  # generated scenes for training; a folder gives all it has
    train_share: PartOf = 1.0  # of the training images, for the student; teachers see all
    val_images: CountOrNone = 400  # number of validation images; 0 = all
    curve_images: CountOrNone = 100  # validation images for the evaluations in training; 0 = all
    size: Annotated[int, Range(32, 10_000)] = 96  # side of a scene, longest of a photograph
    short: Annotated[int, Range(0, 10_000)] = 0  # shorter side in the detector; 0 = as it is
    horizontal_flip: Share = 0.5  # probability
    vertical_flip: Share = 0.0  # probability
    zoom: tuple[Zoom, Zoom] = (1.0, 1.0)  # random rescaling of the image, from and to
    colour: Share = 0.0  # strength of colour jitter, 0 to 1
    small: Side = 32.0  # objects below this side squared are small, pixels
    medium: Side = 96.0  # objects below this side squared are medium, pixels
    cache: bool = True  # keep decoded images in memory
    exif: Literal["turn", "ignore"] = "turn"  # EXIF turns that the stated size does not settle
    workers: Annotated[int, Range(0, 1024)] = 0  # loader processes


@dataclass(frozen=True)
class Detector:
    """A detector: its head, its trunk, its pyramid."""

    kind: Literal["faster_rcnn", "retinanet", "fcos"] = "faster_rcnn"  # the head
    trunk: str = "timm:resnet10t"  # `torchvision:NAME`, `timm:NAME` or `swin`
    trunk_arguments: str = "{}"  # arguments of the trunk, as JSON
    weights: str = ""  # file with the state dict of an ImageNet trunk; `hub` fetches it
    strides: tuple[Stride, ...] = (4, 8, 16, 32)  # of the pyramid levels taken from the trunk
    fpn_channels: Annotated[int, Range(1, 4096)] = 64  # channels of the pyramid
    anchor_scale: Annotated[float, Range(0, 100)] = 0.0  # of torchvision's; 0 = by image size
    frozen_norm: bool = False  # batch norm keeps the statistics and scales of the trunk's weights
    frozen_stride: Annotated[int, Range(0, 256)] = 0  # up to which no trunk is trained; 0 = all

    def recipe(self, **sizes: Any) -> Recipe:
        """Its recipe, with the number of classes and the sizes of the images; ValueError."""
        values = dataclasses.asdict(self)
        try:
            arguments = json.loads(values["trunk_arguments"])
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise ValueError(f"trunk_arguments={self.trunk_arguments!r}: not a JSON object")
        del values["weights"]
        return Recipe(**values | {"trunk_arguments": arguments} | sizes)


@dataclass(frozen=True)
class Train:
    """One training run."""

    steps: Count = 400  # steps that count as 1 in `ARMS`
    batch_size: Annotated[int, Range(1, 65_536)] = 8  # images per step, over all processes
    optimizer: Literal["adamw", "sgd"] = "adamw"  # AdamW (0.9, 0.99) or SGD (momentum 0.9)
    lr: Annotated[float, Range(0, 10, open=True)] = 2e-3  # peak learning rate
    batch_of_lr: Annotated[int, Range(0, 65_536)] = 0  # `lr` is scaled linearly from it; 0 = any
    trunk: Annotated[float, Range(0, 100)] = 1.0  # share of the learning rate for the trunk
    weight_decay: Share = 0.05  # not applied to vectors
    warmup: Share = 0.1  # share of the steps with linear warm-up
    schedule: Literal["cosine", "step"] = "cosine"  # to 0, or x0.1 at 2/3 and 8/9 of the steps
    schedule_over: Literal["stage", "run"] = "stage"  # restarts with each stage, or runs on
    clip: Annotated[float, Range(0, 1e9, open=True)] = 5.0  # largest gradient norm
    save_every: Count = 100  # steps between checkpoints
    log_every: Count = 1  # steps between rows of the log
    evaluations: CountOrNone = 4  # evaluations on `curve_images` during one run

    @property
    def peak(self) -> float:
        """The peak learning rate at this batch size. Source: Goyal et al., arXiv 1706.02677."""
        same = self.batch_of_lr in (0, self.batch_size)
        return self.lr if same else self.lr * self.batch_size / self.batch_of_lr


@dataclass(frozen=True)
class Engine:
    """How a run is computed, divided and kept."""

    save_minutes: Weight = 0.0  # between checkpoints, beside `train.save_every`; 0 = no clock
    accumulate: Annotated[int, Range(1, 65_536)] = 1  # parts of a process's images of a step
    channels_last: bool = False  # memory layout, faster on GPUs in bf16 and fp16
    compile: bool = False  # compile trunk and pyramid with torch.compile
    tensorboard: bool = False  # scalars for TensorBoard too, in `tensorboard` of the run's folder


Baselines = Literal["fitnet", "mgd", "amd", "dmkd", "pkd", "fgd", "cwd", "norm_cwd", "score_l2"]


@dataclass(frozen=True)
class Method:
    """The method of the distillation; most settings are DFMSD's (see `dfmsd.loss.DFMSDLoss`)."""

    # DFMSD; a baseline (takes `factor`, `adapter`, `match`, `strides`); or a teacher's detections
    name: Literal["dfmsd", Baselines, "pseudo_labels"] = "dfmsd"
    factor: Weight = 1.0  # on every weight of the method
    threshold: Share = 0.7  # pseudo_labels: least score of the teacher's detections that count
    spatial: bool = True  # spatial masking branch
    channel: bool = True  # channel masking branch
    ratio_spatial: Share = 0.5  # share of the cells that is hidden
    ratio_channel: Share = 0.5  # share of the channels that is hidden
    temperature: Annotated[float, Range(0, 1000, open=True)] = 0.5  # of the attention
    attention_on: Literal["standardised", "raw"] = "standardised"  # the teacher's feature
    select: Literal["high", "low", "random"] = "high"  # hide the most, the least attended, or any
    target: Literal["standardised", "raw"] = "standardised"  # what is rebuilt
    masked_only: bool = False  # count the error on hidden cells only
    fusion: Literal["learned"] | Share = "learned"  # share of the spatial branch, learned or fixed
    cutoff: Cutoff = 0.25  # radial cut-off of the high-pass filter, share of Nyquist
    strength: Annotated[float, Range(0, 1000)] = 1.0  # of the frequency enhancement; 0 = off
    regions: Literal["cells", "boxes"] = "cells"  # enhance by cell or by true box
    # 1x1 on the student's features, or none, or a 1x1 fitted by least squares before a stage begins
    adapter: Literal["conv", "identity", "fitted"] = "conv"
    generator_width: Annotated[float, Range(0, 16, open=True)] = 0.5  # share of the channels
    match: Literal["stride", "index"] = "stride"  # how pyramid levels pair
    strides: tuple[Stride, ...] = ()  # levels of the pyramids that take part; none named: all
    align: Literal["pearson", "distribution"] = "pearson"  # of channels, or as shares of the cells
    reconstruction_weight: Weight = 1.0  # per element
    alignment_weight: Weight = 10.0  # of 1 - Pearson: half the squared standardised difference
    fade: Share = 0.0  # last share of each stage in which the method's weights fall to 0
    anchor: Weight = 0.0  # weight of staying near the student of the stage before; 0 = off


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
    "strong-strong-long": Arm("DFMSD, two stages (strong → strong)", ("strong",) * 2, (1.0, 1.0)),
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
    seeds: tuple[CountOrNone, ...] = (0,)  # one run per arm and seed
    arms: tuple[str, ...] = ("none", "one", "two")  # rows of the table, see `ARMS`
    data: Data = field(default_factory=Data)  # images
    student: Detector = field(default_factory=Detector)  # the detector that is distilled
    weak: Detector = field(default_factory=Detector)  # the weaker teacher
    strong: Detector = field(default_factory=Detector)  # the stronger teacher
    weak_file: str = ""  # weights of the weaker teacher; trained into the run folder when empty
    strong_file: str = ""  # weights of the stronger teacher; trained into the run folder when empty
    train: Train = field(default_factory=Train)  # training of the student
    teach: Train = field(default_factory=Train)  # training of the teachers, by `dfmsd train`
    weak_steps: CountOrNone = 800  # steps of the weaker teacher; 0 = as `teach.steps`
    inherit: Literal["no", "neck", "neck+head"] = "no"  # what every row's student starts from,
    inherit_from: Literal["weak", "strong"] = "strong"  # and of which teacher
    teacher_images: Count = 6000  # generated scenes for the teachers; the first are the student's
    method: Method = field(default_factory=Method)  # the distillation
    out: str = "data/runs"  # folder of checkpoints and weights
    records: str = ""  # JSON-lines file that takes the records; OUT/records.jsonl when empty
    device: Literal["auto", "cpu"] = "auto"  # the GPU when there is one, or the CPU
    precision: Literal["no", "bf16", "fp16"] = "no"  # mixed precision
    engine: Engine = field(default_factory=Engine)  # how a run is computed, divided and kept
    jobs: Annotated[int, Range(1, 256)] = 1  # runs at a time, a CPU thread each; 1 by torchrun

    def __post_init__(self) -> None:
        """Refuse what is out of range, and contradictions."""
        check_fields(self)
        for arm in self.arms:
            check_name("arm", arm, list(ARMS), "arms")
        for key, several in (("seeds", self.seeds), ("arms", self.arms)):
            if not 0 < len(several) == len(set(several)):
                raise ValueError(f"{key}={several}: expected at least one, and none twice")
        data, method, coco = self.data, self.method, self.data.kind == "coco"
        blind = method.name == "pseudo_labels" and (method.anchor or method.adapter == "fitted")
        fits = not data.short or 32 <= data.short <= data.size
        largest, medium = f"data.size={data.size}", f"data.medium={data.medium:g}"
        for right, text in (
            (data.root or not coco, "data.root: give the COCO-format folder, data.root=PATH"),
            (data.val_images or coco, "data.val_images=0: expected at least 1 scene"),
            (fits, f"data.short={data.short}: expected 0, or 32 to {largest}"),
            (data.zoom[0] <= data.zoom[1], f"data.zoom={as_text(data.zoom)}: expected from, to"),
            (data.small < data.medium, f"data.small={data.small:g}: expected below {medium}"),
            (not blind, "method.name=pseudo_labels: has no features to anchor or to fit"),
        ):
            if not right:
                raise ValueError(text)
        for name in ("student", "weak", "strong"):
            try:
                getattr(self, name).recipe(num_classes=1, image_size=data.short or data.size)
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None


def as_text(value: Any) -> str:
    """A setting's value as in `key=value`."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name → value of every setting, of a dataclass or of the dict in a record."""
    nested = dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) else settings
    values: dict[str, Any] = {}
    for key, value in nested.items():
        name = prefix + key
        values |= flat(value, name + ".") if isinstance(value, dict) else {name: value}
    return values
