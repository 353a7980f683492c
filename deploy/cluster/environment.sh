# Variables for the scripts in this folder and for shells that submit jobs: source it. It keeps variables that are already set.
# shellcheck shell=bash
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
[[ ! -d $here/.venv/bin ]] || PATH="$here/.venv/bin:$PATH"
unset here
export PATH
export NIGHTSHIFT_HOME="${NIGHTSHIFT_HOME:-$HOME/.nightshift}"  # holds the token, and the files and logs of this machine's node
export NIGHTSHIFT_PORT="${NIGHTSHIFT_PORT:-20000}"              # first of a node's 1,000 ports
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$NIGHTSHIFT_HOME/token}"
export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:$((NIGHTSHIFT_PORT + 1))}"
