"""Manual optimisation in Lightning, in front of a module that optimises by itself."""

from typing import Any


class ByHand:
    """To be inherited from before a `LightningModule` whose `training_step` gives the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any) -> None:
        """One step."""
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch))
        optimizer.step()
