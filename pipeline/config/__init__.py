"""Typed, validated options of each job: what they are, their types, defaults and meaning."""
