"""Which layers of a run were recorded."""


def recorded_layers(records, quantity="std", kind="activations"):
    """The names of the layers of which a quantity was recorded, from input to output."""
    names = [name.split("/") for name in records.names()]
    return [n[1] for n in names if len(n) == 3 and n[0] == kind and n[2] == quantity]
