"""schedule_of: nothing is said of it that isn't so."""

from __future__ import annotations

import logging

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from guie_train.fitting import Training
from guie_train.fitting.schedule import schedule_of


def test_one_epoch_has_a_cosine_of_which_timm_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    training = Training(
        epochs=1, batch_size=4, optimizer={"type": "AdamW"}, lr_min=1e-4, warmup_epochs=0, lr_per="step"
    )
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-2)
    with caplog.at_level(logging.WARNING):
        schedule = schedule_of(training, optimizer)
        assert not caplog.records
        timm_s = CosineLRScheduler(optimizer, t_initial=1, lr_min=1e-4)
        assert len(caplog.records) == 1
    for part in (0.0, 0.25, 0.5, 0.75):
        assert schedule._get_lr(part) == timm_s._get_lr(part)
    assert schedule._get_lr(0.5) == [pytest.approx((1e-2 + 1e-4) / 2)]
