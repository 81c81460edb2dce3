"""Cross-entropy over scaled cosines with a margin on the target, and its gradient by hand: what all losses of class
centres are made of.

Shapes: embeddings [B, E], centres [C, E] or [K, C, E] with K sub-centres a class, labels [B]; a "logits matrix" is
[B, C].
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from guie_core import GuieError, UsageError
from guie_models.losses.divided import Divided

SINE_SQUARED_MIN = 1e-7
"""1 - cos^2 is not taken below this (an angle of 0.018 degrees, what float32 can tell from 1), so that the sine has a
finite slope at cosine +-1."""

LENGTH_MIN = 1e-12
"""Lengths are not taken below this when vectors are normalised, as in `torch.nn.functional.normalize`."""

EXPONENT_MAX = 64.0
"""Logits up to this are exponentiated as they are: a million times e^64 and e^-64 are still float32. Beyond it, the
largest of a row is subtracted first, which costs two more passes over the matrix."""

HALF_GAIN = 32.0
"""Float16 products take probabilities times this, so that those below 6e-5 keep their digits."""

FACTOR_MIN = 1e-36
"""What makes probabilities of exponentials is not taken below this, where they are nothing beside label smoothing: that
is divided by it."""

BLOCK = 2 << 20
"""Bytes of logits that the CPU holds at once, so that they stay in its cache, where classes are few."""

COLUMN = 512
"""Bytes of logits of one class that it holds at once at least, that is 128 rows in float32: products of fewer are slow,
and of more no faster once logits don't stay in the cache."""

CLASSES = 4096
"""Classes whose gradient the CPU brings to its final form at once, so that it stays in its cache meanwhile."""

LINE = 64
"""Bytes of a line of a cache, and of a register of AVX-512."""

LOG2_E = 1.0 / math.log(2.0)

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """How the cross-entropy of a loss with class centres is taken.

    Args:
        label_smoothing: e; the wanted distribution is 1 - e on the target plus e / C everywhere (arXiv 1512.00567).
        focal: g; a row of cross-entropy l counts as (1 - exp(-l))^g l (arXiv 1708.02002; 10th place).
        sample: the part of the classes that a training batch is compared with: those of its labels, and random ones
            up to sample * C (Partial FC, arXiv 2203.15565). The centres of the others get a gradient of zero.
        sparse: with `sample`, the gradient of the centres is a sparse tensor of the sampled ones, for optimisers that
            take those (SGD without momentum, SparseAdam) and then leave all others as they are, their state too.
        products: precision of the three matrix products. Lengths, targets, margins and sums are float32 whatever it
            says (sums of bfloat16 right to five digits on the CPU), and so is the arithmetic of the softmax; "bfloat16"
            and "float16" store logits and probabilities in it, which the products would round to it anyway.
        rows: rows of logits held at once; if None, all of the batch's on a GPU, on the CPU 2 MB of them, or 128 rows of
            float32 and 256 of 16 bits where those are more. It changes no result but for rounding.
    """

    label_smoothing: float = 0.0
    focal: float = 0.0
    sample: float = 1.0
    sparse: bool = False
    products: Literal["float32", "bfloat16", "float16"] = "float32"
    rows: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it is from 0 to below 1")
        if not self.focal >= 0.0:
            raise ValueError(f"focal is {self.focal}; it is 0 (none) or more")
        if not 0.0 < self.sample <= 1.0:
            raise ValueError(f"sample is {self.sample}; it is a part of the classes, above 0 and up to 1")
        if self.products not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"products is {self.products!r}; it is 'float32', 'bfloat16' or 'float16'")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}; it is 1 or more, or None")


def angular_margin(cosine: Tensor, margin: float | Tensor) -> tuple[Tensor, Tensor]:
    """cos(theta + m) from cos(theta), and its derivative by cos(theta); without acos. m is in radians, above -pi and
    below pi, one for all or of the shape of `cosine`.

    For 0 <= theta + m <= pi: cos(theta) cos(m) - sin(theta) sin(m), with sin(theta) = sqrt(max(1 - cos^2, 1e-7)).
    Beyond pi the 5th place's fallback (point 5) cos(theta) - m sin(pi - m), which keeps falling where cos(theta + m)
    would rise again; below 0, where only a negative m leads (AdaFace), 1.
    The derivative is the exact one of that expression: cos(m) + sin(m) cos / sin, or cos(m) where the sine is held at
    its least value; 1 in the fallback; 0 below 0.
    """
    cos_m, sin_m = (margin.cos(), margin.sin()) if isinstance(margin, Tensor) else (math.cos(margin), math.sin(margin))
    sine_squared = 1.0 - cosine * cosine
    sine = sine_squared.clamp_min(SINE_SQUARED_MIN).sqrt()
    slope_of_sine = torch.where(sine_squared > SINE_SQUARED_MIN, cosine / sine, 0.0)  # its negative
    shifted, slope = cosine * cos_m - sine * sin_m, cos_m + sin_m * slope_of_sine
    if isinstance(margin, Tensor) or margin < 0:
        below = (margin < 0) & (cosine > cos_m)  # theta < -m
        shifted, slope = shifted.masked_fill(below, 1.0), slope.masked_fill(below, 0.0)
    beyond = (margin > 0) & (cosine < -cos_m)  # theta > pi - m
    return torch.where(beyond, cosine - margin * sin_m, shifted), slope.masked_fill(beyond, 1.0)


def margin_softmax(
    embeddings: Tensor,
    centres: Tensor,
    labels: Tensor,
    *,
    scale: float,
    angle: float | Tensor = 0.0,
    offset: float | Tensor = 0.0,
    hardness: Tensor | None = None,
    softmax: Softmax | None = None,
    divided: Divided | None = None,
) -> Tensor:
    """Mean over the batch of the cross-entropy of logits z: [B, E], [C, E] or [K, C, E], [B] -> scalar.

    With c[i, j] the cosine of embedding i and class j, the largest of its K sub-centres', and y the label of i:

        z[i, y] = scale * t,  t = angular_margin(c[i, y], angle) - offset
        z[i, j] = scale * c[i, j]                         for j != y
        z[i, j] = scale * c[i, j] (hardness + c[i, j])    for j != y with c[i, j] > t, where `hardness` is given

    and loss = mean of -log softmax(z)[y], or as `softmax` says. `angle` and `offset` are numbers or [B].

    The gradient, with p = softmax(z), q the wanted distribution, l the cross-entropy of a row, f its focal weight
    d/dl (1 - exp(-l))^g l, d[i, y] the slope of the margin, d[i, j] = hardness + 2 c[i, j] where that applies and 1
    elsewhere, x^ and w^ the normalised vectors:

        dc = scale * f * (p - q) * d / B
        dx^ = dc @ w^                 dx = (dx^ - x^ (x^ . dx^)) / |x|
        dw^ = dc.T @ x^               dw = (dw^ - w^ (w^ . dw^)) / |w|

    where only the sub-centre with the largest cosine has a part in c. It is the exact derivative of the value: margins,
    hardness and the choice of what is hard are constants of it. Differentiable once.

    The value being a scalar, the gradient is taken together with it, `softmax.rows` rows at a time, and those rows are
    all that is ever held of the logits matrix (twice, and a quarter, with sub-centres or hardness), beside a normalised
    copy of the centres. An embedding that isn't finite makes the value and both gradients NaN.

    Where classes are `divided` among processes, `centres` are those of this one, and all of them call this with the
    same batch, labels being those of all classes. Every process gets the value and the gradient of the embeddings, and
    that of its own centres, as one with all centres would but for rounding. What is sent, and added up, is [B, E] twice
    and a few times [B].

    Embeddings and centres are both float32, or both float64, whatever autocast says, and labels are long. Raises
    UsageError for others, for wrong shapes and an empty batch, and, on the CPU, GuieError for labels out of range.
    """
    if embeddings.dtype not in (torch.float32, torch.float64) or centres.dtype != embeddings.dtype:
        raise UsageError(
            f"margin_softmax takes float32 or float64; embeddings are {embeddings.dtype}, centres {centres.dtype}."
        )
    check_shapes("margin_softmax", embeddings, centres.shape[-1], labels)
    if labels.dtype != torch.int64:
        raise UsageError(f"margin_softmax takes labels of torch.int64; these are {labels.dtype}.")
    if labels.device.type == "cpu":
        check_range("margin_softmax", labels, divided.classes if divided else centres.shape[-2])
    wanted = torch.is_grad_enabled()
    with torch.autocast(embeddings.device.type, enabled=False):
        loss: Tensor = _MarginSoftmax.apply(
            embeddings, centres, labels, scale, angle, offset, hardness, softmax or Softmax(), divided, wanted
        )
    return loss


def _compiles(device: torch.device) -> bool:
    """Whether passes over matrices on this device are compiled: on CUDA, where Triton is there and knows the GPU.

    On the CPU torch's own operations, on rows that stay in its cache, are as fast, and there for everybody.
    """
    if device.type != "cuda":
        return False
    from torch.utils._triton import has_triton

    return bool(has_triton())


def _fused(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose first argument is a tensor that it changes in place, compiled where `_compiles` says so.

    The tensor is then gone through as few times as can be, instead of once an operation. Sizes are dynamic: another
    batch compiles nothing anew. Where compiling fails (Triton wants a C compiler), or is switched off
    (TORCH_COMPILE_DISABLE=1), the operations run as they are, which differs by rounding and in speed.
    """
    compiled: Callable[P, R] | None = None
    failed = False

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        nonlocal compiled, failed
        tensor = arguments[0]
        assert isinstance(tensor, Tensor)
        if failed or torch.compiler.is_compiling() or not _compiles(tensor.device):
            return function(*arguments, **keywords)
        from torch._dynamo.exc import TorchDynamoException

        compiled = compiled or torch.compile(function, dynamic=True)
        try:
            return compiled(*arguments, **keywords)
        except TorchDynamoException as error:  # before anything has run
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise  # it may well be compiled outside of a CUDA graph
            failed = True
            reason = str(error).partition("\n")[0]
            log.warning("torch.compile failed for a pass of the loss, which goes on uncompiled, slower: %s", reason)
            return function(*arguments, **keywords)

    return call


class _MarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        centres: Tensor,
        labels: Tensor,
        scale: float,
        angle: float | Tensor,
        offset: float | Tensor,
        hardness: Tensor | None,
        softmax: Softmax,
        divided: Divided | None,
        wanted: bool,
    ) -> Tensor:
        batch, exact, device = len(labels), embeddings.dtype, embeddings.device
        rough = exact if softmax.products == "float32" else getattr(torch, softmax.products)
        of_x, of_w = (wanted and needed for needed in ctx.needs_input_grad[:2])
        stack = centres if centres.dim() == 3 else centres[None]
        subs, classes, size = stack.shape

        x_length, w_length = _length(embeddings), _length(stack)
        x = embeddings / x_length
        w = torch.div(stack, w_length, out=torch.empty(stack.shape, dtype=rough, device=device))
        if divided is None:
            nearest, own = _own_centres(x, stack, w_length, labels)
        else:
            labels = divided.places(labels)
            nearest, own = _own_centres(x, stack, w_length, labels.clamp_min(0))
            own = divided.from_owners(own, labels)
        shifted, slope = angular_margin((x * own).sum(1), angle)
        target = (shifted - offset) * scale
        smoothing = softmax.label_smoothing / (divided.classes if divided else classes)
        bound = scale * (1.0 if hardness is None else 2.0)

        losses: list[Tensor] = []
        pulls: list[Tensor] = []  # dc of the target columns
        x_gradient = torch.empty_like(x) if of_x else None
        w_gradient = torch.empty_like(stack, memory_format=torch.contiguous_format) if of_w else None
        rows = min(batch, softmax.rows or _rows(batch, w[0], wide=subs > 1 or hardness is not None))
        space = _room(rows, w[0])
        spare = _room(rows, w[0]) if subs > 1 else None
        for start in range(0, batch, rows):
            part = slice(start, start + rows)
            z, best = _pooled(x[part] * scale, w, space, spare)
            rest, sums, factor = _negatives(z, labels[part], target[part], scale, bound, hardness, smoothing, divided)
            row = rest
            if smoothing:
                row = rest + softmax.label_smoothing * target[part] - smoothing * (sums + target[part])
            row, weight = _focal(row, softmax.focal)
            losses.append(row)
            weight = weight * (scale / batch)
            pulls.append((torch.expm1(-rest) + (softmax.label_smoothing - smoothing)) * slope[part] * weight)
            factor = factor * weight[:, None]
            for k in range(subs) if of_x or of_w else ():
                share = z if best is None else _of_sub_centre(spare[: len(z)], z, best, k)  # type: ignore[index]
                if x_gradient is not None:
                    _product(share, w[k], factor, x_gradient[part], add=k > 0)
                if w_gradient is not None:
                    _product_transposed(share, x[part], factor, w_gradient[k], add=start > 0)
            del best  # before the next rows' is made
        del space, spare, z, w  # the last of what is as large as a matrix of logits

        pull = torch.cat(pulls)
        if x_gradient is not None:
            if divided is not None:
                divided.peers.all_reduce(x_gradient)
            x_gradient.addcmul_(own, pull[:, None])
            x_gradient = (x_gradient - x * (x_gradient * x).sum(1, keepdim=True)) / x_length
        if w_gradient is not None:
            if divided is not None:
                pull = pull * (labels >= 0)
            w_gradient.view(-1, size).index_add_(0, nearest, x * pull[:, None])
            _through_length(w_gradient.view(-1, size), stack.reshape(-1, size), w_length.view(-1, 1))
            w_gradient = w_gradient.view_as(centres)
        ctx.save_for_backward(x_gradient, w_gradient)
        return torch.cat(losses).mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mine = [None if saved is None else saved * gradient for saved in ctx.saved_tensors]
        return (*mine, *[None] * 8)


def cosines(embeddings: Tensor, centres: Tensor) -> Tensor:
    """Cosine of every embedding [B, E] with every class [C, E] or [K, C, E] -> [B, C]; the largest of K."""
    x = torch.nn.functional.normalize(embeddings, eps=LENGTH_MIN)
    w = torch.nn.functional.normalize(centres, dim=-1, eps=LENGTH_MIN)
    if w.dim() == 2:
        return x @ w.T
    pooled: Tensor = x @ w[0].T
    for sub in w[1:]:
        pooled = torch.maximum(pooled, x @ sub.T)
    return pooled


def _length(vectors: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return length.clamp_min(LENGTH_MIN)


def _rows(batch: int, w: Tensor, wide: bool) -> int:
    """Rows of logits, with classes of `w` and in its precision, that are held at once."""
    if w.device.type == "cpu":
        return max(COLUMN // w.itemsize, BLOCK // (len(w) * w.itemsize))
    return (batch + 1) // 2 if wide else batch  # at most two matrices in all


def _room(rows: int, w: Tensor) -> Tensor:
    """Room for logits [R, C] with classes of `w` and in its precision, and for one number more beside each row.

    Rows begin at multiples of LINE bytes, which makes products faster: on a CPU by a fifth, with 15,003 classes in
    float32; a GPU's tensor cores ask for multiples of 16 bytes. From row to row it is an odd multiple, so that a column
    isn't all in the same few sets of a cache where C is a power of two.
    """
    line = LINE // w.itemsize
    lines = -(-(len(w) + 1) // line) | 1
    return torch.empty(rows, lines * line, dtype=w.dtype, device=w.device)[:, : len(w)]


def _with_room(z: Tensor) -> Tensor | None:
    """Logits [R, C] in what `_room` made, with the number beside each row [R, C + 1]; None for other matrices, whose
    rows follow each other."""
    rows, classes = z.shape
    return z.as_strided((rows, classes + 1), z.stride()) if z.stride(0) > classes else None


def _own_centres(x: Tensor, stack: Tensor, w_length: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The centre of each label, of its sub-centres the nearest: its row among [K * C], and itself, normalised."""
    own = stack[:, labels] / w_length[:, labels]
    if len(own) == 1:
        return labels, own[0]
    sub = (own * x).sum(-1).argmax(0)
    return sub * stack.shape[1] + labels, own[sub, torch.arange(len(labels), device=x.device)]


def _pooled(x: Tensor, w: Tensor, space: Tensor, spare: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x @ w.T in `space`, with sub-centres the largest of theirs, and which of them that is."""
    x = x.to(w.dtype)
    z = torch.mm(x, w[0].T, out=space[: len(x)])
    if spare is None:
        return z, None
    best = torch.zeros(z.shape, dtype=torch.int8 if len(w) < 128 else torch.int16, device=z.device)
    for k in range(1, len(w)):
        other = torch.mm(x, w[k].T, out=spare[: len(x)])
        _take_larger(z, best, other, k)
    return z, best


@_fused
def _take_larger(z: Tensor, best: Tensor, other: Tensor, k: int) -> None:
    """z = max(z, other), best = k where it is `other`'s."""
    best.masked_fill_(other > z, k)
    z.clamp_min_(other)


@_fused
def _of_sub_centre(out: Tensor, z: Tensor, best: Tensor, k: int) -> Tensor:
    """out = z where `best` is k, 0 elsewhere."""
    return out.copy_(best == k).mul_(z)


def _negatives(
    z: Tensor,
    labels: Tensor,
    target: Tensor,
    scale: float,
    bound: float,
    hardness: Tensor | None,
    smoothing: float,
    divided: Divided | None,
) -> tuple[Tensor, Tensor | float, Tensor]:
    """(rest, sums, factor), in passes over the matrix, in place.

    `z` [R, C] holds scale * c for every class, also the target's, which is passed over. It becomes (p - smoothing) * d
    / factor, zero at the target. `rest` is -log p of the target [R], `sums` that of the negatives' logits [R], where
    smoothing needs it, and `factor` [R, 1]. No logit but the target's is above `bound`. Where classes are `divided`,
    `labels` are places, and `z` has this process's classes; `rest` and `sums` are those of all.
    """
    if divided is None:
        rest, sums, factor, slope = _compared(z, labels, target, scale, bound, hardness, smoothing)
    else:
        total, logs, sums, slope = _exponentials(z, labels, target, scale, bound, hardness, smoothing)
        logs, part = divided.summed(logs, *([sums] if isinstance(sums, Tensor) else []))
        rest, factor = _beside_target(target, logs, total, part)
    if z.dtype == torch.float16:
        gain, factor = factor * HALF_GAIN, torch.full_like(factor, 1.0 / HALF_GAIN)
    else:
        gain = None
    if gain is not None or smoothing or slope is not None:
        _shares(z, labels, gain, smoothing / factor if smoothing else None, slope)
    return rest, sums, factor


def _exponentiate(
    z: Tensor, labels: Tensor, target: Tensor, scale: float, bound: float, hardness: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor, Tensor | float, Tensor | None]:
    """The first pass of `_negatives`: z becomes proportional to exp(z), zero at the target. Gives its sum [R], the
    logarithm of that of exp(z) itself [R], the sum of the logits, and the derivative d [R, C] where there is hardness.
    """
    exact = target.dtype
    slope = None
    if hardness is not None:
        easy = z <= target[:, None]
        slope = z.mul(1.0 / scale).add_(hardness).masked_fill_(easy, 1.0)
        z.mul_(slope)
        slope.mul_(2.0).sub_(hardness).masked_fill_(easy, 1.0)
    sums: Tensor | float = 0.0
    if smoothing:
        _set_targets(z, labels, 0.0)
        sums = _summed(z, exact)
    _set_targets(z, labels, -math.inf)
    largest: Tensor | float = 0.0
    if z.dtype == torch.float16 or bound > EXPONENT_MAX:
        largest = z.amax(1).clamp_min(torch.finfo(z.dtype).min)  # a single class leaves nothing to compare with
        z.sub_(largest[:, None])
    total = _summed(_exp(z), exact)
    return total, total.log() + largest, sums, slope  # the logarithm is -inf without negatives


def _exp(z: Tensor) -> Tensor:
    """exp(z), in place."""
    if z.dtype == torch.float32 and z.device.type == "cpu" and not torch.compiler.is_compiling():
        # torch leaves exp to MKL, which takes twice or three times as long on processors of AMD. This is off by 4e-6 at
        # the most, as rounded logits are
        return z.mul_(LOG2_E).exp2_()
    return z.exp_()


def _summed(z: Tensor, exact: torch.dtype) -> Tensor:
    """The sum of each row [R], in another precision; in five digits, where z is of bfloat16 and the CPU's. What is
    beside the rows changes."""
    more = _with_room(z)
    if more is None or z.dtype != torch.bfloat16 or z.device.type != "cpu" or torch.compiler.is_compiling():
        return z.sum(1, dtype=exact)
    # torch would make a copy in float32. Its sum in bfloat16 adds up in float32 as well, and rounds at the end: what
    # that took away comes out where the negative of the sum is one more number of the row
    high = z.sum(1)
    more[:, -1] = -high
    return high.to(exact) + more.sum(1).to(exact)


def _beside_target(target: Tensor, logs: Tensor, total: Tensor, part: Tensor | float) -> tuple[Tensor, Tensor]:
    """-log p of the target [R] beside negatives whose exponentials have a sum with these logarithms [R]; and what makes
    probabilities of those whose sum is `total`, which are a `part` of all [R, 1]."""
    above = logs - target
    factor = above.sigmoid() * part / total.clamp_min(torch.finfo(torch.float32).tiny)
    return softplus(above), factor.clamp_min(FACTOR_MIN)[:, None]


_exponentials = _fused(_exponentiate)


@_fused
def _compared(
    z: Tensor, labels: Tensor, target: Tensor, scale: float, bound: float, hardness: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor | float, Tensor, Tensor | None]:
    """The first pass, where all classes are here: z becomes p / factor."""
    total, logs, sums, slope = _exponentiate(z, labels, target, scale, bound, hardness, smoothing)
    rest, factor = _beside_target(target, logs, total, 1.0)
    return rest, sums, factor, slope


@_fused
def _shares(z: Tensor, labels: Tensor, gain: Tensor | None, shift: Tensor | None, slope: Tensor | None) -> None:
    """The second, where it is needed: z = (z * gain - shift) * slope, zero at the target."""
    if gain is not None:
        z.mul_(gain)
    if shift is not None:
        _set_targets(z.sub_(shift), labels, 0.0)
    if slope is not None:
        z.mul_(slope)


def _set_targets(z: Tensor, labels: Tensor, value: float) -> None:
    """z[i, labels[i]] = value, where that isn't -1."""
    if torch.compiler.is_compiling():  # a part of the pass that is under way, where scattering would copy the matrix
        z.masked_fill_(torch.arange(z.shape[1], device=z.device) == labels[:, None], value)
        return
    rows = torch.arange(len(z), device=z.device)  # scatter_ converts all of a 16-bit matrix on the CPU
    if z.device.type == "cpu" and (more := _with_room(z)) is not None:
        more[rows, labels] = value  # -1 is the room
    else:
        columns = labels.clamp_min(0)
        z[rows, columns] = torch.where(labels >= 0, value, z[rows, columns])


def _focal(loss: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """(1 - exp(-l))^g l, and its derivative (1 - exp(-l))^g (1 + g l / (exp(l) - 1))."""
    if power == 0.0:
        return loss, torch.ones_like(loss)
    loss = loss.clamp_min(LENGTH_MIN)
    missing = (-torch.expm1(-loss)).pow(power)
    return missing * loss, missing * (1.0 + power * loss / torch.expm1(loss))


def _product(z: Tensor, w: Tensor, factor: Tensor, out: Tensor, add: bool) -> None:
    """out (+)= (z @ w) * factor."""
    found = torch.mm(z, w)
    if add:
        out.addcmul_(found, factor)
    else:
        torch.mul(found, factor, out=out)


def _product_transposed(z: Tensor, x: Tensor, factor: Tensor, out: Tensor, add: bool) -> None:
    """out (+)= z.T @ (x * factor)."""
    if z.dtype == out.dtype:
        torch.addmm(out, z.T, x * factor, beta=float(add), out=out)
        return
    if z.dtype == torch.float16:  # it would lose small factors: what they have in common is taken out
        common = factor.amax().clamp_min(torch.finfo(factor.dtype).tiny)
        found = torch.mm(z.T, (x * (factor / common)).to(z.dtype)).to(out.dtype) * common
    else:
        found = torch.mm(z.T, (x * factor).to(z.dtype))
    if add:
        out.add_(found)
    else:
        out.copy_(found)


def _through_length(gradient: Tensor, vectors: Tensor, length: Tensor) -> None:
    """From the gradient of normalised vectors to that of the vectors, in place."""
    rows = CLASSES if gradient.device.type == "cpu" else len(gradient)
    for part in range(0, len(vectors), rows):
        _project(*(tensor[part : part + rows] for tensor in (gradient, vectors, length)))


@_fused
def _project(gradient: Tensor, vectors: Tensor, length: Tensor) -> None:
    along = (gradient * vectors).sum(1, keepdim=True) / length / length
    gradient.addcmul_(vectors, along, value=-1.0).div_(length)


def check_range(loss: str, labels: Tensor, classes: int) -> None:
    """Raises GuieError for labels that aren't 0..classes-1."""
    least, most = map(int, torch.aminmax(labels))
    if least < 0 or most >= classes:
        raise GuieError(
            f"{loss} has {classes} classes, labels 0..{classes - 1}; this batch has labels from {least} to {most}."
            " Labels are encoded 0..C-1 over the training rows, and `classes` is their number."
        )


def check_shapes(loss: str, embedding: Tensor, size: int, labels: Tensor | None = None) -> None:
    """Raises UsageError where these are not embeddings [B, size] and labels [B], of one image at least."""
    if embedding.dim() != 2 or embedding.shape[1] != size:
        raise UsageError(f"{loss} takes embeddings of shape [B, {size}]; these are {list(embedding.shape)}.")
    if labels is None:
        return
    if labels.shape != embedding.shape[:1]:
        raise UsageError(
            f"{loss} takes one label an embedding: {embedding.shape[0]}; there are labels of shape"
            f" {list(labels.shape)}."
        )
    if labels.shape[0] == 0:
        raise UsageError(f"{loss} got an empty batch: the mean of no losses doesn't exist.")
