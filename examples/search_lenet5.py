"""Search how to regularize LeNet-5: convolutional and dense layers apart, rate tied to batch size.

A KerasTuner random search over weight penalties and dropout with switches, batch normalization,
batch size and learning rate. The winner is trained again on fresh seeds beside the plain network,
both are scored on images that no trial saw, and a page says what was found.
"""

import _onednn  # noqa: F401
from _search import data, options, search

import keras_regtools as rt
from keras_regtools.tuner import optional


def main():
    args = options(__doc__, "runs/search_lenet5", trials=14, epochs=10, samples=400)
    shape = data(args)[0][0].shape[1:]
    hypermodel = rt.tuner.RegularizationHyperModel(
        lambda: rt.applications.lenet5(shape),
        conv={"l2": optional((1e-5, 1e-2)), "dropout": (0.0, 0.5, 0.1)},
        dense={"l2": optional((1e-5, 1e-2)), "dropout": (0.0, 0.7, 0.1)},
        batch_sizes=[32, 64, 128],
        learning_rates=(3e-3, 1e-1),
        samples=128 if args.smoke else 400,
        seeds=2,
    )
    search(args, hypermodel, f"LeNet-5 on {args.dataset}")


if __name__ == "__main__":
    main()
