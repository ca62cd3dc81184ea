"""What the tests of killed runs run in processes of their own, forked from one that has imported preloaded.py."""

import multiprocessing
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["training.preloaded", "training.killing"])


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that calls a function."""
    process = FORKSERVER.Process(target=function, args=arguments)
    process.start()
    return process


def train(arguments: list[str], log: Path) -> None:
    """``python -m lada_kernels.train arguments``, what it prints going to the end of a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # of runpy's: the module is imported already
    sys.argv = ["lada_kernels.train", *arguments]
    runpy.run_module("lada_kernels.train", run_name="__main__")


def killed_at(line: int, file: str, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function, killed before the line of a source file that is run as number ``line``, from 0; it may have fewer."""
    lines = iter(range(line))

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != file:
            return None
        if event == "line" and next(lines, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    function(*arguments)
    sys.settrace(None)
