"""Products-10K as the TFRecord shards of the 5th-place recipe."""

from __future__ import annotations

from typing import ClassVar

from guie_datasets.fetching.download import Download, KaggleArchive
from guie_datasets.places import Place
from guie_datasets.sets._shards import NamedShards

_FOLDER = "guie-products10k-tfrecords-label-1000-10690"


class Products10K(NamedShards):
    """Products-10K: photos of 9,691 things sold online, about 141,900 in 20 TFRecord shards.

    label: 1000..10690, as its author numbers them; others are bad records. source and category: "products10k". Rows
    have the order of the shards' numbers and of the records in them. The recipe keeps all of it.

    root: the folder of the shards, or the one that it lies in; default: the data folder.
    complete: whether a shard that is missing is an error; otherwise those that are there are used.

    Source: Kaggle, motono0223/guie-products10k-tfrecords-label-1000-10690; Bai et al., arXiv 2008.10545.
    """

    downloads: ClassVar[tuple[Download, ...]] = (
        KaggleArchive(f"motono0223/{_FOLDER}", _FOLDER, holds="*products10k-train-*.tfrec", files=20),
    )
    place = Place("products10k", (_FOLDER, "products10k"), "*products10k-train-*.tfrec")
    all_labels = (1000, 10690)
    all_shards = 20
    all_images = 141_900
