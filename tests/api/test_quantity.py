"""Amounts as Kubernetes writes them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from shoal_api.quantity import amount


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("2", "2"), (2, "2"), ("1.5", "1.5"), ("1k", "1000"), ("1Ki", "1024"), ("8Gi", "8589934592")],
)  # fmt: skip
def test_amounts_are_exact(text, value):
    assert amount(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "Gi", "8GB", "-1", "1e3", "1 Gi", "1.", ".5", "ten"])
def test_other_text_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="500m"):
        amount(text)
