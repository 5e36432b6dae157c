"""What regularizing costs a training step: penalties, dropout, schedules, sharpness-awareness.

LeNet-5 and a VGG-like network train on the same images, each row beside the row that it is compared
with: ours beside Keras' own, a schedule beside none, sharpness-aware minimization beside a plain
step. All are in a fit of their own, and make an epoch in turn; a ratio is taken within a turn.
"""

import argparse
import statistics

import _onednn  # noqa: F401
import keras
import machine
import numpy as np
from keras import ops
from recording import BATCH, COMPILED, NETWORKS, WARM, Turns

import keras_regtools as rt

# What makes epochs in turn; under XLA dropout takes thirty times as long as the rest on a CPU.
GROUPS = (
    (
        "plain",
        "plain again (control)",
        "L1, proximal",
        "GroupLasso, proximal",
        "SAM",
        "ASAM",
        "SAM, every=4",
    ),
    ("plain, Adam", "L1, proximal, Adam", "GroupLasso, proximal, Adam"),
    ("Keras' L1L2", "L1L2", "L1L2, scheduled by step"),
    ("Keras' Dropout", "Dropout"),
    ("accumulated", "accumulated again (control)", "GradientNoise", "adascale"),
)
PARTS = 4  # batches of an update that are accumulated


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", choices=[*NETWORKS, "both"], default="both")
    parser.add_argument("--repeats", type=int, default=15, help="turns (default: %(default)s)")
    parser.add_argument(
        "--only",
        help="the group that has this row alone; GradientNoise is written into a file of its own",
    )
    parser.add_argument("--write", action="store_true", help="write results/regularizing.md")
    args = parser.parse_args()
    machine.pin()
    backend = keras.backend.backend()
    rows = []
    for name in NETWORKS if args.network == "both" else [args.network]:
        for xla in COMPILED[backend]:
            step, ratios = measured(name, xla, args.repeats, args.only)
            for (what, beside), values in ratios.items():
                compiled = "yes" if xla else "no"
                rows.append([name, compiled, f"{step:.2f}", what, beside, machine.spread(values)])
                machine.progress(" ".join(rows[-1]))
    header = ["network", "XLA", "first step [ms]", "what", "beside", "ratio"]
    text = f"""# Regularizing, on {backend}

{machine.provenance()}

Epochs of batches of {BATCH}, in turn; median (min-max) of {args.repeats} turns.

{machine.table(header, rows)}
"""
    print(text)
    if args.write:
        name = "gradient_noise" if args.only == "GradientNoise" else "regularizing"
        machine.write(f"{name}.md" if backend == "tensorflow" else f"{name}_{backend}.md", text)


def with_dropout(model, kind):
    """Dropout behind each convolution and dense layer but the last, of Keras or of ours."""
    new = rt.regularize(model, conv_dropout=0.25, dense_dropout=0.5)
    return new if kind == "ours" else rt.strip(new)


def decay(step):
    return 1e-4 / (1 + 0.01 * ops.cast(step, "float32"))


def measured(name, xla, repeats, only):
    """Milliseconds of a plain step, and ratios by what was timed and what beside it."""
    make, steps = NETWORKS[name]
    rng = np.random.default_rng(0)
    x = rng.random((BATCH * steps, 32, 32, 1), "float32")
    y = rng.integers(0, 10, len(x))
    keras.utils.set_random_seed(0)
    plain, sam = make(), rt.callbacks.SharpnessAwareMinimization
    ours, scheduled = rt.regularizers.L1L2(1e-5, 1e-4), rt.regularizers.L1L2(1e-5, 1e-4)
    lasso = rt.regularizers.L1(1e-5, proximal=True)
    groups = rt.regularizers.GroupLasso(1e-5, proximal=True)
    theirs = keras.regularizers.L1L2(1e-5, 1e-4)
    schedule = rt.callbacks.Schedule(scheduled, "l2", decay, by="step")
    models = {
        "plain": (plain, [], None),
        "plain again (control)": (keras.models.clone_model(plain), [], "plain"),
        "Keras' L1L2": (rt.regularize(plain, conv=theirs, dense=theirs), [], None),
        "L1L2": (rt.regularize(plain, conv=ours, dense=ours), [], "Keras' L1L2"),
        "L1L2, scheduled by step": (
            rt.regularize(plain, conv=scheduled, dense=scheduled),
            [schedule],
            "L1L2",
        ),
        "Keras' Dropout": (with_dropout(plain, "keras"), [], None),
        "Dropout": (with_dropout(plain, "ours"), [], "Keras' Dropout"),
        "L1, proximal": (rt.regularize(plain, conv=lasso, dense=lasso), [], "plain"),
        "GroupLasso, proximal": (rt.regularize(plain, conv=groups, dense=groups), [], "plain"),
        "plain, Adam": (keras.models.clone_model(plain), [], None),
        "L1, proximal, Adam": (
            rt.regularize(plain, conv=lasso, dense=lasso),
            [],
            "plain, Adam",
        ),
        "GroupLasso, proximal, Adam": (
            rt.regularize(plain, conv=groups, dense=groups),
            [],
            "plain, Adam",
        ),
        "accumulated": (keras.models.clone_model(plain), [], None),
        "accumulated again (control)": (keras.models.clone_model(plain), [], "accumulated"),
        "GradientNoise": (
            keras.models.clone_model(plain),
            [rt.callbacks.GradientNoise(BATCH)],
            "accumulated",
        ),
        "adascale": (
            keras.models.clone_model(plain),
            [rt.callbacks.LinearScalingLR(BATCH, BATCH, rule="adascale")],
            "accumulated",
        ),
        "SAM": (keras.models.clone_model(plain), [sam()], "plain"),
        "ASAM": (keras.models.clone_model(plain), [sam(0.5, adaptive=True)], "plain"),
        "SAM, every=4": (keras.models.clone_model(plain), [sam(every=4)], "plain"),
    }
    for what, (model, _, _) in models.items():
        optimizer = keras.optimizers.Adam(1e-3) if "Adam" in what else keras.optimizers.SGD(0.01)
        if "accumulated" in (what.split()[0], models[what][2]):
            optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=PARTS)
        model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=xla)
    seconds = {}
    for group in GROUPS:
        if only is not None and only not in group:
            continue
        turns = Turns({what: models[what][:2] for what in group})
        turns.fit(x, y, batch_size=BATCH, epochs=repeats + WARM)
        seconds |= {what: values[WARM:] for what, values in turns.seconds.items()}
    ratios = {
        (what, beside): machine.ratios(seconds[what], seconds[beside])
        for what, (_, _, beside) in models.items()
        if beside is not None and what in seconds
    }
    first = next(iter(seconds.values()))
    return 1e3 * statistics.median(first) / (steps - 1), ratios


if __name__ == "__main__":
    main()
