"""What has been measured of one matrix so far."""

from dataclasses import dataclass, field
from typing import Any

SMALL = 1e-9
"""Errors below this share of a value are not told: they are rounding in float64."""


@dataclass(slots=True)
class Findings:
    """Fields of `Spectra` by name, how far they may be off, and how they were computed."""

    fields: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    precision: dict[str, str] = field(default_factory=dict)

    def keep(self, name: str, value: float | None, error: float = 0.0) -> None:
        """Keep a number, and its error where that is more than rounding."""
        self.fields[name] = value
        if value is not None and error > SMALL * abs(value):
            self.errors[name] = error
