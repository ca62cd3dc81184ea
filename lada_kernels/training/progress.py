"""What a running training shows: progress bar, TensorBoard, Weights & Biases, warnings."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lada_kernels.training.distributed import ALONE, Processes
from lada_kernels.training.errors import TrainingError, import_extra

METRICS = ("d_loss", "g_loss", "r1", "bcr", "gp", "lecam", "real_logit", "fake_logit", "d_grad_norm", "g_grad_norm")


class Progress:
    """Sums the metrics where they are computed and waits for the device only in `report`.

    Args:
        folder: of the TensorBoard events, where TensorBoard is installed.
        steps: the whole budget.
        done: steps already taken; later events of a former run are hidden.
        batch_size: images per step, for images/s.
        processes: those that train together, of which the first shows it, of all; default this one alone.
        wandb: project in Weights & Biases that the metrics are sent to as well; default none. Every start is a run of its
            own there, in a group that is named as the folder.
        config: nested values that describe the run there; default none.

    Raises:
        ImportError: tqdm is not installed, or wandb where a project is named; without TensorBoard there is a notice.
        TrainingError: Weights & Biases refuses, such as for want of a login.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        done: int,
        batch_size: int,
        processes: Processes = ALONE,
        *,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        tqdm = import_extra("tqdm").tqdm
        self.run = _open_run(wandb, folder, config) if wandb and processes.leads else None
        self.bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, disable=not processes.leads)
        self.board = self._open_board(folder, done) if processes.leads else None
        self.step, self.batch_size, self.processes = done, batch_size, processes
        self.waited = 0.0
        self._restart()

    def _open_board(self, folder: Path, done: int) -> Any:
        try:
            import_extra("tensorboard")
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            self.bar.write(f"no events for TensorBoard are written: {error}", file=sys.stderr)
            return None
        return SummaryWriter(str(folder), purge_step=done + 1)

    def _restart(self) -> None:
        self.total: Tensor | None = None
        self.count, self.since = 0, time.perf_counter()

    def add(self, metrics: Tensor) -> None:
        """Count one step and its `METRICS`, [10]."""
        self.total = metrics if self.total is None else self.total + metrics
        self.count += 1
        self.step += 1
        self.bar.update()

    def report(self, waited: float = 0.0) -> None:
        """Show the means since the last report, over all processes; ``TrainingError``, in each, if one is not finite.

        Args:
            waited: seconds that this process has waited for images, in all; logged as a share of the time, ``waiting``.
        """
        if self.total is None:
            return
        means = dict(zip(METRICS, self.processes.mean(self.total / self.count).tolist(), strict=True))
        seconds = time.perf_counter() - self.since
        images_per_s = self.count * self.batch_size / seconds
        losses = f"D {means['d_loss']:.3f}  G {means['g_loss']:.3f}  R1 {means['r1']:.3g}"
        self.bar.set_postfix_str(f"{losses}  {images_per_s:.0f} images/s")
        self.log({**means, "images_per_s": images_per_s, "waiting": (waited - self.waited) / seconds})
        self.waited = waited
        self._restart()
        if not all(map(math.isfinite, means.values())):
            raise TrainingError(
                f"step {self.step}: a loss is no longer finite ({means}). The checkpoints keep the last "
                "sound state; a lower learning rate or a higher R1 coefficient may help"
            )

    def log(self, values: Mapping[str, float]) -> None:
        """Keep named values of the current step in TensorBoard and Weights & Biases."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, self.step)
        if self.run is not None:
            self.run.log(dict(values), step=self.step)

    def show_evaluation(self, figures: dict[str, float]) -> None:
        """Show what an evaluation gave; the time since the last report was not training's."""
        self.bar.write(f"step {self.step}: " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        self.log({f"evaluation/{name}": value for name, value in figures.items()})
        self._restart()

    def attempt(self, write: Callable[[], None]) -> None:
        """Call ``write``, in the first process alone; a disk that refuses costs a warning, not the run."""
        if not self.processes.leads:
            return
        try:
            write()
        except OSError as error:
            self.bar.write(f"WARNING: {error}. Training goes on", file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: object, *details: object) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()
        if self.run is not None:
            self.run.finish(exit_code=int(kind is not None))


def _open_run(project: str, folder: Path, config: Mapping[str, Any] | None) -> Any:
    wandb = import_extra("wandb")
    folder.mkdir(parents=True, exist_ok=True)  # elsewhere than asked for, wandb would write to the temporary folder
    try:
        return wandb.init(project=project, group=folder.name, dir=str(folder), config=dict(config or {}))
    except wandb.Error as error:
        raise TrainingError(f"run.wandb: {error}") from error
