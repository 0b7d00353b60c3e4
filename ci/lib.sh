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

# Unmounts whatever is mounted at a folder, alive or dead.
unmount_any() {
    "$kiseki" umount "$1" >/dev/null 2>&1 || true
    [ -z "$(mounts_under "$1")" ] || umount -l "$1" 2>/dev/null || fusermount3 -uz "$1" 2>/dev/null || true
}

# Mount points at or under a folder, the innermost first.
mounts_under() { awk -v d="$1" '$5 == d || index($5, d "/") == 1 { print $5 }' /proc/self/mountinfo | sort -r; }

clean_work() {
    local status=$? at
    [ -n "$work" ] || return 0
    while read -r at; do unmount_any "$at"; done < <(mounts_under "$work")
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

# Formats an embedded volume in `$work` and mounts it on `$work/mnt`.
format_volume() {
    mkdir -p "$work/mnt" "$work/bucket"
    "$kiseki" format "$work/meta" volume --storage file --bucket "$work/bucket" >/dev/null || die "format failed"
}
mount_volume() { "$kiseki" mount "$work/meta" "$work/mnt" -d --log "$work/mount.log" >/dev/null || die "mount failed"; }
unmount_volume() { "$kiseki" umount "$work/mnt" >/dev/null || die "umount failed"; }

# The volume of `$work`, unmounted, is whole to the last byte.
check_volume() { "$kiseki" fsck "$work/meta" --data >"$work/fsck.out" 2>&1 || { cat "$work/fsck.out" >&2; die "fsck found damage"; }; }

# What a failing script shows of the mount.
mount_log() { [ ! -s "$work/mount.log" ] || { say "end of the mount's log:"; tail -n 40 "$work/mount.log" >&2; }; }
