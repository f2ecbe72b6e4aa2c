"""Commands that are killed at every moment, and given again: python -m benchmarks.kills"""
