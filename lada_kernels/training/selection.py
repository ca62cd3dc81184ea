"""Evaluations while a run trains, and the checkpoint of the best one."""

from functools import partial
from pathlib import Path
from typing import Any

from lada_kernels.training import checkpoint
from lada_kernels.training.evaluation import make_evaluator
from lada_kernels.training.trainer import Trainer


class Selection:
    """Evaluates G's moving average as ``run`` says, and keeps the run as it was at its best in ``best_ckpt.pt``.

    Training goes on as if nothing had been evaluated: random numbers stay as they were. Of several processes each generates its
    part of the samples, and the first one judges them.

    Args:
        trainer: of the run; its ``best`` says when the best evaluation was, what it gave, and by what it was judged.
        folder: of the run.

    Raises:
        TrainingError: nothing can be evaluated as configured; see `evaluation.make_evaluator`.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        config, run, processes = trainer.config, trainer.config.run, trainer.processes
        self.trainer, self.folder = trainer, folder
        make = partial(
            make_evaluator,
            config,
            trainer.images,
            folder,
            inception=run.inception,
            sha256=run.inception_sha256,
            samples=run.evaluate_samples,
            seed=config.seed,
            progress=processes.leads,
            processes=processes,
        )
        self.evaluator = processes.once(make, patient=True) or make()  # what the first has downloaded, the others find

    def evaluate(self) -> tuple[dict[str, float], bool]:
        """The figures of the run as it is now, and whether it is the best so far, which `write` then should keep.

        Only the first process has any.

        Raises:
            TrainingError: the generator draws values that are not finite.
        """
        trainer, evaluator = self.trainer, self.evaluator
        features = evaluator.features(trainer.ema)
        figures = trainer.processes.once(lambda: evaluator.figures(features), patient=True)
        if figures is None:
            return {}, False
        now: dict[str, Any] = {
            "iter": trainer.iteration,
            "judge": f"{evaluator.net.identity}, {evaluator.samples} samples",  # others' figures are no comparison
            **figures,
        }
        best = trainer.best
        better = best.get("judge") != now["judge"] or now[evaluator.score] < best[evaluator.score]
        if better:
            trainer.best = now
        return figures, better

    def write(self) -> None:
        """Write the run as it is now as the best; ``OSError`` if the disk refuses."""
        checkpoint.write_best(self.trainer.state_dict(), self.folder)
