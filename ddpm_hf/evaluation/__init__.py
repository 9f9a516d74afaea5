"""Measure a model: bits per dimension, FID, KID, precision and recall.

In: a pipeline, and images to compare its samples with.
Out: numbers, each with the settings that it depends on, in evaluation.json or evaluations.jsonl.
`measure` draws and compares, `likelihood` and `distances` do the mathematics, and `command` is `ddpm-hf evaluate`.
"""
