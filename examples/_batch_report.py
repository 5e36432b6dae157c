"""What `small_vs_large_batch.py` says: the paper's table, and sentences from the numbers."""

GROUPS = ("small", "large", "scaled")
EPSILONS = (1e-3, 5e-4)
MARGIN = 1.1  # a factor below it is no difference
# Keskar et al. (2016), tables 2 to 4: small / large batch.
PUBLISHED = {
    "f1": ("98.03 / 97.81", "1.23 / 205.14", ".61 / 42.90", ".11 / 9.22", ".05 / 9.17"),
    "c1": ("80.04 / 77.26", "28.58 / 707.23", "7.08 / 227.31", "2.18 / 137.25", ".71 / 29.50"),
    "c2": ("89.24 / 87.26", "8.68 / 925.32", "2.07 / 175.31", ".95 / 25.09", ".31 / 5.82"),
}


def report(table, sizes, args):
    """The paper's table for these runs, and what it says of the claim."""
    columns = ["test accuracy"] + [
        f"{name} {epsilon:g}" for name in ("full", "subspace") for epsilon in EPSILONS
    ]
    groups = {g: table[table["group"] == g] for g in GROUPS}
    text = [
        f"\n{args.network.upper()} on {args.dataset}, {args.seeds} seeds, each until the training "
        f"loss is {args.target:g}; sharpness on {args.samples} images with batch statistics.\n",
        f"{'':24}" + "".join(f"{f'{g} ({sizes[g]})':>20}" for g in GROUPS) + "   published",
    ]
    for i, column in enumerate([*columns, "ratio", "distance", "steps"]):
        scale = 100 if "accuracy" in column else 1
        cells = [_with_spread(scale * groups[g][column]) for g in GROUPS]
        published = PUBLISHED[args.network][i] if i < len(columns) else ""
        published = {"ratio": "4 at a smooth minimum"}.get(column, published)
        text.append(f"{column:24}" + "".join(f"{cell:>20}" for cell in cells) + f"   {published}")
    ratio = groups["small"]["distance"].mean() / groups["large"]["distance"].mean()
    text.append(f"{'distance, small / large':24}{ratio:>20.2f}{'':40}   3 to 10")
    data = {"f1": "MNIST"}.get(args.network, "CIFAR-10")
    text.append(
        f"(published: Keskar et al., 2016, {args.network.upper()} on {data}, small / large)"
    )
    return "\n".join([*text, "", verdict(table, args)])


def verdict(table, args):
    """What the runs say of the claim."""
    return "\n".join(findings({g: table[table["group"] == g] for g in GROUPS}, args))


def _with_spread(values):
    if values.isna().all():
        return "–"
    spread = f" ± {values.std():.2g}" if len(values) > 1 else ""
    return f"{values.mean():.4g}{spread}"


def findings(groups, args):
    """Plain sentences, from the seeds in which both runs reached the loss."""
    claim = matched(groups, "small", "large")
    if len(claim):
        sharper = (claim["full 0.001"] > MARGIN).sum()
        inside = [(claim[f"subspace {e:g}"] > MARGIN).sum() for e in EPSILONS]
        held = {len(claim): "held", 0: "did not hold"}.get(sharper, "held only in part")
        gap = -100 * claim["accuracy gap"].mean()
        yield (
            f"The claim that large batches find sharper minimizers {held} on this data, in the "
            f"full space at ε = 0.001: the large batch was sharper in {sharper} of {len(claim)} "
            f"matched seeds, by a factor of {claim['full 0.001'].median():.2g} in the median. In "
            f"the random subspace it was in {inside[0]} at ε = 0.001 and in {inside[1]} at 0.0005. "
            f"Its test accuracy was {_gap(gap)}."
        )
    scaled = matched(groups, "scaled", "large")
    if len(scaled):
        flatter = (scaled["full 0.001"] > MARGIN).sum()
        yield (
            f"With its rate scaled ({args.rule}) and warmed up the large batch became flatter in "
            f"{flatter} of {len(scaled)} matched seeds, by a factor of "
            f"{scaled['full 0.001'].median():.2g} in the median."
        )
    missing = 3 * args.seeds - sum(int(groups[g]["reached"].sum()) for g in GROUPS)
    if missing:
        yield f"Runs that did not reach the loss, and decide nothing here: {missing}."
    if not len(claim):
        yield "No verdict: there is no seed in which both batches reached the same loss."


def matched(groups, flat, sharp):
    """By seed, how many times as sharp one group is as the other, where both reached the loss."""
    a, b = (groups[g][groups[g]["reached"]].set_index("seed") for g in (flat, sharp))
    a, b = a.loc[a.index.intersection(b.index)], b.loc[a.index.intersection(b.index)]
    columns = [f"{name} {e:g}" for name in ("full", "subspace") for e in EPSILONS]
    times = b[columns] / a[columns]
    times["accuracy gap"] = b["test accuracy"] - a["test accuracy"]
    return times.dropna(subset=["full 0.001"])


def _gap(points):
    if abs(points) < 0.005:
        return "the same"
    return f"{abs(points):.2f} points {'lower' if points > 0 else 'higher'}"
