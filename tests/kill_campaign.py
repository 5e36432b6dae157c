"""Kill a real fit at random moments and resume it until it is done; then compare.

`python tests/kill_campaign.py --kills 20` prints, for each order of the callbacks, whether weights,
optimizer, recorders and records are those of a fit that was never killed. It calls itself with
`--train` as the process that is killed.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

EPOCHS = 24


def train(directory, order):
    """One process: a fit with everything of ours, which goes on where the last one was killed."""
    import keras
    import numpy as np
    from keras import layers

    import keras_regtools as rt

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((96, 8)).astype("float32"), rng.integers(0, 3, 96)
    # No dropout: Keras' own backup does not restore the counters of its seeds.
    hidden = [layers.Dense(6), layers.BatchNormalization(), layers.Activation("relu")]
    model = keras.Sequential([keras.Input((8,)), *hidden, layers.Dense(3, "softmax")])
    model = rt.instrument(rt.regularize(model, dense=rt.regularizers.L2(1e-3)), record_every=2)
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    backup = keras.callbacks.BackupAndRestore(str(directory / "backup"), delete_checkpoint=False)

    class Whole(keras.callbacks.Callback):
        """Keras writes its backup in place, and a kill may tear it: what counts is a copy."""

        def on_epoch_end(self, epoch, logs=None):
            new = directory / "whole.new"
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(directory / "backup", new)
            new.rename(directory / f"whole.{epoch:02}.{time.time_ns()}")

    shutil.rmtree(directory / "backup", ignore_errors=True)
    if kept := sorted(directory.glob("whole.[0-9]*")):
        shutil.copytree(kept[-1], directory / "backup")
    backups = [backup, Whole()]
    ours = [
        rt.callbacks.Report(directory / "run"),
        rt.callbacks.LinearScalingLR(16, 8, warmup_epochs=3),
        rt.callbacks.Sharpness(x, y, every=2, measures=["sam", "weight_distance"]),
        rt.callbacks.ActivationMonitor(),
        rt.callbacks.GradientMonitor(every=1),
        rt.callbacks.PenaltyMonitor(),
        rt.callbacks.WeightTrajectory(),
    ]
    model.fit(
        x,
        y,
        batch_size=16,
        epochs=EPOCHS,
        shuffle=False,
        validation_data=(x, y),
        callbacks=[*backups, *ours] if order == "backup first" else [*ours, *backups],
        verbose=0,
    )
    state = [*model.variables, *optimizer.variables]
    arrays = [np.array(keras.ops.convert_to_numpy(v)) for v in state]
    np.savez(directory / "state.npz", *arrays)


def start(directory, order):
    """The process of `train`."""
    command = [sys.executable, __file__, "--train", str(directory), "--order", order]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait(process):
    """The end of a process, which has no error of its own."""
    _, error = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(error.decode()[-3000:])


def killed(directory, order, kills, rng, seconds):
    """Begin the fit again and again, and kill it within so many seconds of its first epoch."""
    rows, done = directory / "run" / "records.jsonl", 0
    while True:
        begun, process = time.time(), start(directory, order)
        if done == kills:
            wait(process)
            return done
        size = rows.stat().st_size if rows.exists() else 0
        more = -size if done % 4 == 3 else 200  # now and then while it begins to go on
        while process.poll() is None and not _has_grown(rows, begun, size + more):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, seconds))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            done += 1
        wait(process)
        if (directory / "state.npz").exists():
            return done  # it was over before it was killed


def _has_grown(path, begun, size):
    """Whether a process that began then has written, and there is more than that."""
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_mtime >= begun and found.st_size > size


def records(directory):
    """What was recorded, but for times: the last value of each quantity at each step."""
    found = {}
    for line in (directory / "run" / "records.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if not row["name"].startswith("time/"):
            found[row["epoch"], row["step"], row["name"]] = repr(row["value"])
    return found


def epoch_time(directory):
    """How long an epoch took but for the first, in seconds."""
    rows = (directory / "run" / "records.jsonl").read_text("utf-8").splitlines()
    times = [row["value"] for row in map(json.loads, rows) if row["name"] == "time/fit"]
    return (times[-1] - times[0]) / (len(times) - 1)


def campaign(kills, order, seed=0):
    """What differs between a fit that was killed so often and one that was not.

    Returns:
        `(kills made, list of sentences)`; the list is empty if nothing differs.
    """
    import numpy as np

    base, differences = pathlib.Path(tempfile.mkdtemp()), []
    whole, cut = base / "whole", base / "cut"
    for directory in (whole, cut):
        directory.mkdir()
    wait(start(whole, order))
    made = killed(cut, order, kills, random.Random(seed), 1.5 * epoch_time(whole))
    with np.load(whole / "state.npz") as a, np.load(cut / "state.npz") as b:
        for name in a.files:
            if not np.array_equal(a[name], b[name], equal_nan=True):
                differences.append(f"the variable {name}: {a[name].ravel()[:3]}")
    a, b = records(whole), records(cut)
    for key in sorted({*a, *b}):
        if a.get(key) != b.get(key):
            differences.append(f"the record {key}: {a.get(key)} became {b.get(key)}")
    return made, differences


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--train", type=pathlib.Path, help="be the process that is killed")
    options.add_argument("--order", choices=("backup first", "backup last"))
    args = options.parse_args()
    if args.train:
        train(args.train, args.order)
        return
    for order in [args.order] if args.order else ("backup first", "backup last"):
        made, differences = campaign(args.kills, order, args.seed)
        print(f"{order}: {made} kills, {len(differences)} differences")
        print("\n".join(differences[:10]))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
