"""What a device must show: streams, graphs, sizes beyond 2^31, compilation, repeatability.

Without one, some of it runs on the CPU: Triton's kernels interpreted, the PTX of CUDA's executed.
"""

import copy

import pytest
import torch
from problems import (
    ATTENTION,
    DEVICES,
    NORM,
    OPS,
    POOL,
    TARGETS,
    Problem,
    assert_accurate,
    assert_orders,
    make_cotangents,
    make_inputs,
    three_orders,
    true_orders,
)

from lada_kernels import additive_attention, additive_pool, gated_product, use_backend
from lada_kernels.backends.cuda import launch
from lada_kernels.models.ladagan import Discriminator, Generator
from lada_kernels.modules import LadaAttention
from lada_kernels.reference import additive_pool as reference
from lada_kernels.training.losses import LOSSES, r1_penalty

HAS_GPU = torch.cuda.is_available()
TRITON, CUDA = (next(target for target in TARGETS if target.values == (name,)) for name in ("triton", "cuda"))
pytestmark = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="there is no GPU: streams, graphs and large memory cannot be interpreted")
SMALL_GAN = {"img_size": 32, "dim": [64, 16, 8], "mlp_dim": [8, 8, 8]}
SMALL_D = {"enc_dim": [8, 16], "out_dim": [8, 8], "mlp_dim": 8}


@pytest.fixture(params=[TRITON, CUDA], autouse=True)
def backend(request):
    """Run the test on this backend."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def device(backend):
    return DEVICES[backend]


@pytest.fixture
def described():
    """Describes the GPU that executes PTX, for the test."""
    if launch.DEVICE != "cpu":
        pytest.skip("a GPU takes no orders on what its threads do first")
    before = launch.kernels.configure()
    yield launch.kernels.configure
    launch.kernels.configure(**before)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_ten_runs_agree_bit_for_bit(op, device):
    problem = Problem(2, 97, 24, 3)
    inputs = make_inputs(op, problem, torch.float32, device)
    cotangents = make_cotangents(op, problem, inputs)
    first = three_orders(op, inputs, *cotangents)
    for _ in range(9 if HAS_GPU else 2):
        again = three_orders(op, inputs, *cotangents)
        assert all(torch.equal(first[label], again[label]) for label in first)


@pytest.mark.parametrize("backend", [CUDA], indirect=True)
@pytest.mark.parametrize("clusters", [True, False])
@pytest.mark.parametrize("problem", [Problem(2, 97, 24, 3), Problem(1, 1031, 64, 4)], ids=str)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_the_order_of_threads_shows_in_no_bit(op, problem, clusters, device, described):
    inputs = make_inputs(op, problem, torch.float32, device)
    cotangents = make_cotangents(op, problem, inputs)
    described(seed=0, clusters=clusters)
    first = three_orders(op, inputs, *cotangents)
    assert_orders(first, true_orders(op, inputs, *cotangents), inputs, condition=op.condition(inputs))
    for seed in range(1, 5):
        described(seed=seed)
        for label, result in three_orders(op, inputs, *cotangents).items():
            assert torch.equal(result, first[label]), f"{label}, seed {seed}"


def test_r1_on_the_discriminator(backend, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the convolutions are not what is judged
    torch.manual_seed(0)
    model = Discriminator(**SMALL_D).to(device)
    images = torch.randn(4, 3, 32, 32)

    def penalty_gradients(model, images, backend):
        with use_backend(backend):
            images = images.requires_grad_()
            r1_penalty(model(images), images).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    truth = penalty_gradients(copy.deepcopy(model).cpu().double(), images.double(), "reference")
    ours = penalty_gradients(model, images.to(device), backend)
    assert ours.keys() == truth.keys()
    whole = torch.cat([truth[name].flatten() for name in truth])
    error = torch.cat([(ours[name].cpu().double() - truth[name]).flatten() for name in truth])
    assert error.norm() / whole.norm() < 1e-4


@pytest.mark.parametrize("op", OPS, ids=str)
@needs_gpu
def test_a_second_stream(op, device):
    problem = Problem(3, 130, 64, 4)
    inputs = make_inputs(op, problem, torch.float32, device)
    cotangents = make_cotangents(op, problem, inputs)
    expected = three_orders(op, inputs, *cotangents)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = [x.detach().mul(0).sub(1) for x in inputs]
        busy = torch.ones(4096, 4096, device=device)
        for _ in range(50):
            busy = busy @ busy * 2**-12  # ones again
        for x, value in zip(late, inputs, strict=True):
            x.copy_(value.detach())  # a kernel on another stream would read before this
        got = three_orders(op, [x.requires_grad_() for x in late], *cotangents)
    stream.synchronize()
    assert all(torch.equal(expected[label], got[label]) for label in expected)


@needs_gpu
@pytest.mark.skipif(HAS_GPU and torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("op", OPS, ids=str)
def test_a_device_that_is_not_the_current_one(op):
    problem = Problem(3, 37, 24, 3)
    inputs = make_inputs(op, problem, torch.float32, "cuda:1")
    got = three_orders(op, inputs, *make_cotangents(op, problem, inputs))
    here = [x.detach().to("cuda:0").requires_grad_() for x in inputs]
    expected = three_orders(op, here, *make_cotangents(op, problem, here))
    assert all(torch.equal(expected[label].cpu(), got[label].cpu()) for label in expected)


@needs_gpu
def test_beyond_2_to_the_31_elements(device):
    channels, heads, live = 256, 4, 1000
    tokens = 2**31 // channels + 4096
    if torch.cuda.mem_get_info()[0] < 4 * tokens * channels * 2 + 2**30:
        pytest.skip(f"{4 * tokens * channels * 2 / 2**30:.0f} GiB of device memory are not free")
    # Zeros score 0 and weigh e^0 each; only the last tokens, beyond 2^31 elements, hold anything.
    x = torch.zeros(1, tokens, channels, dtype=torch.bfloat16, device=device)
    x[:, -live:] = torch.randn(1, live, channels, dtype=torch.bfloat16, device=device)
    weight = torch.randn(heads, channels, device=device) * 0.1
    grad = torch.randn(1, heads, channels // heads, device=device, dtype=torch.bfloat16)
    x.requires_grad_()
    weight.requires_grad_()
    pooled = additive_pool(x, weight)
    grad_x, grad_weight = torch.autograd.grad(pooled, (x, weight), grad)

    tail, wide_weight = x[:, -live:].detach().double().cpu(), weight.detach().double().cpu()
    scale = (heads / channels) ** 0.5
    scores = scale * torch.einsum("bnd,hd->bhn", tail, wide_weight)
    total = scores.exp().sum(-1) + tokens - live
    alpha = scores.exp() / total[..., None]
    truth = torch.einsum("bhn,bnhe->bhe", alpha, tail.unflatten(-1, (heads, -1)))
    assert_accurate(pooled.cpu(), truth, "pooled")
    normaliser = torch.stack((torch.zeros_like(total), total), dim=-1)
    true_x, true_weight = reference.backward(grad.double().cpu(), tail, wide_weight, None, truth, normaliser, scale, True)
    assert_accurate(grad_x[:, -live:].cpu(), true_x, "grad of x")
    assert_accurate(grad_weight.cpu(), true_weight, "grad of the weight", condition=64)
    del grad_x
    gate = torch.randn(1, channels, dtype=torch.bfloat16, device=device)
    out = gated_product(gate, x.detach(), x.detach())
    assert_accurate(out[:, -live:].cpu(), (gate.double() * x[:, -live:].detach().double().square()).cpu(), "gated")


@needs_gpu
def test_a_generator_step_in_a_graph(device):
    torch.manual_seed(0)
    generator, discriminator = Generator(**SMALL_GAN).to(device), Discriminator(**SMALL_D).to(device).requires_grad_(False)
    twin = copy.deepcopy(generator)
    latents = torch.randn(8, 4, 128, device=device)

    def make_step(model):
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, capturable=True)

        def step(z):
            optimizer.zero_grad(set_to_none=False)
            LOSSES["nonsaturating"].generator(discriminator(model(z))).backward()
            optimizer.step()

        return step

    captured, eager = make_step(generator), make_step(twin)
    static = latents[0].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for z in latents[:3]:  # compiles the kernels and fills the optimizer's state, as eager steps do
            static.copy_(z)
            captured(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured(static)
    for z in latents[3:]:
        static.copy_(z)
        graph.replay()
    for z in latents:
        eager(z)
    for (name, ours), expected in zip(generator.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("op", OPS, ids=str)
@needs_gpu
def test_a_double_backward_in_a_graph(op, device):
    problem = Problem(3, 130, 64, 4)
    inputs = make_inputs(op, problem, torch.float32, device)
    cotangents = make_cotangents(op, problem, inputs)
    expected = three_orders(op, inputs, *cotangents)
    static = [torch.zeros_like(x).requires_grad_() for x in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        three_orders(op, static, *cotangents)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = three_orders(op, static, *cotangents)
    with torch.no_grad():
        for x, value in zip(static, inputs, strict=True):
            x.copy_(value)
    graph.replay()
    for label, result in got.items():
        assert torch.equal(result, expected[label]), label


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", [POOL, ATTENTION, NORM], ids=str)
def test_compiled_without_graph_breaks(op, dtype, device):
    problem = Problem(2, 33, 64, 4)
    inputs = make_inputs(op, problem, dtype, device)
    grad, _ = make_cotangents(op, problem, inputs)
    out = torch.compile(lambda *x: op(*x) * 2, fullgraph=True)(*inputs)
    for ours, expected in zip(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(op(*inputs) * 2, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, device):
    torch.manual_seed(0)
    module = LadaAttention(32, 4).to(device)
    x = torch.randn(2, 9, 32, device=device, requires_grad=True)
    with torch.autocast(device, dtype):
        out = module(x)
    assert out.dtype == dtype
    (grad,) = torch.autograd.grad(out.float().square().sum(), x)
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    assert (grad - expected).norm() / expected.norm() < 0.05


@needs_gpu
def test_memory_of_attention_is_that_of_its_results(device):
    batch, tokens, channels, heads = 8, 4096, 512, 4
    q, k, v = torch.randn(3, batch, tokens, channels, device=device, dtype=torch.bfloat16).unbind(0)
    weight = torch.randn(heads, channels, device=device, dtype=torch.bfloat16)
    additive_attention(q, k, v, weight)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    additive_attention(q, k, v, weight)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 1.1 * q.nbytes
