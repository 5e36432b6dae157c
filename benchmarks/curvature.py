"""Hessian products, top eigenvalues and traces: their cost, and beside three PyTorch peers.

Everything is timed in turn in one run, on two cores, and printed as markdown tables.
"""

import _onednn  # noqa: F401
import machine
import rows
from networks import chosen, options
from truth import true_values


def measured(args):
    """Everything, as markdown."""
    own, product, eigenvalue, traces, truths = [], [], [], [], []
    networks, data = chosen(args)
    for network in networks:
        subject = rows.Subject(network, data, args)
        small = network == "lenet5"  # all traces of the larger would take hours
        path = args.cache / f"{network}_{data}.json"
        machine.progress(f"{network}: true values, from an earlier run if there was one")
        truth = true_values(subject.model, subject.x, subject.y, path, trace=small)
        text = (
            f"The true top eigenvalue of {network} ({subject.model.count_params():,} parameters) "
            f"is {truth['eigenvalue']:.8g}, with a residual of {truth['eigenvalue_residual']:.1g}"
        )
        if small:
            text += f"; its trace is {truth['trace']:.2f} ± {truth['trace_stderr']:.2f}"
        truths.append(f"{text}.")
        own += _shown(rows.OWN, rows.own_cost(subject))
        products, peers = rows.one_product(subject)
        product += _shown(rows.PRODUCT, products)
        eigenvalue += _shown(rows.EIGENVALUE, rows.top_eigenvalue(subject, peers, truth))
        if small:
            traces += _shown(rows.TRACE, rows.trace(subject, peers, truth))
    parts = [
        f"Of {len(subject.x):,} images of {data} in batches of {subject.surface.batch_size}; "
        f"median (min–max) of {args.repeats} turns, of one for the top eigenvalue of the larger "
        "network. Truth: float64 PyTorch. " + " ".join(truths),
        "## What a product costs us",
        machine.table(rows.OWN, own),
        "## One Hessian product",
        machine.table(rows.PRODUCT, product),
        f"## The top eigenvalue, at a tolerance of {rows.TOLERANCE}",
        machine.table(rows.EIGENVALUE, eigenvalue),
    ]
    if traces:
        parts += ["## The trace", machine.table(rows.TRACE, traces)]
    return "\n\n".join(parts)


def _shown(header, found):
    machine.progress(machine.table(header, found))
    return found


def main():
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/results/curvature.md too"
    )
    args = parser.parse_args()
    machine.pin()
    text = measured(args)
    text = f"# Curvature\n\n{machine.provenance()}\n\n{text}\n"
    print(text)
    if args.write:
        machine.write("curvature.md", text)


if __name__ == "__main__":
    main()
