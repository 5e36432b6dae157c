"""The course's LeNet-5 with everything that regularizes it plugged in, measured and reported.

Trains LeNet-5 with batch normalization, weight penalties for the convolutional and the dense
layers apart, and a learning rate scaled with the batch size; records what flows through each layer
and how sharp the minimum is; and leaves the records, the pictures and one report.html in a folder.
"""

import _onednn  # noqa: F401
import keras
from _data import DATASETS, load_images
from _options import add_dataset, add_training, parser

import keras_regtools as rt

BASE_BATCH_SIZE, BASE_RATE = 32, 0.01


def main():
    args = parse()
    keras.utils.set_random_seed(args.seed)
    (x, y), (x_validation, y_validation) = load_images(args.dataset, args.seed)
    if args.smoke:
        args.epochs, x, y = 2, x[:256], y[:256]

    model = rt.applications.lenet5(x.shape[1:], classes=10)
    model = rt.regularize(
        model,
        conv=rt.regularizers.L2(1e-4),
        dense=rt.regularizers.L2(5e-4),
        batch_norm=args.batch_norm,
    )
    model = rt.instrument(model)  # records what flows through each layer
    model.compile(
        keras.optimizers.SGD(BASE_RATE, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    report = rt.callbacks.Report(
        args.output,
        settings={
            "title": f"LeNet-5 on {args.dataset}, batch size {args.batch_size}",
            "batch size": args.batch_size,
            "base batch size": BASE_BATCH_SIZE,
            "batch normalization": "on" if args.batch_norm else "off",
            "training images": len(x),
            "validation images": len(x_validation),
            "seed": args.seed,
        },
    )
    model.fit(
        x,
        y,
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=(x_validation, y_validation),
        callbacks=[
            rt.callbacks.LinearScalingLR(
                args.batch_size, BASE_BATCH_SIZE, warmup_epochs=min(5, args.epochs), verbose=1
            ),
            rt.callbacks.PreciseBatchNorm(x),  # validation with statistics of these weights
            rt.callbacks.Sharpness(x, y, every=5, samples=128 if args.smoke else 1024),
            report,
        ],
    )
    print(f"Report: {report.page.path}")


def parse():
    options = parser(__doc__, "runs/lenet5")
    add_dataset(options, DATASETS)
    scaling = f"the learning rate is {BASE_RATE} at {BASE_BATCH_SIZE} and is scaled with it"
    add_training(options, batch_size=128, epochs=30, scaling=scaling)
    return options.parse_args()


if __name__ == "__main__":
    main()
