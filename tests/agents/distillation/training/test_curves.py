"""A training run's curves are drawn, however short it was, and go to TensorBoard if it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgym.agents.distillation.training.trainer import Curves, History


def make_history(updates: int, evaluations: int = 3) -> History:
    """Returns a history in which batches of one step and of three alternate, as a feature draft's do."""
    losses = [[3.0 / (batch + 1)] * (1 + 2 * (batch % 2)) for batch in range(updates)]
    agreement = [(index * updates // evaluations, [0.1 * index, 0.05 * index]) for index in range(1, evaluations + 1)]
    return History(updates, losses, agreement)


@pytest.mark.parametrize("updates", [0, 1, 2, 30, 49, 50, 51, 99, 100, 130])
@pytest.mark.parametrize("evaluations", [0, 3])
def test_a_picture_is_drawn(tmp_path: Path, updates: int, evaluations: int) -> None:
    with Curves(tmp_path / "curves") as curves:
        curves.draw(make_history(updates, evaluations))
    assert (tmp_path / "curves" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_may_log_from_where_it_stopped(tmp_path: Path) -> None:
    with Curves(tmp_path) as curves:
        curves.log(make_history(7))
    with Curves(tmp_path) as curves:
        curves.log(make_history(9))
        curves.draw(make_history(9))
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(("first", "together"), [(0, 1), (0, 5), (7, 2)])
def test_tensorboard_gets_every_loss_and_every_agreement_once(tmp_path: Path, first: int, together: int) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole = make_history(12)
    if first:
        with Curves(tmp_path) as curves:
            curves.log(History(first, whole.losses[:first]))
    with Curves(tmp_path, first) as curves:
        for updates in [*range(first + together, 12, together), 12]:
            seen = [(at, shares) for at, shares in whole.agreement if at <= updates]
            curves.log(History(updates, whole.losses[:updates], seen))
    events = EventAccumulator(str(tmp_path)).Reload()
    for step in range(3):
        losses = [(at, row[step]) for at, row in enumerate(whole.losses, start=1) if len(row) > step]
        assert [(event.step, event.value) for event in events.Scalars(f"loss/step {step + 1}")] == [
            (at, pytest.approx(loss)) for at, loss in losses
        ]
    for step in range(2):
        evaluations = [(at, pytest.approx(shares[step])) for at, shares in whole.agreement]
        assert [(each.step, each.value) for each in events.Scalars(f"held-out top-1/step {step + 1}")] == evaluations
