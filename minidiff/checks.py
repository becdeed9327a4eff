"""What an argument may be."""

from typing import Any, get_args


def one_of(argument: str, value: str, choices: Any) -> None:
    """Raises ValueError, naming the argument and what it may be, for a value that the Literal does not have."""
    if value not in get_args(choices):
        raise ValueError(f"{argument}={value!r}: take one of {', '.join(get_args(choices))}.")
