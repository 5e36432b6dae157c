"""One process per backend: what every test relies on, and what runs where.

On TensorFlow everything runs once. On JAX and PyTorch only what is marked `backends` does, as what
does not depend on the backend (documents, pictures, argument checks, records, the graph work of
surgery, examples) cannot fail there alone. `slow` marks the deeper repetition of something that a
cheaper test, or another row of the same one, holds in the default run: see `problems.rows`.
"""

import gc
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without oneDNN, TensorFlow has no convolution with the channels first on some processors.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
if os.environ.get("KERAS_BACKEND") == "torch":  # threads get in each other's way on tiny tensors
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import matplotlib
import pytest

matplotlib.use("Agg")


def pytest_collection_modifyitems(config, items):
    """Elsewhere than on TensorFlow, only what depends on the backend."""
    if keras.backend.backend() == "tensorflow":
        return
    left_out = [item for item in items if item.get_closest_marker("backends") is None]
    items[:] = [item for item in items if item.get_closest_marker("backends") is not None]
    config.hook.pytest_deselected(items=left_out)


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
    if "matplotlib.pyplot" in sys.modules:  # which warns of many open figures, in any later test
        sys.modules["matplotlib.pyplot"].close("all")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
