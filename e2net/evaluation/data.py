"""What Lightning asks of a data module, answered by data sets that need no Lightning themselves."""

import lightning as L
from torch.utils.data import DataLoader

from e2net.datasets import DenseData


class DataModule(L.LightningDataModule):
    """Lightning's view of some data.

    Apart from them, as scoring maps on disk takes the same data and must not wait seconds for Lightning to be imported.

    Args:
        data: where batches come from.
    """

    def __init__(self, data: DenseData) -> None:
        super().__init__()
        self.data = data

    def prepare_data(self) -> None:
        """Checks the files that the stage at hand needs; once per machine."""
        state = self.trainer.state.fn if self.trainer is not None else None
        self.data.check(state.value if state is not None else None)

    def setup(self, stage: str) -> None:
        self.data.setup(stage)

    def train_dataloader(self) -> DataLoader:
        return self.data.train_dataloader()

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self.data.val_dataloader()

    def test_dataloader(self) -> list[DataLoader]:
        return self.data.test_dataloader()
