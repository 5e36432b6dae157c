"""The version, alone in a file that packaging can read without importing Keras."""

__version__ = "0.1.0"


def show_versions() -> None:
    """Print what a bug report should tell: versions, processor, and what TensorFlow makes of it.

    Example:

    >>> show_versions()
    keras_regtools: ...
    """
    for name, value in versions().items():
        print(f"{name}: {value}")


def versions():
    """The versions in use and what the machine is, as a dict of strings."""
    import os
    import platform

    import keras

    from keras_regtools.backend import describe

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "keras_regtools": __version__,
        "keras": keras.__version__,
        **describe(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {cores} cores",
    }
