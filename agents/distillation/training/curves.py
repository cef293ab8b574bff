"""Loss and agreement as they go: to TensorBoard while training, to a picture at the end."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from specgym.agents.distillation.training.draft_checkpoint import History
from specgym.env.common.files import atomic_path

_SMOOTHING = 50  # batches


class Curves:
    """Writes a training run's curves; a context manager.

    TensorBoard gets them while training if it is installed (extra ``train``).

    Args:
        folder: where TensorBoard's files and ``curves.png`` go.
        updates: batches whose losses an earlier run has told.
    """

    def __init__(self, folder: Path, updates: int = 0) -> None:
        self.folder = folder
        self._writer = _tensorboard(folder)
        self._updates, self._looks = updates, 0

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def log(self, history: History) -> None:
        """Tells the batches and the looks at held-out agreement that are new."""
        if self._writer is None:
            return
        for at, losses in enumerate(history.losses[self._updates :], start=self._updates + 1):
            for step, loss in enumerate(losses, start=1):
                self._writer.add_scalar(f"loss/step {step}", loss, at)
        self._updates = len(history.losses)
        for at, shares in history.agreement[self._looks :]:
            for step, share in enumerate(shares, start=1):
                self._writer.add_scalar(f"held-out top-1/step {step}", share, at)
        self._looks = len(history.agreement)

    def draw(self, history: History) -> None:
        """Draws ``curves.png``. Raises `FileWriteError`."""
        figure = Figure(figsize=(10, 4), layout="constrained")
        losses, agreement = figure.subplots(1, 2)
        for step in range(max(map(len, history.losses), default=0)):
            batches = [(at, row[step]) for at, row in enumerate(history.losses, start=1) if len(row) > step]
            at, values = np.array(batches).T
            smooth = _smooth(values)
            losses.plot(at[len(at) - len(smooth) :], smooth, label=f"step {step + 1}")
        losses.set(xlabel="batches", ylabel="cross-entropy", title=f"Training loss, mean of {_SMOOTHING} batches")
        for step, shares in enumerate(zip(*(shares for _, shares in history.agreement), strict=True)):
            agreement.plot([at for at, _ in history.agreement], shares, marker="o", label=f"step {step + 1}")
        agreement.set(xlabel="batches", ylabel="share of positions", title="Held-out top-1 agreement")
        for axes in (losses, agreement):
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
        with atomic_path(self.folder / "curves.png") as temporary, mpl.rc_context({"savefig.dpi": 120}):
            figure.savefig(temporary, format="png")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean; shorter than the input by the window but one."""
    window = min(_SMOOTHING, len(values))
    return np.convolve(values, np.ones(window) / window, "valid")


def _tensorboard(folder: Path):  # type: ignore[no-untyped-def]
    """A writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError:
        return None
    return SummaryWriter(str(folder))
