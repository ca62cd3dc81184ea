"""Mistakes a person can put right, and how the commands report them."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from lada_kernels.backends import BackendError


class TrainingError(RuntimeError):
    """Data, configuration or a checkpoint that cannot be used; the message says what is wrong."""


def import_extra(module: str) -> ModuleType:
    """Import a module of one of the extras, ``train`` unless it has an extra of its own.

    Raises:
        ImportError: it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.split(".")[0]
        package = {"PIL": "pillow", "sklearn": "scikit-learn"}.get(root, root)
        extra = root if root in ("tensorboard", "wandb") else "train"
        raise ImportError(f"{package} is needed here: pip install 'lada_kernels[{extra}]'") from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn foreseen errors into one line on stderr and exit code 1; anything else keeps its traceback."""
    try:
        yield
    except (TrainingError, BackendError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
