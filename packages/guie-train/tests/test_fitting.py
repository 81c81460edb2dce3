"""Fit: interruptions change nothing, the schedule is timm's, and what can go wrong is said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from guie_core import GuieError, Interrupted
from guie_core.interrupt import Stop
from guie_train.fitting import Fit, Resident, Training

SAM = {"type": "SAM", "rho": 0.05, "base": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1}}


class Model(nn.Module):
    """Dropout and batch statistics, so that an interruption has something to spoil."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 4))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(features), labels)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 6, generator=generator), torch.randint(0, 4, (50,), generator=generator)


def fit(folder: Path, **changes: object) -> Fit:
    folder.mkdir(exist_ok=True)
    training = Training(**{"epochs": 6, "batch_size": 16, "optimizer": SAM, **changes})  # type: ignore[arg-type]
    return Fit(Model(), Resident(*data()), training, seed=5, folder=folder, name="head")


@pytest.mark.parametrize("optimizer", [SAM, {"type": "AdamW", "lr": 1e-2}])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7, 16])
def test_an_interrupted_fit_ends_with_the_same_bits(
    tmp_path: Path, steps: int, optimizer: object, stop_after: Callable[[int], Stop]
) -> None:
    whole = fit(tmp_path / "whole", optimizer=optimizer)
    curves = whole.run(Stop())

    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", optimizer=optimizer).run(stop_after(steps))
    torch.manual_seed(99)  # another process has another generator state
    rest = fit(tmp_path / "parts", optimizer=optimizer)
    assert (rest.epoch, rest.step) == divmod(steps + 1, 3) or rest.step == 3
    assert rest.run(Stop()) == curves
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name


def test_a_fit_interrupted_at_every_step_ends_with_the_same_bits(
    tmp_path: Path, stop_after: Callable[[int], Stop]
) -> None:
    whole = fit(tmp_path / "whole")
    whole.run(Stop())
    for _ in range(18):
        with pytest.raises(Interrupted):
            fit(tmp_path / "parts").run(stop_after(0))
    rest = fit(tmp_path / "parts")
    rest.run(Stop())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name


def test_the_seed_decides(tmp_path: Path) -> None:
    one, other = fit(tmp_path / "one"), fit(tmp_path / "other")
    other.seed = 6
    assert one.run(Stop()) != other.run(Stop())


def test_learning_rates_are_those_of_the_recipe(tmp_path: Path) -> None:
    """Point 7: 1e-6, 3.334e-3, 6.667e-3, 1e-2 and then the cosine, down to 1.39e-6 in the last of 1000 epochs."""
    fitted = fit(tmp_path, epochs=1000)
    lr = []
    for fitted.epoch in range(1000):  # the schedule alone, without the steps
        fitted._begin_epoch()
        lr.append(fitted.optimizer.param_groups[0]["lr"])
    assert lr[:4] == pytest.approx([1e-6, 3.334e-3, 6.667e-3, 1e-2], rel=1e-3)
    assert lr[649] == pytest.approx(2.787e-3, rel=1e-3)
    assert lr[999] == pytest.approx(1.39e-6, rel=1e-2)


def test_without_warm_up_the_first_epoch_has_the_full_rate(tmp_path: Path) -> None:
    curves = fit(tmp_path, warmup_epochs=0).run(Stop())
    assert curves[0]["lr"] == 1e-2


def test_one_epoch_against_a_loop_written_out(tmp_path: Path) -> None:
    """The same batches, clipped and stepped by torch alone."""
    fitted = fit(tmp_path, optimizer={"type": "AdamW", "lr": 1e-2}, epochs=1, warmup_epochs=0, max_norm=0.05)
    fitted.model.net[1].p = 0.0
    model = Model()
    model.net[1].p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    features, labels = data()
    for rows in fitted._rows():
        optimizer.zero_grad()
        model(features[rows], labels[rows]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    fitted.run(Stop())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, fitted.model.state_dict()[name])


def test_scaled_clipping_has_the_limits_of_a_real_scaler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: Callable[[int], Stop]
) -> None:
    """Point 6: .0153, then .0076 after 1,000 of the original's 1,438 steps, anew each epoch; also after a stop."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer, scaler = torch.optim.SGD([weight]), torch.amp.GradScaler("cpu")
    wanted = []
    for _ in range(2 * 1438):  # two passes a step
        scaler.scale(weight.sum()).backward()
        wanted.append(1000 / scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    assert wanted[0] == pytest.approx(0.0153, abs=5e-5)
    assert wanted[2000] == pytest.approx(0.0076, abs=5e-5)

    limits: list[float] = []
    clip = nn.utils.clip_grad_norm_

    def recorded(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        limits.append(max_norm)
        return clip(parameters, max_norm)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", recorded)
    monkeypatch.setattr(sys.modules[__name__], "data", lambda: (torch.randn(2 * 1438, 6), torch.arange(2 * 1438) % 4))
    settings = {"batch_size": 2, "epochs": 2, "clip": "scaled"}
    with pytest.raises(Interrupted):
        fit(tmp_path, **settings).run(stop_after(1234))
    fit(tmp_path, **settings).run(Stop())
    assert limits == wanted * 2


def test_scaled_clipping_steps_as_a_loop_with_a_real_scaler(tmp_path: Path) -> None:
    fitted = fit(tmp_path, optimizer={"type": "AdamW", "lr": 1e-2}, epochs=1, warmup_epochs=0, clip="scaled")
    fitted.model.net[1].p = 0.0
    model = Model()
    model.net[1].p = 0.0
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.amp.GradScaler("cpu")
    features, labels = data()
    for rows in fitted._rows():
        optimizer.zero_grad()
        scaler.scale(model(features[rows], labels[rows])).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1000.0)  # of the scaled gradients
        assert norm > 1000
        scaler.step(optimizer)
        scaler.update()
    fitted.run(Stop())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, fitted.model.state_dict()[name])


def test_every_image_is_used_once_an_epoch(tmp_path: Path) -> None:
    rows = fit(tmp_path)._rows().flatten()
    assert len(rows) == 48  # of 50: the incomplete batch is dropped
    assert len(rows.unique()) == 48


def test_fewer_images_than_a_batch(tmp_path: Path) -> None:
    with pytest.raises(GuieError, match="50 training images do not fill one batch of 64"):
        fit(tmp_path, batch_size=64)


def test_a_loss_that_is_not_finite_keeps_the_state_before_it(tmp_path: Path) -> None:
    fitted = fit(tmp_path)
    fitted.save()
    assert isinstance(fitted.examples, Resident)
    fitted.examples.features[0] = float("nan")
    with pytest.raises(GuieError, match="loss of epoch 1 is nan"):
        fitted.run(Stop())
    assert fit(tmp_path).epoch == 0


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"junk")
    with pytest.raises(GuieError, match=r"state\.pt cannot be read.*delete it"):
        fit(tmp_path)


def test_checkpoints_are_kept_every_so_many_epochs(tmp_path: Path) -> None:
    fit(tmp_path, keep_every=2).run(Stop())
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == [
        f"epoch-{epoch:04d}.safetensors" for epoch in (2, 4, 6)
    ]


def test_a_full_disk_is_told_as_that(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(GuieError, match=r"state\.pt could not be written"):
        fit(tmp_path).save()
