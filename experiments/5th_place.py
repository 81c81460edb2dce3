"""The 5th place in Google Universal Image Embedding 2022, from its five data sets to a submission.

Source: S. Ota, S. Oba et al., arXiv 2210.09495, and the authors' published code; mP@5 .684 public, .688 private. What
is called "point 6" and the like, and all that differs from the original: docs/how-to/reproduce-5th-place.md.

    guie data download products10k glr2021 gpr1200 food101 universal130k
    guie-train experiments/5th_place.py --profile rtx3090-24g        # or v100-32g
    guie submit check runs/5th_place/stages/submission/submission.zip --profile rtx3090-24g

Expected, by `guie-train experiments/5th_place.py --profile rtx3090-24g --dry-run`, which tells what each figure rests
on; nobody has run it at full size with guie yet:

    stage          RTX 3090             V100 32G             the GPU's memory, and whence the time
    features       at least 96 min      at least 3 h 22 min  10.9 GB; the makers' peaks in float32
      in 16 bits   about 48 min         at least 30 min      5.8 GB; 184 images/s as published; the maker's peak
    head           at least 16 min      at least 18 min      1.8 GB; each step a CUDA graph
    classifier     seconds              seconds              538.6 MB
    export         minutes              minutes              8.5 GB of the machine's, on its CPU

Disk: 7.8 GB in all, and 3.9 GB of weights to fetch.

Where guie does other than the original in effect, and what brings its effect back:
    gradients are clipped as they are, not while they are scaled for fp16  --set recipe.arcface.clip=scaled
    after an infinite first pass of SAM the step is left out               --set recipe.arcface.optimizer.infinite=stale
    images are decoded by libjpeg-turbo                                    --set recipe.features.decode=tensorflow
"""

from mmengine.config import read_base

with read_base():
    from ._base_.fifth_place import recipe

recipe.update(
    # point 1: in this order, since labels and splits depend on it
    data=[
        dict(type="products10k"),  # all 9,691 classes
        dict(type="glr2021", drop_classes=2000, seed=0),  # 5,000 of 7,000 landmarks
        dict(type="gpr1200", without=("iNat",)),  # 1,000 of 1,200 classes
        dict(type="food101", max_images=30, seed=0),  # all 101 dishes
    ],
    # point 1: no step of the original looks for repeated images
    keep_duplicates=True,
    # point 9
    classifier=dict(data=[dict(type="universal130k")]),
    # point 3
    features=dict(dtype="float32"),
    # point 10: for the contest
    exports=[dict(type="TorchScript")],
    submission=True,
)
profile = "auto"
