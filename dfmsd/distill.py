"""One student, one teacher, one method: the same pixels to both, and one dict of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dfmsd.context import Context
from dfmsd.detectors.features import (
    Captured,
    capture_features,
    frozen_modes,
    score_maps,
    strided_levels,
    to_levels,
)


def renormalise(context: Context, source: nn.Module, goal: nn.Module) -> Tensor:
    """The context's images, normalised for `source`, as `goal` wants them; padding stays 0.

    `source` and `goal` are the transforms of student and teacher (`image_mean`, `image_std`).
    """
    pixels = context.images  # (N, 3, H, W)
    forms = [(*transform.image_mean, *transform.image_std) for transform in (source, goal)]
    if forms[0] == forms[1]:
        return pixels

    def column(values: Sequence[float]) -> Tensor:
        return pixels.new_tensor(values)[:, None, None]

    raw = pixels * column(source.image_std) + column(source.image_mean)
    rescaled = (raw - column(goal.image_mean)) / column(goal.image_std)
    return rescaled * context.valid(pixels)


class Distiller(nn.Module):
    """A student in training: its own losses, and those of a method that compares it to a teacher.

    `student` and `method` are submodules (trained, saved, resumed). `teacher` is a plain attribute:
    it appears in no state dict, no optimiser and no `train()` call. It is frozen and in eval mode;
    for most methods only its backbone and FPN run, on the very pixels that the student saw. Without
    teacher and method the distiller is the plain student, so one training loop serves every row of
    a table.

    Args:
        student: a torchvision detector; it runs as it is, hooks read its batch and features.
        teacher: another torchvision detector, or None.
        method: `method(student, teacher, context) -> dict` of unweighted scalars, e.g. `DFMSDLoss`;
            with `needs_scores` the context has the teacher's scores. Or one without a loss whose
            `targets(teacher, images, targets)` are the student's, e.g. `PseudoLabels`.

    Raises ValueError for a teacher or a method alone, and for no transform or backbone.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None = None, method: nn.Module | None = None
    ) -> None:
        super().__init__()
        if (teacher is None) != (method is None):
            raise ValueError("teacher and method go together: give both, or neither")
        for name, detector in (("student", student), ("teacher", teacher)):
            parts = hasattr(detector, "transform") and hasattr(detector, "backbone")
            if detector is not None and not parts:
                wanted = "a torchvision detector with .transform and .backbone"
                raise ValueError(f"{name} must be {wanted}, got {type(detector).__name__}")
        self.student, self.method = student, method
        object.__setattr__(self, "teacher", teacher)  # not as a submodule
        if teacher is not None:
            teacher.eval().requires_grad_(False)
            self.student_levels, self.teacher_levels = map(strided_levels, (student, teacher))

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term of the method; terms that are not named here count once."""
        return dict(self.method.weights) if self.method is not None else {}

    @torch.no_grad()  # not inference_mode: raw targets are saved for the backward pass
    def teacher_features(self, pixels: Tensor) -> dict[int, Tensor]:
        """The teacher's features by stride, for a batch (N, 3, H, W) normalised its own way."""
        levels = to_levels(self.teacher.to(pixels.device).eval().backbone(pixels))
        return {stride: levels[name] for stride, (name, _) in self.teacher_levels.items()}

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """In train mode the named, unweighted losses; in eval mode the student's detections.

        `images` are (3, H, W) in 0..1, `targets` dicts with `boxes` (n, 4) xyxy in pixels and
        `labels` (n,).
        """
        if self.teacher is None or not self.training:
            return self.student(images, targets)
        if hasattr(self.method, "targets"):
            self.teacher.to(images[0].device).eval()
            return self.student(images, self.method.targets(self.teacher, images, targets))
        with capture_features(self.student) as seen:
            losses = self.student(images, targets)
        student, teacher, context = self._pair(seen)
        if getattr(self.method, "needs_scores", False):
            context = replace(context, scores=score_maps(self.teacher, teacher))
        return losses | self.method(student, teacher, context)

    def look(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> Mapping[int, Any]:
        """What `method.levels` finds at each stride for images (3, H, W) in 0..1; trains nothing.

        For a method that has `levels`, such as `DFMSDLoss`; `targets` are for regions="boxes".
        """
        with frozen_modes(self.student), capture_features(self.student) as seen:
            self.student(images, targets)
            return self.method.levels(*self._pair(seen))

    def _pair(self, seen: Captured) -> tuple[dict[int, Tensor], dict[int, Tensor], Context]:
        """The student's features by stride, the teacher's on the same pixels, and the batch."""
        if seen.images is None or seen.features is None:
            parts = "its modules .transform and .backbone"
            raise ValueError(f"student: {type(self.student).__name__} did not call {parts}")
        context = Context(seen.images.tensors, seen.images.image_sizes, seen.targets)
        student = {stride: seen.features[name] for stride, (name, _) in self.student_levels.items()}
        transforms = self.student.transform, self.teacher.transform
        return student, self.teacher_features(renormalise(context, *transforms)), context
