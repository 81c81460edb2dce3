"""Heads: from a backbone's features, and the image's size values, to the embedding.

Shapes: x [B, in_features + size_features] -> [B, out_features]. Every head has these three numbers as attributes;
`size_features` says how many size values (`guie_models.size_values`) the caller appends to the features: 3 or 0. A head
that is simpler without dropout has `folded()`, which gives the simpler one for export. One that can begin with what
training features tell has `start(x, labels)`, which guie-train calls before it trains a head on stored features (not
where a backbone is tuned with a new head). What a constructor takes stands in attributes of the same names, so that
`guie_models.save` can write it down.
"""

from __future__ import annotations

from guie_models.heads.ensembles import MultiSampleDropout, ParallelLinears
from guie_models.heads.gem import GeM
from guie_models.heads.linear import BatchNormLinear, Linear, LinearBatchNormPReLU
from guie_models.heads.mlp import MLP
from guie_models.heads.pca import PCA
from guie_models.heads.whitened import Whitened

__all__ = [
    "MLP",
    "PCA",
    "BatchNormLinear",
    "GeM",
    "Linear",
    "LinearBatchNormPReLU",
    "MultiSampleDropout",
    "ParallelLinears",
    "Whitened",
]
