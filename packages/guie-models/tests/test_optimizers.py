from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from guie_core import GuieError, UsageError
from guie_models.optimizers import ASAM, SAM, build_optimizer, elementwise, fuses

ADAMW = dict(type="AdamW", lr=1e-2, weight_decay=0.1)


class Problem(nn.Module):
    """A small classification problem, its data, and a closure over it."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
        self.x, self.y = torch.randn(32, 6, dtype=dtype), torch.randint(0, 4, (32,))
        self.passes = 0
        self.factors: list[float] = []  # what the losses of the next passes are multiplied by

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.net(self.x), self.y)

    def closure(self) -> Tensor:
        self.passes += 1
        factor = self.factors.pop(0) if self.factors else 1.0
        loss = self.loss()
        (loss * factor).backward()
        return loss

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Reference:
    """SAM over AdamW in numpy float64, written from the papers (arXiv 2010.01412, algorithm 1; 1711.05101, algorithm
    2)."""

    def __init__(self, problem: Problem, rho: float, max_norm: float | None, eta: float | None = None) -> None:
        self.problem, self.rho, self.max_norm = problem, rho, max_norm
        self.eta = eta  # None: SAM, else ASAM (arXiv 2102.11600, equation 4)
        self.m = [np.zeros(p.shape) for p in problem.parameters()]
        self.v = [np.zeros(p.shape) for p in problem.parameters()]
        self.t = 0

    def gradients(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        for parameter, weight in zip(self.problem.parameters(), weights, strict=True):
            parameter.data = torch.from_numpy(weight.copy())
        found = torch.autograd.grad(self.problem.loss(), list(self.problem.parameters()))
        return [gradient.numpy() for gradient in found]

    def step(self, w: list[np.ndarray], lr: float = 1e-2, decay: float = 0.1) -> list[np.ndarray]:
        g = self.gradients(w)
        t = [np.ones_like(weight) if self.eta is None else np.abs(weight) + self.eta for weight in w]
        norm = math.sqrt(sum(((a * part) ** 2).sum() for a, part in zip(t, g, strict=True)))
        ascent = [self.rho * a**2 * part / (norm + 1e-12) for a, part in zip(t, g, strict=True)]
        g = self.gradients([weight + part for weight, part in zip(w, ascent, strict=True)])
        norm = math.sqrt(sum((part**2).sum() for part in g))
        if self.max_norm is not None and norm > self.max_norm:
            g = [part * self.max_norm / (norm + 1e-6) for part in g]
        self.t += 1
        out = []
        for i, (weight, part) in enumerate(zip(w, g, strict=True)):
            self.m[i] = 0.9 * self.m[i] + 0.1 * part
            self.v[i] = 0.999 * self.v[i] + 0.001 * part**2
            m, v = self.m[i] / (1 - 0.9**self.t), self.v[i] / (1 - 0.999**self.t)
            out.append(weight * (1 - lr * decay) - lr * m / (np.sqrt(v) + 1e-8))
        return out


@pytest.mark.parametrize("max_norm", [None, 1000.0, 0.01])
def test_steps_are_the_papers_in_float64(max_norm: float | None) -> None:
    problem, oracle = Problem(torch.float64), Problem(torch.float64)
    sam = SAM(problem.parameters(), base=ADAMW, rho=0.05, max_norm=max_norm)
    reference = Reference(oracle, rho=0.05, max_norm=max_norm)
    weights = [weight.numpy() for weight in oracle.weights()]
    for _ in range(3):
        sam.step(problem.closure)
        weights = reference.step(weights)
        for found, wanted in zip(problem.weights(), weights, strict=True):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_adaptive_steps_are_the_papers_in_float64() -> None:
    problem, oracle = Problem(torch.float64), Problem(torch.float64)
    asam = ASAM(problem.parameters(), base=ADAMW, rho=0.5, eta=0.01)
    reference = Reference(oracle, rho=0.5, max_norm=None, eta=0.01)
    weights = [weight.numpy() for weight in oracle.weights()]
    for _ in range(3):
        asam.step(problem.closure)
        weights = reference.step(weights)
        for found, wanted in zip(problem.weights(), weights, strict=True):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_rho_zero_is_the_base_to_the_bit() -> None:
    first, second = Problem(), Problem()
    sam = SAM(first.parameters(), base=ADAMW, rho=0.0)
    base = torch.optim.AdamW(second.parameters(), 1e-2, weight_decay=0.1, fused=True)
    for _ in range(5):
        loss = sam.step(first.closure)
        base.zero_grad()
        expected = second.closure()
        base.step()
        assert loss == expected
    assert same(first.weights(), second.weights())


def test_weights_come_back_to_the_bit_before_the_base_steps() -> None:
    problem = Problem()
    seen: list[list[Tensor]] = []

    class Nothing(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append(problem.weights())

    before = problem.weights()
    SAM(problem.parameters(), base=Nothing(problem.parameters(), lr=1.0), rho=10.0).step(problem.closure)
    assert problem.passes == 2
    assert same(seen[0], before)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_pass_that_is_not_finite_skips_the_step(factor: float, which: str) -> None:
    problem = Problem()
    sam = SAM(problem.parameters(), base=ADAMW)
    sam.step(problem.closure)
    before, moments = problem.weights(), [value.clone() for state in sam.state.values() for value in state.values()]
    problem.factors = [factor] if which == "first" else [1.0, factor]
    problem.passes = 0
    sam.step(problem.closure)
    assert problem.passes == (1 if which == "first" else 2)
    assert (sam.last_step_skipped, sam.skipped) == (True, 1)
    assert same(problem.weights(), before)
    assert same([value for state in sam.state.values() for value in state.values()], moments)
    sam.step(problem.closure)
    assert (sam.last_step_skipped, sam.skipped) == (False, 1)
    assert not same(problem.weights(), before)


class Normed(Problem):
    """With running statistics of something that depends on the weights."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self.net.insert(1, nn.BatchNorm1d(8))


@pytest.mark.parametrize("max_norm", [None, 0.01])
@pytest.mark.parametrize("cls", [SAM, ASAM])
def test_steps_that_nobody_looks_at_are_the_same(
    cls: type[SAM], max_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the base leaves out a step by itself. Here, the same on the CPU."""
    base = {**ADAMW, "fused": True}
    problems = Normed(), Normed()
    looking, blind = (cls(problem.parameters(), base=base, max_norm=max_norm) for problem in problems)
    monkeypatch.setattr(blind, "_unseen", lambda norm: True)
    skipped = 0
    for factors in ([1.0, 1.0], [math.inf, 1.0], [1.0, math.nan], [math.nan, math.nan], [1.0, math.inf], [1.0, 1.0]):
        before = problems[1].weights()
        moments = [value.clone() for state in blind.state.values() for value in state.values()]
        for problem, optimizer in zip(problems, (looking, blind), strict=True):
            problem.factors = list(factors)
            problem.passes = 0
            optimizer.step(problem.closure)
            problem.factors = []
        assert problems[1].passes == 2
        skipped += factors != [1.0, 1.0]
        if factors != [1.0, 1.0]:
            assert same(problems[1].weights(), before)
            assert same([value for state in blind.state.values() for value in state.values()], moments)
        assert (blind.skipped, blind.last_step_skipped) == (skipped, factors != [1.0, 1.0])
        assert (looking.skipped, looking.last_step_skipped) == (skipped, factors != [1.0, 1.0])
        assert same(*(problem.weights() for problem in problems))
        assert all(bool(buffer.isfinite().all()) for buffer in problems[1].buffers())
    assert blind.state_dict()["sam"] == {"skipped": 4}


def test_the_lower_of_two_limits_counts() -> None:
    problems = [Problem() for _ in range(3)]
    limits = [(None, 0.01), (0.01, 5.0), (5.0, torch.tensor(0.01))]
    for problem, (own, given) in zip(problems, limits, strict=True):
        sam = SAM(problem.parameters(), base=ADAMW, max_norm=own)
        for _ in range(3):
            sam.step(problem.closure, max_norm=given)
        assert sam.norm is not None
        assert float(sam.norm) > 0.01  # of the gradients as they came
    assert same(problems[0].weights(), problems[1].weights())
    assert same(problems[0].weights(), problems[2].weights())


def test_a_stale_perturbation_is_subtracted_where_it_is_asked_for(tmp_path: Path) -> None:
    """As the original's fault: no ascent, and a step from where the last ascent would fall back to."""
    problem = Problem(torch.float64)
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        seen.append(problem.weights())
        return problem.closure()

    base: Any = functools.partial(torch.optim.SGD, lr=0.5)
    sam = SAM(problem.parameters(), base=base, infinite="stale")
    sam.step(closure)
    perturbation = [there - here for here, there in zip(*seen, strict=True)]
    before = problem.weights()
    gradients = torch.autograd.grad(problem.loss(), list(problem.parameters()))
    torch.save(sam.state_dict(), tmp_path / "state.pt")
    resumed = SAM(problem.parameters(), base=base, infinite="stale")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    problem.factors = [math.inf]
    resumed.step(closure)
    assert not resumed.last_step_skipped
    assert same(seen[3], before)
    for found, weight, stale, gradient in zip(problem.weights(), before, perturbation, gradients, strict=True):
        torch.testing.assert_close(found, weight - stale - 0.5 * gradient)


def test_a_stale_perturbation_belongs_to_its_parameter() -> None:
    """Other parameters have gradients in the infinite pass than had at the last ascent."""
    first, second, late = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3))
    sam = SAM(
        [first, second, late], base=functools.partial(torch.optim.SGD, lr=0.5), rho=2**0.5 * 2, infinite="stale"
    )  # the gradient being even, the ascent is sqrt(2) on each of four values

    def once() -> Tensor:
        return _backward((first + second).sum() * 2**0.5)

    passes = iter([math.inf, 1.0])
    sam.step(once)
    before = second.detach().clone()
    perturbation = sam.state_dict()["sam"]["perturbation"]
    assert perturbation[2] is None
    torch.testing.assert_close(perturbation[1], torch.full_like(before, 2**0.5))
    sam.step(lambda: _backward((second + late).sum() * next(passes)))
    torch.testing.assert_close(second.detach(), before - 2**0.5 - 0.5)
    torch.testing.assert_close(late.detach(), torch.full_like(before, 0.5))
    torch.testing.assert_close(first.detach(), torch.full_like(before, 1 - 0.5 * 2**0.5))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_as_the_original_would(copied: Callable[[Any], Any]) -> None:
    problem = Problem()
    sam = ASAM(problem.parameters(), base=ADAMW, rho=0.1, max_norm=1.0, eta=0.02, infinite="stale")
    sam.step(problem.closure)
    other, twin = copied((problem, sam))
    assert (twin.rho, twin.max_norm, twin.eta, twin.adaptive, twin.infinite) == (0.1, 1.0, 0.02, True, "stale")
    assert twin.param_groups is twin.base.param_groups
    assert twin.state is twin.base.state
    assert twin.base is not sam.base
    for factors in ([], [math.inf], []):
        for of, optimizer in ((problem, sam), (other, twin)):
            of.factors = list(factors)
            optimizer.step(of.closure)
    assert same(problem.weights(), other.weights())


def test_sparse_gradients_are_refused_and_change_nothing() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    before = table.weight.detach().clone()
    for sam in (SAM(table.parameters(), base=dict(type="SGD", lr=0.1)), ASAM(table.parameters())):
        with pytest.raises(UsageError, match="sparse"):
            sam.step(lambda: _backward(table(torch.tensor([1, 3])).sum()))
    assert torch.equal(table.weight, before)


@pytest.mark.parametrize(
    ("base", "plain"),
    [
        (dict(type="SGD", lr=0.1, momentum=0.9), functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
        (dict(type="Adam", lr=0.1), functools.partial(torch.optim.Adam, lr=0.1, fused=True)),
        (dict(type="Adam", lr=0.1, foreach=True), functools.partial(torch.optim.Adam, lr=0.1, foreach=True)),
    ],
)
def test_the_places_base_optimizers_have_names(base: dict[str, Any], plain: Callable[..., Any]) -> None:
    first, second = Problem(), Problem()
    one, other = SAM(first.parameters(), base=base), SAM(second.parameters(), base=plain)
    for _ in range(3):
        one.step(first.closure)
        other.step(second.closure)
    assert same(first.weights(), second.weights())


def test_options_have_names() -> None:
    """SAM's and ASAM's are the same, and by name alone: an order that differed would be taken for the other's."""
    arguments = [inspect.signature(cls).parameters for cls in (SAM, ASAM)]
    assert [name for name in arguments[0] if name != "adaptive"] == list(arguments[1])
    for parameters in arguments:
        assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name not in ("params", "base"))


def test_an_error_in_the_second_pass_leaves_the_weights() -> None:
    problem = Problem()
    sam = SAM(problem.parameters(), base=ADAMW)
    before = problem.weights()

    def closure() -> Tensor:
        if problem.passes == 1:
            raise KeyboardInterrupt
        return problem.closure()

    with pytest.raises(KeyboardInterrupt):
        sam.step(closure)
    assert same(problem.weights(), before)


@pytest.mark.parametrize("max_norm", [None, 0.01])
def test_scaled_losses_give_the_same_step(max_norm: float | None) -> None:
    plain, scaled = Problem(), Problem()
    first = SAM(plain.parameters(), base=ADAMW, max_norm=max_norm)
    second = SAM(scaled.parameters(), base=ADAMW, max_norm=max_norm)
    for _ in range(3):
        scaled.factors = [1024.0, 1024.0]
        first.step(plain.closure)
        second.step(scaled.closure, grad_scale=1024.0)
    for a, b in zip(plain.weights(), scaled.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = Problem()
    sam = SAM(whole.parameters(), base=ADAMW, max_norm=1.0)
    for _ in range(4):
        sam.step(whole.closure)
    whole.factors = [math.inf]
    sam.step(whole.closure)
    torch.save((whole.state_dict(), sam.state_dict()), tmp_path / "checkpoint.pt")
    model, state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    moments = state["state"][0]
    assert {"step", "exp_avg", "exp_avg_sq"} <= moments.keys()
    resumed = Problem()
    resumed.load_state_dict(model)
    again = SAM(resumed.parameters(), base=ADAMW, max_norm=1.0)
    again.load_state_dict(state)
    assert again.skipped == 1
    assert again.param_groups is again.base.param_groups
    for _ in range(4):
        sam.step(whole.closure)
        again.step(resumed.closure)
    assert same(whole.weights(), resumed.weights())


@pytest.mark.parametrize(
    ("base", "fused"),
    [
        ({"type": "Adam"}, True),
        (ADAMW, True),
        (ADAMW | {"fused": True}, True),
        (ADAMW | {"fused": False}, False),
        (ADAMW | {"foreach": True}, False),
        (ADAMW | {"foreach": False}, False),
        ({"type": "SGD", "lr": 0.1}, False),
        ({"type": "SGD", "lr": 0.1, "fused": True}, True),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_fused(base: dict[str, Any], fused: bool, device: str) -> None:
    """A plan has its parameters on the meta device, and is to know what a GPU would make of them."""
    problem = Problem().to(device)
    built = build_optimizer(base, problem.parameters())
    assert fuses(built) == fused
    assert fuses(build_optimizer({"type": "SAM", "base": base}, problem.parameters())) == fused
    if device == "cpu":
        assert bool(built.param_groups[0].get("fused")) == fused


def test_fused_is_the_same_but_for_rounding() -> None:
    problems = Problem(torch.float64), Problem(torch.float64)
    configs = ADAMW, ADAMW | {"fused": False}
    optimizers = [build_optimizer(c, p.parameters()) for c, p in zip(configs, problems, strict=True)]
    for _ in range(5):
        for problem, optimizer in zip(problems, optimizers, strict=True):
            optimizer.zero_grad()
            problem.closure()
            optimizer.step()
    for one, other in zip(*(problem.weights() for problem in problems), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("sam", [False, True])
def test_a_state_leaves_it_to_the_device_how_a_step_is_computed(
    sam: bool, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was begun on the CPU may go on with on a GPU, where the optimiser is a fused one, or the other way."""

    def made(problem: Problem, fused: bool) -> Any:
        base = ADAMW | {"fused": fused}
        return build_optimizer({"type": "SAM", "base": base} if sam else base, problem.parameters())

    def inner(optimizer: Any) -> Any:
        return optimizer.base if sam else optimizer

    problem = Problem()
    before, after, plain = made(problem, not there), made(problem, there), made(problem, not there)
    before.step(problem.closure)
    after.param_groups[0]["lr"] = 5.0
    for optimizer in (after, plain):
        optimizer.load_state_dict(copy.deepcopy(before.state_dict()))
    (group,) = inner(after).param_groups
    assert group["fused"] is there
    assert group["lr"] == 1e-2
    if sam and there:  # as on a GPU: whether a step is left out is told to the base
        monkeypatch.setattr(after, "_unseen", lambda norm: True)
    weights = problem.weights()
    found = []
    for optimizer in (after, plain):
        for parameter, weight in zip(problem.parameters(), weights, strict=True):
            parameter.data.copy_(weight)
        optimizer.zero_grad()
        optimizer.step(problem.closure)
        found.append(problem.weights())
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert not same(found[0], weights)


def test_a_state_of_other_parameters_is_refused() -> None:
    state = SAM(Problem().parameters(), base=ADAMW).state_dict()
    with pytest.raises(GuieError, match="other parameters"):
        SAM([nn.Parameter(torch.zeros(1))], base=ADAMW).load_state_dict(state)


def test_schedulers_move_the_bases_learning_rate() -> None:
    """timm's scheduler with the recipe's settings gives the recipe's numbers (point 7)."""
    sam = SAM(Problem().parameters(), base=ADAMW)
    scheduler = CosineLRScheduler(sam, t_initial=1000, lr_min=1e-6, warmup_t=3, warmup_lr_init=1e-6, warmup_prefix=True)
    rates = []
    for epoch in (1, 2, 3, 649):
        scheduler.step(epoch)
        rates.append(sam.base.param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([3.334e-3, 6.667e-3, 1e-2], rel=1e-3)
    assert rates[3] == pytest.approx(2.8e-3, rel=0.02)


def test_new_groups_reach_the_base() -> None:
    sam = SAM(Problem().parameters(), base=ADAMW)
    late = nn.Parameter(torch.ones(3))
    sam.add_param_group({"params": [late], "lr": 0.5})
    sam.step(lambda: _backward((late**2).sum()))
    assert late.tolist() == pytest.approx([0.45] * 3)  # 1 * (1 - .5 * .1) - .5


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SAM(p, base=ADAMW),
        lambda p: SAM(p, base=torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)),
        lambda p: SAM(p, base=functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)),
        lambda p: SAM([{"params": p[:2]}, {"params": p[2:]}], base=ADAMW),
        lambda p: SAM(p),
    ],
)
def test_ways_to_give_the_base_agree(make: Callable[[list[nn.Parameter]], SAM]) -> None:
    first, second = Problem(), Problem()
    one, other = make(list(first.parameters())), SAM(second.parameters(), base=ADAMW)
    for _ in range(2):
        one.step(first.closure)
        other.step(second.closure)
    for a, b in zip(first.weights(), second.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_wrong_use() -> None:
    problem = Problem()
    parameters = list(problem.parameters())
    sam = SAM(parameters, base=ADAMW)
    with pytest.raises(UsageError, match=r"call step\(closure\)"):
        sam.step()
    with pytest.raises(GuieError, match="left no gradients"):
        sam.step(problem.loss)
    with pytest.raises(UsageError, match="rho is -1"):
        SAM(parameters, base=ADAMW, rho=-1)
    with pytest.raises(UsageError, match="max_norm is 0"):
        SAM(parameters, base=ADAMW, max_norm=0)
    with pytest.raises(UsageError, match="other parameters"):
        SAM(parameters, base=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    with pytest.raises(UsageError, match=r"Did you mean Adam .* or AdamW"):
        SAM(parameters, base=dict(type="AdamV"))
    with pytest.raises(UsageError, match="weight_dekay"):
        SAM(parameters, base=dict(type="AdamW", weight_dekay=0.1))


TORCH = [
    made
    for name in dir(torch.optim)
    if isinstance(made := getattr(torch.optim, name), type)
    and made not in (torch.optim.Optimizer, torch.optim.SparseAdam)  # the latter takes other gradients
]


def _stepped(made: type[torch.optim.Optimizer], cut: bool) -> Tensor:
    """A matrix [6, 4] after some steps, as one parameter or as two that each have rows of it."""
    generator = torch.Generator().manual_seed(0)
    start, target = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    weights = [nn.Parameter(part.clone()) for part in (start.split([4, 2]) if cut else [start])]
    settings = {"momentum": 0.9} if made in (torch.optim.SGD, torch.optim.RMSprop) else {}
    # what one process has is all that its optimiser sees
    optimizers = [made([weight], lr=0.1, **settings) for weight in weights]  # type: ignore[call-arg]
    for _ in range(5):
        for optimizer, weight, wanted in zip(
            optimizers, weights, target.split([4, 2]) if cut else [target], strict=True
        ):

            def closure(
                optimizer: torch.optim.Optimizer = optimizer, weight: Tensor = weight, wanted: Tensor = wanted
            ) -> float:
                optimizer.zero_grad()
                loss = (weight - wanted).pow(4).sum()
                loss.backward()
                return loss.item()

            optimizer.step(closure)
    return torch.cat([weight.detach() for weight in weights])


@pytest.mark.parametrize("made", TORCH)
def test_which_optimisers_treat_each_number_by_itself(made: type[torch.optim.Optimizer]) -> None:
    """By what they do to a matrix whose rows two optimisers share."""
    alike = torch.allclose(_stepped(made, cut=True), _stepped(made, cut=False), rtol=1e-12)
    assert elementwise(made([nn.Parameter(torch.zeros(2, 2))], lr=0.1)) == alike  # type: ignore[call-arg]


def test_sparse_adam_takes_no_gradients_of_shards() -> None:
    assert not elementwise(torch.optim.SparseAdam([nn.Parameter(torch.zeros(2, 2))]))


@pytest.mark.parametrize("made", [SAM, ASAM])
def test_sam_is_as_its_base(made: type[SAM]) -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    assert elementwise(made([weight], ADAMW))
    assert elementwise(made([weight], dict(type="SAM", base=ADAMW)))
    assert not elementwise(made([weight], lambda params: torch.optim.Muon(params)))


def test_what_others_make_says_so_itself() -> None:
    class Normed(torch.optim.SGD):
        """Who derives from torch's may do otherwise."""

    class Lion(torch.optim.SGD):
        elementwise = True

    weight = nn.Parameter(torch.zeros(2, 2))
    assert not elementwise(Normed([weight], lr=0.1))
    assert elementwise(Lion([weight], lr=0.1))


def strided(kind: str) -> tuple[Tensor, nn.Parameter]:
    """A matrix, and a parameter in its memory."""
    torch.manual_seed(0)
    base = torch.randn(30, 4)
    return base, nn.Parameter(base[:, :3] if kind == "view" else base.T)


@pytest.mark.parametrize("kind", ["view", "transposed"])
def test_a_parameter_whose_numbers_do_not_follow_each_other(kind: str) -> None:
    """torch's fused kernels of the CPU would go through its memory as if they did."""
    found = []
    for more in ({}, {"fused": False}):
        base, parameter = strided(kind)
        optimizer = build_optimizer(ADAMW | more, [parameter])
        for _ in range(3):
            parameter.grad = torch.ones(parameter.shape).cumsum(0)
            optimizer.step()
        found.append(base)
    assert torch.equal(*found)


def test_moments_are_laid_out_as_their_parameter() -> None:
    _, one = strided("transposed")
    other = nn.Parameter(one.detach().clone(memory_format=torch.contiguous_format))
    optimizers = [build_optimizer(ADAMW, [parameter]) for parameter in (one, other)]
    assert [bool(optimizer.param_groups[0]["fused"]) for optimizer in optimizers] == [False, True]
    one.grad = torch.randn(one.shape)
    optimizers[0].step()
    other.data.copy_(one)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for parameter, optimizer in zip((one, other), optimizers, strict=True):
        parameter.grad = torch.arange(120.0).view(4, 30)
        optimizer.step()
    torch.testing.assert_close(one.detach(), other.detach())


def test_what_a_group_says_of_how_it_is_computed_counts() -> None:
    problem = Problem()
    first, *others = problem.parameters()
    optimizer = build_optimizer(ADAMW, [{"params": [first], "foreach": True}, {"params": others}])
    assert [(group["foreach"], group["fused"]) for group in optimizer.param_groups] == [(True, None), (None, None)]
    optimizer.step(problem.closure)
