"""Benchmarks; each is one command and writes JSON with hardware and versions."""
