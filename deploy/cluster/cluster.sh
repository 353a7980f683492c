#!/usr/bin/env bash
# This machine's node of a Ray cluster: every connection needs the cluster's token, and all ports are in one range.
#
#   cluster.sh token                       make the token, once, on the head; the other machines get a copy of the file
#   cluster.sh head [OPTION …]             start the head here, in the background
#   cluster.sh worker ADDRESS [OPTION …]   start a worker here, of the head at this address
#   cluster.sh stop                        stop this machine's node
#
# Options are those of "ray start", such as --num-cpus 0 for a head that shall not work. Environment: see environment.sh, and
# NIGHTSHIFT_ADDRESS, this machine's address in the cluster's network, where Ray would take that of another network.
#
# The dashboard, to which jobs are submitted, listens at 127.0.0.1 alone. What nodes say to each other goes to ports, from
# NIGHTSHIFT_PORT to NIGHTSHIFT_PORT + 999, that Ray opens at every address of a machine and has no option for: a firewall keeps
# all but the nodes from them. deploy/README.md, "Ports", has the table.
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

running() { # whether this machine's node runs; its process in $pid
    pid="$(cat "$pid_file" 2>/dev/null)" && [[ "$(ps -o args= -p "$pid")" == *"ray start"* ]]
}

make_token() {
    [[ ! -e $RAY_AUTH_TOKEN_PATH ]] || fail "there is a token at $RAY_AUTH_TOKEN_PATH; remove it to have another"
    (umask 077 && mkdir -p "$NIGHTSHIFT_HOME" && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")
    echo "the cluster's token: $RAY_AUTH_TOKEN_PATH"
}

start() {
    command -v ray >/dev/null || fail "there is no ray; make the environment, or activate the one that has it"
    [[ -s $RAY_AUTH_TOKEN_PATH ]] || fail "no token at $RAY_AUTH_TOKEN_PATH: make it on the head with 'cluster.sh token', elsewhere copy it"
    ! running || fail "a node of $NIGHTSHIFT_HOME runs already, process $pid"
    (umask 077 && mkdir -p "$NIGHTSHIFT_HOME")
    export DASHBOARD_METRIC_PORT=$((NIGHTSHIFT_PORT + 9)) AUTOSCALER_METRIC_PORT=$((NIGHTSHIFT_PORT + 10))
    ( # the caller's files, such as a lock or a pipe, must not stay open for as long as the node lives
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
            echo "the node runs, process $pid; its log: $log"
            return
        fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.5
    done
    tail -n 5 "$log" >&2
    fail "the node did not start; $log and $NIGHTSHIFT_HOME/ray/session_latest/logs tell more"
}

stop() {
    running || fail "no node of $NIGHTSHIFT_HOME runs"
    kill "$pid"
    for ((waited = 0; waited < 2 * stop_s; waited++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.5
    done
    kill -KILL -- "-$pid" 2>/dev/null || true # what is left of its session
    rm -f "$pid_file"
    echo "the node is stopped"
}

case "${1-}" in
    token) make_token ;;
    head)
        start --head --port "$NIGHTSHIFT_PORT" --dashboard-host 127.0.0.1 --dashboard-port $((NIGHTSHIFT_PORT + 1)) \
            --ray-client-server-port $((NIGHTSHIFT_PORT + 2)) "${@:2}"
        echo "jobs go to $RAY_API_SERVER_ADDRESS, workers join with: cluster.sh worker ADDRESS"
        ;;
    worker)
        [[ -n ${2-} ]] || fail "which head? cluster.sh worker ADDRESS"
        start --address "${2%:*}:$([[ $2 == *:* ]] && echo "${2##*:}" || echo "$NIGHTSHIFT_PORT")" "${@:3}"
        ;;
    stop) stop ;;
    *) fail "say token, head, worker ADDRESS or stop" ;;
esac
