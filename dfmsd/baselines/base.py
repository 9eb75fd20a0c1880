"""What the baselines do alike: pair and adapt the levels, mask and rebuild, average over levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from math import ceil

import torch
from torch import Tensor, nn

from dfmsd.align import Adapter, Fit, Match, match_levels, pair_strides
from dfmsd.context import Context, widen
from dfmsd.generate import DualGenerator, reconstruction_loss
from dfmsd.ranges import NotNegative, Positive, check_fields, positive_weights

# Published sums are turned into means at this size: 256 channels, 800 x 1216 pixels.
ONE_STAGE_CELLS = 100 * 152 + 50 * 76 + 25 * 38 + 13 * 19 + 7 * 10  # P3–P7
CHANNELS = 256
MGD_WEIGHT = 2e-5 * CHANNELS * ONE_STAGE_CELLS  # MGD's for one-stage detectors
Keeps = tuple[Tensor | None, Tensor | None]


@dataclass
class Level:
    """One pair of levels, ready to compare, in float32 or better."""

    key: str  # the student's stride, as submodules are named
    student: Tensor  # (N, C_t, H, W), adapted
    teacher: Tensor  # (N, C_t, H, W), detached
    valid: Tensor | None  # (N, 1, H, W) bool, True inside the images; None: no image is padded
    context: Context  # the batch behind the features

    @property
    def elements(self) -> Tensor:
        """How many elements of the teacher's feature lie inside the images, a scalar."""
        if self.valid is None:
            return torch.full((), float(self.teacher.numel()), device=self.teacher.device)
        return self.valid.sum() * float(self.teacher.shape[1])


@dataclass(eq=False, repr=False)
class Baseline(nn.Module):
    """The base of all baselines; a subclass says in `compare` what one level costs.

    Called with features by stride and a `Context`, it returns its terms, unweighted means over the
    levels. `weights` holds the weights of the terms. No gradient reaches the teacher. The annotated
    attributes of a subclass are its settings, keyword-only, and checked by their types.

    ValueError when one is out of range, no level is in common, or every term or branch is off.

    Args:
        student_channels, teacher_channels: stride → C.
        adapter: "conv", "identity" or "auto", see `dfmsd.align.Adapter`.
        match: "stride" or "index", see `dfmsd.align.pair_strides`.
        weight: on the method's only `term`, ≥ 0; a term of weight 0 is off.
    """

    student_channels: dict[int, int]
    teacher_channels: dict[int, int]
    _: KW_ONLY
    adapter: Fit = "conv"
    match: Match = "stride"

    def __init_subclass__(cls) -> None:
        """Make the annotated attributes arguments, as `dataclass` does."""
        super().__init_subclass__()
        dataclass(cls, eq=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        """Check the settings, build the modules."""
        super().__init__()
        check_fields(self)
        self.weights = positive_weights(**self.term_weights())
        self.pairs = pair_strides(self.student_channels, self.teacher_channels, self.match)
        self.adapters = nn.ModuleDict()
        self.channels: dict[str, int] = {}  # key of a level → C_t
        for stride, teacher_stride in self.pairs:
            key, count = str(stride), self.teacher_channels[teacher_stride]
            self.adapters[key] = Adapter(self.student_channels[stride], count, self.adapter)
            self.channels[key] = count

    def term_weights(self) -> dict[str, float]:
        """Term → weight as it was set, also 0."""
        return {self.term: self.weight}

    def compare(self, level: Level) -> dict[str, Tensor]:
        """Term → unweighted scalar of one level; terms that are off may be among them."""
        raise NotImplementedError

    def level_share(self, term: str, level: Level) -> Tensor | None:
        """How much a level counts in the mean of a term; None: every level counts alike.

        The number of its elements makes a mean of a published sum: fine levels count more.
        """
        return None

    def forward(
        self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], context: Context
    ) -> dict[str, Tensor]:
        """Term → unweighted scalar, the mean over the levels.

        Features are stride → (N, C, H, W), `context` is the batch behind them; levels that the
        method was not built for are ignored. ValueError when one it was built for is missing.
        """
        levels = []
        for stride, feature, goal in match_levels(student, teacher, self.match, pairs=self.pairs):
            adapted, valid = self.adapters[str(stride)](feature), context.padding_mask(goal)
            levels.append(Level(str(stride), widen(adapted), widen(goal.detach()), valid, context))
        losses = [self.compare(level) for level in levels]
        terms = {}
        for name in self.weights:
            values = torch.stack([loss[name] for loss in losses])
            shares = [self.level_share(name, level) for level in levels]
            if shares[0] is None:
                terms[name] = values.mean()
            else:
                share = torch.stack(shares)
                terms[name] = (values * share).sum() / share.sum().clamp_min(1)
        return terms


class Masked(Baseline):
    """The base of MGD, AMD and DMKD: {"reconstruction"}, mean squared error of the rebuilt feature.

    The teacher's raw feature is rebuilt from the student's, of which a subclass hides a part in
    `keep`, or in `keeps` when it has both branches: the share `ratio`, 0..1, of its cells (and
    channels). `select` hides the most attended ("high"), the least ("low") or any ("random", from
    torch's global generator, cells before channels), at the `temperature` of the attention, > 0.
    `generator_width` is a fraction of C_t, rounded up, > 0; published: 1.
    """

    term = "reconstruction"
    generator_width: Positive = 1.0
    weight: NotNegative = MGD_WEIGHT

    def __post_init__(self) -> None:
        """Check the settings, build the modules."""
        super().__post_init__()
        self.generators = nn.ModuleDict()
        for key, count in self.channels.items():
            width = ceil(self.generator_width * count)
            self.generators[key] = DualGenerator(count, width, **self.branches())

    def branches(self) -> dict[str, bool | float | str]:
        """Arguments of `DualGenerator`; one branch has the same names in the state dict."""
        return {"channel": False}

    def compare(self, level: Level) -> dict[str, Tensor]:
        """{"reconstruction": unweighted scalar} of one level."""
        keeps = self.keeps(level.teacher, level.valid)
        rebuilt = self.generators[level.key](level.student, *keeps, level.valid)
        return {"reconstruction": reconstruction_loss(rebuilt, level.teacher, valid=level.valid)}

    def keeps(self, teacher: Tensor, valid: Tensor | None = None) -> Keeps:
        """Keep masks over cells (N, 1, H, W) and channels (N, C, 1, 1); None for a branch off."""
        return self.keep(teacher, valid), None
