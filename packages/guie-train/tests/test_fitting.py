"""Fit: interruptions change nothing, the schedule is timm's, and what can go wrong is said."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from guie_core import GuieError, Interrupted
from guie_core.interrupt import Stop
from guie_train.fitting import Fit, LossScale, Resident, Training

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
    for rows in fitted.rows():
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
    update = LossScale.update

    def noted(scale: LossScale, finite: object) -> None:
        limits.append(1000 / float(scale.value))
        update(scale, finite)  # type: ignore[arg-type]

    monkeypatch.setattr(LossScale, "update", noted)
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
    for rows in fitted.rows():
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
    rows = fit(tmp_path).rows().flatten()
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
    before = {name: value.clone() for name, value in fitted.model.state_dict().items()}
    with pytest.raises(GuieError, match="the loss is not finite in epoch 1"):
        fitted.run(Stop())
    again = fit(tmp_path)
    assert (again.epoch, again.step) == (0, 0)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("optimizer", [SAM, {"type": "AdamW", "lr": 1e-2}])
@pytest.mark.parametrize("look", [1, 2, 64])
def test_which_batch_was_not_finite_is_told_exactly(tmp_path: Path, look: int, optimizer: object) -> None:
    """Also where losses are looked at now and then, as on a GPU."""
    fitted = fit(tmp_path, optimizer=optimizer, warmup_epochs=0)
    fitted._look = look
    fitted.example = "image {}".format
    fitted.epoch = 1
    rows = fitted.rows()
    fitted.epoch = 0
    assert isinstance(fitted.examples, Resident)
    features = fitted.examples.features

    def spoil(epoch: int) -> dict[str, float]:
        fitted.save()
        features[rows[1][[3, 7]], 2] = float("inf")
        return {}

    with pytest.raises(GuieError) as told:
        fitted.run(Stop(), spoil)
    first, second, third = str(told.value).splitlines()
    assert re.fullmatch(
        r"head: the loss is not finite in epoch 2, batch 2 of 3; the learning rate is 0\.00933, the norm of the "
        r"gradients was \d\.\d+ in the batch before\.",
        first,
    )
    bad = ", ".join(f"image {row}" for row in rows[1][[3, 7]].tolist())
    assert second == f"2 of its 16 examples have values that are not finite: {bad}."
    assert third == f"The state that was saved last is kept in {tmp_path}. Mend those, or leave them out."
    again = fit(tmp_path, optimizer=optimizer, warmup_epochs=0)
    assert again.epoch == 1
    assert all(bool(value.isfinite().all()) for value in again.model.state_dict().values())


def test_a_loss_that_diverges_names_its_images(tmp_path: Path) -> None:
    class Diverging(Model):
        def forward(self, features: Tensor, labels: Tensor) -> Tensor:
            return super().forward(features, labels) * float("nan")

    training = Training(epochs=1, batch_size=16, optimizer=SAM)
    fitted = Fit(Diverging(), Resident(*data()), training, seed=5, folder=tmp_path, name="head")
    names = ", ".join(f"row {row}" for row in fitted.rows()[0][:5].tolist())
    with pytest.raises(GuieError) as told:
        fitted.run(Stop())
    first, second, third = str(told.value).splitlines()
    assert first == "head: the loss is not finite in epoch 1, batch 1 of 3; the learning rate is 1e-06."
    assert second == f"Its 16 examples: {names} and 11 more."
    assert third.startswith(f"No state was saved in {tmp_path}. Lower the learning rate")


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"junk")
    with pytest.raises(GuieError, match=r"state\.pt cannot be read.*delete it"):
        fit(tmp_path)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_a_state_for_which_memory_is_too_small_is_not_said_to_be_damaged(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever deletes it loses the training."""
    fit(tmp_path).save()

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(type(error)):
        fit(tmp_path)


def test_checkpoints_are_kept_every_so_many_epochs(tmp_path: Path) -> None:
    fit(tmp_path, keep_every=2).run(Stop())
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == [
        f"epoch-{epoch:04d}.safetensors" for epoch in (2, 4, 6)
    ]


def test_a_full_disk_is_told_as_that(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(GuieError, match=r"state\.pt could not be written"):
        fit(tmp_path).save()


def test_parts_of_epochs_make_one_pass_over_the_images(tmp_path: Path) -> None:
    fitted = fit(tmp_path, epochs=9, epoch_parts=3)
    assert fitted.steps == 1
    passes = []
    for fitted.epoch in range(9):
        passes.append(fitted.rows())
    whole = fit(tmp_path / "whole", epochs=3)
    for whole.epoch in range(3):
        assert torch.equal(torch.cat(passes[3 * whole.epoch : 3 * whole.epoch + 3]), whole.rows())
    assert not torch.equal(passes[0], passes[3])


def test_parts_that_have_no_batch_are_refused(tmp_path: Path) -> None:
    text = "50 training images do not fill one batch of 16 in each of 4 parts; lower batch_size or epoch_parts"
    with pytest.raises(GuieError, match=text):
        fit(tmp_path, epoch_parts=4)


def test_parts_of_epochs_are_resumed(tmp_path: Path, stop_after: Callable[[int], Stop]) -> None:
    settings = {"epochs": 5, "epoch_parts": 2, "batch_size": 6, "lr_per": "step"}
    whole = fit(tmp_path / "whole", **settings)
    curves = whole.run(Stop())
    for _ in range(3):
        with pytest.raises(Interrupted):
            fit(tmp_path / "parts", **settings).run(stop_after(4))
    assert fit(tmp_path / "parts", **settings).run(Stop()) == curves


def rates(fitted: Fit, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The rate of every group in every step."""
    seen: list[list[float]] = []
    take = fitted.train_step.take

    def noted(*batch: object) -> Tensor:
        seen.append([group["lr"] for group in fitted.optimizer.param_groups])
        return take(*batch)  # type: ignore[arg-type]

    monkeypatch.setattr(fitted.train_step, "take", noted)
    fitted.run(Stop())
    return seen


def test_rates_of_unifex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against pytorch_warmup's LinearWarmup over torch's cosine, by the step, as its code has them: in the first epoch
    guie's rate is lower, by no more than one of the epoch's equal steps; from there on it is the same."""
    adam = {"type": "Adam", "lr": 2e-2, "weight_decay": 1e-4}
    unifex = {"epochs": 10, "optimizer": adam, "warmup_epochs": 1, "warmup_prefix": False, "batch_size": 2}
    fitted = fit(tmp_path, **unifex, lr_min=1e-3, warmup_lr=0.0, lr_per="step")
    found = np.array([rate for (rate,) in rates(fitted, monkeypatch)])
    warmup = fitted.steps
    assert (warmup, len(found)) == (25, 250)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=2e-2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=250, eta_min=1e-3)
    theirs = []
    for step in range(250):
        theirs.append(cosine.get_last_lr()[0] * min(1.0, (step + 1) / warmup))
        optimizer.step()
        cosine.step()
    np.testing.assert_allclose(found[warmup:], theirs[warmup:], rtol=1e-6)
    behind = theirs[:warmup] - found[:warmup]
    assert behind.min() >= -1e-12
    assert behind.max() <= 2e-2 / warmup


def test_rates_of_the_3rd_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 parts of an epoch up, then 7 % less from one to the next."""
    adam = {"type": "Adam", "lr": 4e-3}
    third = {"epochs": 200, "epoch_parts": 3, "optimizer": adam, "warmup_epochs": 100, "warmup_lr": 1e-6, "decay": 0.93}
    found = [rate for (rate,) in rates(fit(tmp_path, **third), monkeypatch)]
    up = [1e-6 + (4e-3 - 1e-6) * epoch / 100 for epoch in range(100)]
    down = [4e-3 * 0.93**epoch for epoch in range(100)]
    assert found == pytest.approx(up + down)


def test_a_group_of_its_own_rate_follows_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    groups = [{"params": [model.net[2].weight]}, {"params": [model.net[2].bias], "lr_scale": 0.01}]
    training = Training(epochs=6, batch_size=16, optimizer=SAM, warmup_epochs=2)
    fitted = Fit(model, Resident(*data()), training, seed=5, folder=tmp_path, name="head", parameters=groups)
    found = rates(fitted, monkeypatch)
    assert len({rate for rate, _ in found}) == 5
    assert [other for _, other in found] == pytest.approx([rate * 0.01 for rate, _ in found])


def test_a_state_is_saved_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in a long epoch doesn't cost all of it."""
    whole = fit(tmp_path / "whole")
    whole.run(Stop())
    killed = fit(tmp_path / "killed")
    killed.save_seconds = 0.0
    take = killed.train_step.take

    def kill(*batch: object) -> Tensor:
        if (killed.epoch, killed.step) == (2, 2):
            raise KeyboardInterrupt
        return take(*batch)  # type: ignore[arg-type]

    monkeypatch.setattr(killed.train_step, "take", kill)
    with pytest.raises(KeyboardInterrupt):
        killed.run(Stop())
    rest = fit(tmp_path / "killed")
    assert (rest.epoch, rest.step) == (2, 2)
    rest.run(Stop())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name


class Overflowing(Model):
    """Gradients that overflow where they are multiplied by more than 2^`most`, as float16's would."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = 2.0**most
        self.scales: list[float] = []

    def gradients(self, model: object, inputs: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        loss: Tensor = self(inputs, labels)
        (loss * scale).backward()
        self.scales.append(float(scale))
        if scale > self.most:
            self.net[2].weight.grad[0, 0] = float("inf")
        return loss.detach()


def scaled_fit(folder: Path, most: int, optimizer: object, **changes: object) -> tuple[Overflowing, Fit]:
    folder.mkdir(exist_ok=True)
    settings = {"epochs": 6, "batch_size": 16, "optimizer": optimizer, "warmup_epochs": 0, **changes}
    model = Overflowing(most)
    training = Training(**settings)  # type: ignore[arg-type]
    return model, Fit(
        model,
        Resident(*data()),
        training,
        seed=5,
        folder=folder,
        name="tune",
        backward=model.gradients,
        float16=True,
    )


def test_a_loss_scale_moves_as_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against `torch.amp.GradScaler`, through overflows and growth."""
    monkeypatch.setattr(LossScale, "interval", 5)
    weight = nn.Parameter(torch.zeros(1))
    optimizer, scaler = torch.optim.SGD([weight]), torch.amp.GradScaler("cpu", growth_interval=5)
    ours = LossScale(torch.device("cpu"))
    for step in range(60):
        finite = step not in (0, 1, 9, 17, 22, 23)
        assert float(ours.value) == scaler.get_scale()
        weight.grad = torch.full((1,), 1.0 if finite else float("inf"))
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
        ours.update(torch.tensor(finite))
        if step == 20:
            resumed = LossScale(torch.device("cpu"))
            resumed.load_state_dict(ours.state_dict())
            ours = resumed


@pytest.mark.parametrize("optimizer", [SAM, {"type": "AdamW", "lr": 1e-2}])
def test_steps_that_overflow_are_left_out(tmp_path: Path, optimizer: object, stop_after: Callable[[int], Stop]) -> None:
    model, fitted = scaled_fit(tmp_path, 13, optimizer)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for steps, same in ((2, True), (0, False)):  # three that overflow, and one that doesn't
        with pytest.raises(Interrupted):
            fitted.run(stop_after(steps))
        for name, value in model.named_parameters():
            assert torch.equal(value, before[name]) == same, name
    assert model.scales[:4] == [2.0**16, 2.0**15, 2.0**14, 2.0**13]
    assert fitted.run(Stop())[-1]["skipped steps"] == 3
    assert set(model.scales[4:]) == {2.0**13}
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("optimizer", [SAM, {"type": "AdamW", "lr": 1e-2}])
@pytest.mark.parametrize("epochs", [40, 6, 1])
def test_a_training_that_makes_no_step_is_an_error(tmp_path: Path, optimizer: object, epochs: int) -> None:
    """However small the scale: it is below 1 after 17 steps, of which an epoch has three, or there are no more."""
    model, fitted = scaled_fit(tmp_path, -1000, optimizer, epochs=epochs)
    before = {name: value.clone() for name, value in model.named_parameters()}
    epoch = min(epochs, 6)
    with pytest.raises(GuieError) as told:
        fitted.run(Stop())
    first, second = str(told.value).splitlines()
    assert first.startswith(f"tune: none of the 3 steps of epoch {epoch} could be made, since their gradients are not")
    assert first.endswith(f"the scale of the loss has come down to {2.0 ** (16 - 3 * epoch):.3g}.")
    assert second.endswith("Compute in float32, or lower the learning rate.")
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_gradients_that_are_never_finite_are_an_error_in_float32_as_well(tmp_path: Path) -> None:
    model = Overflowing(-1)  # at a scale of 1, which float32 has
    training = Training(epochs=6, batch_size=16, optimizer=SAM)
    fitted = Fit(model, Resident(*data()), training, seed=5, folder=tmp_path, name="tune", backward=model.gradients)
    with pytest.raises(GuieError, match=r"none of the 3 steps of epoch 1 could be made.*\n.* Lower the learning rate"):
        fitted.run(Stop())


def test_steps_that_nobody_looks_at_are_left_out_as_well(tmp_path: Path) -> None:
    """On a GPU the fused optimiser leaves them out. Here, the same on the CPU."""
    fused = {"type": "AdamW", "lr": 1e-2, "fused": True}
    (model, looking), (other, blind) = (scaled_fit(tmp_path / name, 13, fused) for name in ("looking", "blind"))
    blind.train_step._unseen = True
    curves = looking.run(Stop())
    assert curves[-1]["skipped steps"] == 3
    assert blind.run(Stop()) == curves
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", [SAM, {"type": "AdamW", "lr": 1e-2}, {"type": "SGD", "lr": 1e-2}])
@pytest.mark.parametrize("clip", ["true", "scaled"])
@pytest.mark.parametrize("float16", [False, True])
def test_a_gpu_is_not_waited_for(tmp_path: Path, optimizer: dict[str, Any], clip: Any, float16: bool) -> None:
    """Within a step; but where a step may have to be left out, and the optimiser can't do so by itself."""
    device = torch.device("cuda")
    training = Training(epochs=1, batch_size=4, optimizer=optimizer, clip=clip, ema_decay=0.9)
    features, labels = (tensor.to(device) for tensor in data())
    examples = Resident(torch.cat([features, -features]), labels)  # of two views
    model = Model().to(device)
    fitted = Fit(model, examples, training, seed=5, folder=tmp_path, name="head", float16=float16)
    fitted._begin_epoch()
    batches = fitted.examples.batches(0, fitted.rows())
    waits = optimizer["type"] == "SGD" and float16
    try:
        for number, batch in enumerate(batches):
            fitted._step(*batch)
            if number == 3:  # what is made in the first steps is there
                torch.cuda.set_sync_debug_mode("default" if waits else "error")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", [SAM, {"type": "AdamW", "lr": 1e-2}])
@pytest.mark.parametrize("clip", ["true", "scaled"])
def test_a_scale_changes_nothing_but_rounding(tmp_path: Path, clip: str, optimizer: object) -> None:
    """Powers of two don't even round."""
    model, fitted = scaled_fit(tmp_path / "scaled", 20, optimizer, clip=clip)
    plain = fit(tmp_path / "plain", optimizer=optimizer, warmup_epochs=0, clip=clip)
    assert fitted.run(Stop()) == plain.run(Stop())
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("optimizer", [SAM, {"type": "AdamW", "lr": 1e-2}])
def test_a_scaled_fit_interrupted_at_every_step_ends_with_the_same_bits(
    tmp_path: Path, optimizer: object, stop_after: Callable[[int], Stop]
) -> None:
    model, whole = scaled_fit(tmp_path / "whole", 14, optimizer, ema_decay=0.7)
    curves = whole.run(Stop())
    assert curves[-1]["skipped steps"] == 2
    for _ in range(18):
        with pytest.raises(Interrupted):
            scaled_fit(tmp_path / "parts", 14, optimizer, ema_decay=0.7)[1].run(stop_after(0))
    rest, fitted = scaled_fit(tmp_path / "parts", 14, optimizer, ema_decay=0.7)
    assert fitted.run(Stop()) == curves
    for name, value in model.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name
    for name, value in whole.evaluated.state_dict().items():
        assert torch.equal(value, fitted.evaluated.state_dict()[name]), name


def test_the_average_is_the_formula_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """d * average + (1 - d) * weights in float64, from the first step's weights on; running statistics as they are."""
    plain, averaged = fit(tmp_path / "plain"), fit(tmp_path / "averaged", ema_decay=0.8)
    take, seen = averaged.train_step.take, []

    def noted(*batch: Tensor) -> Tensor:
        loss = take(*batch)
        seen.append({name: value.detach().double().clone() for name, value in averaged.model.named_parameters()})
        return loss

    monkeypatch.setattr(averaged.train_step, "take", noted)
    evaluated = []

    def after_epoch(epoch: int) -> dict[str, float]:
        assert not averaged.evaluated.training
        evaluated.append(averaged.evaluated.state_dict()["net.2.weight"].clone())
        return {}

    assert averaged.run(Stop(), after_epoch) == plain.run(Stop())  # training itself doesn't know of it
    wanted = seen[0]
    for number, weights in enumerate(seen[1:], 2):
        wanted = {name: 0.8 * wanted[name] + 0.2 * weights[name] for name in wanted}
        if number % 3 == 0:
            torch.testing.assert_close(evaluated[number // 3 - 1].double(), wanted["net.2.weight"])
    averaged.write_checkpoint("last")
    saved = load_file(tmp_path / "averaged" / "last.safetensors")
    for name, value in wanted.items():
        torch.testing.assert_close(saved[name].double(), value)
        assert not torch.equal(saved[name], averaged.model.state_dict()[name])
    for name, value in averaged.model.named_buffers():
        assert torch.equal(saved[name], value)


def test_a_fit_ends_when_its_curves_are_enough(tmp_path: Path, stop_after: Callable[[int], Stop]) -> None:
    def enough(curves: list[dict[str, float]]) -> bool:
        return len(curves) == 4

    whole = fit(tmp_path / "whole")
    curves = whole.run(Stop(), enough=enough)
    assert len(curves) == 4
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts").run(stop_after(10), enough=enough)
    assert fit(tmp_path / "parts").run(Stop(), enough=enough) == curves
    assert fit(tmp_path / "parts").run(Stop(), enough=enough) == curves  # nothing is left to do


def test_each_epoch_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    fitted = fit(tmp_path)
    fitted.on_epoch = lambda curves: told.append(len(curves))
    fitted.run(Stop())
    assert told == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"optimizer": {"type": "AdamW", "lr": 1e-7}}, "lr_min"),
        ({"optimizer": {"type": "SAM", "base": {"type": "AdamW", "lr": 1e-7}}, "lr_min": 0.0}, "warmup_lr"),
    ],
)
def test_rates_that_would_rise_to_their_end_are_refused(settings: dict[str, Any], name: str) -> None:
    """A backbone's rate is often below the default of the last one."""
    text = f"{name} is 1e-06, above the optimizer's own lr, 1e-07; lower it, such as to 1e-08"
    with pytest.raises(ValueError, match=text):
        Training(epochs=2, batch_size=1, **settings)
    Training(epochs=2, batch_size=1, **settings, **{name: 1e-8}, warmup_epochs=0)
    Training(epochs=2, batch_size=1, **settings, decay=0.9, warmup_epochs=0)  # neither is used


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_decays_that_cannot_be_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="ema_decay is"):
        Training(epochs=1, batch_size=1, optimizer=SAM, ema_decay=decay)


def by_the_recipe(fused: bool) -> dict[str, Tensor]:
    """What four epochs of `fit` end with, step by step: with torch's fused AdamW and the ascent in one operation, as
    guie takes them on the CPU, or with its plain AdamW and the formula as it is written."""

    def seed(*parts: int) -> int:
        return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)

    model, (features, labels) = Model(), data()
    parameters = list(model.parameters())
    adamw = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, fused=fused)
    schedule = CosineLRScheduler(
        adamw, t_initial=4, lr_min=1e-6, warmup_t=3, warmup_lr_init=1e-6, warmup_prefix=True
    )  # point 7
    for epoch in range(4):
        torch.manual_seed(seed(5, epoch, 1))
        schedule.step(epoch)
        order = torch.randperm(50, generator=torch.Generator().manual_seed(seed(5, epoch, 0)))
        for rows in order[:48].split(16):
            weights = [parameter.detach().clone() for parameter in parameters]
            adamw.zero_grad()
            model(features[rows], labels[rows]).backward()
            with torch.no_grad():
                gradients = [parameter.grad for parameter in parameters]
                length = 0.05 / (torch.stack([gradient.norm() for gradient in gradients]).norm() + 1e-12)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if fused:
                        parameter.addcmul_(gradient, length)
                    else:
                        parameter += gradient * length
            adamw.zero_grad()
            model(features[rows], labels[rows]).backward()
            with torch.no_grad():
                for parameter, weight in zip(parameters, weights, strict=True):
                    parameter.copy_(weight)
            adamw.step()
    return model.state_dict()


def test_the_recipe_s_steps_are_these_to_the_bit(tmp_path: Path) -> None:
    """What `Training` has besides (averages, scales, limits that aren't reached) leaves the 5th place as it is."""
    fitted = fit(tmp_path, epochs=4)
    fitted.run(Stop())
    found = fitted.model.state_dict()
    for name, value in by_the_recipe(fused=True).items():
        assert torch.equal(value, found[name]), name
    torch.testing.assert_close(dict(found), dict(by_the_recipe(fused=False)))


def test_memory_is_kept_while_steps_are_taken_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an evaluation between epochs takes goes back to the system."""
    kept = False
    seen: list[tuple[str, bool]] = []

    @contextmanager
    def keeping() -> Iterator[None]:
        nonlocal kept
        kept = True
        try:
            yield
        finally:
            kept = False

    monkeypatch.setattr("guie_train.fitting.fit.caching_allocator", keeping)
    fitted = fit(tmp_path, epochs=1)
    fitted.model.register_forward_pre_hook(lambda *_: seen.append(("step", kept)))

    def after_epoch(epoch: int) -> dict[str, float]:
        seen.append(("evaluation", kept))
        return {}

    fitted.run(Stop(), after_epoch)
    assert set(seen) == {("step", True), ("evaluation", False)}
    assert not kept
