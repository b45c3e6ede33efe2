"""What tokens cost, in whole numbers only: money is never a float.

A price is in millionths of the currency unit for a million tokens, which is a thousandth of a billionth for one token.
A cost is in billionths of the currency unit ("nano"), rounded up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

NANO = 1_000_000_000
"""Nano in one unit of the currency."""
MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """What the tokens of one model cost from ``from_ms`` (since the epoch) on, until a later price begins."""

    id: str
    model: str
    input_micro: int
    cached_micro: int
    output_micro: int
    from_ms: int

    def cost_nano(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """Returns what a usage costs; cached tokens are part of the prompt's and have a price of their own."""
        cached = cached_tokens if cached_tokens < prompt_tokens else prompt_tokens
        milli = (
            (prompt_tokens - cached) * self.input_micro
            + cached * self.cached_micro
            + completion_tokens * self.output_micro
        )
        return -(-milli // 1000)

    def bound_nano(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Returns the most that so many tokens can cost, whatever of the prompt is cached."""
        dearest = self.input_micro
        if self.cached_micro > dearest:
            dearest = self.cached_micro
        return -(-(prompt_tokens * dearest + completion_tokens * self.output_micro) // 1000)


class PriceTable:
    """The prices of all models. ``by_model`` has those of each, the latest first."""

    def __init__(self, prices: Iterable[Price]) -> None:
        by_model: dict[str, list[Price]] = {}
        for price in prices:
            by_model.setdefault(price.model, []).append(price)
        self.by_model: Mapping[str, tuple[Price, ...]] = {
            model: tuple(sorted(found, key=lambda price: -price.from_ms)) for model, found in by_model.items()
        }

    def at(self, model: str, at_ms: int) -> Price | None:
        """Returns the price in force at a moment, None when there is none: the model is free."""
        for price in self.by_model.get(model, ()):
            if price.from_ms <= at_ms:
                return price
        return None


def amount_text(nano: int) -> str:
    """Returns an amount of money as a decimal number of currency units, without needless zeros."""
    return format((Decimal(nano) / NANO).normalize(), "f")


def price_text(micro: int) -> str:
    """Returns a price as currency units for a million tokens."""
    return format((Decimal(micro) / MICRO).normalize(), "f")


def parse_amount(text: str, scale: int) -> int:
    """Returns a decimal number times ``scale``. Raises ValueError when it is none, negative, or finer than that."""
    try:
        exact = Decimal(text) * scale
    except ArithmeticError:
        raise ValueError(f"{text!r} is not a number.") from None
    if not exact.is_finite() or exact < 0 or exact != exact.to_integral_value():
        raise ValueError(f"{text!r} is not a number of at least 0 with at most {len(str(scale)) - 1} decimals.")
    return int(exact)
