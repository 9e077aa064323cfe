"""Benchmarks: ``python -m benchmarks [name ...]`` prints tables. A time is printed only after the result was right."""
