#!/usr/bin/env bash
# Start and stop this machine's node of a Ray cluster. Every connection needs the cluster's token. All ports are in one range.
#
#   cluster.sh token                       create the token, once, on the head; copy the file to the other machines
#   cluster.sh head [OPTION …]             start the head on this machine, in the background
#   cluster.sh worker ADDRESS [OPTION …]   start a worker on this machine that joins the head at this address
#   cluster.sh stop                        stop this machine's node
#
# Options are those of "ray start", such as --num-cpus 0 for a head that runs no tasks. Environment: see environment.sh, and
# NIGHTSHIFT_ADDRESS, this machine's address in the cluster's network, if Ray selects that of another network.
#
# The dashboard, to which jobs are submitted, listens only at 127.0.0.1. For their traffic, Ray's nodes open ports from
# NIGHTSHIFT_PORT to NIGHTSHIFT_PORT + 999 at every address of a machine, and Ray has no option to restrict them. Block them with a
# firewall for all other machines. deploy/README.md, "Ports", has a table.
set -euo pipefail
# shellcheck source=deploy/cluster/environment.sh
source "$(dirname "$0")/environment.sh"
pid_file="$NIGHTSHIFT_HOME/node.pid"
log="$NIGHTSHIFT_HOME/node.log"
start_s=120
stop_s=60

fail() {
    echo "cluster.sh: $*" >&2
    exit 2
}

running() { # succeed if this machine's node runs, and set $pid to its process
    pid="$(cat "$pid_file" 2>/dev/null)" && [[ "$(ps -o args= -p "$pid")" == *"ray start"* ]]
}

make_token() {
    [[ ! -e $RAY_AUTH_TOKEN_PATH ]] || fail "$RAY_AUTH_TOKEN_PATH exists; remove it to create another token"
    (umask 077 && mkdir -p "$NIGHTSHIFT_HOME" && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")
    echo "created the token of the cluster: $RAY_AUTH_TOKEN_PATH"
}

start() {
    command -v ray >/dev/null || fail "the command ray is not found; run make .venv/installed, or activate the environment that has it"
    [[ -s $RAY_AUTH_TOKEN_PATH ]] || fail "no token at $RAY_AUTH_TOKEN_PATH; create it on the head with 'cluster.sh token', and copy it to the other machines"
    ! running || fail "a node of $NIGHTSHIFT_HOME is already running, process $pid"
    (umask 077 && mkdir -p "$NIGHTSHIFT_HOME")
    export DASHBOARD_METRIC_PORT=$((NIGHTSHIFT_PORT + 9)) AUTOSCALER_METRIC_PORT=$((NIGHTSHIFT_PORT + 10))
    ( # close the caller's files, such as a lock or a pipe: the node would keep them open
        for descriptor in /proc/self/fd/*; do
            [[ ${descriptor##*/} -le 2 ]] || eval "exec ${descriptor##*/}>&-"
        done
        exec setsid nohup ray start --block --disable-usage-stats --temp-dir "$NIGHTSHIFT_HOME/ray" \
            ${NIGHTSHIFT_ADDRESS:+--node-ip-address "$NIGHTSHIFT_ADDRESS"} \
            --node-manager-port $((NIGHTSHIFT_PORT + 3)) --object-manager-port $((NIGHTSHIFT_PORT + 4)) \
            --runtime-env-agent-port $((NIGHTSHIFT_PORT + 5)) --dashboard-agent-listen-port $((NIGHTSHIFT_PORT + 6)) \
            --dashboard-agent-grpc-port $((NIGHTSHIFT_PORT + 7)) --metrics-export-port $((NIGHTSHIFT_PORT + 8)) \
            --min-worker-port $((NIGHTSHIFT_PORT + 20)) --max-worker-port $((NIGHTSHIFT_PORT + 999)) "$@"
    ) </dev/null >"$log" 2>&1 &
    pid=$!
    echo "$pid" >"$pid_file"
    for ((waited = 0; waited < 2 * start_s; waited++)); do
        if grep -q "Ray runtime started" "$log"; then
            echo "the node is running, process $pid; its log is $log"
            return
        fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.5
    done
    tail -n 5 "$log" >&2
    fail "the node did not start; see $log and $NIGHTSHIFT_HOME/ray/session_latest/logs"
}

stop() {
    running || fail "no node of $NIGHTSHIFT_HOME is running"
    kill "$pid"
    for ((waited = 0; waited < 2 * stop_s; waited++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.5
    done
    kill -KILL -- "-$pid" 2>/dev/null || true # the rest of its session
    rm -f "$pid_file"
    echo "the node has stopped"
}

case "${1-}" in
    token) make_token ;;
    head)
        start --head --port "$NIGHTSHIFT_PORT" --dashboard-host 127.0.0.1 --dashboard-port $((NIGHTSHIFT_PORT + 1)) \
            --ray-client-server-port $((NIGHTSHIFT_PORT + 2)) "${@:2}"
        echo "submit jobs to $RAY_API_SERVER_ADDRESS; workers join with: cluster.sh worker ADDRESS"
        ;;
    worker)
        [[ -n ${2-} ]] || fail "the address of the head is missing: cluster.sh worker ADDRESS"
        start --address "${2%:*}:$([[ $2 == *:* ]] && echo "${2##*:}" || echo "$NIGHTSHIFT_PORT")" "${@:3}"
        ;;
    stop) stop ;;
    *) fail "usage: cluster.sh token, head, worker ADDRESS or stop" ;;
esac
