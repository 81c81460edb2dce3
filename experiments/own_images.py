"""Your own images, a folder with one sub-folder a class: trained, measured on classes it has never seen, exported.

Source: experiments/quickstart.py. Command: guie-train experiments/own_images.py --set recipe.data.0.root=~/photos
Most of the time goes into the features, which are computed once. Ten classes and sixty images are enough to begin, and
more classes gain more (docs/how-to/data.md, "How much is enough"). Three in ten classes are kept for the report.
"""

from mmengine.config import read_base

with read_base():
    from .quickstart import recipe

recipe.update(
    data=[dict(type="folder", root="photos")],  # the line to change: any of `guie data list`, or a prepared manifest
    splits=[
        dict(type="HoldOutClasses", classes=0.3, seed=0),  # for the report
        dict(type="UnseenClasses", folds=5, seed=0),  # to choose the checkpoint by
    ],
    backbone=dict(image_size=224),
    views=dict(valid=dict(interpolation="bicubic", antialias=True)),
    # a few classes are soon learnt by heart: the head begins with what their images tell without training, which is
    # better on unseen classes than raw features are, and is trained a little from there (docs/how-to/data.md)
    head=dict(type="Whitened", out_features=512),
    arcface=dict(batch_size=16, epochs=20, optimizer=dict(base=dict(lr=1e-4))),
    selection=dict(every=1),
    # the classifier tells kinds of things apart, such as food and landmarks, which a folder doesn't name
    classifier=None,
    augmentation=None,
    exports=[dict(type="TorchScript"), dict(type="Onnx"), dict(type="Safetensors")],
)
profile = "auto"
