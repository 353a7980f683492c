"""Read the latest summaries with DuckDB and pandas: python docs/examples/read_summaries.py OUTPUT."""

import sys

import duckdb

import pipeline

output = sys.argv[1]  # what jobs.summarize wrote

# DuckDB scans the stream of Arrow batches: memory stays small, however many summaries there are.
summaries = pipeline.read_summaries(output)
print(duckdb.sql("SELECT finish_reason, count(*) AS documents, round(avg(score), 2) AS mean_score FROM summaries GROUP BY ALL"))

# pandas, one batch at a time.
for batch in pipeline.read_summaries(output):
    frame = batch.to_pandas()
    print(frame[["id", "summary", "score"]].head())
    break
