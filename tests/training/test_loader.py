import threading

import pytest
import torch

from lada_kernels.training.data import Sampler
from lada_kernels.training.distributed import Part
from lada_kernels.training.loader import Loader

SIZE, BATCH = 10, 4


@pytest.fixture
def numbered():
    """Images that are their own indices, [10, 3, 2, 2] uint8."""
    return torch.arange(SIZE, dtype=torch.uint8)[:, None, None, None].expand(SIZE, 3, 2, 2).contiguous()


def indices(pixels):
    assert pixels.shape[1:] == (3, 2, 2)
    assert (pixels == pixels[:, :1, :1, :1]).all()
    return pixels[:, 0, 0, 0].tolist()


def sampled(batches, seed=3):
    sampler = Sampler(SIZE, BATCH, seed)
    return [next(sampler).tolist() for _ in range(batches)]


def test_batches_are_the_samplers(numbered):
    loader = Loader(numbered, Sampler(SIZE, BATCH, 3))
    assert [indices(next(loader)) for _ in range(7)] == sampled(7)


def test_batches_are_not_the_images_themselves(numbered):
    loader = Loader(numbered, Sampler(SIZE, BATCH, 3))
    kept = [next(loader) for _ in range(3)]
    numbered.zero_()
    assert [indices(pixels) for pixels in kept] == sampled(3)


def test_parts_of_two_processes_with_two_micro_batches_make_up_the_batch(numbered):
    parts = [Part(micro * 2 + rank, 4) for rank in range(2) for micro in range(2)]
    first, second = (Loader(numbered, Sampler(SIZE, BATCH, 3), parts[2 * rank : 2 * rank + 2]) for rank in range(2))
    for whole in sampled(5):
        (a, b), (c, d) = indices(next(first)), indices(next(second))
        assert [a, c, b, d] == whole


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_what_is_on_its_way_is_not_yet_counted(numbered, taken):
    loader = Loader(numbered, Sampler(SIZE, BATCH, 3))
    for _ in range(taken):
        next(loader)
    assert loader.state_dict() == {"drawn": taken * BATCH}
    resumed = Loader(numbered, Sampler(SIZE, BATCH, 3))
    next(resumed)  # of which the next is on its way
    resumed.load_state_dict(loader.state_dict())
    assert indices(next(resumed)) == sampled(taken + 1)[-1]
    assert resumed.state_dict() == {"drawn": (taken + 1) * BATCH}


def test_the_next_batch_is_gathered_meanwhile(numbered):
    """By another thread, and before it is asked for."""
    sampler, threads = Sampler(SIZE, BATCH, 3), []
    gathered = threading.Semaphore(0)

    class Noting:
        def __next__(self):
            threads.append(threading.current_thread())
            gathered.release()
            return next(sampler)

        state_dict = sampler.state_dict

    loader = Loader(numbered, Noting())
    next(loader)
    for _ in range(2):
        assert gathered.acquire(timeout=10)
    assert threading.main_thread() not in threads


def test_waiting_is_counted(numbered):
    ready = threading.Event()
    sampler = Sampler(SIZE, BATCH, 3)

    class Slow:
        def __next__(self):
            ready.wait(10)
            return next(sampler)

        state_dict = sampler.state_dict

    loader = Loader(numbered, Slow())
    threading.Timer(0.1, ready.set).start()
    next(loader)
    assert 0.05 < loader.waited < 10


def test_errors_of_the_thread_reach_the_caller(numbered):
    class Broken(Sampler):
        def __next__(self):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(Loader(numbered, Broken(SIZE, BATCH, 3)))


def test_channels_last_is_dense(numbered):
    pixels = next(Loader(numbered, Sampler(SIZE, BATCH, 3), memory_format=torch.channels_last))
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert indices(pixels) == sampled(1)[0]
