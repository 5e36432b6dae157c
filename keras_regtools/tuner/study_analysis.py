"""What the trials of a study of batch sizes say: best rates, their exponent, what rules cost."""

import math

import numpy as np

from keras_regtools.training import rate_factor

_DRAWS = 1000  # of the seeds, with replacement
_KNEE = 0.9


def best_rate(rates, losses):
    """The rate with the least loss, and that loss: between the rates that were tried.

    The minimum of the parabola through the best rate and its neighbours: log loss over log rate.

    Args:
        rates: Array, growing.
        losses: Array, one for each; infinite where the training diverged.

    Returns:
        `(rate, loss, edge)`; `edge` says that the best is the first or the last rate.

    Example:

    >>> rates = np.array([0.01, 0.1, 1.0])
    >>> rate, loss, edge = best_rate(rates, np.exp((np.log10(rates) + 1.25) ** 2))
    >>> round(math.log10(rate), 6), round(loss, 6), edge
    (-1.25, 1.0, False)
    """
    if not np.isfinite(losses).any():
        return math.nan, math.inf, True
    i = int(np.argmin(losses))
    if i in (0, len(rates) - 1):
        return float(rates[i]), float(losses[i]), True
    if not np.isfinite(losses[i - 1 : i + 2]).all():  # one side of it diverges
        return float(rates[i]), float(losses[i]), False
    near = losses[i - 1 : i + 2]
    positive = (near > 0).all()  # whose logarithm is nearer to a parabola
    over = np.log(rates[i - 1 : i + 2] / rates[i])
    a, b, c = np.polyfit(over, np.log(near) if positive else near, 2)
    if a <= 0:
        return float(rates[i]), float(losses[i]), False
    least = c - b**2 / (4 * a)
    least = math.exp(least) if positive else least
    return float(rates[i] * math.exp(-b / (2 * a))), float(least), False


def slope(sizes, rates, usable):
    """The exponent of the best rate in the batch size, of at least two sizes, or NaN."""
    usable = usable & np.isfinite(rates)
    if usable.sum() < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes[usable]), np.log(rates[usable]), 1)[0])


def analysed(sizes, rates, losses, rules, seed=0):
    """Best rates with intervals, their exponent, and what each rule costs.

    Args:
        sizes, rates: Arrays, growing.
        losses: Array of the shape `(sizes, rates, seeds)`, infinite where a training diverged.
        rules: List of names of rules, as for `LinearScalingLR`.
        seed: Of the draws.

    Returns:
        A dict: `best`, `low`, `high`, `edge` by size; `exponent`, `exponent_interval`; `rules`, by
        name the rate that it gives each size and the loss there above that at the best rate.
        Intervals are of 95 %, from draws of the seeds with replacement, the same for all sizes and
        rates.
    """
    rng, count = np.random.default_rng(seed), losses.shape[2]

    def found(chosen):
        means = losses[:, :, chosen].mean(axis=2)
        return means, [best_rate(rates, row) for row in means]

    means, best = found(np.arange(count))
    edge = np.array([at for *_, at in best])
    rate = np.array([one for one, *_ in best])
    usable = ~edge if (~edge).sum() >= 2 else np.ones(len(sizes), bool)
    drawn = np.array(
        [[one for one, *_ in found(rng.integers(0, count, count))[1]] for _ in range(_DRAWS)]
    )
    slopes = np.array([slope(sizes, row, usable) for row in drawn])
    low, high = np.transpose([_ends(column, count) for column in drawn.T])
    ends = _ends(slopes, count)
    # Best rates at the ends say nothing of how sure the exponent is.
    if (~edge).sum() < 2 or not np.isfinite(ends).all():
        ends = (-math.inf, math.inf)
    return {
        "best": rate,
        "low": low,
        "high": high,
        "edge": edge,
        "exponent": slope(sizes, rate, usable),
        "exponent_interval": ends,
        "rules": {rule: _judged(rule, sizes, rates, means, rate) for rule in rules},
    }


def _ends(values, seeds):
    """Of the draws that trained; NaN of one seed, which draws nothing else."""
    known = values[np.isfinite(values)]
    if seeds < 2 or not len(known):
        return math.nan, math.nan
    return tuple(float(end) for end in np.percentile(known, [2.5, 97.5]))


def _judged(rule, sizes, rates, means, best):
    """By size the rate of a rule, and the loss there less that at the best rate of the size.

    The rule begins from the best rate of the first size. Between the rates that were tried losses
    are read off straight lines; NaN outside of them.
    """
    found = []
    for size, row, own in zip(sizes, means, best, strict=True):
        wanted = best[0] * rate_factor(rule, size, sizes[0])
        if not rates[0] <= wanted <= rates[-1] or not np.isfinite(own):
            found.append((wanted, math.nan))
            continue
        known = np.where(np.isfinite(row), row, 1e30)
        value, least = np.interp(np.log([wanted, own]), np.log(rates), known)
        found.append((wanted, math.inf if value > 1e20 else value - least))
    return np.array(found)


def paired(differences, confidence=0.95):
    """The mean of some differences between the ends of its interval."""
    from scipy import stats

    differences = np.asarray(differences, "float64")
    mean, count = float(differences.mean()), len(differences)
    if count < 2 or not np.isfinite(differences).all():
        return -math.inf, mean, math.inf
    error = stats.t.ppf((1 + confidence) / 2, count - 1) * differences.std(ddof=1) / count**0.5
    return mean - error, mean, mean + error


def sentences(table, found, paired_loss, target):
    """A sentence for each claim of the notes, with the numbers that it rests on.

    Args:
        table: By batch size, as `BatchSizeStudy` makes it.
        found: What `analysed` gave.
        paired_loss: `(low, mean, high)`: validation loss of the largest batch less that of the
            smallest, each at its best rate of those tried.
        target: The validation loss that counts as reached.
    """
    small, large = table.iloc[0], table.iloc[-1]
    a, b = int(small["batch_size"]), int(large["batch_size"])
    low, mean, high = paired_loss
    verdict = "held" if low > 0 else "not so" if high < 0 else "undecided"
    lines = [
        f"Small batches perform better: {verdict}. At the best rates that were tried the "
        f"validation loss of batch {b} less that of batch {a} is {mean:+.4f} (95 %: {low:+.4f} to "
        f"{high:+.4f})."
    ]
    exponent, (low, high) = found["exponent"], found["exponent_interval"]
    verdict = "held" if low > 0 else "not so" if high < 0 else "undecided"
    inside = [name for name, power in (("linear", 1), ("square-root", 0.5)) if low <= power <= high]
    held = f"the {' and the '.join(inside)} rule" if inside else "neither"
    edges = [int(n) for n, at in zip(table["batch_size"], found["edge"], strict=True) if at]
    lines.append(
        f"Small batches want small rates: {verdict}. The best rate grows as the batch to the power "
        f"{exponent:.2f} (95 %: {low:.2f} to {high:.2f}); 1 is the linear rule, 0.5 the "
        f"square-root rule: the interval holds {held}."
        + (f" At batch {edges} the best rate is at an end of those tried." if edges else "")
    )
    reached = small["seconds_to_target"] > 0 and large["seconds_to_target"] > 0
    if reached and math.isfinite(target):
        faster = small["seconds_to_target"] / large["seconds_to_target"]
        fewer = small["steps_to_target"] / large["steps_to_target"]
        verdict = "held" if faster > 1.05 else "not so" if faster < 0.95 else "undecided"
        lines.append(
            f"With the right rate large batches train faster: {verdict} on this machine. Batch {b} "
            f"reaches the validation loss {target:.4f} in {1 / faster:.2f} times the time of batch "
            f"{a}, and in {fewer:.1f} times fewer steps, which is the gain where a step takes no "
            "longer, as on many devices."
        )
    else:
        lines.append(
            "With the right rate large batches train faster: undecided, as not both reach the "
            f"validation loss {target:.4f}."
        )
    return tuple(lines)


def knee(sizes, speeds):
    """The smallest size with nine tenths of the most samples per second."""
    return int(np.asarray(sizes)[int(np.argmax(speeds >= _KNEE * np.nanmax(speeds)))])
