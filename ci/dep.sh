#!/usr/bin/env bash
# Installs the system packages that Kiseki needs, on Debian and Ubuntu. The one place that does.
#
#   ci/dep.sh           what building and mounting need
#   ci/dep.sh test      also what the tests need
#
# Quick when everything is there. Uses sudo when it is not run as root.

set -euo pipefail

# A C++ toolchain and libclang: RocksDB is built from source, its bindings are generated.
# fuse3: /dev/fuse for everyone, and fusermount3 for mounts by ordinary users.
build=(build-essential libclang-dev ca-certificates fuse3)
# What ci/tree.sh and ci/powercut.sh work with.
tests=(git rsync sqlite3 tar e2fsprogs mount util-linux)

case ${1:-build} in
build) packages=("${build[@]}") ;;
test) packages=("${build[@]}" "${tests[@]}") ;;
-h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
*) echo "dep.sh: unknown group $1 (build or test)" >&2; exit 2 ;;
esac

missing=()
for package in "${packages[@]}"; do
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) in
    *' installed') ;;
    *) missing+=("$package") ;;
    esac
done

if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || {
        echo "dep.sh: no apt-get here; install what stands for: ${missing[*]}" >&2
        exit 1
    }
    sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "dep.sh: run it as root, or install sudo" >&2; exit 1; }
        sudo=(sudo)
    fi
    echo "-- installing ${missing[*]}" >&2
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ ! -e /dev/fuse ]; then
    echo "dep.sh: /dev/fuse is missing: load the kernel module (modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN" >&2
    exit 1
fi

PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
found=$(rustc --version 2>/dev/null | awk '{ print $2 }' || true)
if [ -z "$found" ] || [ "$(printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)" != "$wanted" ]; then
    echo "dep.sh: Rust $wanted or newer is needed (found: ${found:-none}). Get it from https://rustup.rs:" >&2
    echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\"" >&2
    exit 1
fi
if [ "${1:-build}" = test ]; then
    for component in fmt clippy; do
        cargo "$component" --version >/dev/null 2>&1 || {
            echo "dep.sh: cargo $component is missing: rustup component add rustfmt clippy" >&2
            exit 1
        }
    done
fi
