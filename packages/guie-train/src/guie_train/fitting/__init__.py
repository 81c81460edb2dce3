"""Training: its settings, what it learns from, and the loop."""

from guie_train.fitting.examples import Examples, Resident
from guie_train.fitting.fit import Curve, Fit
from guie_train.fitting.scaling import LossScale
from guie_train.fitting.settings import Training, sampler_of
from guie_train.fitting.state import keep_if_of
from guie_train.fitting.step import Backward, whole_batch

__all__ = [
    "Backward",
    "Curve",
    "Examples",
    "Fit",
    "LossScale",
    "Resident",
    "Training",
    "keep_if_of",
    "sampler_of",
    "whole_batch",
]
