"""Losses that are not finite: named, and their batch kept."""

from __future__ import annotations

import pickle

import pytest
import torch
from tiny import Line, TinyBatches

from dfmsd.detectors.checkpoints import load_state
from dfmsd.training.checkpoint import Checkpointing
from dfmsd.training.log import Logging
from dfmsd.training.loop import fit
from dfmsd.training.optim import Schedule, make_optimizer
from dfmsd.training.steps import NonFiniteLossError, check_finite, save_batch_on_error, total_loss

NAN = float("nan")


def test_the_total_is_weighted_by_name():
    losses = {"task": torch.tensor(1.5), "alignment": torch.tensor(2.0)}
    assert total_loss(losses, {"alignment": 10.0}) == 21.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"loss": NAN, "task": 1.0, "alignment": NAN}, r"step 7: alignment is not .*task = 1,"),
        ({"loss": NAN, "a": float("inf"), "b": NAN}, r"step 7: a, b is not finite \(a = inf, b"),
        ({"loss": float("inf"), "task": 3e38}, r"step 7: the weighted sum is not finite"),
    ],
)
def test_the_guard_names_the_term(values, words):
    check_finite({"loss": 1.0, "task": 1.0}, 7)
    with pytest.raises(NonFiniteLossError, match=words) as caught:
        check_finite(values, 7)
    again = pickle.loads(pickle.dumps(caught.value))  # as from a worker process
    assert str(again) == str(caught.value)


class Bad(Line):
    """Infinite from its third step on."""

    calls = 0

    def forward(self, images, targets):
        self.calls += 1
        losses = super().forward(images, targets)
        self.before = losses["fit"].item()
        return losses | {"fit": losses["fit"] / (self.calls < 3)}


def test_the_batch_of_a_bad_step_is_kept_and_computes_it_again(tmp_path):
    model = Bad()
    with pytest.raises(NonFiniteLossError) as caught:
        fit(
            model,
            TinyBatches(),
            make_optimizer(model, lr=0.1),
            Schedule(steps=8, lr=0.1),
            seed=4,
            stage=1,
            checkpoints=Checkpointing(tmp_path),
            log=Logging(show=False),
        )
    (path,) = tmp_path.glob("nonfinite-*")
    assert path.name == "nonfinite-01-0000002-process0.pt"
    assert str(caught.value).startswith("step 2: fit is not finite (fit = inf, size = ")
    assert str(caught.value).endswith(f"its batch is kept in {path}")
    kept = load_state(path)
    assert (kept["seed"], kept["stage"], kept["step"]) == (4, 1, 2)
    assert "fit is not finite" in kept["error"]
    images, targets = next(TinyBatches().iterate(2))
    assert all(torch.equal(a, b) for a, b in zip(kept["batch"][0], images, strict=True))
    assert torch.equal(kept["batch"][1][1]["boxes"], targets[1]["boxes"])
    torch.set_rng_state(kept["rng"])
    again = Line()
    again.load_state_dict(model.state_dict())  # the weights before the bad step
    assert again(*kept["batch"])["fit"].item() == model.before  # same noise, same images
    assert again(*kept["batch"])["fit"].item() != model.before


def test_without_room_the_error_still_says_what_happened(tmp_path):
    (tmp_path / "file").write_text("")
    counters = {"rank": 0, "seed": 0, "stage": 0, "step": 0}
    for folder, words in ((tmp_path / "file", r"; its batch could not .* \(.*exists"), (None, "$")):
        with (
            pytest.raises(NonFiniteLossError, match=f"^bad{words}"),
            save_batch_on_error(folder, torch.ones(2), **counters),
        ):
            raise NonFiniteLossError("bad")
