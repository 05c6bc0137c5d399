"""The modules a transformer is made of. They hold weights and shapes; the arithmetic is in `kernels/`."""
