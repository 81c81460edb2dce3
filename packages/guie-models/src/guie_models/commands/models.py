"""``guie models``: trained models that others have published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


@click.group()
def models() -> None:
    """Read models that others have trained."""


@models.command("import")
@click.option("--head", type=click.Path(path_type=Path), metavar="FILE", help="The checkpoint that holds the head.")
@click.option(
    "--classifier", type=click.Path(path_type=Path), metavar="FILE", help="The one that holds the classifier."
)
@click.option(
    "--map-head",
    multiple=True,
    metavar="FROM=TO",
    help="Where FILE keeps the head, such as state_dict.fc.=linear. May be repeated.",
)
@click.option("--map-classifier", multiple=True, metavar="FROM=TO", help="Likewise of the classifier.")
@click.option(
    "--backbone",
    default="open_clip/ViT-H-14/laion2b_s32b_b79k",
    show_default=True,
    metavar="NAME",
    help="What gives the features that the head was trained on.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Settings of backbone, view, head or classifier, such as backbone.weights=file:ViT-H-14.safetensors.",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Write the embedder here.")
def import_(
    head: Path | None,
    classifier: Path | None,
    map_head: tuple[str, ...],
    map_classifier: tuple[str, ...],
    backbone: str,
    overrides: tuple[str, ...],
    output: Path | None,
) -> None:
    """Read a head and a classifier from checkpoints, and say what is in them.

    Nothing in a checkpoint is executed. The files that the 5th place published are known; of others say what is where
    (--map-head) and what it is (--set head.type=Linear). With --output the embedder of backbone, head and classifier
    is written as embedder.safetensors with its model card, which guie_models.load() reads back. It sees images as the
    5th place's validation did, unless --set view.type=CenterCrop or the like says otherwise.

    \b
    guie models import --head model.pth --map-head state_dict.fc.=linear. --set head.type=Linear \\
      --backbone timm/resnet50 --set backbone.weights=file:model.pth --set view.type=CenterCrop --output model
    """
    from guie_core import UsageError
    from guie_core.wording import shown

    if head is None and classifier is None:
        raise UsageError("name the checkpoint of a head (--head FILE), of a classifier (--classifier FILE), or both.")
    if output is not None and head is None:
        raise UsageError("an embedder needs a head: --head FILE.")
    from guie_models.importing import fifth_place_embedder, import_part

    settings = _settings(backbone, overrides)
    parts: dict[str, Any] = {}
    categories: tuple[str, ...] = ()
    for part, path, pairs in (("head", head, map_head), ("classifier", classifier, map_classifier)):
        if path is not None:
            config = settings[part] or None
            if pairs and "type" not in settings[part]:
                raise UsageError(
                    f"--map-{part} needs to be told what the {part} is: --set {part}.type=Linear, or another of "
                    "guie plugins list --kind heads"
                )
            found = import_part(path, part, mapping=_mapping(pairs, part), config=config)  # type: ignore[arg-type]
            parts[part], categories = found.module, found.categories or categories
            click.echo(f"{shown(path)}: " + "\n  ".join(found.found))
    if output is None:
        return
    from guie_core import build
    from guie_models.exporters import Safetensors

    if "classifier" in parts and not categories:
        click.echo("What the classifier's outputs mean is not known of its layout, so no category gets a padded view.")
    built = build("backbones", settings["backbone"], where="backbone")
    embedder = fifth_place_embedder(built, parts["head"], parts.get("classifier"), categories, settings["view"])
    click.echo(f"view: {embedder.view}")
    about = "Head and classifier were imported: see their publishers for licence and training data."
    click.echo(str(Safetensors(categories, about).export(embedder, output, _test_images())))
    click.echo(f"model: {shown(output / 'embedder.safetensors')}")


def _settings(backbone: str, overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    from guie_core import ExperimentError, Problem
    from guie_core.experiment import apply_override

    values: dict[str, dict[str, Any]] = {"backbone": {"type": backbone}, "view": {}, "head": {}, "classifier": {}}
    problems: list[Problem] = []
    for override in overrides:
        apply_override(values, override, problems, tuple(values))
    if problems:
        raise ExperimentError(problems)
    return values


def _mapping(pairs: Sequence[str], part: str) -> dict[str, str] | None:
    from guie_core import UsageError

    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--map-{part} {pair!r} is not of the form FROM=TO; for example --map-{part} fc.=linear.")
    return dict(tuple(pair.split("=", 1)) for pair in pairs) or None  # type: ignore[misc]


def _test_images() -> list[Any]:
    """What the written file is compared on: colour gradients of every shape that augmentation tells apart."""
    import torch

    images = []
    for height, width in ((320, 320), (240, 400), (400, 240), (97, 300), (224, 224), (64, 80)):
        rows, columns = torch.meshgrid(torch.linspace(0, 255, height), torch.linspace(0, 255, width), indexing="ij")
        images.append(torch.stack([rows, columns, (rows + columns) / 2]).round().to(torch.uint8))
    return images
