"""Other document stores at both ends of a run: from a store to Parquet (fetch), and from summaries to a store (deliver).

A module each for Iceberg, Delta, JSON lines and PostgreSQL. Each has the same two context managers: ``source``, which holds on
to a snapshot of the documents, and ``sink``, which brings summaries into a table in one step and remembers up to which run.
"""
