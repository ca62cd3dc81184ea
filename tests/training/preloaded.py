"""What a training imports on its way, for the one process that those of killing.py are forked from."""

import threading

import PIL.Image
import sklearn.datasets
import torch
import torch.utils.tensorboard
import torchmetrics.image.fid
import torchmetrics.image.kid
import tqdm
import tyro

import lada_kernels.train

IMPORTED = (PIL.Image, sklearn.datasets, torch.utils.tensorboard, torchmetrics.image, tqdm, tyro, lada_kernels.train)

# The first optimiser imports what takes seconds. Nothing is computed: a pool of threads would be missing after a fork.
torch.optim.SGD([torch.empty(1, requires_grad=True)])

# Its own lock would be one between processes, which those that are killed leave behind.
tqdm.tqdm.set_lock(threading.RLock())
