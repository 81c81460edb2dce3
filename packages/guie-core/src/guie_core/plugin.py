"""What guie-core itself offers: the kinds "profiles" and "commands", the profiles, and the commands about guie."""

from __future__ import annotations

from .entry import Entry, Kind
from .hooks import hookimpl


@hookimpl
def guie_kinds() -> list[Kind]:
    return [
        Kind("profiles", "Hardware to run on: a GPU or the CPU, and the settings that suit it"),
        Kind("commands", "Commands of guie: a click command each"),
    ]


@hookimpl
def guie_profiles() -> list[Entry]:
    return [
        Entry("auto", "guie_core.profiles:detect", "The profile of the GPU that is found, or cpu"),
        Entry("cpu", "guie_core.profiles:CPU", "Any machine without a GPU: float32"),
        Entry("v100-32g", "guie_core.profiles:V100_32G", "NVIDIA V100, 32 GiB (an original of the 5th place)"),
        Entry(
            "rtx3090-24g", "guie_core.profiles:RTX3090_24G", "NVIDIA RTX 3090, 24 GiB (an original of the 5th place)"
        ),
        Entry("rtx4090-24g", "guie_core.profiles:RTX4090_24G", "NVIDIA RTX 4090, 24 GiB: 16 bits are bfloat16"),
        Entry("a100-80g", "guie_core.profiles:A100_80G", "NVIDIA A100, 80 GiB: 16 bits are bfloat16"),
        Entry("h100-80g", "guie_core.profiles:H100_80G", "NVIDIA H100, 80 GiB: 16 bits are bfloat16"),
        Entry("t4-16g", "guie_core.profiles:T4_16G", "NVIDIA T4, 16 GiB: 16 bits are float16"),
        Entry("p100-16g", "guie_core.profiles:P100_16G", "NVIDIA P100, 16 GiB: float32, no tensor cores"),
    ]


@hookimpl
def guie_commands() -> list[Entry]:
    return [
        Entry("plugins", "guie_core.commands.plugins:plugins", "List, check and write plugins"),
        Entry("profiles", "guie_core.commands.profiles:profiles", "List and show the profiles of hardware"),
        Entry("doctor", "guie_core.commands.doctor:doctor", "Examine this installation and this machine"),
    ]
