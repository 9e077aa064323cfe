"""Benchmarks: ``python -m benchmarks [name ...]`` prints each as a table. A time is printed only after the result was right."""
