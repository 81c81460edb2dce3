"""The passes that CUDA gets compiled: the same function by torch.compile on the CPU, and the kernels made for CUDA."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from guie_models.losses import Softmax
from guie_models.losses import margin_softmax as module

SIZE, CLASSES = 6, 37
SCALE, ANGLE = 30.0, 0.5

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs g++")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes are compiled on the CPU as they are on CUDA."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(module, "_compiles", lambda device: True)


def case(batch: int, classes: int = CLASSES, subs: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings at all angles to the centres [K, C, E] of their labels."""
    torch.manual_seed(batch)
    w, labels = torch.randn(subs, classes, SIZE), torch.randint(0, classes, (batch,))
    away = torch.linspace(-1.5, 1.5, batch)[:, None]
    return away * w[torch.arange(batch) % subs, labels] + 0.5 * torch.randn(batch, SIZE), w, labels


def formula(
    x: Tensor, w: Tensor, labels: Tensor, scale: float, hardness: float | None, smoothing: float, focal: float
) -> Tensor:
    """The loss with angles, over whole matrices, in the dtype of its inputs."""
    unit = torch.nn.functional.normalize
    cosine = (unit(x) @ unit(w, dim=-1).transpose(1, 2)).amax(0)
    own = torch.nn.functional.one_hot(labels, cosine.shape[1]).bool()
    theta = torch.acos(cosine[own])
    far = theta + ANGLE > math.pi
    shifted = torch.where(far, torch.cos(theta) - ANGLE * math.sin(math.pi - ANGLE), torch.cos(theta + ANGLE))
    if hardness is not None:
        cosine = torch.where(cosine > shifted[:, None], cosine * (hardness + cosine), cosine)
    z = scale * torch.where(own, shifted[:, None], cosine)
    loss = torch.nn.functional.cross_entropy(z, labels, reduction="none", label_smoothing=smoothing)
    return ((1 - torch.exp(-loss)) ** focal * loss).mean()


def results(
    inputs: tuple[Tensor, Tensor, Tensor], scale: float = SCALE, hardness: float | None = None, **softmax: Any
) -> list[Tensor]:
    """Value and both gradients."""
    x, w, labels = inputs
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    hard = None if hardness is None else torch.tensor(hardness)
    loss = module.margin_softmax(x, w, labels, scale=scale, angle=ANGLE, hardness=hard, softmax=Softmax(**softmax))
    return [loss.detach(), *torch.autograd.grad(loss, [x, w])]


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, as a part of what is wanted in the mean square."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))


@needs_compiler
@pytest.mark.parametrize("compiles", [True, False])
def test_a_target_that_another_process_has_is_left_out_of_no_class(
    compiles: bool, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_compiles", lambda device: compiles)
    torch.manual_seed(0)
    z, labels = torch.randn(14, CLASSES) * 40, torch.randint(0, CLASSES, (14,))
    labels[::3] = -1
    out = z.clone()
    total, logs, sums, _ = module._exponentials(out, labels, torch.randn(14), SCALE, 100.0, None, 0.1)
    assert (counters["stats"]["unique_graphs"] > 0) == compiles
    exact, target = z.double(), torch.arange(CLASSES) == labels[:, None]
    negatives = exact.masked_fill(target, -math.inf)
    torch.testing.assert_close(logs.double(), negatives.logsumexp(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.double() / total[:, None], negatives.softmax(1), rtol=1e-4, atol=1e-7)
    assert isinstance(sums, Tensor)
    torch.testing.assert_close(sums.double(), exact.masked_fill(target, 0.0).sum(1), rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "subs", "precision"),
    [
        ({}, 1, 1e-5),
        ({"rows": 8}, 3, 1e-5),
        ({"hardness": 0.3}, 1, 1e-5),
        ({"label_smoothing": 0.1, "focal": 2.0, "scale": 100.0}, 1, 2e-5),
        ({"products": "bfloat16"}, 1, 2e-2),
        ({"products": "float16", "hardness": 0.3, "label_smoothing": 0.1}, 1, 3e-3),
    ],
    ids=["plain", "sub-centres", "hardness", "smoothing, focal, scale 100", "bfloat16", "float16, hardness, smoothing"],
)
def test_compiled_is_the_same_function(
    arguments: dict[str, Any], subs: int, precision: float, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = case(14, subs=subs)
    found = results(inputs, **arguments)
    assert counters["stats"]["unique_graphs"] >= 2  # the softmax's pass and the centres' at least
    assert not counters["graph_break"]
    monkeypatch.setattr(module, "_compiles", lambda device: False)
    eager = results(inputs, **arguments)

    x, w = (tensor.double().requires_grad_() for tensor in inputs[:2])
    loss = formula(
        x,
        w,
        inputs[2],
        arguments.get("scale", SCALE),
        arguments.get("hardness"),
        arguments.get("label_smoothing", 0.0),
        arguments.get("focal", 0.0),
    )
    exact = [loss.detach(), *torch.autograd.grad(loss, [x, w])]
    assert apart(found, exact) <= precision
    assert apart(found, [tensor.double() for tensor in eager]) <= precision
    assert apart(eager, exact) <= precision


@needs_compiler
def test_other_sizes_compile_nothing_anew(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    results(case(14))
    graphs = counters["stats"]["unique_graphs"]
    cases = [case(5), case(33), case(2, classes=50), case(64, classes=3), case(9, classes=9)]
    found = [results(inputs) for inputs in cases]
    assert counters["stats"]["unique_graphs"] == graphs > 0
    monkeypatch.setattr(module, "_compiles", lambda device: False)
    for inputs, mine in zip(cases, found, strict=True):
        assert apart(mine, [tensor.double() for tensor in results(inputs)]) <= 1e-5


def test_without_a_compiler_the_operations_run_as_they_are(
    compiled: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @module._fused
    def twice(z: Tensor) -> Tensor:
        return z.mul_(2)

    from torch._inductor import config

    with config.patch({"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False}), caplog.at_level(logging.WARNING):
        z = torch.arange(7.0)
        assert twice(z).tolist() == [0, 2, 4, 6, 8, 10, 12]
        assert twice(z).tolist() == [0, 4, 8, 12, 16, 20, 24]
    assert [r.message.partition(":")[0] for r in caplog.records if r.name == module.__name__] == [
        "torch.compile failed for a pass of the loss, which goes on uncompiled, slower"
    ]


def test_the_cpu_is_left_to_torchs_own_operations() -> None:
    torch._dynamo.reset()
    counters.clear()
    results(case(14))
    assert not counters["stats"]


@pytest.mark.parametrize("there", [True, False])
def test_cuda_is_compiled_for_where_triton_is(there: bool) -> None:
    with patch("torch.utils._triton.has_triton", return_value=there):
        assert module._compiles(torch.device("cuda")) == there
        assert not module._compiles(torch.device("cpu"))


@contextmanager
def h100() -> Iterator[None]:
    """As if one were here, as far as making code for it goes."""
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.hints import DeviceProperties
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    about = {
        "multi_processor_count": 132,
        "major": 9,
        "regs_per_multiprocessor": 65536,
        "max_threads_per_multi_processor": 2048,
        "max_threads_per_block": 1024,
        "warp_size": 32,
    }
    properties = DeviceProperties(type="cuda", index=0, cc=90, **about)
    with ExitStack() as stack:
        for name, value in (
            ("is_available", True),
            ("device_count", 1),
            ("current_device", 0),
            ("get_device_capability", (9, 0)),
            ("get_device_properties", SimpleNamespace(**about, minor=0, name="H100", total_memory=80 << 30)),
        ):
            stack.enter_context(patch.object(torch.cuda, name, return_value=value))
        stack.enter_context(patch.object(DeviceProperties, "create", lambda device: properties))
        stack.enter_context(patch.object(triton_helpers, "set_driver_to_gpu"))
        stack.enter_context(patch.object(torch.compiler, "is_compiling", return_value=True))
        target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
        stack.enter_context(patch.object(driver, "_active", target))
        yield


def code_for_cuda(function: Callable[..., Any], *inputs: Tensor) -> str:
    """What inductor writes for `function` of tensors of that shape, on CUDA."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    pure = torch.func.functionalize(function, remove="mutations_and_views")
    traced = make_fx(pure, decomposition_table=select_decomp_table(), tracing_mode="fake")(*inputs)
    for node in traced.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    traced.recompile()
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        fakes = [torch.empty_strided(i.shape, i.stride(), dtype=i.dtype, device="cuda") for i in inputs]
    graph = GraphLowering(traced, shape_env=mode.shape_env)
    with V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        graph.run(*fakes)
        return str(graph.codegen()[0].value)


def machine_code(code: str) -> dict[str, int]:
    """The size of each kernel of `code`, by name, as Triton and ptxas make it for an H100."""
    import triton
    from torch._inductor.codecache import PyCodeCache
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    sizes = {}
    for name, source in re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", code, re.DOTALL):
        kernel = getattr(PyCodeCache.load(source), name)
        about, chosen = kernel.triton_meta, kernel.configs[0]
        made = triton.compile(
            ASTSource(kernel.fn, about["signature"], {**about["constants"], **chosen.kwargs}, about["configs"][0]),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": chosen.num_warps, "num_stages": chosen.num_stages},
        )
        sizes[name] = len(made.asm["cubin"])
    return sizes


# hardness, smoothing, scale, dtype; and the matrices of logits that the pass makes beside the one that it is given
FOR_CUDA = {
    (False, 0.0, 30.0, "float32"): 0,
    (False, 1e-5, 100.0, "bfloat16"): 0,
    (True, 0.0, 30.0, "float32"): 1,  # the slopes
    (True, 1e-5, 64.0, "float16"): 2,
}
BATCH, MANY = 256, 15_003


def kernels(hard: bool, smoothing: float, scale: float, dtype: str) -> tuple[list[int], dict[str, int]]:
    """The elements of what a pass allocates on CUDA, and the sizes of its kernels."""

    def function(z: Tensor, labels: Tensor, target: Tensor, hardness: Tensor) -> list[Tensor]:
        bound = scale * (1 + hard)
        given = module._exponentials(z, labels, target, scale, bound, hardness if hard else None, smoothing)
        return [out for out in given if isinstance(out, Tensor)]

    z = module._room(BATCH, torch.empty(MANY, 1, dtype=getattr(torch, dtype))).zero_()
    with h100():
        code = code_for_cuda(function, z, torch.zeros(BATCH).long(), torch.zeros(BATCH), torch.zeros(()))
        sizes = machine_code(code) if dtype == "float32" else {}  # which takes a second a kernel
    shapes = re.findall(r"empty_strided_cuda\(\((.*?)\)", code)
    return [math.prod(map(int, re.findall(r"\d+", shape))) for shape in shapes], sizes


@pytest.mark.skipif(find_spec("triton") is None, reason="torch for CUDA brings Triton; this torch hasn't")
def test_kernels_for_cuda() -> None:
    """They are made without a GPU, and hold no more matrices of logits than is said. Whether they run is not seen."""
    done = subprocess.run([sys.executable, __file__], stdout=subprocess.PIPE, check=True)  # what is patched stays there
    found = json.loads(done.stdout)
    assert len(found) == len(FOR_CUDA)
    for (made, sizes), matrices in zip(found, FOR_CUDA.values(), strict=True):
        assert sum(elements >= BATCH * MANY for elements in made) == matrices
        assert 0 < sum(elements for elements in made if elements < BATCH * MANY) <= 64 * BATCH  # sums of rows
        assert len(sizes) <= 4
        assert all(size > 1000 for size in sizes.values())
    assert found[0][1]


if __name__ == "__main__":
    print(json.dumps([kernels(*key) for key in FOR_CUDA]))
