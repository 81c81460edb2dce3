"""UniFEx: a linear head on a frozen SigLIP SO400M, 2nd place level in Google Universal Image Embedding, two years on.

Source: M. Florek et al., arXiv 2409.13513, and its published code, configs/lp_siglip-sovit400m_arcface3_m4d35k.yaml;
mP@5 .721 private.

    guie data download products10k glr2021
    guie-train experiments/unifex.py --profile rtx3090-24g
    guie submit check runs/unifex/stages/submission/submission.zip --profile v100-32g

Expected by `guie-train experiments/unifex.py --dry-run --profile ...`, features at the makers' peaks, so at least;
nobody has run it at full size with guie yet:

    stage          RTX 3090       V100 32G       A100 80G       memory of the GPU
    features       2 h 48 min     6 h 04 min     4 h 47 min     22.4 GB, on the A100 43 GB
      in 16 bits   1 h 41 min                                   12.1 GB; --set recipe.features.compute=profile, at the
                                                                published 81 images/s
    head           37 s           38 s           21 s           2.6 GB; each step a CUDA graph
    export         minutes        minutes        minutes        6.1 GB of the machine's, on its CPU

Disk: 5 GB in all, and 1.7 GB of weights to fetch.

Where guie does other than the original:
    the data: the original's 328 thousand images of 34.8 thousand classes are Products-10K, 10,000 landmarks of GLDv2,
        DeepFashion Consumer-to-Shop and cars by model and colour. Here they are those of these sets that guie knows by
        name; a folder of images or a table is added to `data` as `dict(type="folder", root=...)`
    one class in twenty is set aside to measure every epoch by; the original trains on all and asks the leaderboard
    features are computed once, in float16 on disk, for all epochs: the view has nothing random
    in the first epoch the rate climbs from 0 in equal steps and then follows the cosine; the original's is the cosine
        times (step + 1) / steps, one step ahead at most
"""

from mmengine.config import read_base

with read_base():
    from ._base_.fifth_place import recipe

recipe.update(
    data=[dict(type="products10k"), dict(type="glr2021")],
    keep_duplicates=True,
    splits=[dict(type="UnseenClasses", folds=20, seed=0)],
    # BACKBONE: the 1,152 features of its attention pooling, at 384 px, not normalised
    backbone=dict(type="timm/vit_so400m_patch14_siglip_384.webli"),
    views=dict(
        # TRANSFORM "openai-clip": the centred square in training
        train=dict(type="CenterCrop", interpolation="bicubic", antialias=True),
        # InferenceModel.resize: squashed afterwards
        valid=dict(type="Squash", interpolation="bicubic", antialias=True),
    ),
    # NECK: dropout, then a linear layer
    head=dict(type="Linear", out_features=64, dropout=0.2),
    # HEAD: k = 3 in the configuration and in the name of the published model
    loss=dict(type="ArcFace", scale=30.0, margin=0.5, sub_centres=3),
    arcface=dict(
        # DATALOADER
        batch_size=128,
        # OPTIMIZER: weight decay is Adam's, added to the gradient
        optimizer=dict(type="Adam", lr=2e-2, weight_decay=1e-4),
        # SCHEDULER: a cosine over all steps, damped in those of the first epoch
        epochs=10,
        lr_min=1e-3,
        warmup_epochs=1,
        warmup_lr=0.0,
        warmup_prefix=False,
        lr_per="step",
        # TRAIN: save_epoch
        keep_every=1,
    ),
    # the published model is that of the last epoch
    selection=dict(keep="last", every=1),
    classifier=None,
    augmentation=None,
    exports=[dict(type="TorchScript")],
    submission=True,
)
profile = "auto"
