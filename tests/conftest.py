"""One process per backend: what every test relies on."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ.get("KERAS_BACKEND") == "torch":  # threads get in each other's way on tiny tensors
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(autouse=True, scope="module")
def _what_stays_is_not_searched_again():
    """Graphs pile up, and every search for garbage would go through all of them: a tenth of all."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_seeds():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
