"""One training with all it is made of: what the algorithms take, and none of them makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsparse_ray.experiments import checkpoints
from rlsparse_ray.experiments.precision import PRECISIONS, Precision
from rlsparse_ray.experiments.runs import Run
from rlsparse_ray.experiments.tasks import Row, Task, training_rows

if TYPE_CHECKING:
    from rlsparse_ray.training import Subnetwork


@dataclass(frozen=True)
class Assignment:
    """A run, its data, its places and its device."""

    run: Run
    task: Task
    preferences: list[Row]
    """Rows of prompt, chosen and rejected."""
    base_dir: Path
    folder: Path
    """Gets the checkpoints."""
    subnetwork: Subnetwork | None
    """The weights that are trained; None is all of them."""
    device: str

    @property
    def precision(self) -> Precision:
        """The run's number formats."""
        return PRECISIONS[self.run.precision]

    def rows(self) -> list[Row]:
        """The training rows in the columns that the run's algorithm wants."""
        return training_rows(self.run, self.preferences)

    def load_base(self) -> Any:
        """A new copy of the base, in the dtype of training and on the device."""
        return checkpoints.load_model(self.base_dir, self.precision.weights, self.device)

    def load_tokenizer(self) -> Any:
        """The base's tokenizer."""
        return checkpoints.load_tokenizer(self.base_dir)

    def after_step(self, step: int, model: Any) -> None:
        """Keep a checkpoint if one is due after so many steps."""
        if self.run.save_every and step % self.run.save_every == 0:
            folder = self.folder / checkpoints.checkpoint_name(step)
            checkpoints.save_run(self.run, model, self.load_tokenizer(), folder)
