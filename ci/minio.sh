#!/usr/bin/env bash
# Builds MinIO from source and runs it on the loopback interface: an object store for one machine.
#
#   ci/minio.sh          builds it if it is not there, starts it in the background, makes the bucket `kiseki` in it
#   ci/minio.sh stop     stops it; what it holds stays
#   ci/minio.sh build    only builds it
#
# It listens on 127.0.0.1:9000 and keeps everything under ~/.kiseki/minio: `drive` (the data), `minio.log`, `minio.pid`.
# KISEKI_ACCESS_KEY and KISEKI_SECRET_KEY are its credentials (kiseki and kiseki-secret, for this machine alone).
# A second start says that it runs already. Building takes a few minutes and needs Go 1.21 or newer.
#
# For tests:
#   ci/minio.sh start --data DIR --port PORT [--no-osync]   prints `url=URL pid=PID` alone; port 0: any that is free
#   ci/minio.sh stop --data DIR

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

version=v0.0.0-20260212201848-7aac2a2c5b7c
minio=$tools/bin/minio
stamp=$tools/bin/minio.version
bucket=kiseki
# How long it may take to start, and to end by itself.
start_max=60
stop_max=20

build_minio() {
    [ -z "${KISEKI_BUILT:-}" ] || [ ! -x "$minio" ] || return 0
    [ ! -x "$minio" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$version" ] || return 0
    local go found
    go=$(command -v go || command -v /usr/local/go/bin/go) ||
        die "MinIO is built from source: install Go (https://go.dev/dl), 1.21 or newer"
    found=$("$go" env GOVERSION)
    [ "$(printf '%s\n' go1.21 "$found" | sort -V | head -n 1)" = go1.21 ] ||
        die "MinIO is built from source: install Go (https://go.dev/dl), 1.21 or newer (found: $found)"
    say "building MinIO $version into $tools/bin (a few minutes)"
    mkdir -p "$tools/bin"
    # From the root folder, without the user's flags: neither a module nor a vendor folder around it is meant for it.
    # An older Go fetches the one that it asks for.
    (cd / && env GOBIN="$tools/bin" GOFLAGS=-trimpath CGO_ENABLED=0 GOTOOLCHAIN=auto "$go" install "github.com/minio/minio@$version") >"$tools/minio-build.log" 2>&1 ||
        { tail -n 20 "$tools/minio-build.log" >&2; die "cannot build MinIO $version"; }
    echo "$version" >"$stamp"
}

# Whether anything accepts connections on a port of this machine.
taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Whether MinIO on a port answers and can store.
healthy() {
    local line path
    # `live` says that the process is up; `cluster`, that its drive is ready.
    for path in live cluster; do
        line=$(
            exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 0
            printf 'GET /minio/health/%s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$path" >&3
            IFS= read -r -t 5 line <&3 || exit 0
            printf '%s' "$line"
        )
        case $line in 'HTTP/1.'?' 200'*) ;; *) return 1 ;; esac
    done
}

# Sets `pid` and `port` of the MinIO that serves `$data`; fails if there is none.
running() {
    local words
    pid='' port=''
    [ -f "$data/minio.pid" ] || return 1
    read -r pid port <"$data/minio.pid" || return 1
    # The number may belong to another process by now.
    mapfile -d '' words 2>/dev/null <"/proc/$pid/cmdline" || return 1
    [ "${words[*]: -1}" = "$data/drive" ]
}

# Starts it on `$1` as the port; fails if it ends at once.
launch() {
    local end=$((SECONDS + start_max))
    # MINIO_FS_OSYNC: without it an answered put is not on disk yet; after a power cut 1 of 8 such objects was gone.
    # With it each put ends with a sync(2) of the whole machine.
    # Nothing else of the environment reaches it, and it asks nobody for updates.
    env -i PATH="$PATH" HOME="$data" MINIO_ROOT_USER="$access_key" MINIO_ROOT_PASSWORD="$secret_key" \
        MINIO_FS_OSYNC="$osync" MINIO_BROWSER=off MINIO_UPDATE=off MINIO_CALLHOME_ENABLE=off \
        setsid "$minio" server --quiet --certs-dir "$data/certs" --address "127.0.0.1:$1" \
        --console-address "127.0.0.1:0" "$data/drive" >>"$data/minio.log" 2>&1 </dev/null &
    pid=$!
    port=$1
    echo "$pid $port" >"$data/minio.pid"
    until healthy "$port"; do
        alive "$pid" || { rm -f "$data/minio.pid"; return 1; }
        [ $SECONDS -lt $end ] || { stop; die "MinIO does not answer after $start_max s; see $data/minio.log"; }
        sleep 0.1
    done
    # The one that answers is ours: two of them cannot hold one port, and ours lives.
    alive "$pid" || { rm -f "$data/minio.pid"; return 1; }
}

start() {
    local want=$1 _
    mkdir -p "$data/drive" "$data/certs"
    chmod 700 "$data"
    # A folder of its drive is a bucket.
    mkdir -p "$data/drive/$bucket"
    if [ "$want" != 0 ]; then
        ! taken "$want" || die "port $want of this machine is taken by another program: stop that, or choose another --port"
        launch "$want" || give_up
        return
    fi
    for _ in {1..20}; do
        # Below the ports that the kernel gives to outgoing connections.
        want=$((20000 + RANDOM % 12000))
        ! taken "$want" || continue
        launch "$want" && return
        ! grep -q 'in use' "$data/minio.log" || { : >"$data/minio.log"; continue; }
        break
    done
    give_up
}

give_up() {
    tail -n 5 "$data/minio.log" >&2
    die "MinIO ended at once; see $data/minio.log"
}

stop() {
    local end=$((SECONDS + stop_max))
    kill -TERM "$pid" 2>/dev/null || true
    kill -CONT "$pid" 2>/dev/null || true
    while alive "$pid"; do
        # SIGKILL is safe: what it answered is on disk.
        [ $SECONDS -lt $end ] || kill -KILL "$pid" 2>/dev/null || true
        sleep 0.05
    done
    rm -f "$data/minio.pid"
}

command=up
data=$HOME/.kiseki/minio
want=9000
osync=on
case ${1:-} in
-h | --help) print_usage; exit 0 ;;
start | stop | build) command=$1; shift ;;
esac
while [ $# -gt 0 ]; do
    case $1 in
    --data) data=${2:-}; shift ;;
    --port) want=${2:-}; shift ;;
    --no-osync) osync=off ;;
    *) usage_error "unknown argument $1" ;;
    esac
    [ $# -gt 0 ] || usage_error "the last argument needs a value"
    shift
done
case $data in /*) ;; *) usage_error "--data needs an absolute path" ;; esac
case $want in '' | *[!0-9]*) usage_error "--port needs a number" ;; esac
access_key=${KISEKI_ACCESS_KEY:-kiseki}
secret_key=${KISEKI_SECRET_KEY:-kiseki-secret}

case $command in
build)
    build_minio
    ;;
stop)
    running || { say "no MinIO serves $data"; exit 0; }
    stop
    say "stopped"
    ;;
start)
    build_minio
    running || start "$want"
    echo "url=http://127.0.0.1:$port pid=$pid"
    ;;
up)
    build_minio
    if running; then
        say "MinIO runs already at http://127.0.0.1:$port (pid $pid)"
    else
        start "$want"
        say "MinIO runs at http://127.0.0.1:$port (pid $pid), its data is in $data/drive"
    fi
    if [ -z "${KISEKI_ACCESS_KEY:-}${KISEKI_SECRET_KEY:-}" ]; then
        cat <<TEXT
Its credentials are "kiseki" and "kiseki-secret": known to everyone, good for this machine alone.
  export KISEKI_ACCESS_KEY=kiseki KISEKI_SECRET_KEY=kiseki-secret
TEXT
    fi
    cat <<TEXT
Make a volume in it, and mount it:
  kiseki format ~/.kiseki/meta my-volume --storage minio --bucket http://127.0.0.1:$port/$bucket
  kiseki mount -d ~/.kiseki/meta /tmp/kiseki
Stop it: ci/minio.sh stop
TEXT
    ;;
esac
