"""Search a cocktail for a small VGG: which of its ingredients help, and what they cost together.

Weight penalties, dropout, decoupled weight decay, label smoothing and sharpness-aware minimization,
each with a switch, beside batch normalization, batch size, rate and its decay. The winner is
trained again on fresh seeds beside the plain network, and a page says what was found.
"""

import _onednn  # noqa: F401
from _search import data, options, search

import keras_regtools as rt
from keras_regtools.tuner import optional


def main():
    args = options(__doc__, "runs/search_vgg", trials=12, epochs=8, samples=400)
    shape = data(args)[0][0].shape[1:]
    blocks = ((4,), (8,)) if args.smoke else ((8, 8), (16, 16), (32, 32))
    hypermodel = rt.tuner.RegularizationHyperModel(
        lambda: rt.applications.vgg(shape, 10, filters=blocks, dense=(64,)),
        conv={"l2": optional((1e-5, 1e-2)), "spatial_dropout": optional((0.05, 0.3))},
        dense={"l2": optional((1e-5, 1e-2)), "dropout": (0.0, 0.6, 0.1)},
        weight_decay=optional((1e-4, 1e-1)),
        label_smoothing=optional((0.02, 0.2)),
        sam=optional((0.01, 0.1)),
        decay=[0.01, 0.1, 1.0],
        batch_sizes=[32, 64],
        learning_rates=(3e-3, 1e-1),
        results=["val_loss", "loss", "generalization_gap"],
        samples=128 if args.smoke else 400,
    )
    search(args, hypermodel, f"A small VGG on {args.dataset}")


if __name__ == "__main__":
    main()
