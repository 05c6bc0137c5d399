"""Checkpoint number formats: one file each, all turned into plain tensors or a few run layouts."""
