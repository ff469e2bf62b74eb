"""What may be expected of an option's value, and how it is refused."""

from collections.abc import Callable, Mapping

from robopolicy.components import ConfigError

__all__ = ["RANGES", "ConfigError", "expect", "require"]

RANGES: dict[str, Callable[[float], bool]] = {
    "1 or more": lambda number: number >= 1,
    "0 or more": lambda number: number >= 0,
    "above 0": lambda number: number > 0,
    "0 .. 1": lambda number: 0 <= number <= 1,
    "0 or more, below 1": lambda number: 0 <= number < 1,
    "0 .. 4294967295": lambda number: 0 <= number < 2**32,
}
"""What may be expected of a number."""


def expect(section: object, prefix: str, expected: str, *names: str) -> None:
    """Refuse a number, or one in a list or table, that is not as `expected`; null is no number."""
    for name in names:
        value = getattr(section, name)
        many = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
        holds = all(number is None or RANGES[expected](number) for number in many)
        shown = list(value) if isinstance(value, tuple) else value
        require(holds, f"--{prefix}.{name} is {shown}; expected {expected}")


def require(holds: bool, message: str) -> None:
    """Refuse with this message where it does not hold."""
    if not holds:
        raise ConfigError(message)
