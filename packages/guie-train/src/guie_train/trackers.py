"""Trackers: curves of training where people look at them, in TensorBoard, MLflow or Weights & Biases.

mmengine's backends do the writing. Nothing depends on a tracker: it is not part of any stage's key, and one that fails
is left alone with a warning.
"""

from __future__ import annotations

import json
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guie_core import Config, GuieError
from guie_core.files import atomic_write, digest
from guie_core.registry import build

log = logging.getLogger(__name__)


class Tracker(ABC):
    """Takes figures, epoch by epoch."""

    @abstractmethod
    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Figures of one epoch by name, such as "head/loss"; they are kept when this returns."""

    @abstractmethod
    def close(self) -> None:
        """No more will come."""


class Tracking:
    """The trackers of a run, each of which gets every epoch of every stage once, however often the run is stopped.

    How far each has got is kept in the folder; what a process that was killed had written is not written again, but for
    an epoch whose writing was under way.

    Args:
        folder: for what trackers write; made when it is needed.
        trackers: components of kind "trackers".

    Raises:
        GuieError: a tracker can't be made, for want of its library for instance.
    """

    def __init__(self, folder: Path, trackers: Sequence[Config]) -> None:
        self._path = folder / "epochs.json"
        self._done: dict[str, dict[str, int]] = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._trackers: dict[str, Tracker] = {}
        for number, config in enumerate(trackers):
            # settings decide where it writes: with others it has everything to get
            key = digest(json.dumps(config, sort_keys=True, default=str))
            try:
                self._trackers[key] = build("trackers", config, where=f"recipe.trackers.{number}", folder=folder)
            except GuieError:  # a setting or library, which people can mend
                raise
            except Exception as error:
                _leave_alone(config["type"], error)

    def __call__(self, stage: str, curves: Sequence[Mapping[str, float]]) -> None:
        """Write those epochs of these curves that trackers don't have yet."""
        for key, tracker in list(self._trackers.items()):
            done = self._done.setdefault(key, {})
            try:
                for curve in curves[done.get(stage, 0) :]:
                    epoch = int(curve["epoch"])
                    tracker.write(epoch, {f"{stage}/{name}": value for name, value in curve.items() if name != "epoch"})
                    done[stage] = epoch
                    with atomic_write(self._path, "w") as file:
                        json.dump(self._done, file)
            except Exception as error:
                _leave_alone(type(tracker).__name__, error)
                del self._trackers[key]

    def close(self) -> None:
        """Tell all trackers that no more will come."""
        for tracker in self._trackers.values():
            try:
                tracker.close()
            except Exception as error:
                log.warning("%s didn't end well: %s", type(tracker).__name__, error)


def _leave_alone(name: str, error: Exception) -> None:
    """Of a server that is down, a login that is missing, a disk that is full: what is trained stays right."""
    log.warning("%s is left alone from here on: %s", name, error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without mmengine's own messages, one of which asks for a server even where there is a file."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Backend(Tracker):
    """One of mmengine's, by name."""

    def __init__(self, name: str, package: str, folder: Path, **settings: Any) -> None:
        from mmengine.visualization import vis_backend

        backend = getattr(vis_backend, name)(save_dir=str(folder), **settings)
        try:
            with _quiet():
                self.library: Any = backend.experiment  # imports it
        except ImportError as error:
            raise GuieError(
                f"the tracker {type(self).__name__} needs the package {package}: "
                f"pip install 'guie-train[{package}]'\n"
                "Or leave it out of recipe.trackers; curves are in the report and in curves.json all the same."
            ) from error
        self.add: Callable[..., None] = backend.add_scalars

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.add(dict(figures), step=epoch)


class TensorBoard(_Backend):
    """Event files in `trackers/tensorboard` of the run's folder: tensorboard --logdir runs."""

    def __init__(self, folder: Path) -> None:
        # tensorboard loads TensorFlow where it is installed, and triton, which optimisers load, crashes after that
        import torch._dynamo  # noqa: F401

        super().__init__("TensorboardVisBackend", "tensorboard", folder / "tensorboard")

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        super().write(epoch, figures)
        self.library.flush()

    def close(self) -> None:
        self.library.close()


class MLflow(_Backend):
    """A run of MLflow, which a resumed training goes on with.

    Args:
        tracking_uri: the server; None: the file `trackers/mlflow.db` in the run's folder.
        experiment: MLflow's, by name.
        run_name: of the run.
    """

    def __init__(
        self, folder: Path, tracking_uri: str | None = None, experiment: str = "guie", run_name: str | None = None
    ) -> None:
        uri = tracking_uri or f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        super().__init__("MLflowVisBackend", "mlflow", folder / "mlflow", tracking_uri=uri, exp_name=experiment)
        kept = folder / "mlflow" / "run_id"
        before = kept.read_text() if kept.exists() else None
        run = self.library.start_run(run_id=before, run_name=run_name if before is None else None)
        with atomic_write(kept, "w") as file:
            file.write(run.info.run_id)

    def close(self) -> None:
        self.library.end_run()


def _id_in(folder: Path) -> str:
    """The name that the run of this folder has for the server: of its own, since a run that begins anew in a folder of
    the same path may not go on with what another has written."""
    kept = folder / "id"
    if not kept.exists():
        with atomic_write(kept, "w") as file:
            file.write(secrets.token_hex(8))
    return kept.read_text()


class WandB(_Backend):
    """A run of Weights & Biases, which a resumed training goes on with; curves are drawn over a stage's epochs.

    A process that is killed may lose the epochs of its last second, since W&B writes by a helper process.

    Args:
        project: where it belongs.
        name: of the run.
        mode: "offline" writes to `trackers/wandb` of the run's folder, for `wandb sync`.
    """

    def __init__(self, folder: Path, project: str = "guie", name: str | None = None, mode: str = "online") -> None:
        # what is printed is the progress bars'; and a kill may cost what was written since the last flush
        settings = {"console": "off", "x_transaction_log_flush_interval": 1.0}
        run: dict[str, Any] = {"project": project, "name": name, "mode": mode, "settings": settings}
        run |= {"id": _id_in(folder / "wandb"), "resume": "allow"}
        super().__init__("WandbVisBackend", "wandb", folder, init_kwargs=run)
        # by itself it counts from 0 in each process, and of two figures with one number the server keeps one
        self._kept = folder / "wandb" / "step"
        self._step = int(self._kept.read_text()) if self._kept.exists() else 0
        self._stages: set[str] = set()

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        stages = {name.partition("/")[0] for name in figures}
        for stage in sorted(stages - self._stages):
            self.library.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")
        self._stages |= stages
        self.library.log({**figures, **{f"{stage}/epoch": epoch for stage in stages}}, step=self._step, commit=True)
        self._step += 1
        with atomic_write(self._kept, "w") as file:
            file.write(str(self._step))

    def close(self) -> None:
        self.library.finish()
