"""Several processes that make one run together: who they are, how they agree, and how they share a training.

`torchrun --nproc-per-node 2 -m guie_train EXPERIMENT` starts them, or SLURM's srun. All of them go through the same
stages in the same order. What only one can do, such as writing a file, the first does, and the others wait for it. They
share the run's folder, hence a file system.
"""

from guie_train.processes.gradients import AveragedGradients
from guie_train.processes.group import ALONE, ElsewhereError, Processes
from guie_train.processes.launching import check_apart, joined, launched, one_voice, rendezvous_store
from guie_train.processes.sharding import Shards

__all__ = [
    "ALONE",
    "AveragedGradients",
    "ElsewhereError",
    "Processes",
    "Shards",
    "check_apart",
    "joined",
    "launched",
    "one_voice",
    "rendezvous_store",
]
