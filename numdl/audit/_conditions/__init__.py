"""Conditions of the rules: each takes a Reading and returns what it saw, or None. No theory, no analysis, no jax."""
