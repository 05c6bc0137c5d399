"""The operations between matrix products. One interface, one implementation per device; layers never know which one runs."""
