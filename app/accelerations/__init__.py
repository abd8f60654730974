"""Accelerations: one file each, selected by file name with `model.acceleration`."""
