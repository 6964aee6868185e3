"""Lightning callbacks. They know nothing of each other; each is usable with any Trainer."""

from megalit.callbacks.checkpoint import Checkpoint
from megalit.callbacks.checkpoint_io import AtomicCheckpointIO
from megalit.callbacks.ensemble import Ensemble
from megalit.callbacks.preemption import Preemption
from megalit.callbacks.progress import Progress
from megalit.callbacks.scaling_law import ScalingLaw
from megalit.callbacks.self_distillation import SelfDistillation
from megalit.callbacks.throughput import Throughput

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoint",
    "Ensemble",
    "Preemption",
    "Progress",
    "ScalingLaw",
    "SelfDistillation",
    "Throughput",
]
