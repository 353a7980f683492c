#!/usr/bin/env bash
# A night's run, for cron or a systemd timer: jobs.summarize on the cluster, never two at once, with the job's exit status.
#
#   nightly.sh --input.path … --output.path … [OPTION …]     options of jobs.summarize
set -euo pipefail
cd "$(dirname "$0")/../.."
source deploy/cluster/environment.sh
exec 9>"$NIGHTSHIFT_HOME/nightly.lock"
if ! flock --nonblock 9; then
    echo "nightly.sh: the run before is still going on; this one is left out" >&2
    exit 1
fi
exec python deploy/cluster/submit.py python -m jobs.summarize "$@"
