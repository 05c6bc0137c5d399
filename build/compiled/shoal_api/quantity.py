"""Amounts as Kubernetes writes them: 500m, 2, 8Gi. Checks and compares them; knows no resource names."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
SCALES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTP", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTP", 1)},
}


def amount(quantity: str | int) -> Decimal:
    """How much it is, in cores, bytes or pieces. Raises ValueError for other text."""
    text = str(quantity)
    if not re.fullmatch(PATTERN, text):
        raise ValueError(f'must be an amount such as 500m, 2 or 8Gi, not "{text}"')
    number = text.rstrip("".join(SCALES))
    return Decimal(number) * SCALES[text[len(number) :]]


def _check(value: Any) -> str | int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f'must be an amount such as 500m, 2 or 8Gi; write a fraction as text: "{value}"')
    amount(value)
    return value


Quantity = Annotated[
    str | int,
    PlainValidator(_check),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 32,
            "pattern": PATTERN,
            "x-kubernetes-int-or-string": True,
        }
    ),
]
