"""The 5th place in Google Universal Image Embedding 2022, from its five data sets to a submission.

TO DO
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
