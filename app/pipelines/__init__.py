"""Pipelines: one file each, selected by file name with `pipeline.name`."""
