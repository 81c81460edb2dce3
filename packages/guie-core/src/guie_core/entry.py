"""What a plugin offers: entries, and the kinds that entries are of."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from .errors import GuieError
from .wording import did_you_mean, listing

_NAME = re.compile(r"[A-Za-z0-9@][A-Za-z0-9@_.+-]*(/[A-Za-z0-9@_.+-]+)*(/\*)?")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_KIND = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Owner:
    """Where an entry comes from."""

    plugin: str  #: name of the entry point
    distribution: str  #: name of the installed package, or the path of a local file
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where data or weights come from, and what their owner allows."""

    url: str  #: the page where they are to be had
    citation: str = ""  #: as their authors want to be named
    size: str = ""  #: for people: "12,000 images, 1.3 GB"
    commercial: bool | None = None  #: whether commercial use is allowed; None: not known, which is no permission

    def __post_init__(self) -> None:
        if not self.url.strip():
            raise ValueError("an origin needs the address of the page where the data are to be had")


@dataclass(frozen=True, slots=True)
class Entry:
    """A component by name, listed without importing what it stands for.

    A name that ends in ``/*`` is a family: ``timm/*`` stands for every ``timm/<rest>``, and the rest goes to the target
    as argument ``name``.

    Raises:
        ValueError: the name, target or summary is malformed. The loader reports it with the plugin's name.
    """

    name: str  #: as experiments write it
    target: str  #: "package.module:attribute", imported when the component is first used
    summary: str  #: one line
    licence: str = ""  #: of data or weights, as an SPDX expression
    origin: Origin | None = None  #: of data or weights; None: they are the user's own
    requires: tuple[str, ...] = ()  #: extras that the target needs, such as "guie-models[onnx]"
    overrides: str = ""  #: "plugin:name" of an entry of the same kind that this one replaces
    kind: str = ""  #: filled by the loader
    owner: Owner | None = None  #: filled by the loader

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"the name {self.name!r} is not valid: letters, digits and @ _ . + - only, and '/*' at the end of a "
                "family"
            )
        if not _TARGET.fullmatch(self.target):
            message = f"the target {self.target!r} of {self.name!r} is not of the form 'package.module:attribute'"
            raise ValueError(message)
        if not self.summary.strip() or "\n" in self.summary:
            raise ValueError(f"the summary of {self.name!r} must be one line of text")
        if isinstance(self.requires, str):
            raise ValueError(f"requires of {self.name!r} must be a tuple of texts, not one text")
        if self.overrides and self.overrides.count(":") != 1:
            raise ValueError(f"overrides of {self.name!r} must be 'plugin:name', not {self.overrides!r}")

    @property
    def family(self) -> str:
        """ "timm/" for the family "timm/*", else ""."""
        return self.name[:-1] if self.name.endswith("/*") else ""

    @property
    def label(self) -> str:
        """The name with its owner, for messages: "BatchNormLinear (guie-models 0.1.0)"."""
        return f"{self.name} ({self.owner})" if self.owner else self.name

    def load(self) -> Any:
        """Import the target.

        Raises:
            GuieError: it cannot be imported; the message names the owner and the extras to install.
        """
        module_name, _, attribute = self.target.partition(":")
        remedy = f"\nInstall what it needs: pip install {' '.join(map(repr, self.requires))}" if self.requires else ""
        try:
            target: Any = importlib.import_module(module_name)
        except Exception as error:
            raise GuieError(
                f"{self.label} could not be imported from {self.target}: {type(error).__name__}: {error}{remedy}"
            ) from error
        for part in attribute.split("."):
            try:
                target = getattr(target, part)
            except AttributeError as error:
                public = [name for name in dir(target) if not name.startswith("_")]
                raise GuieError(
                    f"{self.label} could not be loaded: {module_name} has no {attribute!r}."
                    f"{did_you_mean(part, public) or f' It has {listing(public)}.'}"
                ) from error
            except ImportError as error:  # a lazy attribute
                raise GuieError(f"{self.label} could not be imported from {self.target}: {error}{remedy}") from error
        return target


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of component. Declaring kind ``losses`` makes the hook ``guie_losses``."""

    name: str  #: plural, as in "losses"
    summary: str  #: one line

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.name) or self.name == "kinds":
            raise ValueError(f"{self.name!r} is not a valid name for a kind: lower-case letters, digits and _")
        if not self.summary.strip() or "\n" in self.summary:
            raise ValueError(f"the summary of kind {self.name!r} must be one line of text")

    @property
    def hook(self) -> str:
        return f"guie_{self.name}"
