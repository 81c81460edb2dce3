"""What this package offers. Importing it imports nothing heavy: the data set is imported when it is used."""

from __future__ import annotations

from guie_core import Entry, Origin, hookimpl


@hookimpl
def guie_datasets() -> list[Entry]:
    return [
        Entry(
            "emoji",
            "guie_emoji.dataset:Emoji",
            "1,034 emoji in six styles",
            licence="Apache-2.0 AND MIT AND CC-BY-4.0",
            origin=Origin(
                url="https://github.com/iamcal/emoji-data",
                citation="Drawings by Google (Noto), Microsoft (Fluent), Twitter (Twemoji) and EmojiOne",
                size="6,204 images, 14 MB, in this package",
                commercial=True,
            ),
        )
    ]
