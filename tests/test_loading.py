"""Augmentation that keeps boxes on their objects, and batches that are a function of the step."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from dfmsd.data.augmentation import augmentation
from dfmsd.data.batches import Augmented, Batches, StepSampler, collate

BOXES = [[6, 4, 22, 14], [30, 20, 47, 33], [50, 2, 58, 38]]  # one per colour channel
LABELS = [5, 1, 3]
HEIGHT, WIDTH = 40, 60


def painted():
    """Grey with one rectangle in each channel, and the target that says so."""
    image = torch.full((3, HEIGHT, WIDTH), 0.5)
    for channel, (x1, y1, x2, y2) in enumerate(BOXES):
        image[channel, y1:y2, x1:x2] = 1
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    return image, {"boxes": boxes, "labels": torch.tensor(LABELS), "image_id": 7}


def hull(channel):
    """The box around what is painted, or None."""
    rows, columns = (channel > 0.75).any(1).nonzero(), (channel > 0.75).any(0).nonzero()
    if not len(rows):
        return None
    return [int(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def by_label(target):
    return dict(zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True))


def test_no_change_is_none():
    image, target = painted()
    same, found = augmentation(flip=0)(image, target)
    assert torch.equal(same, image)
    assert torch.equal(found["boxes"], target["boxes"])
    assert type(same) is torch.Tensor
    assert type(found["boxes"]) is torch.Tensor
    assert found["boxes"].dtype == torch.float32
    assert found["labels"].dtype == torch.int64
    assert found["image_id"] == 7
    found["boxes"].zero_()
    augmentation(flip=1, vflip=1)(image, target)
    assert by_label(target) == by_label(painted()[1])  # the caller's target stays


def test_flips_by_hand():
    image, target = painted()
    across, moved = augmentation(flip=1)(image, target)
    assert torch.equal(across, image.flip(2))
    # x1, x2 -> 60 - x2, 60 - x1
    assert moved["boxes"].tolist() == [[38, 4, 54, 14], [13, 20, 30, 33], [2, 2, 10, 38]]
    down, moved = augmentation(flip=0, vflip=1)(image, target)
    assert torch.equal(down, image.flip(1))
    assert moved["boxes"].tolist() == [[6, 26, 22, 36], [30, 7, 47, 20], [50, 2, 58, 38]]


def test_fixed_zooms_by_hand():
    torch.manual_seed(3)
    image, target = painted()
    small, moved = augmentation(flip=0, scale=(0.5, 0.5))(image, target)
    sizes = moved["boxes"][:, 2:] - moved["boxes"][:, :2]
    assert sizes.tolist() == [[8, 5], [8.5, 6.5], [4, 18]]
    corner = moved["boxes"][0, :2] - torch.tensor([3.0, 2.0])  # where the shrunk image was set
    assert bool((corner >= 0).all())
    assert bool((corner <= torch.tensor([30, 20])).all())
    assert torch.allclose(moved["boxes"] - corner.repeat(2), target["boxes"] / 2)
    assert float(small.mean()) < float(image.mean())  # the rest is grey
    same, moved = augmentation(flip=0, scale=(1, 1))(image, target)
    assert torch.equal(same, image)
    assert torch.equal(moved["boxes"], target["boxes"])


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 0.5},
        {"flip": 0, "vflip": 0.5},
        {"flip": 0, "scale": (0.3, 1.0)},
        {"flip": 0, "scale": (1.0, 3.0)},
        {"flip": 0.5, "vflip": 0.5, "scale": (0.4, 2.5)},
    ],
)
def test_boxes_hug_what_is_painted(options):
    torch.manual_seed(0)
    change = augmentation(**options)
    kept = lost = 0
    drawn = set()
    for _ in range(50):
        image, target = change(*painted())
        assert image.shape == (3, HEIGHT, WIDTH)
        boxes = by_label(target)
        drawn.add(str(boxes))
        assert all(min(side(kept)) >= 1 for kept in boxes.values())
        for channel, label in enumerate(LABELS):
            seen = hull(image[channel])
            if label in boxes and seen is not None:
                kept += 1
                # resizing softens an edge over a pixel
                assert boxes[label] == pytest.approx(seen, abs=1.0)
            else:
                lost += 1
                assert label not in boxes or min(side(boxes[label])) <= 1.5
                assert seen is None or min(side(seen)) <= 2
    assert len(drawn) >= 2
    assert kept > 50
    if options.get("scale", (1, 1))[1] > 1:
        assert lost > 10  # cropped away, with their labels


@pytest.mark.parametrize("name", ["masks", "keypoints"])
def test_what_augmentation_would_leave_behind_is_refused(name):
    image, target = painted()
    with pytest.raises(ValueError, match=f"moves boxes only, a target also has {name}"):
        augmentation()(image, target | {name: torch.ones(len(target["boxes"]), 3, 3)})


def side(box):
    return box[2] - box[0], box[3] - box[1]


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 1},
        {"vflip": 1},
        {"flip": 0.5, "vflip": 0.5, "scale": (0.6, 1.8)},
        {"colour": 0.4},
    ],
)
def test_bytes_change_as_floats_do(options):
    for seed in range(10):
        image, target = painted()
        pixels = (image * 255).round().to(torch.uint8)
        torch.manual_seed(seed)
        expected, moved = augmentation(**options)(pixels / 255, target)
        torch.manual_seed(seed)
        found, same = augmentation(**options)(pixels, target)
        assert found.dtype == torch.uint8
        # rounded once in each of the three changes of colour
        assert float((found / 255 - expected).abs().max()) <= 3.5 / 255
        assert torch.equal(moved["boxes"], same["boxes"])
        assert torch.equal(moved["labels"], same["labels"])


def test_flips_draw_and_move_as_those_of_torchvision():
    image, target = painted()
    steps = [v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.3)]
    plain = v2.Compose([*steps, v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=1)])
    boxes = target["boxes"] + torch.tensor([-7.0, 0.25, 0.5, 8.0])  # they stick out
    boxes[1, 2] = boxes[1, 0] + 0.9  # too small to stay
    target |= {"boxes": boxes}
    for seed in range(10):
        torch.manual_seed(seed)
        wrapped = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(HEIGHT, WIDTH))
        labelled = {"boxes": wrapped, "labels": target["labels"]}
        expected, moved = plain(tv_tensors.Image(image), labelled)
        torch.manual_seed(seed)
        found, same = augmentation(flip=0.5, vflip=0.3)(image, target)
        assert torch.equal(found, expected)
        assert torch.equal(same["boxes"], moved["boxes"])
        assert same["labels"].tolist() == moved["labels"].tolist() == [5, 3]


def test_images_without_boxes_stay_without():
    image, target = painted()
    target |= {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    _, found = augmentation(flip=1, vflip=1, scale=(0.5, 2), colour=0.2)(image, target)
    assert found["boxes"].shape == (0, 4)
    assert found["labels"].shape == (0,)


def test_colour_changes_the_colours_only():
    torch.manual_seed(1)
    image, target = painted()
    changed, found = augmentation(flip=0, colour=0.5)(image, target)
    assert not torch.allclose(changed, image, atol=0.01)
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
    assert torch.equal(found["boxes"], target["boxes"])
    # a grey image stays grey under brightness, contrast and saturation
    plain = torch.rand(1, 8, 8).expand(3, 8, 8)
    grey, _ = augmentation(flip=0, colour=0.5)(plain, target)
    assert not torch.allclose(grey, plain, atol=0.01)
    assert torch.allclose(grey[0], grey[2], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip must lie in 0..1, got 1.5"),
        ({"vflip": -0.1}, "vflip must lie in 0..1, got -0.1"),
        ({"colour": float("nan")}, "colour must lie in 0..1, got nan"),
        ({"scale": (0, 1)}, r"scale must be \(low, high\) with 0 < low <= high, got \(0, 1\)"),
        ({"scale": (2, 1)}, r"scale must be .* got \(2, 1\)"),
    ],
)
def test_augmentation_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        augmentation(**options)


class Numbers(torch.utils.data.Dataset):
    """Image i is noise of its own."""

    def __init__(self, count=7):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        boxes = torch.tensor([[2.0, 3.0, 20.0, 25.0]])
        target = {"boxes": boxes, "labels": torch.tensor([1]), "image_id": index}
        return torch.rand(3, 32, 32, generator=generator), target


def test_augmented_is_a_function_of_epoch_and_index():
    make = lambda seed: Augmented(Numbers(), augmentation(scale=(0.5, 2), colour=0.3), seed=seed)  # noqa: E731
    first = make(5)[2, 3]
    torch.manual_seed(99)
    torch.rand(17)
    again = make(5)
    again[0, 1]
    image, target = again[2, 3]
    assert torch.equal(image, first[0])
    assert torch.equal(target["boxes"], first[1]["boxes"])
    for seed, epoch, index in ((5, 1, 3), (6, 2, 3)):
        assert not torch.equal(make(seed)[epoch, index][0], first[0])
    assert make(5)[2, 4][1]["image_id"] == 4


def test_every_index_has_draws_of_its_own():
    image, target = painted()
    data = Augmented([(image, target)] * 2, augmentation(scale=(0.5, 2)), seed=5)
    assert not torch.equal(data[0, 0][0], data[0, 1][0])


def test_augmented_leaves_the_callers_random_state(monkeypatch):
    data = Augmented(Numbers(), augmentation(scale=(0.5, 2), colour=0.3), seed=5)
    # torch.manual_seed would seed the caller's GPUs as well
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("GPU seeded"))
    state = torch.random.get_rng_state()
    data[1, 2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_augmented_without_transform_is_the_data_set():
    data = Augmented(Numbers(), None, seed=0)
    assert torch.equal(data[3, 2][0], Numbers()[2][0])


def steps(sampler, count, *place):
    """The shares of `count` steps; `place` is start, rank, world."""
    return list(itertools.islice(sampler.shares(*place), count))


@pytest.mark.parametrize(("images", "batch"), [(8, 4), (10, 4), (3, 4), (1, 4), (5, 1), (9, 2)])
def test_an_epoch_holds_every_image_once_up_to_the_fill(images, batch):
    sampler = StepSampler([0] * images, batch, seed=1)
    length = -(-images // batch)
    assert sampler.batches_per_epoch == length
    for number in range(3):
        batches = sampler.epoch(number)
        assert [len(b) for b in batches] == [batch] * length
        counts = Counter(i for b in batches for i in b)
        assert set(counts) == set(range(images))
        assert sum(counts.values()) == length * batch
        assert max(counts.values()) - min(counts.values()) <= 1  # the fill is spread evenly
    assert images < 8 or sampler.epoch(0) != sampler.epoch(1)


def test_groups_share_no_batch_but_small_ones_do():
    groups = ["wide"] * 9 + ["tall"] * 4 + ["odd"] * 2 + ["rare"]
    sampler = StepSampler(groups, 4, seed=0)
    assert sampler.batches_per_epoch == 3 + 1 + 1
    for number in range(4):
        kinds = [{groups[i] for i in batch} for batch in sampler.epoch(number)]
        assert Counter(map(frozenset, kinds)) == {
            frozenset({"wide"}): 3,
            frozenset({"tall"}): 1,
            frozenset({"odd", "rare"}): 1,
        }
        assert {i for b in sampler.epoch(number) for i in b} == set(range(16))


def test_groups_are_not_served_one_after_another():
    sampler = StepSampler([0] * 40 + [1] * 40, 4, seed=0)
    order = [batch[0] < 40 for batch in sampler.epoch(0)]
    assert sum(a != b for a, b in itertools.pairwise(order)) > 4


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7, 31])
def test_a_later_start_skips_exactly_so_many(start):
    sampler = StepSampler([0] * 5 + [1] * 6, 2, seed=4)
    assert steps(sampler, 10, start) == steps(sampler, start + 10)[start:]


def test_epochs_are_counted_beside_the_indices():
    sampler = StepSampler([0] * 6, 2, seed=4)
    shares = steps(sampler, 9)
    assert [{epoch for epoch, _ in share} for share in shares] == [{0}] * 3 + [{1}] * 3 + [{2}] * 3
    assert [[i for _, i in share] for share in shares[3:6]] == sampler.epoch(1)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 4])
def test_ranks_share_every_batch_in_order(world, start):
    sampler = StepSampler([0] * 8 + [1] * 7, 6, seed=2)
    ranks = [steps(sampler, 8, start, rank, world) for rank in range(world)]
    assert {len(share) for share in ranks[0]} == {6 // world}
    joined = [list(itertools.chain(*shares)) for shares in zip(*ranks, strict=True)]
    assert joined == steps(sampler, start + 8)[start:]


def test_sampler_refuses():
    with pytest.raises(ValueError, match="groups: a data set without images"):
        StepSampler([], 2, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        StepSampler([0], 0, seed=0)
    with pytest.raises(ValueError, match="batch_size=4: expected a multiple of 3 processes"):
        steps(StepSampler([0], 4, seed=0), 1, 0, 0, 3)


def test_collate_keeps_images_of_different_sizes():
    samples = [(torch.zeros(3, 4, 5), {"image_id": 1}), (torch.zeros(3, 6, 2), {"image_id": 2})]
    images, targets = collate(samples)
    assert [tuple(image.shape) for image in images] == [(3, 4, 5), (3, 6, 2)]
    assert targets == [{"image_id": 1}, {"image_id": 2}]


def drawn(batches, count, **options):
    """The next batches as plain comparable content."""
    found = []
    for images, targets in itertools.islice(batches.iterate(**options), count):
        found.append((torch.stack(images), [t["image_id"] for t in targets], targets))
    return found


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0])
        and a[1] == b[1]
        and all(torch.equal(s["boxes"], t["boxes"]) for s, t in zip(a[2], b[2], strict=True))
        for a, b in zip(one, other, strict=True)
    )


def batches(workers=0, seed=3, **options):
    transform = augmentation(scale=(0.5, 2), colour=0.3)
    return Batches(Numbers(), 2, seed=seed, transform=transform, workers=workers, **options)


def test_batches_start_anywhere_with_any_number_of_workers():
    whole = drawn(batches(), 12)
    assert equal(drawn(batches(), 7, start=5), whole[5:])
    assert equal(drawn(batches(workers=2), 7, start=5), whole[5:])
    second = [(images[1:], ids[1:], targets[1:]) for images, ids, targets in whole[1:5]]
    assert equal(drawn(batches(), 4, start=1, rank=1, world=2), second)
    assert not equal(drawn(batches(seed=4), 12), whole)


class Bytes:
    """One grey image, with what loader processes are to take: its bytes."""

    def __len__(self):
        return 1

    def read(self, index):
        return torch.full((3, 8, 8), 51, dtype=torch.uint8), {"image_id": index}

    def __getitem__(self, index):
        raise AssertionError("four times the bytes")


@pytest.mark.parametrize("workers", [0, 1])
def test_bytes_become_floats_behind_the_loader_processes(workers):
    batches = Batches(Bytes(), 2, seed=0, workers=workers)
    assert batches.dataset[0, 0][0].dtype == torch.uint8
    (images, targets) = next(batches.iterate())
    assert all(torch.equal(image, torch.full((3, 8, 8), 0.2)) for image in images)
    assert len(targets) == 2


def test_batches_go_to_their_device():
    images, _ = next(Batches(Bytes(), 1, seed=0, device="meta").iterate())
    assert (images[0].device.type, images[0].dtype) == ("meta", torch.float32)


def test_batches_leave_the_callers_random_state():
    state = torch.random.get_rng_state()
    drawn(batches(), 2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_of_a_batch_are_padded_to_the_same_size():
    sizes = [(40, 60), (64, 33), (65, 33), (33, 64), (32, 64), (40, 64), (1, 1)]
    pads = [(64, 64), (64, 64), (96, 64), (64, 64), (32, 64), (64, 64), (32, 32)]
    epoch = [indices for _, indices, _ in drawn(batches(sizes=sizes), 4)]
    assert {i for indices in epoch for i in indices} == set(range(7))
    mixed = [indices for indices in epoch if len({pads[i] for i in indices}) > 1]
    assert all(pads[i] != (64, 64) for indices in mixed for i in indices)  # rare sizes only
    with pytest.raises(ValueError, match="sizes: 2 of them for 7 images"):
        batches(sizes=[(1, 1)] * 2)


class Torn(Numbers):
    """Image 0 cannot be read."""

    def __getitem__(self, index):
        if index == 0:
            raise ValueError("photos/0.jpg: cannot be decoded (line: 3)")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line_also_from_a_worker(workers):
    with pytest.raises(ValueError) as error:
        drawn(Batches(Torn(), 2, seed=0, workers=workers), 4)
    assert str(error.value) == "photos/0.jpg: cannot be decoded (line: 3)"


class Deadly(Numbers):
    """A data set that kills the process that reads its third image."""

    def __getitem__(self, index):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_the_death_of_a_loader_process_is_one_line():
    with pytest.raises(ChildProcessError, match=r"was lost .* continues from the last checkpoint"):
        drawn(Batches(Deadly(), 2, seed=0, workers=1), 9)


PROGRAM = """
import signal, sys
from dfmsd.data.batches import Batches
from dfmsd.data.scenes import SceneDataset

signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM came", flush=True))
batches = Batches(SceneDataset(8, size=32), 2, seed=0, workers=2).iterate()
next(batches)
if sys.argv[1] == "group":
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(9):
        next(batches)
    print("nine batches more", flush=True)
"""


def program(*arguments):
    """A program with two loader processes, in a process group of its own."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)


def test_a_cluster_that_signals_all_processes_leaves_the_loader_processes_to_their_parent():
    process = program("group")
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM came\n"
    out, err = process.communicate("\n", timeout=60)
    assert (process.returncode, out, err) == (0, "nine batches more\n", "")


def test_a_program_ends_though_it_still_holds_its_batches():
    assert program("hold").communicate(timeout=60) == ("", "")
