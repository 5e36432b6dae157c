"""The accuracy of a network whose moving statistics may be stale, with new ones each time."""

from keras_regtools.data import Batches
from keras_regtools.surgery import MovingStatistics


class Judge:
    """The accuracy over a surface's data, with the moving statistics of other data.

    As after `recalibrate`, but nothing is compiled anew at each look and nothing is written.

    Args:
        model: A built model, with batch normalization or without.
        x: The training images; the statistics are those of the first 2,000.
    """

    def __init__(self, model, x):
        self.statistics = MovingStatistics(model)
        self.batches = Batches(x[:2000], batch_size=2000)

    def __call__(self, surface):
        new = self.statistics(self.batches) if self.statistics.layers else []
        return surface.holding(new).value_and_accuracy()[1]
