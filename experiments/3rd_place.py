"""The 3rd place in Google Universal Image Embedding 2022: a head on a frozen ViT-H-14, then all of it at 1e-6.

Source: N. Aoki, Y. Namba, arXiv 2210.09296, and their published notebooks, stage1.ipynb and stage2.ipynb; mP@5 .692
private.

    guie data download glr2021 products10k
    guie-train experiments/3rd_place.py --profile rtx3090-24g        # or v100-32g, a100-80g
    guie submit check runs/3rd_place/stages/submission/submission.zip --profile v100-32g

Expected by `guie-train experiments/3rd_place.py --dry-run --profile ...`, at the makers' peaks, so at least; nobody
has run it at full size with guie yet:

    stage          RTX 3090       V100 32G       A100 80G       memory of the GPU
    features       88 min         3 h 06 min     2 h 25 min     10.9 GB, on the A100 19.3 GB
    head           40 s           47 s           26 s           2.7 GB
    finetune       3 h 34 min     2 h 20 min     36 min         11.6 GB, on the A100 32.1 GB
    export         minutes        minutes        minutes        8.5 GB of the machine's, on its CPU

Disk: 19 GB at the peak, of which 9 GB stay, and 3.9 GB of weights to fetch.

Where guie does other than the original, which ran in TensorFlow on Colab's TPU:
    one class in twenty is set aside to measure every 0.1 epochs by; the original trains on all, and validates on a part
    images are not flipped, nor changed in hue, saturation, contrast or brightness; the frozen stage sees each once
    the dropouts stand in front of the 20 layers; the original's stand behind, and .1 more in front of all
    weights, moments and gradients are float32, and the backbone computes in what suits the GPU; the TPU's were float32
    the frozen stage's last rate is .93^99 of its highest, 3.1e-6; the original's has 5e-7 more
"""

from mmengine.config import read_base

with read_base():
    from ._base_.fifth_place import recipe

recipe.update(
    # both notebooks: all classes of the two sets, the landmarks first
    data=[dict(type="glr2021"), dict(type="products10k")],
    keep_duplicates=True,
    splits=[dict(type="UnseenClasses", folds=20, seed=0)],
    # both: the "pooler output" of the tower, 1,280 features before the projection
    backbone=dict(type="open_clip/ViT-H-14/laion2b_s32b_b79k", output="pooled"),
    # both: tf.image.resize to 224 x 224, in training and in the submission
    views=dict(
        train=dict(type="Squash", interpolation="bilinear", antialias=False),
        valid=dict(type="Squash", interpolation="bilinear", antialias=False),
    ),
    # section 2.2: 20 layers of 64 dimensions, each with its own dropout, averaged
    head=dict(type="ParallelLinears", out_features=64, linears=20, dropout=(0.01, 0.2)),
    # stage1.ipynb: margin .3; three centres a class in both
    loss=dict(type="ArcFace", scale=30.0, margin=0.3, sub_centres=3),
    arcface=dict(
        # 64 on each of the TPU's 8 cores
        batch_size=512,
        # 8e-6 times the batch, reached after 100 parts of an epoch; then 7 % less from one to the next
        optimizer=dict(type="Adam", lr=4.096e-3),
        epochs=200,
        epoch_parts=10,
        warmup_epochs=100,
        warmup_lr=1e-6,
        decay=0.93,
        keep_every=0,
    ),
    # the last checkpoint of each stage
    selection=dict(keep="last", every=10),
    finetune=dict(
        # stage2.ipynb: the whole network goes on from the head of stage 1 and its centres, now with margin .5
        start="head",
        loss=dict(type="ArcFace", scale=30.0, margin=0.5, sub_centres=3),
        training=dict(
            # 8 on each of 8 cores
            batch_size=64,
            # the same for all layers, head and centres, all along
            optimizer=dict(type="Adam", lr=1e-6),
            lr_min=1e-6,
            warmup_epochs=0,
            # section 2.3: one epoch; the notebook would go on to 2.5
            epochs=10,
            epoch_parts=10,
        ),
        every=5,
    ),
    # a single view
    classifier=None,
    augmentation=None,
    exports=[dict(type="TorchScript")],
    submission=True,
)
profile = "auto"
