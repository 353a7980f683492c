#!/usr/bin/env bash
# Run jobs.summarize on the cluster, for cron or a systemd timer. Never runs twice at once. Exits with the job's status.
#
#   nightly.sh --input.path … --output.path … [OPTION …]     options of jobs.summarize
set -euo pipefail
cd "$(dirname "$0")/../.."
source deploy/cluster/environment.sh
exec 9>"$NIGHTSHIFT_HOME/nightly.lock"
if ! flock --nonblock 9; then
    echo "nightly.sh: the previous run has not ended yet; skipping this one" >&2
    exit 1
fi
exec python deploy/cluster/submit.py python -m jobs.summarize "$@"
