"""What guie-datasets offers: data sets, filters and splits, those of the 5th-place recipe among them."""

from __future__ import annotations

from guie_core import Entry, Kind, Origin, hookimpl

_UNKNOWN = "LicenseRef-unknown"  # that of the images, which only their owner knows


@hookimpl
def guie_kinds() -> list[Kind]:
    return [
        Kind("datasets", "Collections of labelled images on disk"),
        Kind("filters", "Which images of the data sets are used at all"),
        Kind("splits", "Ways to set images aside for validation, selection and test"),
        Kind("samplers", "Which images training sees in an epoch, and in which batches"),
    ]


@hookimpl
def guie_datasets() -> list[Entry]:
    return [
        Entry(
            "folder",
            "guie_datasets.sets.folders:ClassFolders",
            "Your own images: a folder of class folders",
            licence=_UNKNOWN,
        ),
        Entry(
            "tfrecord",
            "guie_datasets.sets.tfrecords:TFRecordDataset",
            "TFRecord shards of images and labels",
            licence=_UNKNOWN,
        ),
        Entry(
            "table",
            "guie_datasets.sets.tables:Table",
            "A CSV or Parquet table with a path and a label column",
            licence=_UNKNOWN,
        ),
        Entry(
            "webdataset",
            "guie_datasets.sets.webdataset:WebDataset",
            "WebDataset's tar shards of samples",
            licence=_UNKNOWN,
        ),
        Entry(
            "manifest", "guie_datasets.sets.prepared:Prepared", "A manifest that was prepared before", licence=_UNKNOWN
        ),
        Entry(
            "products10k",
            "guie_datasets.sets.products10k:Products10K",
            "Products-10K: things sold online, as the 5th-place recipe's TFRecords",
            licence="LicenseRef-Products-10K",
            origin=Origin(
                "https://www.kaggle.com/datasets/motono0223/guie-products10k-tfrecords-label-1000-10690",
                citation="Bai et al., Products-10K: A Large-scale Product Recognition Dataset, arXiv 2008.10545",
                size="about 141,900 images of 9,691 classes",
                commercial=False,
            ),
        ),
        Entry(
            "glr2021",
            "guie_datasets.sets.glr2021:GLR2021",
            "Google Landmark Recognition 2021 mini, as the 5th-place recipe's TFRecords",
            licence="LicenseRef-GLDv2-each-image-its-own",
            origin=Origin(
                "https://www.kaggle.com/datasets/motono0223/guie-glr2021mini-tfrecords-label-10691-17690",
                citation="Weyand et al., Google Landmarks Dataset v2, CVPR 2020, arXiv 2004.01804",
                size="about 349,000 images of 7,000 classes",
                commercial=None,  # CC licences that differ from image to image, without warranty
            ),
        ),
        Entry(
            "gpr1200",
            "guie_datasets.sets.gpr1200:GPR1200",
            "GPR1200: a retrieval benchmark of six domains; what trains on it can't be evaluated on it",
            licence="LicenseRef-GPR1200-non-commercial-research",
            origin=Origin(
                "https://github.com/Visual-Computing/GPR1200",
                citation="Schall et al., GPR1200: A Benchmark for General-Purpose Content-Based Image Retrieval, "
                "MMM 2022, arXiv 2111.13122",
                size="12,000 images of 1,200 classes",
                commercial=False,
            ),
        ),
        Entry(
            "food101",
            "guie_datasets.sets.food101:Food101",
            "Food-101: photos of dishes",
            licence="LicenseRef-Food-101-scientific-fair-use",
            origin=Origin(
                "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
                citation="Bossard et al., Food-101: Mining Discriminative Components with Random Forests, ECCV 2014",
                size="101,000 images of 101 classes",
                commercial=False,
            ),
        ),
        Entry(
            "universal130k",
            "guie_datasets.sets.universal130k:Universal130k",
            "130k images of eleven kinds, which the recipe's classifier learns from",
            licence=_UNKNOWN,
            origin=Origin(
                "https://www.kaggle.com/datasets/rhtsingh/130k-images-512x512-universal-image-embeddings",
                size="about 130,000 images of 11 classes, 512x512 pixels",
                commercial=None,
            ),
        ),
    ]


@hookimpl
def guie_filters() -> list[Entry]:
    return [
        Entry("MinImages", "guie_datasets.filters:MinImages", "Classes with at least so many images"),
        Entry("MaxImages", "guie_datasets.filters:MaxImages", "At most so many images of each class, by a seed"),
        Entry("DropClasses", "guie_datasets.filters:DropClasses", "All but so many classes, by a seed"),
        Entry("SampleClasses", "guie_datasets.filters:SampleClasses", "So many classes, or a share of them, by a seed"),
        Entry("KeepSources", "guie_datasets.filters:KeepSources", "Images of these sources only"),
        Entry("DropSources", "guie_datasets.filters:DropSources", "Images of all sources but these"),
    ]


@hookimpl
def guie_splits() -> list[Entry]:
    return [
        Entry("HoldOutClasses", "guie_datasets.splits:HoldOutClasses", "Classes chosen at random, set aside whole"),
        Entry("UnseenClasses", "guie_datasets.splits:UnseenClasses", "A fold of the classes, stratified by category"),
        Entry("StratifiedImages", "guie_datasets.splits:StratifiedImages", "A fold of the images of each class"),
    ]


@hookimpl
def guie_commands() -> list[Entry]:
    return [Entry("data", "guie_datasets.commands.data:data", "Fetch, prepare, look at, check and export data sets")]


@hookimpl
def guie_samplers() -> list[Entry]:
    return [
        Entry("Shuffled", "guie_datasets.samplers:Shuffled", "Every image once, in random order"),
        Entry("ClassBalanced", "guie_datasets.samplers:ClassBalanced", "Every class equally often"),
        Entry("MPerClass", "guie_datasets.samplers:MPerClass", "Batches of a few classes with m images each"),
        Entry("RoundRobinSources", "guie_datasets.samplers:RoundRobinSources", "The data sets take turns"),
        Entry("CategoryShares", "guie_datasets.samplers:CategoryShares", "Categories by given shares"),
    ]
