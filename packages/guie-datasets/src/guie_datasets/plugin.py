"""What guie-datasets offers: the kinds "datasets" and "splits", data sets of general form, and the recipe's splits."""

from __future__ import annotations

from guie_core import Entry, Kind, hookimpl

_UNKNOWN = "LicenseRef-unknown"  # that of the images, which only their owner knows


@hookimpl
def guie_kinds() -> list[Kind]:
    return [
        Kind("datasets", "Collections of labelled images on disk"),
        Kind("splits", "Ways to set images aside for validation, selection and test"),
    ]


@hookimpl
def guie_datasets() -> list[Entry]:
    return [
        Entry(
            "folder",
            "guie_datasets.folders:ClassFolders",
            "Your own images: a folder of class folders",
            licence=_UNKNOWN,
        ),
        Entry(
            "tfrecord", "guie_datasets.shards:TFRecordDataset", "TFRecord shards of images and labels", licence=_UNKNOWN
        ),
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
