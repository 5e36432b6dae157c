"""What every measure returns."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Result:
    """Base of the results: frozen, and flat for logs and tables."""

    def scalars(self):
        """The numbers and flags of the result, as a dict of floats."""
        fields = dataclasses.asdict(self)
        return {k: float(v) for k, v in fields.items() if isinstance(v, (int, float))}
