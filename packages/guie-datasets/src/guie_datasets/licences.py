"""What the licences of data sets allow. A licence that isn't known here allows nothing."""

from __future__ import annotations

import re

from guie_core import Entry

# of SPDX identifiers; those of the list that data come under
_ALLOWED = re.compile(
    r"CC0-1\.0|CC-PDDC|CC-BY(-SA|-ND)?-\d\.\d.*|PDDL-1\.0|ODC-By-1\.0|ODbL-1\.0|CDLA-(Permissive|Sharing)-\d\.\d|"
    r"MIT(-0)?|Apache-2\.0|BSD-[0-3]-Clause|0BSD|ISC|Zlib|Unlicense|OFL-1\.[01]|OGL-UK-\d\.\d|etalab-2\.0",
    re.IGNORECASE,
)
_NON_COMMERCIAL = re.compile(r"CC-BY-NC-.*|PolyForm-Noncommercial-.*", re.IGNORECASE)
_TOKEN = re.compile(r"\s*([()]|[^\s()]+)")


def is_own(entry: Entry) -> bool:
    """Whether a data set reads images of the user's own: one of guie's general forms."""
    return entry.origin is None and entry.owner is not None and entry.owner.distribution == "guie-datasets"


def commercial(entry: Entry) -> bool | None:
    """Whether commercial use is allowed; None: not known, which is no permission.

    What the origin says counts; without one, what the licence says. The user's own images are theirs to use.
    """
    if entry.origin is not None:
        return entry.origin.commercial
    return True if is_own(entry) else permission(entry.licence)


def in_words(entry: Entry) -> str:
    """Whether commercial use of a data set is allowed, as people are told."""
    return {True: "yes", False: "no", None: "not known"}[commercial(entry)]


def permission(licence: str) -> bool | None:
    """Whether an SPDX expression allows commercial use; None for what isn't known, and for what is no expression."""
    tokens = _TOKEN.findall(licence)

    def either() -> bool | None:
        found = [both()]
        while tokens and tokens[0].upper() == "OR":
            tokens.pop(0)
            found.append(both())
        return True if True in found else None if None in found else False

    def both() -> bool | None:
        found = [one()]
        while tokens and tokens[0].upper() == "AND":
            tokens.pop(0)
            found.append(one())
        return False if False in found else None if None in found else True

    def one() -> bool | None:
        token = tokens.pop(0)
        if token != "(":
            return True if _ALLOWED.fullmatch(token) else False if _NON_COMMERCIAL.fullmatch(token) else None
        found = either()
        if tokens.pop(0) != ")":
            raise IndexError
        return found

    try:
        found = either()
    except IndexError:  # it ends too early
        return None
    return None if tokens else found
