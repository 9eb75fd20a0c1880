"""Training batches as a function of the step: augmented, grouped by shape, resumable at any step.

Nothing here keeps random state. What comes at a step follows from the seed and the step alone, so a
run that starts again at step k sees exactly what it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from dfmsd.data.arrivals import arrivals, stay
from dfmsd.data.sampling import StepSampler

Target = dict[str, Any]


def augmentation(
    *,
    flip: float = 0.5,
    vflip: float = 0.0,
    scale: tuple[float, float] | None = None,
    colour: float = 0.0,
) -> Callable[[Tensor, Target], tuple[Tensor, Target]]:
    """A random change of (image, target), drawn from torch's global generator.

    Boxes move with the image, are clipped to it, and go together with their labels when less than a
    pixel of their width or height is left.

    Args:
        flip: probability of a left-right flip.
        vflip: probability of an up-down flip.
        scale: smallest and largest factor of a random rescaling; the image keeps its size: what
            grows is cropped at a random place, what shrinks is set on grey. None for none.
        colour: strength of brightness, contrast and saturation jitter, 0 to 1.

    Raises:
        ValueError: when an argument is out of range.
    """
    for name, value in (("flip", flip), ("vflip", vflip), ("colour", colour)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in 0..1, got {value}")
    if scale is not None and not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be (low, high) with 0 < low <= high, got {scale}")
    steps: list[torch.nn.Module] = [v2.RandomHorizontalFlip(flip), v2.RandomVerticalFlip(vflip)]
    if colour:
        steps.append(v2.ColorJitter(brightness=colour, contrast=colour, saturation=colour))
    clean = v2.Compose([v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=1)])
    change = v2.Compose(steps)

    def apply(image: Tensor, target: Target) -> tuple[Tensor, Target]:
        canvas = tuple(image.shape[-2:])
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=canvas)
        image, moved = change(tv_tensors.Image(image), {"boxes": boxes, "labels": target["labels"]})
        if scale is not None:
            image, moved = _rescale(image, moved, scale)
        image, moved = clean(image, moved)
        moved = {"boxes": moved["boxes"].as_subclass(Tensor), "labels": moved["labels"]}
        return image.as_subclass(Tensor), target | moved

    return apply


def _rescale(
    image: tv_tensors.Image, target: Target, scale: tuple[float, float]
) -> tuple[tv_tensors.Image, Target]:
    """Image and boxes times a random factor, cropped or set on grey so that the size stays."""
    height, width = image.shape[-2:]
    factor = scale[0] * (scale[1] / scale[0]) ** float(torch.rand(()))
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    image, target = v2.Resize(size, antialias=True)(image, target)
    pad = [max(0, width - size[1]), max(0, height - size[0])]
    left, top = (int(torch.randint(room + 1, ())) for room in pad)
    padding = [left, top, pad[0] - left, pad[1] - top]
    image, target = v2.Pad(padding, fill={tv_tensors.Image: 0.5, "others": 0})(image, target)
    return v2.RandomCrop((height, width))(image, target)


class Augmented(Dataset):
    """`dataset[index]` changed by `transform`, as a function of (epoch, index).

    Args:
        dataset: `dataset[index]` gives (image, target).
        transform: changes (image, target) with torch's global generator; None for none.
        seed: of the changes.
    """

    def __init__(self, dataset: Any, transform: Callable | None, *, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Target]:
        """Image and target of `place` = (epoch, index); the caller's random state stays."""
        epoch, index = place
        image, target = self.dataset[index]
        if self.transform is None:
            return image, target
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed: it would seed the caller's GPUs too
            seed = ((self.seed * 1_000_003 + epoch) * 1_000_003 + index) % 2**63
            torch.default_generator.manual_seed(seed)
            return self.transform(image, target)


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """A list of images and a list of targets."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class Batches:
    """The training batches of a data set; see `iterate`.

    Args:
        dataset: `dataset[index]` gives (image (3, H, W) in 0..1, target).
        batch_size: images per step, over all processes: the same images come at a step on any
            number of them.
        seed: of order and augmentation.
        sizes: (height, width) per image; batches hold images of one size group: both sides equal
            after rounding up to 32 pixels, which is what detectors pad to. None puts all in one
            group.
        transform: see `augmentation`.
        workers: loader processes.

    Raises:
        ValueError: not as many sizes as images.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int,
        sizes: Sequence[tuple[int, int]] | None = None,
        transform: Callable | None = None,
        workers: int = 0,
    ) -> None:
        self.dataset = Augmented(dataset, transform, seed=seed)
        sizes = [(0, 0)] * len(dataset) if sizes is None else sizes
        if len(sizes) != len(dataset):
            raise ValueError(f"sizes: {len(sizes)} of them for {len(dataset)} images")
        self.groups = [(-(-height // 32), -(-width // 32)) for height, width in sizes]
        self.batch_size, self.seed, self.workers = batch_size, seed, workers

    def steps_per_epoch(self) -> int:
        """Steps in which every image comes once (rounded up)."""
        return StepSampler(self.groups, self.batch_size, seed=self.seed).batches_per_epoch

    def iterate(
        self, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[list[Tensor], list[Target]]]:
        """Endless (images, targets) from step `start` on, for process `rank` of `world`.

        Raises:
            ValueError: a batch that `world` processes cannot share; an image that cannot be read,
                in the words of the data set.
            ChildProcessError: a loader process was killed.
        """
        sampler = StepSampler(
            self.groups, self.batch_size, seed=self.seed, start=start, rank=rank, world=world
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else it draws from the caller's
            worker_init_fn=stay,
        )
        return arrivals(loader)
