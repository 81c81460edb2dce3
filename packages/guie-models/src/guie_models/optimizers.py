"""Optimisers: sharpness-aware minimisation over any optimiser of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from guie_core import Config, GuieError, Slot, UsageError, build
from guie_core.registry import load

Base = Mapping[str, Any] | Optimizer | Callable[..., Optimizer]

ADAMW: Mapping[str, Any] = {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1}
"""The recipe's base optimiser."""

IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")
"""Settings of torch's optimisers that say how a step is computed, and nothing of what."""

ELEMENTWISE: tuple[type[Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Rprop,
    torch.optim.ASGD,
)
"""Those of torch's optimisers that treat each number by itself."""

FUSED = (torch.optim.Adam, torch.optim.AdamW)
"""Those that are made in torch's fused form."""

NormOf = Callable[[list[Tensor]], Tensor]
"""The norm of the gradients of these parameters, a scalar."""


class SAM(Optimizer):
    """Sharpness-aware minimisation (arXiv 2010.01412) around a base optimiser (5th place, point 6: rho 0.05 around
    AdamW).

    A step: gradients g at the weights w; weights to w + rho * g / (|g| + 1e-12), |g| over all parameters of all groups;
    gradients there; weights back to w, the same bits; then the base optimiser's step with the second gradients, first
    clipped to a norm of `max_norm` where that is given (the recipe: 1000).

    adaptive: ASAM (arXiv 2102.11600, equation 4) instead: with T = |w| + eta, element by element, the ascent goes to
    w + rho * T^2 g / (|T g| + 1e-12), so that it does not depend on the scale of the weights. Its rho is about ten
    times SAM's (the paper: 0.5, eta 0.01).

    `base` is a configuration of kind "optimizers" such as dict(type="AdamW", lr=1e-2, weight_decay=0.1), or an
    optimiser over the same parameters, or a class or function that makes one from `params`. `param_groups` and `state`
    are the base's own, so learning-rate schedulers, `zero_grad` and `state_dict` see the real thing; the state
    dictionary has the base's moments and SAM's counter, and a resumed run goes on as if it had not stopped.

    A gradient norm that isn't finite, in either pass, skips the step: weights and moments stay as they were,
    `last_step_skipped` is True and `skipped` counts it. Buffers (running statistics) are the model's; what the passes
    did to them stays. Where it costs nothing to look at the first norm, the second pass is spared; on a GPU with a
    fused base (`dict(type="AdamW")` is made so) nobody waits for it: both passes are made, and the base itself leaves
    the step out. Only who asks for `skipped` waits.

    infinite: "stale" does after an infinite first pass what the 5th place's code does (recipes, faults of the
    original): there is no ascent, the base steps with the second gradients all the same, and from the weights the
    perturbation of the last finite first pass is taken away, which keeps a copy of it.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        base: Annotated[Base, Slot("optimizers", provides=("params",))] = ADAMW,
        *,
        rho: float = 0.05,
        max_norm: float | None = None,
        adaptive: bool = False,
        eta: float = 0.01,
        infinite: Literal["skip", "stale"] = "skip",
    ) -> None:
        if rho < 0 or eta < 0:
            raise UsageError(f"SAM: rho is {rho}, the length of the ascent, and eta {eta}; both are 0 or more.")
        if max_norm is not None and max_norm <= 0:
            raise UsageError(f"SAM: max_norm is {max_norm}; it is above 0, or None for no clipping.")
        if infinite not in ("skip", "stale"):
            raise UsageError(f"SAM: infinite is {infinite!r}; it is 'skip' or 'stale'.")
        groups = list(params)
        self.base = _base(base, groups)
        super().__init__(self.base.param_groups, self.base.defaults)
        self.rho = rho
        self.max_norm = max_norm
        self.adaptive = adaptive
        self.eta = eta
        self.infinite = infinite
        # of the last finite first pass, by parameter, where infinite is "stale"
        self._perturbation: dict[Tensor, Tensor] = {}
        self._skipped: int | Tensor = 0
        self._last: bool | Tensor = False
        #: of the gradients of the last pass that was made, before clipping; a scalar
        self.norm: Tensor | None = None
        self._share()

    @property
    def elementwise(self) -> bool:
        """As the base: the norm, in which all numbers meet, is what `norm_of` says."""
        return elementwise(self.base)

    @property
    def skipped(self) -> int:
        """How many steps were left out."""
        return int(self._skipped)

    @property
    def last_step_skipped(self) -> bool:
        """Whether the last step was left out."""
        return bool(self._last)

    @property
    def counters(self) -> list[Tensor]:
        """What it counts on a device instead of in Python, each a scalar that steps change in place."""
        return [value for value in (self._skipped, self._last) if isinstance(value, Tensor)]

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Tensor] | None = None,
        *,
        grad_scale: float = 1.0,
        max_norm: float | Tensor | None = None,
        norm_of: NormOf | None = None,
    ) -> Tensor:
        """One step; returns the loss of the first pass, at the weights before the step.

        `closure` computes the loss of one batch, calls backward and returns the loss. It is called twice, with
        gradients enabled and cleared each time; to accumulate over micro-batches it loops inside. Under loss scaling
        (fp16) it calls backward on loss * `grad_scale`; clip and base see true gradients. `max_norm` is a limit for
        this step, beside the optimiser's own; the lower one counts. `norm_of` computes the norm where it isn't that of
        the gradients at hand: in a process that has but a part of them. Raises UsageError without a closure.
        """
        if closure is None:
            raise UsageError(
                "SAM computes the gradients twice: call step(closure), where closure computes the loss, calls backward"
                " and returns the loss."
            )
        loss = self._gradients(closure)
        parameters = self._with_gradients()
        if self.adaptive:
            for parameter in parameters:
                cast(Tensor, parameter.grad).mul_(parameter.abs() + self.eta)
        norm_of = norm_of or _norm
        self.norm = norm = norm_of(parameters)
        finite = torch.isfinite(norm)
        unseen = self._unseen(norm)
        ascend = unseen or bool(finite)
        if not ascend and self.infinite == "skip":
            return self._done(loss, skipped=True)
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        weights = [parameter.detach().clone() for parameter in parameters]
        try:
            if ascend:
                length = self.rho / (norm + 1e-12)
                if unseen:
                    for tensor in (length, *gradients):
                        tensor.masked_fill_(~finite, 0.0)  # a NaN would get into the model's running statistics
                if self.adaptive:
                    torch._foreach_mul_(gradients, [parameter.abs() + self.eta for parameter in parameters])
                if length.is_cuda:  # where these are two kernels for all parameters, and the other one for each
                    torch._foreach_mul_(gradients, length)
                    torch._foreach_add_(parameters, gradients)
                else:  # where all are loops, and these would go through memory twice
                    torch._foreach_addcmul_(parameters, gradients, [length] * len(parameters))
            if ascend and self.infinite == "stale":
                self._perturbation = {p: p.detach() - w for p, w in zip(parameters, weights, strict=True)}
            del gradients
            self._gradients(closure)
        finally:
            torch._foreach_copy_(parameters, weights)
        stale = {} if ascend else self._perturbation
        return self._done(loss, self._descend(grad_scale, max_norm, norm_of, stale, finite))

    def state_dict(self) -> dict[str, Any]:
        """The base's state dictionary, and under "sam" the count of skipped steps (and the perturbation)."""
        own: dict[str, Any] = {"skipped": self.skipped}
        if self._perturbation:
            own["perturbation"] = [self._perturbation.get(parameter) for parameter in self._parameters()]
        return {**self.base.state_dict(), "sam": own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave, or a state dictionary of the base alone."""
        state = dict(state_dict)
        own = state.pop("sam", {})
        try:
            self.base.load_state_dict(state)
        except (KeyError, ValueError) as error:
            raise GuieError(
                f"SAM: this state belongs to an optimiser of other parameters or of another kind: {error}"
            ) from error
        self._skipped = int(own.get("skipped", 0))
        self._perturbation = {
            parameter: kept.to(parameter.device)
            for parameter, kept in zip(self._parameters(), own.get("perturbation", ()), strict=False)
            if kept is not None
        }
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        # torch copies and pickles defaults, state and groups alone; as there, hooks stay behind
        return {name: value for name, value in vars(self).items() if not name.startswith("_optimizer_")}

    def _share(self) -> None:
        # the very objects, so that whoever changes one changes the other
        self.param_groups = self.base.param_groups
        self.state = self.base.state

    def _gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        self.zero_grad(set_to_none=True)
        with torch.enable_grad():
            return closure().detach()

    def _with_gradients(self) -> list[Tensor]:
        found = [parameter for parameter in self._parameters() if parameter.grad is not None]
        if any(cast(Tensor, parameter.grad).layout != torch.strided for parameter in found):
            raise UsageError(
                "SAM needs whole gradients, and a parameter's is sparse. Embeddings and the softmax of a loss give"
                " such where they have sparse=True; leave that out, or use the base optimiser alone."
            )
        return found

    def _parameters(self) -> Iterator[Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    def _unseen(self, norm: Tensor) -> bool:
        """Whether to go on without a look at `norm`: where looking waits for a GPU, and the base can leave a step out
        by itself (torch's fused optimisers can, for `torch.amp.GradScaler`)."""
        return norm.is_cuda and self.infinite == "skip" and getattr(self.base, "_step_supports_amp_scaling", False)

    def _descend(
        self,
        grad_scale: float,
        max_norm: float | Tensor | None,
        norm_of: NormOf,
        stale: Mapping[Tensor, Tensor],
        ascended: Tensor,
    ) -> bool | Tensor:
        """The base's step from the weights less `stale`; whether it was left out, since the gradients at hand are not
        finite, or those of the ascent weren't."""
        parameters = self._with_gradients()
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        self.norm = norm = norm_of(parameters) / grad_scale
        finite = torch.isfinite(norm)
        unseen = self._unseen(norm)
        if not unseen and not bool(finite):
            return True
        factor = torch.ones_like(norm) / grad_scale
        for limit in (self.max_norm, max_norm):
            if limit is not None:
                # the bits of torch.nn.utils.clip_grad_norm_, whether the limit is a number or a tensor
                factor = torch.minimum(factor, (norm + 1e-6).reciprocal() * limit / grad_scale)
        if unseen or bool(factor != 1.0):
            torch._foreach_mul_(gradients, factor)
        for parameter in parameters:
            if parameter in stale:
                parameter.sub_(stale[parameter])
        if not unseen:
            self.base.step()
            return False
        left_out = ~(finite & ascended)
        base = cast(Any, self.base)  # what torch.amp.GradScaler tells it
        base.grad_scale, base.found_inf = None, left_out.float()
        try:
            base.step()
        finally:
            del base.grad_scale, base.found_inf
        return left_out

    def _done(self, loss: Tensor, skipped: bool | Tensor) -> Tensor:
        if not isinstance(skipped, Tensor):
            self._last, self._skipped = skipped, self._skipped + skipped
            return loss
        if not (isinstance(self._skipped, Tensor) and isinstance(self._last, Tensor)):
            self._skipped, self._last = torch.full_like(skipped, int(self._skipped), dtype=torch.int64), skipped.clone()
        self._skipped += skipped  # in place, for a step that is a CUDA graph
        self._last.copy_(skipped)
        return loss


class ASAM(SAM):
    """Adaptive sharpness-aware minimisation (arXiv 2102.11600): `SAM(adaptive=True)` with that paper's rho 0.5."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        base: Annotated[Base, Slot("optimizers", provides=("params",))] = ADAMW,
        *,
        rho: float = 0.5,
        max_norm: float | None = None,
        eta: float = 0.01,
        infinite: Literal["skip", "stale"] = "skip",
    ) -> None:
        super().__init__(params, base, rho=rho, max_norm=max_norm, adaptive=True, eta=eta, infinite=infinite)


def _norm(parameters: list[Tensor]) -> Tensor:
    if not parameters:
        raise GuieError(
            "SAM: the closure left no gradients. It has to call backward on a loss that depends on the optimised"
            " parameters."
        )
    gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
    dtype = torch.promote_types(gradients[0].dtype, torch.float32)
    norms = [torch.linalg.vector_norm(gradient, dtype=dtype).to(gradients[0].device) for gradient in gradients]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _base(base: Base, groups: list[Any]) -> Optimizer:
    if isinstance(base, Mapping):
        built = build_optimizer(base, groups, where="base")
    elif isinstance(base, Optimizer):
        built = base
        wanted = {
            id(parameter) for group in groups for parameter in (group["params"] if isinstance(group, dict) else [group])
        }
        if wanted != {id(parameter) for group in base.param_groups for parameter in group["params"]}:
            raise UsageError("SAM: the base optimiser holds other parameters than those given to SAM.")
    else:
        built = base(groups)
    if not isinstance(built, Optimizer):
        raise UsageError(f"SAM: base made a {type(built).__name__}; it has to be a torch optimiser.")
    return built


def build_optimizer(
    config: Config, params: Iterable[Tensor] | Iterable[dict[str, Any]], where: str = "optimizer"
) -> Optimizer:
    """The optimiser of `config`, of kind "optimizers", over parameters or groups of them.

    Adam and AdamW in torch's fused form, if neither `config` nor a group says anything of it: one pass over weights and
    moments instead of one an operation, and on a GPU one that nothing waits for. Fused SGD takes no sparse gradients,
    and is made as torch makes it.

    A state that is loaded changes nothing about how steps are computed (`IMPLEMENTATION`), so that what was begun on
    the CPU goes on fused on a GPU, and the other way.
    """
    groups: list[Any] = [
        {**group, "params": list(group["params"])} if isinstance(group, dict) else group for group in params
    ]
    tensors = [tensor for group in groups for tensor in (group["params"] if isinstance(group, dict) else [group])]
    said = set(config).union(*(group for group in groups if isinstance(group, dict)))
    undecided = "type" in config and not said & set(IMPLEMENTATION)
    if undecided and _fusible(tensors) and load("optimizers", config["type"]) in FUSED:
        config = {**config, "fused": True}
    built: Optimizer = build("optimizers", config, where=where, params=groups)
    built.register_load_state_dict_pre_hook(_keep_implementation)
    return built


def _fusible(parameters: list[Any]) -> bool:
    """Whether torch's fused kernels take these: those of the CPU go through memory without a look at strides."""
    devices = {each.device.type if isinstance(each, Tensor) else None for each in parameters}
    return devices == {"cuda"} or (devices == {"cpu"} and all(each.is_contiguous() for each in parameters))


def fuses(optimizer: Optimizer) -> bool:
    """Whether `optimizer`, or the base of its SAM, is fused, or would be where `build_optimizer` makes it on a GPU."""
    base = getattr(optimizer, "base", optimizer)
    on_gpu = any(parameter.is_cuda for group in base.param_groups for parameter in group["params"])

    def fused(group: dict[str, Any]) -> bool:
        if on_gpu or group.get("fused") is not None or type(base) not in FUSED:
            return bool(group.get("fused"))
        return group["foreach"] is None and not (group["capturable"] or group["differentiable"])

    return all(map(fused, base.param_groups))


def elementwise(optimizer: Optimizer) -> bool:
    """Whether the step of each number follows from its own gradients alone, so that processes can shard a parameter,
    each with an optimiser of its shard.

    torch's are told by their exact type (`ELEMENTWISE`), since what is derived from one may do otherwise. Others say so
    by an attribute `elementwise`; one that has none is taken for one that looks at whole parameters, as Muon, LARS,
    LAMB, Adafactor and LBFGS do.
    """
    return type(optimizer) in ELEMENTWISE or bool(getattr(optimizer, "elementwise", False))


def _keep_implementation(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """`state`, with how `optimizer` computes in place of how the one that it is of did, and each moment laid out in
    memory as its parameter is: fused kernels take that for granted."""
    groups = [
        {**saved, **{name: group[name] for name in IMPLEMENTATION if name in group}}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=False)
    ]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    moments = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=False):
        if number in moments:
            moments[number] = {name: _laid_out(value, parameter) for name, value in moments[number].items()}
    # torch refuses another number of groups
    return {**state, "state": moments, "param_groups": groups + state["param_groups"][len(groups) :]}


def _laid_out(value: Any, parameter: Tensor) -> Any:
    """`value`, with the strides of `parameter` if it is a tensor of its shape."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
