"""Difficulty: which examples are hard, why, and what weight that should give them.

Every measure is a pure function that returns one number for each example; larger is harder.
"""
