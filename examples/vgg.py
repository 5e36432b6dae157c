"""The course's VGG tutorial, images in folders by class, with everything plugged in and reported.

By default a VGG small enough for a laptop learns to tell even from odd digits, from image files
that the script writes itself; --data takes a folder of yours with one folder per class, and --full
the tutorial's VGG-16 at 224x224 pixels.
"""

import pathlib

import _onednn  # noqa: F401
import keras
import numpy as np
from _options import add_training, parser

import keras_regtools as rt

BASE_BATCH_SIZE, BASE_RATE = 20, 1e-3  # the tutorial's batch size, and Adam's own rate


def main():
    args = parse()
    keras.utils.set_random_seed(args.seed)
    if args.data:
        folder = pathlib.Path(args.data)
    else:
        folder = write_digits(pathlib.Path(args.output), 300 if args.smoke else None)
    training, validation, classes = load_folder(folder, args)

    if args.full:
        model = rt.applications.vgg16(classes=len(classes))
    else:
        blocks = ((8,), (16,)) if args.smoke else ((16, 16), (32, 32), (64, 64))
        model = rt.applications.vgg((32, 32, 3), len(classes), filters=blocks, dense=(128,))
    model = rt.regularize(
        model, conv=rt.regularizers.L2(1e-5), dense_dropout=0.4, batch_norm=args.batch_norm
    )
    model = rt.instrument(model)
    model.compile(
        keras.optimizers.Adam(BASE_RATE), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    print(f"{model.count_params():,} parameters, classes: {', '.join(classes)}")

    report = rt.callbacks.Report(
        args.output,
        settings={
            "title": f"VGG on the folder {folder.name}, batch size {args.batch_size}",
            "batch size": args.batch_size,
            "base batch size": BASE_BATCH_SIZE,
            "batch normalization": "on" if args.batch_norm else "off",
            "classes": ", ".join(classes),
            "seed": args.seed,
        },
    )
    callbacks = [
        # The square-root rule: Adam's steps do not grow with the gradient.
        rt.callbacks.LinearScalingLR(
            args.batch_size,
            BASE_BATCH_SIZE,
            rule="sqrt",
            warmup_epochs=min(2, args.epochs),
            verbose=1,
        ),
        rt.callbacks.PreciseBatchNorm(training),
        report,
    ]
    if args.full:
        print("No sharpness with --full: scipy's L-BFGS-B would need some 27 GB for VGG-16.")
    else:
        samples = 64 if args.smoke else 256
        callbacks.append(rt.callbacks.Sharpness(training, every=5, samples=samples))
    model.fit(
        training,
        epochs=args.epochs,
        validation_data=validation,
        callbacks=callbacks,
        shuffle=False,  # the dataset shuffles itself
    )
    print(f"Report: {report.page.path}")


def load_folder(folder, args):
    """Training and validation data from a folder with one folder per class, and the classes."""
    if not folder.is_dir():
        raise SystemExit(f"There is no folder {folder}: --data wants one folder per class in it.")
    side = 224 if args.full else 32
    training, validation = keras.utils.image_dataset_from_directory(
        folder,
        validation_split=0.2,
        subset="both",
        seed=args.seed,
        image_size=(side, side),
        batch_size=args.batch_size,
    )
    classes = training.class_names
    if args.smoke:
        args.epochs, training, validation = 1, training.take(4), validation.take(2)
    scale = lambda images, labels: (images / 255, labels)
    return training.map(scale), validation.map(scale), classes


def write_digits(output, count=None):
    """Write scikit-learn's digits as image files, even and odd ones, and return the folder."""
    from sklearn.datasets import load_digits

    folder = output / "digits"
    images, labels = (part[:count] for part in load_digits(return_X_y=True))
    images = np.repeat(np.repeat(images.reshape(-1, 8, 8, 1) * (255 / 16), 4, axis=1), 4, axis=2)
    for name in ("even", "odd"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / ("odd" if label % 2 else "even") / f"{i:04d}_{label}.png"
        if not path.exists():
            keras.utils.save_img(path, image, scale=False)
    return folder


def parse():
    options = parser(__doc__, "runs/vgg")
    options.add_argument(
        "--data",
        metavar="FOLDER",
        help="your images, one folder per class (default: even and odd digits, written by itself)",
    )
    options.add_argument(
        "--full", action="store_true", help="VGG-16 at 224x224 pixels instead of a small VGG"
    )
    scaling = f"the learning rate is {BASE_RATE} at {BASE_BATCH_SIZE} and scaled with its root"
    add_training(options, batch_size=40, epochs=12, scaling=scaling)
    return options.parse_args()


if __name__ == "__main__":
    main()
