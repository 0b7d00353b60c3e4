# shellcheck shell=bash
# What the scripts of this folder share: where things are, building, mounting, cleaning up. Sourced, never run.
#
# Every script that sources this runs under `set -euo pipefail`, works in a throw-away folder `$work` made by
# `make_work`, and leaves neither mounts nor files behind, however it ends. KEEP=1 keeps the folder (not the mounts).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$root/$target ;; esac
export CARGO_TARGET_DIR=$target
kiseki=$target/release/kiseki
tools=${KISEKI_TOOLS:-$HOME/.cache/kiseki/tools}
work=

# The terminal shows what a script is doing; its last line of output is its result.
say() { printf '%s\n' "-- [${SECONDS}s] $*" >&2; }
die() { printf '%s\n' "$(basename "$0"): $*" >&2; exit 1; }
usage_error() { printf '%s\n' "$(basename "$0"): $*" "try: $0 --help" >&2; exit 2; }

# Prints the comment at the top of the calling script, without its `#!` line.
print_usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# The cargo home's binaries, also in a shell that has not read the user's profile.
if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
fi

# Builds packages of the workspace in release. A script that goes on as root was built before, as the user.
build() {
    local package
    [ -z "${KISEKI_BUILT:-}" ] || return 0
    for package in "$@"; do
        say "building $package"
        (cd "$root" && cargo build --quiet --release --locked -p "$package") || die "cannot build $package"
    done
}

# Builds a package of its own workspace under ci/.
build_apart() {
    [ -z "${KISEKI_BUILT:-}" ] || return 0
    say "building $1"
    (cd "$root/ci/$1" && cargo build --quiet --release --locked) || die "cannot build ci/$1"
}

# Installs a released tool under `$tools`: name, version.
install_tool() {
    [ -z "${KISEKI_BUILT:-}" ] || return 0
    case $("$tools/bin/$1" --version 2>/dev/null) in "$1 $2") return 0 ;; esac
    say "installing $1 $2 into $tools"
    # From the root folder: this workspace's cargo settings are not meant for it.
    (cd / && env -u CARGO_TARGET_DIR cargo install --quiet "$1" --version "$2" --locked --force --root "$tools") ||
        die "cannot install $1 $2"
}

# Goes on as root, with what was built so far: `need_root "$@"`.
need_root() {
    [ "$(id -u)" != 0 ] || return 0
    command -v sudo >/dev/null || die "this needs root: run it as root, or install sudo"
    exec sudo env HOME="$HOME" PATH="$PATH" CARGO_TARGET_DIR="$target" KISEKI_TOOLS="$tools" KISEKI_BUILT=1 \
        TMPDIR="${TMPDIR:-/tmp}" KEEP="${KEEP:-}" bash "$0" "$@"
}

# Unmounts whatever is mounted at a folder, alive or dead. Storing what was written is given a minute.
unmount_any() {
    timeout 60 "$kiseki" umount "$1" >/dev/null 2>&1 || true
    [ -z "$(mounts_under "$1")" ] || umount -l "$1" 2>/dev/null || fusermount3 -uz "$1" 2>/dev/null || true
}

# Mount points at or under a folder, the innermost first.
mounts_under() { awk -v d="$1" '$5 == d || index($5, d "/") == 1 { print $5 }' /proc/self/mountinfo | sort -r; }

# Processes that `clean_work` ends. Each has a path below `$work` among its arguments.
helpers=()

# Whether a process is there and not a zombie.
alive() {
    local stat
    read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
    case ${stat##*) } in Z* | X*) return 1 ;; esac
} 2>/dev/null

# kill -9, if the number still belongs to a process of this script; of its group, if it leads one.
end_process() {
    if alive "$1" && tr '\0' ' ' <"/proc/$1/cmdline" | grep -qF "$work"; then
        kill -KILL -- "-$1" 2>/dev/null || kill -KILL "$1"
    fi
    while alive "$1"; do sleep 0.02; done
}

clean_work() {
    local status=$? at pid
    [ -n "$work" ] || return 0
    # A mount that ends asks its store: one that is gone would keep it until its deadline.
    if [ -n "$minio_url" ] && [ -n "$mount_pid" ]; then
        [ -n "$minio_pid" ] && resume_minio 2>/dev/null || end_process "$mount_pid"
    fi
    while read -r at; do unmount_any "$at"; done < <(mounts_under "$work")
    for pid in $mount_pid ${helpers[@]+"${helpers[@]}"} $minio_pid; do end_process "$pid"; done
    if [ -n "${KEEP:-}" ]; then
        say "kept $work"
    elif [ -z "$(mounts_under "$work")" ]; then
        rm -rf --one-file-system "$work"
    else
        say "still mounted, left in place: $(mounts_under "$work" | tr '\n' ' ')"
    fi
    return "$status"
}

# Makes `$work`, removed when the script ends. Others may pass through it (tests switch users).
make_work() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/kiseki-$1.XXXXXX")
    work=$(cd "$work" && pwd -P)
    chmod 755 "$work"
    trap clean_work EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# Copies sources of crates that cargo has fetched, real trees of all sorts, into the new folder $1, until it holds $2 files
# or all are there. Leaves the number of files in `count`.
copy_crates() {
    local crate
    mkdir "$1"
    count=0
    for crate in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/*/; do
        cp -a "$crate" "$1/"
        count=$(find "$1" -type f | wc -l)
        [ "$count" -lt "$2" ] || break
    done
}

# MinIO on `$work/minio`, with credentials of its own: a free port the first time (`$minio_url`), the same one after that.
minio_pid=
minio_url=
start_minio() {
    local line port=${minio_url##*:}
    if [ -z "$minio_url" ]; then
        KISEKI_ACCESS_KEY=kiseki-ci
        KISEKI_SECRET_KEY=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \n')
        export KISEKI_ACCESS_KEY KISEKI_SECRET_KEY
    fi
    line=$(bash "$root/ci/minio.sh" start --data "$work/minio" --port "${port:-0}" "$@") || die "MinIO does not start"
    minio_pid=${line##* pid=}
    minio_url=${line%% *}
    minio_url=${minio_url#url=}
}
stop_minio() {
    bash "$root/ci/minio.sh" stop --data "$work/minio" 2>/dev/null
    minio_pid=
}
# As a crash of its process: nothing is shut down.
kill_minio() {
    end_process "$minio_pid"
    minio_pid=
}
freeze_minio() { kill -STOP "$minio_pid"; }
resume_minio() { kill -CONT "$minio_pid"; }

# Formats an embedded volume in `$work`: `format_volume file`, or `format_volume minio [URL]` with the URL under which
# the mount shall reach MinIO (its own). More arguments, with a dash, go to `kiseki format`.
format_volume() {
    local bucket=$work/bucket store=${1:-file} url=
    [ $# = 0 ] || shift
    case ${1:-} in http*) url=$1; shift ;; esac
    case $store in
    file) mkdir -p "$bucket" ;;
    minio)
        [ -n "$minio_url" ] || start_minio
        bucket=${url:-$minio_url}/kiseki
        ;;
    *) die "no store is called $store" ;;
    esac
    mkdir -p "$work/mnt"
    "$kiseki" format "$work/meta" volume --storage "$store" --bucket "$bucket" "$@" >/dev/null || die "format failed"
}

# Mounts it on `$work/mnt`; more arguments go to `kiseki mount`.
mount_pid=
mount_volume() {
    "$kiseki" mount "$work/meta" "$work/mnt" -d --log "$work/mount.log" "$@" >/dev/null || die "mount failed"
    mount_pid=$("$kiseki" status "$work/mnt" --json | tr -d ' \n' | sed -n 's/.*"pid":\([0-9]*\).*/\1/p')
}
unmount_volume() {
    "$kiseki" umount "$work/mnt" >/dev/null || die "umount failed"
    mount_pid=
}

# The volume of `$work`, unmounted, is whole to the last byte.
check_volume() { "$kiseki" fsck "$work/meta" --data >"$work/fsck.out" 2>&1 || { cat "$work/fsck.out" >&2; die "fsck found damage"; }; }

# What a failing script shows of the mount.
mount_log() { [ ! -s "$work/mount.log" ] || { say "end of the mount's log:"; tail -n 40 "$work/mount.log" >&2; }; }

# For the scripts around ci/torture: sets `store` (file or minio) and `arguments` (the rest, for it) from the command line,
# and builds what it needs.
prepare_torture() {
    store="file"
    arguments=()
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help) print_usage; exit 0 ;;
        file | minio) store=$1 ;;
        --store) store=${2:-}; shift ;;
        *) arguments+=("$1") ;;
        esac
        [ $# -gt 0 ] || usage_error "--store needs file or minio"
        shift
    done
    build kiseki torture
    case $store in
    file) ;;
    minio)
        bash "$root/ci/minio.sh" build
        arguments+=(--minio "$tools/bin/minio")
        ;;
    *) usage_error "the store is file or minio, not $store" ;;
    esac
}
