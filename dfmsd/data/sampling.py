"""Which images come at which step, on which process: a function of seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch


class StepSampler:
    """An endless list of batches, each a list of (epoch, index), from any step on.

    An epoch is a permutation drawn from (seed, epoch). Images of one group share batches; groups
    smaller than a batch are thrown together. A group's last batch is filled up from its start, so
    that every batch is full and every epoch as long.

    Args:
        groups: the group of each image; anything that can be compared.
        batch_size: images per batch, over all processes.
        seed: of the permutations.
        start: first step.
        rank: which process this is; it gets the share number `rank` of every batch.
        world: number of processes.

    Raises:
        ValueError: without images, or with a batch size that is not a multiple of `world`.
    """

    def __init__(
        self,
        groups: Sequence[Any],
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not groups:
            raise ValueError("groups: a data set without images cannot be trained on")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size % world:
            raise ValueError(f"batch_size={batch_size}: expected a multiple of {world} processes")
        members: dict[Any, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group, []).append(index)
        rest = [i for m in members.values() if len(m) < batch_size for i in m]
        kept = [m for m in members.values() if len(m) >= batch_size]
        self.members = [torch.tensor(m) for m in (*kept, rest) if m]
        self.batch_size, self.seed = batch_size, seed
        self.start, self.rank, self.world = start, rank, world

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one epoch: steps in which every image comes once (rounded up)."""
        return sum(-(-len(m) // self.batch_size) for m in self.members)

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of one epoch, as lists of image indices."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        batches = []
        for group in self.members:
            order = group[torch.randperm(len(group), generator=generator)]
            full = -(-len(order) // self.batch_size) * self.batch_size
            order = order.repeat(-(-full // len(order)))[:full]
            batches += order.view(-1, self.batch_size).tolist()
        mixed = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[i] for i in mixed]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """The shares of process `rank` of the batches from `start` on, without end."""
        step, number, batches = self.start, -1, []
        size = self.batch_size // self.world
        while True:
            epoch, place = divmod(step, self.batches_per_epoch)
            if epoch != number:
                number, batches = epoch, self.epoch(epoch)
            share = batches[place][self.rank * size :][:size]
            yield [(epoch, index) for index in share]
            step += 1
