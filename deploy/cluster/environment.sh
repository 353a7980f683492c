# What the scripts here and a shell that submits jobs agree on: source it. Whatever is set before stays as it is.
# shellcheck shell=bash
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
[[ ! -d $here/.venv/bin ]] || PATH="$here/.venv/bin:$PATH"
unset here
export PATH
export NIGHTSHIFT_HOME="${NIGHTSHIFT_HOME:-$HOME/.nightshift}"  # the token, this machine's node, Ray's files and logs
export NIGHTSHIFT_PORT="${NIGHTSHIFT_PORT:-20000}"              # first of the 1,000 ports of a node
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$NIGHTSHIFT_HOME/token}"
export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:$((NIGHTSHIFT_PORT + 1))}"
