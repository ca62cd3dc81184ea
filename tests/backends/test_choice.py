"""Who computes: what is available, what is chosen, what is refused, and how that is said."""

import json
import os
import re
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from problems import ATTENTION, DEVICES, OPS, SMALL, make_inputs

import lada_kernels
from lada_kernels import available, backends, explain, gated_product, use_backend
from lada_kernels.backends.cuda import launch

ROOT = Path(__file__).parents[2]
HAS_CPU = bool(available()["cpu"])
needs_cpu = pytest.mark.skipif(not HAS_CPU, reason=f"backend 'cpu': {available()['cpu']}")


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    """As if LADA_BACKEND were not set, and no op had been called."""
    token = backends._requested.set(backends.AUTOMATIC)
    backends._kernels.cache_clear()
    yield
    backends._requested.reset(token)
    backends._kernels.cache_clear()


def gate_inputs(dtype=torch.float32):
    return torch.ones(2, 6, dtype=dtype), torch.ones(2, 5, 6, dtype=dtype), torch.ones(2, 5, 6, dtype=dtype)


def refuse(monkeypatch, reason="it is on strike"):
    """Make every backend but the reference refuse."""
    for name, backend in backends._BACKENDS.items():
        if name != "reference":
            monkeypatch.setattr(backend, "refuses", lambda op, kind: reason)


def test_every_backend_is_tested():
    assert set(available()) == set(DEVICES)


def test_available():
    found = available()
    assert found["reference"]
    assert str(found["reference"]) == "available"
    for name in found:
        assert bool(found[name]) == (found[name].reason is None)
        assert found[name] or str(found[name]) == f"not available: {found[name].reason}"


@needs_cpu
@pytest.mark.parametrize("op", OPS, ids=str)
def test_fused_kernels_come_first(op):
    explanation = explain(op.name, *make_inputs(op, SMALL))
    assert explanation.backend == "cpu"
    assert set(explanation.reasons) == set(available()) - {"cpu"}
    assert str(explanation).startswith(f"{op.name} runs on cpu")
    assert "not reference: " in str(explanation)


@needs_cpu
def test_explain_says_why_not():
    explanation = explain("gated_product", *(x.to("meta") for x in gate_inputs()))
    assert explanation.backend == "reference"
    assert explanation.reasons["cpu"] == "it computes on CPU tensors, these are on meta"


@pytest.fixture
def two_gpu_backends(monkeypatch):
    """As if CUDA's and Triton's kernels could both run here, and the CPU's could not."""
    monkeypatch.setattr(backends.cpu, "refuses", lambda op, kind: "it computes on CPU tensors")
    for backend in (backends.cuda, backends.triton):
        monkeypatch.setattr(backend, "unavailable", lambda: None)
        monkeypatch.setattr(backend, "refuses", lambda op, kind: None)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_cuda_comes_before_triton(op, two_gpu_backends):
    explanation = explain(op.name, *make_inputs(op, SMALL))
    assert explanation.backend == "cuda"
    reason = "cuda comes first, as it compiles nothing when it runs; the two have not been measured against each other"
    assert explanation.reasons["triton"] == reason
    assert explanation.reasons["reference"] == "cuda comes first"
    assert f"\n  not triton: {reason}" in str(explanation)


def test_triton_comes_first_where_it_alone_writes_no_k_and_v(two_gpu_backends):
    explanation = explain("gated_projection", *gate_inputs())
    assert explanation.backend == "triton"
    assert explanation.reasons["cuda"] == explanation.reasons["reference"] == "triton comes first"


@pytest.mark.parametrize(("asked", "other"), [("cuda", "triton"), ("triton", "cuda")])
def test_the_order_gives_way_to_use_backend(asked, other, two_gpu_backends):
    for op in backends.LINEAR:
        with use_backend(asked):
            explanation = explain(op, *gate_inputs())
        assert explanation.backend == asked
        assert explanation.reasons[other] == "another backend was asked for"


@pytest.fixture
def cuda_device(monkeypatch):
    """As if CUDA's kernels had been built, for the CPU."""
    monkeypatch.setattr(launch, "kernels", SimpleNamespace(why_not=lambda device: None))
    monkeypatch.setattr(launch, "DEVICE", "cpu")


def why_not_cuda(op, x):
    with use_backend("reference"):  # whatever else could run here
        return explain(op, x).reasons["cuda"]


@pytest.mark.parametrize("op", backends.LINEAR)
def test_what_cuda_refuses(op, cuda_device):
    taken = "another backend was asked for"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert why_not_cuda(op, torch.empty(1, 1, 4096, dtype=dtype)) == taken
    wide = why_not_cuda(op, torch.empty(1, 1, 4097))
    assert wide == (taken if op.startswith("gated") else "it takes up to 4096 channels, these are 4097")
    double = why_not_cuda(op, torch.empty(1, 1, 8, dtype=torch.float64))
    assert double == "it computes in float32, bfloat16 and float16, not torch.float64"
    assert why_not_cuda(op, torch.empty(1, 1, 8, device="meta")) == "it computes on cpu tensors, these are on meta"


def test_cuda_that_was_not_built(monkeypatch):
    monkeypatch.setattr(launch, "kernels", None)
    monkeypatch.setattr(launch, "why_not_built", lambda: None)
    reason = "the native module was built without CUDA: nvcc was not found, or LADA_CUDA_ARCHS was empty"
    assert available()["cuda"].reason == reason
    with pytest.raises(backends.BackendError, match=f"backend 'cuda' is not available: {reason}"), use_backend("cuda"):
        pass
    monkeypatch.setattr(launch, "why_not_built", lambda: "the native module could not be imported")
    assert available()["cuda"].reason == "the native module could not be imported"


@pytest.mark.parametrize(
    ("version", "reason"), [(None, "this torch was built without CUDA"), ("12.8", "torch finds no CUDA device")]
)
def test_cuda_without_a_device(version, reason, monkeypatch):
    monkeypatch.setattr(launch, "kernels", object())
    monkeypatch.setattr(launch, "DEVICE", "cuda")
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert available()["cuda"].reason == reason


NO_IMAGE = "no kernel image is available for execution on the device"
WHY_NOT = (
    "cuda:1 has compute capability 8.0, and the kernels were built for sm_90, sm_100 and later "
    f"(LADA_CUDA_ARCHS=80 builds them for it): {NO_IMAGE}"
)


class TwoGpus:
    """As if there were two, and CUDA's kernels built for the first; keeps what is asked of them."""

    def __init__(self, monkeypatch):
        self.errors, self.current, self.guarded, self.started = {0: None, 1: NO_IMAGE}, 0, [], []
        monkeypatch.setattr(launch, "kernels", self)
        monkeypatch.setattr(launch, "DEVICE", "cuda")
        monkeypatch.setattr(launch, "queue", lambda x: (x.device.index, 7))
        monkeypatch.setattr(launch, "native", SimpleNamespace(build_info=lambda: {"cuda_architectures": "90,100"}))
        stands_in = {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "current_device": lambda: self.current,
            "device": self.guard,
            "get_device_capability": lambda device: (9 - device.index, 0),
        }
        for name, value in stands_in.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def guard(self, device):
        self.guarded.append(device.index)
        before, self.current = self.current, device.index
        yield
        self.current = before

    def why_not(self, device):
        assert device == self.current
        return self.errors[device]

    def kernel(self, queue, **arguments):
        self.started.append((self.current, queue, arguments))


@pytest.fixture
def gpus(monkeypatch):
    return TwoGpus(monkeypatch)


def tokens_on(gpu):
    """What the choice looks at in a tensor [2, 5, 6] on a GPU."""
    return SimpleNamespace(device=torch.device("cuda", gpu), dtype=torch.float32, shape=(2, 5, 6), size=lambda dim: 6)


@pytest.mark.parametrize("current", [0, 1])
def test_each_device_is_asked(current, gpus, monkeypatch):
    gpus.current = current
    for backend in (backends.cuda, backends.triton):
        monkeypatch.setattr(backend, "kernels", lambda op, name=backend.__name__: name)
    monkeypatch.setattr(backends.triton, "refuses", lambda op, kind: None)
    assert explain("gated_product", tokens_on(0)).backend == "cuda"
    explanation = explain("gated_product", tokens_on(1))
    assert (explanation.backend, explanation.reasons["cuda"]) == ("triton", WHY_NOT)
    names = [backends.kernels("gated_product", tokens_on(gpu), backends.AUTOMATIC) for gpu in (0, 1, 0, 1)]
    assert names == [backends.cuda.__name__, backends.triton.__name__] * 2
    with use_backend("cuda"), pytest.raises(backends.BackendError, match=re.escape(f"cannot run gated_product: {WHY_NOT}")):
        backends.kernels("gated_product", tokens_on(1), backends.requested())
    assert gpus.current == current
    assert set(gpus.guarded) == {1 - current}


def test_no_device_is_asked_about_other_tensors(gpus):
    with use_backend("reference"):
        assert explain("gated_product", *gate_inputs()).reasons["cuda"] == "it computes on cuda tensors, these are on cpu"
    assert gpus.guarded == []


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ((None, NO_IMAGE), None),
        ((NO_IMAGE, None), None),
        ((NO_IMAGE, NO_IMAGE), f"{WHY_NOT.replace('cuda:1', 'cuda:0').replace('8.0', '9.0').replace('=80', '=90')}; {WHY_NOT}"),
    ],
)
def test_cuda_is_available_where_a_device_can_run_it(errors, reason, gpus):
    gpus.errors = dict(enumerate(errors))
    assert available()["cuda"].reason == reason


def test_cuda_that_torch_cannot_start(gpus, monkeypatch):
    def fail():
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    monkeypatch.setattr(torch.cuda, "current_device", fail)
    assert available()["cuda"].reason == "Cannot re-initialize CUDA in forked subprocess"


def test_kernels_are_started_with_their_device_as_the_current_one(gpus):
    for gpu in (0, 1):
        launch.start("kernel", tokens_on(gpu), shape="shape")
    assert gpus.started == [(0, (0, 7, 0, 0), {"shape": "shape"}), (1, (1, 7, 0, 0), {"shape": "shape"})]
    assert (gpus.guarded, gpus.current) == ([1], 0)


def test_explain_follows_use_backend():
    with use_backend("reference"):
        assert explain("gated_product", *gate_inputs()).backend == "reference"


@needs_cpu
def test_explain_agrees_with_what_runs(monkeypatch):
    """A kernel that answers with a mark shows who was called."""
    called = []
    for name, backend in backends._BACKENDS.items():
        kernels = backend.kernels
        monkeypatch.setattr(backend, "kernels", lambda op, name=name, kernels=kernels: called.append(name) or kernels(op))
    for requested in ("reference", "cpu"):
        with use_backend(requested):
            gated_product(*gate_inputs())
            assert called[-1] == explain("gated_product", *gate_inputs()).backend == requested
    gated_product(*gate_inputs())
    assert called[-1] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gated_products", torch.ones(1)), "op: got 'gated_products', expected one of additive_pool, gated_product,"),
        (("gated_product",), "tensors: got none, expected"),
    ],
)
def test_explain_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        explain(*arguments)


def test_use_backend_nests_and_is_undone():
    with use_backend("reference"):
        if HAS_CPU:
            with use_backend("cpu"):
                assert explain("gated_product", *gate_inputs()).backend == "cpu"
        with pytest.raises(KeyError), use_backend("reference"):
            raise KeyError
        assert explain("gated_product", *gate_inputs()).backend == "reference"
    if HAS_CPU:
        assert explain("gated_product", *gate_inputs()).backend == "cpu"


@needs_cpu
def test_use_backend_belongs_to_its_thread():
    """A enters, B enters, A leaves, B leaves: each computed on its own, and nothing stays."""
    seen, entered, left = {}, threading.Event(), threading.Event()

    def first():
        with use_backend("reference"):
            entered.wait()
            seen["first"] = explain("gated_product", *gate_inputs()).backend
        left.set()

    def second():
        with use_backend("cpu"):
            entered.set()
            left.wait()
            seen["second"] = explain("gated_product", *gate_inputs()).backend

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"first": "reference", "second": "cpu"}
    assert explain("gated_product", *gate_inputs()).backend == "cpu"


@needs_cpu
@pytest.mark.parametrize("where", ["outside", "inside another's block", "in another thread"])
def test_gradients_run_where_the_op_ran(where, monkeypatch):
    called = []
    for name, backend in backends._BACKENDS.items():
        kernels = backend.kernels
        monkeypatch.setattr(backend, "kernels", lambda op, name=name, kernels=kernels: called.append(name) or kernels(op))
    inputs = [x.requires_grad_() for x in gate_inputs()]
    with use_backend("reference"):
        out = gated_product(*inputs)

    def differentiate():
        backends._kernels.cache_clear()  # ask again
        slope = torch.autograd.grad(out.sum(), inputs, create_graph=True)
        backends._kernels.cache_clear()
        torch.autograd.grad(sum(x.square().sum() for x in slope), inputs)

    if where == "outside":
        differentiate()
    elif where == "in another thread":
        thread = threading.Thread(target=differentiate)
        thread.start()
        thread.join()
    else:
        with use_backend("cpu"):
            differentiate()
    assert called == ["reference"] * 3


def test_unknown_name():
    names = "cpu, cuda, triton, blockwise, reference"
    with pytest.raises(ValueError, match=f"name: got 'gpu', expected one of {names}"), use_backend("gpu"):
        pass


def test_a_backend_that_is_not_available_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(backends._BACKENDS["cpu"], "unavailable", lambda: "it was not built")
    with pytest.raises(backends.BackendError, match="backend 'cpu' is not available: it was not built"), use_backend("cpu"):
        pass
    assert available()["cpu"].reason == "it was not built"


def test_an_interpreter_that_fails_is_not_available(monkeypatch):
    """As that of Triton 3.6 does with numpy 2.4."""
    interpreter = pytest.importorskip(
        "lada_kernels.backends.triton.launch", reason="triton is not installed", exc_type=ImportError
    )

    def fail(*_):
        raise TypeError("only 0-dimensional arrays can be converted to Python scalars")

    monkeypatch.setattr(interpreter, "INTERPRETED", True)
    monkeypatch.setattr(interpreter, "_loop", {(1,): fail})
    why = r"triton \S+ cannot interpret its kernels with numpy \S+ \(only 0-dimensional arrays .*\)"
    assert re.fullmatch(why, interpreter.why_no_device())
    monkeypatch.setattr(interpreter, "_loop", {(1,): lambda count: None})
    assert interpreter.why_no_device() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's kernels are compiled for the GPU")
def test_the_tests_interpret_triton():
    """Who imports Triton before TRITON_INTERPRET is set has all of its tests skipped."""
    pytest.importorskip("triton", reason="triton is not installed")
    reason = available()["triton"].reason
    assert reason is None or "0-dimensional" in reason  # Triton up to 3.6 with numpy 2.4 and later


@needs_cpu
@pytest.mark.parametrize("op", OPS, ids=str)
def test_a_backend_that_was_asked_for_never_gives_way(op, monkeypatch):
    refuse(monkeypatch)
    inputs = make_inputs(op, SMALL)
    with use_backend("cpu"), pytest.raises(backends.BackendError, match=f"'cpu' cannot run {op.name}: it is on strike"):
        op(*inputs)
    with use_backend("cpu"), pytest.raises(backends.BackendError, match="it is on strike"):
        explain(op.name, *inputs)


def test_falling_back_to_the_reference_is_said_once(monkeypatch):
    refuse(monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            gated_product(*gate_inputs())
    (warning,) = caught
    assert warning.category is backends.FallbackWarning
    assert "gated_product runs on the reference, without a fused kernel (" in str(warning.message)
    if HAS_CPU:
        assert "cpu: it is on strike" in str(warning.message)
    with pytest.warns(backends.FallbackWarning, match="additive_attention runs on the reference"):
        ATTENTION(*make_inputs(ATTENTION, SMALL))


def test_choosing_the_reference_is_no_fallback(monkeypatch):
    refuse(monkeypatch)
    with warnings.catch_warnings(), use_backend("reference"):
        warnings.simplefilter("error")
        gated_product(*gate_inputs())


@needs_cpu
def test_no_warning_with_a_fused_kernel():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gated_product(*gate_inputs())


def test_tensors_without_memory_need_no_kernel():
    """On the meta device only shapes are worked out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = gated_product(*(x.to("meta") for x in gate_inputs()))
    assert (out.device.type, out.shape) == ("meta", (2, 5, 6))


SAY = "import torch; from lada_kernels import explain; print(explain('gated_product', torch.ones(1)).backend)"


def python(command, **environment):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def reasons():
    """As `available`, of another process: what stands in for a GPU stands in the tests' own."""
    command = "print(json.dumps({name: found.reason for name, found in available().items()}))"
    done = python(f"import json; from lada_kernels import available; {command}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*(name for name in available() if name != "blockwise"), ""])
def test_environment_variable(name, reasons):
    done = python(SAY, LADA_BACKEND=name)
    if name and reasons[name]:
        assert done.returncode != 0
        assert reasons[name].split(";")[0] in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [name or ("cpu" if HAS_CPU else "reference")]


def test_environment_variable_for_other_ops():
    done = python(SAY, LADA_BACKEND="blockwise")
    assert done.returncode != 0
    assert "backend 'blockwise' cannot run gated_product: it has no kernel for gated_product" in done.stderr


def test_unknown_environment_variable():
    done = python(SAY, LADA_BACKEND="gpu")
    assert done.returncode != 0
    assert "environment variable LADA_BACKEND: got 'gpu', expected one of cpu, cuda, triton, blockwise, ref" in done.stderr


def test_what_the_package_offers():
    """Its names are those of `__all__`, and the subpackages that they come from."""
    done = python("import lada_kernels; print(*(name for name in vars(lada_kernels) if not name.startswith('_')))")
    assert done.returncode == 0, done.stderr
    assert {*done.stdout.split()} == {*lada_kernels.__all__, "backends", "modules", "ops", "reference"}
    assert len({*lada_kernels.__all__}) == len(lada_kernels.__all__)
    assert {"additive_pool", "gated_product", "additive_attention", "modulated_layer_norm"} <= {*lada_kernels.__all__}
    assert {"available", "explain", "use_backend", "no_weight_gradients"} <= {*lada_kernels.__all__}
    assert {"BackendError", "Explanation", "FallbackWarning"} <= {*lada_kernels.__all__}
    assert re.fullmatch(r"\d+\.\d+\.\d+", lada_kernels.__version__)
