"""Settings, checkpoints and trainers that a model cannot be trained with, or only wrongly."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from megalit.errors import UserError
from megalit.modeling import sharding
from megalit.modeling.weight_averages import check_begins


def check_settings(model: Any, z_loss: float) -> None:
    """Refuse a language model's settings that cannot work.

    Raises:
        UserError: the message names the first one.
    """
    # NaN compares false with everything, and is refused, too.
    if not model.learning_rate > 0:
        raise UserError(f"model.learning_rate is {model.learning_rate}: choose a positive value")
    for name, value in (
        ("weight_decay", model.weight_decay),
        ("final_weight_decay", model.final_weight_decay),
        ("z_loss", z_loss),
    ):
        if not value >= 0:
            raise UserError(f"model.{name} is {value}: choose 0 or more")
    if model.gradient_clip is not None and not model.gradient_clip > 0:
        raise UserError(f"model.gradient_clip is {model.gradient_clip}: choose a positive value, or null for none")
    if isinstance(model.micro_batch, int) and model.micro_batch < 1:
        raise UserError(f"model.micro_batch is {model.micro_batch}: choose at least 1")


def check_shapes(weights: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse the weights that a checkpoint holds for a model of other shapes.

    Raises:
        UserError: one is lacking or has another shape; the message names it.
    """
    for name, value in weights.items():
        if name not in found or found[name].shape != value.shape:
            there = tuple(found[name].shape) if name in found else "no such tensor"
            raise UserError(
                f"the checkpoint is of another model: {name} has the shape {tuple(value.shape)} here and {there} "
                "there; set model.shape and model.vocabulary_size to those of the checkpoint"
            )


def check_trainer(trainer: Any, continues: bool, steps: int | None = None) -> None:
    """Refuse a trainer under which a model would train wrongly.

    Args:
        trainer: Lightning's.
        continues: a run that was begun is to go on. Earlier versions let some be begun that are refused now; they may
            be finished as what they are, and that is said.
        steps: of the run, where they are known.

    Raises:
        UserError: a precision in which steps are scaled or rounded away, a strategy that is not known or shards over
            sizes that do not fit, validations by the clock, or a callback that does not work, or not before the end.
    """
    if getattr(trainer.precision_plugin, "scaler", None) is not None or trainer.precision == "16-true":
        raise UserError(f"trainer.precision is {trainer.precision}, which this model does not train in: use bf16-mixed")
    if trainer.precision == "bf16-true":
        # Weights of 8 bits of mantissa change by 0.4% or not at all; a step's decay is learning rate times decay.
        what = "trainer.precision is bf16-true, in which weight decay and small steps are rounded away"
        refuse_to_begin(what, "use bf16-mixed", continues)
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        kind = type(trainer.strategy).__name__
        raise UserError(f"trainer.strategy is {kind}: use ddp, or ModelParallelStrategy to shard the model")
    if isinstance(trainer.strategy, ModelParallelStrategy):
        sharding.check_sizes(trainer.strategy, trainer.world_size)
        if any(isinstance(part, WeightAveraging) for part in trainer.callbacks):
            raise UserError("the model is sharded, and Lightning cannot average sharded weights: use DDP, or leave it")
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        # Each rank would look at its own clock, and some validate while others train.
        raise UserError(
            "trainer.val_check_interval is a time, which ranks would measure each for itself: "
            "give steps, or a share of the run such as 0.1"
        )
    if any(isinstance(part, StochasticWeightAveraging) for part in trainer.callbacks):
        # It copies the model before the model has weights.
        what = "trainer.callbacks has StochasticWeightAveraging, which averages nothing here"
        refuse_to_begin(what, "use EMAWeightAveraging, or a WeightAveraging of your own", continues)
    if steps is not None and not continues:
        check_begins(trainer, steps)


def refuse_to_begin(what: str, remedy: str, continues: bool) -> None:
    """Refuse what earlier versions let be begun: a run that was may be finished as what it is, and that is said.

    Raises:
        UserError: none was begun.
    """
    if not continues:
        raise UserError(f"{what}: {remedy}")
    rank_zero_warn(f"{what}; the run goes on as it was begun, and for another one: {remedy}")
