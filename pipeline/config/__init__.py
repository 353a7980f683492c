"""Typed, validated options of each job, with their defaults and descriptions."""
