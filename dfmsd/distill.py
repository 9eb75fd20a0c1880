"""One student, one teacher, one method: the same pixels to both, and one dict of losses.

Any torchvision detector serves as student or teacher. The student runs as it is; hooks read the
batch that its own transform made and the features that its own backbone computed, so nothing of
torchvision is rewritten. Of the teacher only backbone and FPN run, in eval mode, without gradients,
on the very pixels the student saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfmsd.align import Context
from dfmsd.detectors.features import capture_features, strided_levels, to_levels


def renormalise(pixels: Tensor, source: nn.Module, goal: nn.Module, valid: Tensor) -> Tensor:
    """`pixels` normalised for `source` (N, 3, H, W) as `goal` wants them; padding stays 0.

    Args:
        pixels: the batch that `source` normalised.
        source: the student's transform (`image_mean`, `image_std`).
        goal: the teacher's transform.
        valid: (N, 1, H, W) bool, True inside the images.
    """
    if list(source.image_mean) == list(goal.image_mean) and list(source.image_std) == list(
        goal.image_std
    ):
        return pixels

    def column(values: Sequence[float]) -> Tensor:
        return pixels.new_tensor(values)[:, None, None]

    raw = pixels * column(source.image_std) + column(source.image_mean)
    return (raw - column(goal.image_mean)) / column(goal.image_std) * valid


class Distiller(nn.Module):
    """A student in training: its own losses, and those of a method that compares it to a teacher.

    `student` and `method` are submodules (trained, saved, resumed); the teacher is not: it appears
    in no state dict, no optimiser and no `train()` call. Without teacher and method the distiller
    is the plain student, so one training loop serves every row of a table.

    Args:
        student: a torchvision detector.
        teacher: another torchvision detector, or None. It is put in eval mode and its parameters
            are frozen.
        method: `method(student, teacher, context) -> dict` of unweighted scalars, e.g. `DFMSDLoss`.

    Raises:
        ValueError: when only one of teacher and method is given, or a detector lacks transform or
            backbone.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        method: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if (teacher is None) != (method is None):
            raise ValueError("teacher and method go together: give both, or neither")
        for name, detector in (("student", student), ("teacher", teacher)):
            if detector is not None and not (
                hasattr(detector, "transform") and hasattr(detector, "backbone")
            ):
                raise ValueError(
                    f"{name} must be a torchvision detector with .transform and .backbone, "
                    f"got {type(detector).__name__}"
                )
        self.student = student
        self.method = method
        # in a list, so that nn.Module does not register it
        self._teacher = [] if teacher is None else [teacher.eval().requires_grad_(False)]
        self._levels = [] if teacher is None else [strided_levels(d) for d in (student, teacher)]

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher, or None."""
        return self._teacher[0] if self._teacher else None

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term of the method; terms that are not named here count once."""
        return dict(self.method.weights) if self.method is not None else {}

    @torch.no_grad()
    def teacher_features(self, pixels: Tensor) -> dict[int, Tensor]:
        """The teacher's features by stride, for a batch (N, 3, H, W) normalised its own way."""
        teacher = self.teacher
        if next(teacher.backbone.parameters()).device != pixels.device:
            teacher.to(pixels.device)
        teacher.eval()
        levels = to_levels(teacher.backbone(pixels))
        return {stride: levels[name] for stride, (name, _) in self._levels[1].items()}

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """In train mode the named, unweighted losses; in eval mode the student's detections.

        Args:
            images: list of (3, H, W) in 0..1.
            targets: one dict per image with `boxes` (n, 4) xyxy in pixels and `labels` (n,).
        """
        if not self.training:
            return self.student(images, targets)
        with capture_features(self.student) as seen:
            losses = dict(self.student(images, targets))
        if self.teacher is None:
            return losses
        context = Context(
            images=seen.images.tensors, sizes=seen.images.image_sizes, targets=seen.targets
        )
        pixels = renormalise(
            seen.images.tensors,
            self.student.transform,
            self.teacher.transform,
            context.valid(seen.images.tensors),
        )
        student = {stride: seen.features[name] for stride, (name, _) in self._levels[0].items()}
        return losses | self.method(student, self.teacher_features(pixels), context)
