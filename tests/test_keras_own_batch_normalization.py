"""Keras' own tests of BatchNormalization, from the installed package, with our class in its place.

They are the outside judge of «equal to the plain layer»: weight counts, serialization, masks,
dtypes, renormalization and all.
"""

import types

import keras.src.layers.normalization.batch_normalization_test as own
import pytest

from keras_regtools.layers import InstrumentedBatchNormalization

# Keras' own tests are not written to be free of warnings.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow, pytest.mark.backends]

_substituted = types.SimpleNamespace(**vars(own.layers))
_substituted.BatchNormalization = InstrumentedBatchNormalization


@pytest.fixture(autouse=True)
def _our_class(monkeypatch):
    monkeypatch.setattr(own, "layers", _substituted)


class TestInstrumented(own.BatchNormalizationTest):
    def test_it_is_our_class_that_is_tested(self):
        assert own.layers.BatchNormalization is InstrumentedBatchNormalization
