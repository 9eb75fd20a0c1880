"""Training batches as a function of seed, step and rank alone, hence resumable at any step."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dfmsd.data.augmentation import Sample, Target
from dfmsd.data.images import to_float

Batch = tuple[list[Tensor], list[Target]]


class Augmented(Dataset):
    """`dataset[index]` changed by `transform`, if any, as a function of (seed, epoch, index).

    Of a data set that has `read`, images come as that gives them: as uint8, a quarter of the bytes.
    """

    def __init__(self, dataset: Any, transform: Callable | None, *, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.read = getattr(dataset, "read", dataset.__getitem__)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Image and target of `key` = (epoch, index); the caller's random state stays."""
        epoch, index = key
        sample = self.read(index)
        if self.transform is None:
            return sample
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed: it would seed the caller's GPUs too
            seed = ((self.seed * 1_000_003 + epoch) * 1_000_003 + index) % 2**63
            torch.default_generator.manual_seed(seed)
            return self.transform(*sample)


class StepSampler:
    """The images of every step, as a function of (seed, step).

    An epoch is a permutation drawn from (seed, epoch). Images of one group share batches; groups
    smaller than a batch are thrown together. A group's last batch is filled up from its start, so
    that every batch is full and every epoch as long.

    Args:
        groups: the group of each image, hashable.
        batch_size: see `Batches`, as are the errors.
        seed: of the permutations.
    """

    def __init__(self, groups: Sequence[Any], batch_size: int, *, seed: int) -> None:
        if not groups:
            raise ValueError("groups: a data set without images cannot be trained on")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        members: dict[Any, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group, []).append(index)
        large = [m for m in members.values() if len(m) >= batch_size]
        small = [index for m in members.values() if len(m) < batch_size for index in m]
        self.groups = [torch.tensor(indices) for indices in (*large, small) if indices]
        self.batch_size, self.seed = batch_size, seed
        self.batches_per_epoch = sum(-(-len(group) // batch_size) for group in self.groups)

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of one epoch, as lists of image indices."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        batches = []
        for group in self.groups:
            order = group[torch.randperm(len(group), generator=generator)]
            full = torch.arange(len(order) + -len(order) % self.batch_size) % len(order)
            batches += order[full].view(-1, self.batch_size).tolist()
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def shares(
        self, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[list[tuple[int, int]]]:
        """The (epoch, index) of process `rank` of `world`, see `Batches.iterate`."""
        size, rest = divmod(self.batch_size, world)
        if rest:
            wrong = f"expected a multiple of {world} processes"
            raise ValueError(f"batch_size={self.batch_size}: {wrong}")
        first, skip = divmod(start, self.batches_per_epoch)
        batches = ((epoch, b) for epoch in itertools.count(first) for b in self.epoch(epoch))
        for epoch, batch in itertools.islice(batches, skip, None):
            yield [(epoch, index) for index in batch[rank * size :][:size]]


def collate(samples: Sequence[Sample]) -> Batch:
    """A list of images and a list of targets."""
    return tuple(map(list, zip(*samples, strict=True)))


_SIGNALS = {signal.SIGTERM, signal.SIGUSR1}


def _obey_parent_only(_worker: int) -> None:
    """Make a loader process end when its parent says so, not when a cluster signals all processes.

    The parent still needs batches then. Ignoring SIGTERM would be too much: by it Python ends the
    loader processes of a program that is over.
    """

    def listen() -> None:
        while signal.sigwaitinfo(_SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


def load(
    dataset: Any,
    batches: Iterable[Sequence[Any]],
    *,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """The samples `dataset[key]` of each list of keys, in order, by `workers` loader processes.

    Images are float in 0..1 on `device`; before it they are what the data set gives.

    Raises:
        ValueError: what the data set raises.
        ChildProcessError: a loader process was lost; torch's RuntimeError between two batches.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it draws from the caller's
        worker_init_fn=_obey_parent_only,
    )
    # loader processes are born with the signals blocked, and so never without
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        samples = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        for images, targets in samples:
            yield [to_float(i.to(device, non_blocking=True)) for i in images], targets
    except (ValueError, RuntimeError, OSError, EOFError) as error:
        caught, refused = str(error).startswith("Caught "), isinstance(error, ValueError)
        if caught and refused:  # by a loader process: a traceback with its words at the end
            raise type(error)(str(error).splitlines()[-1].partition(": ")[2]) from None
        if caught or refused or not workers:
            raise
        # torch's own report, or what reading a batch ends with while its sender dies
        lost = "a loader process was lost (out of memory? data.workers=0 needs the least)"
        again = "the same command continues from the last checkpoint"
        raise ChildProcessError(f"{lost}: {error}; {again}") from error


class Batches:
    """The training batches of a data set; see `iterate`.

    Args:
        dataset: `dataset[index]` gives (image (3, H, W) in 0..1, target).
        batch_size: images per step, over all processes.
        seed: of order and augmentation.
        sizes: (height, width) per image; the images of a batch have equal sides after rounding up
            to 32 pixels, which is what detectors pad to. None puts all in one group.
        transform: see `augmentation`.
        workers: loader processes.
        device: where images become float in 0..1; before it they are as `Augmented` gives them.

    Raises:
        ValueError: not as many sizes as images, no images, or a batch size below 1.
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
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset = Augmented(dataset, transform, seed=seed)
        sizes = [(0, 0)] * len(dataset) if sizes is None else sizes
        if len(sizes) != len(dataset):
            raise ValueError(f"sizes: {len(sizes)} of them for {len(dataset)} images")
        self.groups = [(-(-height // 32), -(-width // 32)) for height, width in sizes]
        self.sampler, self.workers = StepSampler(self.groups, batch_size, seed=seed), workers
        self.device = device

    def iterate(self, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Endless (images, targets) from step `start` on, for process `rank` of `world`.

        Raises ValueError for a batch that `world` processes cannot share, and what `load` raises.
        """
        shares = self.sampler.shares(start, rank, world)
        return load(self.dataset, shares, workers=self.workers, device=self.device)
