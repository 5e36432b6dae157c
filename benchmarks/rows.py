"""The rows of the tables of `curvature.py`: one function for each table."""

import machine
import numpy as np
import torch
from fresh import in_fresh_process
from networks import (
    check,
    surface_of,
    to_torch,
    torch_batches,
    trained,
    twin_gradient,
    twin_of,
)

TOLERANCE = 1e-3  # of the eigenvalue
TRACE_TOLERANCE, TRACE_SEEDS = 0.02, 20
TEN_TARGETS = {"lenet5": 1.4, "vgg": 2.2}
PRODUCT_TARGET, FIRST_TARGET, MEMORY_TARGET = 2.6, 3.0, 2.7

OWN = ("network", "what", "median (min–max)", "target", "met")
PRODUCT = ("network", "by", "seconds", "relative to ours", "construction, seconds")
EIGENVALUE = (
    "network",
    "by",
    "seconds",
    "products",
    "relative error",
    "relative residual, reported",
)
TRACE = (
    "network",
    "by",
    "seeds",
    "seconds",
    "products, mean",
    "estimate, mean",
    "reported standard error, mean",
    "spread of the estimates",
    "relative error",
)


class Subject:
    """One trained network in both frameworks, with the vectors that are multiplied."""

    def __init__(self, network, data, args):
        self.network, self.data, self.cache = network, data, args.cache
        self.repeats = args.repeats
        # An eigenvalue of the larger network takes a peer minutes.
        self.slow_repeats = args.repeats if network == "lenet5" else 1
        self.model, self.x, self.y = trained(network, data, args.cache)
        check(self.model, self.x, self.y)
        self.surface = surface_of(self.model, self.x, self.y)
        self.twin = twin_of(self.model)
        self.batches = torch_batches(self.x, self.y)
        rng = np.random.default_rng(1)
        self.vectors = [
            [rng.standard_normal(w.shape).astype("float32") for w in self.model.get_weights()]
            for _ in range(10)
        ]

    def torch_vectors(self):
        return [[torch.from_numpy(a) for a in to_torch(self.model, v)] for v in self.vectors]

    def fresh(self, call):
        """What a first call costs, once per repeat, as a dict of lists."""
        found = [
            in_fresh_process(call, self.network, self.data, self.cache) for _ in range(self.repeats)
        ]
        return {key: [one[key] for one in found] for key in found[0]}


def own_cost(subject):
    """Rows of what our own products cost, in gradients."""
    surface, vectors = subject.surface, subject.vectors
    calls = {
        "gradient": surface.value_and_gradient,
        "product": lambda: surface.hvp(None, vectors[0]),
        "ten": lambda: surface.hvp(None, vectors),
    }
    times, _ = machine.in_turn(calls, subject.repeats)
    ten = [t / 10 for t in times["ten"]]
    gradient, product, many = (subject.fresh(call) for call in ("gradient", "product", "ten"))
    both = subject.fresh("both")
    start = [a + b for a, b in zip(both["construction"], both["first"], strict=True)]
    memory = machine.ratios(product["memory"], gradient["memory"])
    rows = [
        ("gradient, seconds", times["gradient"], None),
        ("product / gradient", machine.ratios(times["product"], times["gradient"]), PRODUCT_TARGET),
        (
            "ten products at once, per product / gradient",
            machine.ratios(ten, times["gradient"]),
            TEN_TARGETS[subject.network],
        ),
        ("first gradient, seconds", gradient["first"], None),
        ("first product, seconds", product["first"], None),
        ("first ten products at once, seconds", many["first"], None),
        (
            "surface, first gradient and first product, seconds",
            start,
            FIRST_TARGET if subject.network == "lenet5" else None,
        ),
        ("peak memory of a gradient, MiB", [m / 2**20 for m in gradient["memory"]], None),
        ("peak memory of a product, MiB", [m / 2**20 for m in product["memory"]], None),
        ("peak memory of ten products at once, MiB", [m / 2**20 for m in many["memory"]], None),
        ("peak memory, product / gradient", memory, MEMORY_TARGET),
    ]
    return [
        [subject.network, what, machine.spread(values), *_verdict(values, target)]
        for what, values, target in rows
    ]


def _verdict(values, target):
    if target is None:
        return ["", ""]
    return [f"≤ {target}", "yes" if np.median(values) <= target else "**no**"]


def one_product(subject):
    """Rows of one Hessian product, ours and the peers'; and the peers, constructed."""
    from peers import PEERS

    vectors, built, peers = subject.torch_vectors(), {}, []
    gradient = {
        "keras_regtools, a gradient": subject.surface.value_and_gradient,
        "PyTorch, a gradient": lambda: twin_gradient(subject.twin, subject.batches),
    }
    for peer in PEERS:
        instance, built[peer.name] = machine.seconds(
            lambda peer=peer: peer(subject.twin, subject.batches)
        )
        peers.append(instance)
    calls = {**gradient, "keras_regtools": lambda: subject.surface.hvp(None, subject.vectors[0])}
    for peer in peers:
        calls[peer.name] = lambda peer=peer: peer.product(vectors[0])
    ten = "ten at once, per product"
    calls[f"keras_regtools, {ten}"] = lambda: subject.surface.hvp(None, subject.vectors)
    if subject.network == "lenet5":  # on the larger it would take minutes
        calls[f"curvlinops, {ten}"] = lambda: peers[1].products(vectors)
    times, _ = machine.in_turn(calls, subject.repeats)
    times = {name: [t / 10 if ten in name else t for t in taken] for name, taken in times.items()}
    rows = []
    for name, taken in times.items():
        relative = machine.ratios(taken, times["keras_regtools"])
        construction = f"{built[name]:.2g}" if name in built else ""
        rows.append(
            [
                subject.network,
                name,
                machine.spread(taken),
                machine.spread(relative) if name != "keras_regtools" else "1",
                construction,
            ]
        )
    return rows, peers


def top_eigenvalue(subject, peers, truth):
    """Rows of the top eigenvalue: seconds, products and the error against the truth."""
    import keras_regtools as rt

    pyhessian, curvlinops, eigenthings = peers
    seed = iter(range(10**6))

    def ours():
        result = rt.measures.hessian_eigenvalues(
            subject.surface, k=1, tolerance=TOLERANCE, seed=next(seed)
        )
        return float(result.eigenvalues[0]), result.products, float(result.residuals[0])

    calls = {
        "keras_regtools": ours,
        "PyHessian": lambda: pyhessian.eigenvalue(next(seed), TOLERANCE),
        "curvlinops, eigsh": lambda: curvlinops.eigenvalue(next(seed), TOLERANCE),
        "hessian-eigenthings, at its defaults": lambda: eigenthings.eigenvalue(next(seed)),
        "hessian-eigenthings, ten steps": lambda: eigenthings.eigenvalue(next(seed), steps=10),
    }
    times, found = machine.in_turn(calls, subject.slow_repeats, warm=False)
    rows = []
    for name in calls:
        values, products, residuals = map(np.array, zip(*found[name], strict=True))
        errors = np.abs(values - truth["eigenvalue"]) / truth["eigenvalue"]
        reported = residuals / np.abs(values)
        rows.append(
            [
                subject.network,
                name,
                machine.spread(times[name]),
                machine.spread(products),
                machine.spread(errors, 2),
                "none" if np.isnan(reported).any() else machine.spread(reported, 2),
            ]
        )
    return rows


def trace(subject, peers, truth):
    """Rows of the trace: products, and what the reported standard errors are worth."""
    import keras_regtools as rt

    def ours(seed):
        result = rt.measures.hessian_trace(subject.surface, tolerance=TRACE_TOLERANCE, seed=seed)
        return result.estimate, result.stderr, result.products

    estimators = {
        f"keras_regtools, tolerance {TRACE_TOLERANCE}": (ours, TRACE_SEEDS),
        "PyHessian, at its defaults": (peers[0].trace, subject.repeats),
        "hessian-eigenthings, at its defaults": (peers[2].trace, subject.repeats),
    }
    rows = []
    for name, (estimator, seeds) in estimators.items():
        found, times = [], []
        for seed in range(seeds):
            result, taken = machine.seconds(lambda seed=seed, call=estimator: call(seed))
            found.append(result)
            times.append(taken)
        estimates, stderrs, products = (
            np.array(column, dtype=float) for column in zip(*found, strict=True)
        )
        errors = np.abs(estimates - truth["trace"]) / truth["trace"]
        rows.append(
            [
                subject.network,
                name,
                seeds,
                machine.spread(times),
                f"{products.mean():.1f} ({products.min():.0f}–{products.max():.0f})",
                f"{estimates.mean():.2f}",
                f"{stderrs.mean():.2f}",
                f"{estimates.std(ddof=1):.2f}" if seeds > 1 else "",
                machine.spread(errors, 2),
            ]
        )
    return rows
