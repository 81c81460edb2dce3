"""What a stage says of itself ahead of time, and what it can ask for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from guie_core import GuieError
from guie_core.profiles import Profile
from guie_datasets.extent import Extent, united
from guie_train.planning.known import NotKnown
from guie_train.planning.speeds import Speed, speed_of
from guie_train.stage import Stage, Workspace, blaming

if TYPE_CHECKING:
    from guie_datasets import Manifest
    from guie_train.planning.meta import Traced

T = TypeVar("T")
LIBRARIES = 0.92e9
"""Bytes of the machine's memory that torch, its companions and guie take before they work: the peak of a process that
imports the recipe and builds timm/test_resnet, of which 340 MB are pages of files that processes share."""
LAUNCH = 5e-6
"""Seconds to launch a kernel on a GPU: of this order on any machine."""
IN_GRAPH = 0.5e-6
"""Seconds that a kernel of a CUDA graph takes besides its work: on a V100, 3.4 us for kernels of 2.9 us (NVIDIA,
"Getting Started with CUDA Graphs")."""


@dataclass(frozen=True)
class Missing:
    """Something that a stage reads and that is not on this machine."""

    what: str
    where: str  #: where it is to be had, or what is wrong with what is there
    command: str = ""  #: what to type


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a stage takes. A figure that is None isn't known; `does` or `basis` then says why.

    Attributes:
        does: what goes in and comes out, with shapes.
        parameters, trained: numbers that the stage's networks hold, and those that it changes.
        disk: bytes that it has written at the most, of outputs or added to those that are there already.
        stays: those of them that stay when it is done; None: all.
        device: bytes of the device's memory at its peak: the GPU's; on the CPU they are the machine's, besides `host`.
        host: bytes of the machine's memory at its peak.
        seconds: how long it takes; with `at_least` nothing can be faster.
        basis: what that rests on, or why there is none.
        gives: what other stages can know of its outputs: `Images` of a manifest, `Features` of a store, a
            `Trained` part.
        missing: what it reads and isn't there.
        lighter: gives, for so many bytes of the device's memory, what to put on the command line to stay within them.
    """

    does: str = ""
    parameters: int = 0
    trained: int | None = None
    disk: float | None = None
    stays: float | None = None
    device: float | None = 0
    host: float | None = None
    seconds: float | None = None
    at_least: bool = False
    basis: str = ""
    gives: Any = None
    missing: Sequence[Missing] = ()
    lighter: Callable[[float], Iterator[str]] = lambda memory: iter(())


@dataclass(frozen=True)
class Images:
    """The images of a manifest: all, and those of each split once it is split."""

    all: Extent
    splits: Mapping[str, Extent] = field(default_factory=dict)

    def of(self, *names: str) -> Extent:
        """Images of some splits, 0 where there is no such split; their classes are taken for different ones."""
        return united([self.splits[name] for name in names if name in self.splits])

    @classmethod
    def counted(cls, manifest: Manifest) -> Images:
        """Those of a manifest that is there."""
        import numpy as np

        label, category, split = (manifest.column(name) for name in ("label", "category", "split"))

        def extent(rows: Any) -> Extent:
            return Extent(int(rows.sum()), len(np.unique(label[rows])), tuple(np.unique(category[rows]).tolist()), True)

        whole = extent(np.ones(len(label), bool))
        return cls(whole, {str(name): extent(split == name) for name in np.unique(split) if name})


@dataclass(frozen=True)
class Features:
    """Features of images through one view: how many of them a view gives, and how often each image is seen."""

    dimension: int
    views: int = 1


@dataclass(frozen=True)
class Trained:
    """A trained part of the model: how many numbers it has when it is exported."""

    parameters: int


@dataclass
class Outlook:
    """What stages can ask when they forecast: the profile, its speed, and what the stages before them give."""

    workspace: Workspace
    ready: Callable[[Stage[Any]], bool] = lambda stage: False  # whether the outputs are there
    processes: int = 1  # how many make the run
    again: Callable[[Stage[Any]], bool] = lambda stage: False  # whether outputs that are there are to be made anew
    _forecasts: dict[str, Forecast] = field(default_factory=dict)  # by the stage's name
    _made: dict[object, Any] = field(default_factory=dict)

    @property
    def profile(self) -> Profile:
        """What it will run on."""
        return self.workspace.profile

    def forecast(self, stage: Stage[Any]) -> Forecast:
        """What `stage` takes; asked once. Raises GuieError, which is blamed on the stage: what would stop it."""
        if stage.name not in self._forecasts:
            try:
                with blaming(stage):
                    found = stage.forecast(self)
            except NotKnown as reason:
                found = Forecast(basis=str(reason), device=None)
            except GuieError:
                raise
            except Exception as error:  # of a plugin, or of what it is built on: nothing depends on a forecast
                found = Forecast(basis=f"it can't be told: {type(error).__name__}: {error}", device=None)
            self._forecasts[stage.name] = found
        return self._forecasts[stage.name]

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` gives, made once for this key."""
        if key not in self._made:
            self._made[key] = make()
        return cast(T, self._made[key])

    def manifest(self, stage: Stage[Manifest]) -> Manifest | None:
        """The manifest that `stage` makes, if it is there."""
        return self.workspace.get(stage) if self.ready(stage) else None

    def images(self, stage: Stage[Manifest]) -> Images:
        """The images of the manifest that `stage` makes: counted if it is there, else as they are expected.

        Raises NotKnown where nobody says how many there will be.
        """
        if (manifest := self.manifest(stage)) is not None:
            return Images.counted(manifest)
        return self.given(stage, Images)

    def given(self, stage: Stage[Any], what: type[T]) -> T:
        """What `stage` says of its outputs. Raises NotKnown where it doesn't."""
        gives = self.forecast(stage).gives
        if not isinstance(gives, what):
            raise NotKnown(f"known when {stage.name!r} is done")
        return gives

    def speed(self, dtype: str) -> Speed:
        """How fast the profile's device computes in `dtype`."""
        return speed_of(self.profile, dtype)

    def time(
        self, traced: Traced, times: int, dtype: str, *, cuda_graph: bool = False
    ) -> tuple[float | None, bool, str]:
        """Seconds of repeating `traced` so often, whether that is the least, and what it rests on.

        Of a GPU two limits are known, its arithmetic with its memory, and the launching of kernels: the larger counts.
        Where it gets them as one `cuda_graph`, it waits a little before each, and for no launching.
        """
        speed = self.speed(dtype)
        if speed.operations is None:
            return None, False, speed.basis
        least = times * traced.seconds(speed.operations, speed.bandwidth)
        if cuda_graph:
            between = f"{IN_GRAPH * 1e6:.1g} us before each of its {traced.kernels:,} kernels"
            return least + times * traced.kernels * IN_GRAPH, True, f"{speed.basis}; a step is a CUDA graph: {between}"
        launching = times * traced.kernels * LAUNCH if self.profile.device == "cuda" else 0.0
        if launching > least:
            # torch's fused optimisers and compiled passes are counted as what they are made of
            each = f"at most {traced.kernels:,} kernels a step, {LAUNCH * 1e6:.0f} us each"
            return launching, False, f"if launching kernels is what limits: {each}"
        return least, True, speed.basis


def about(extent: Extent) -> str:
    """How many images: "1,034", or "about 364,805" where they aren't counted."""
    return f"{'' if extent.exact else 'about '}{extent.images:,}"
