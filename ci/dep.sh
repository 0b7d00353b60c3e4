#!/usr/bin/env bash
# Installs what Kiseki needs, on Debian 12 and Ubuntu 24.04 or newer. The one place that does.
#
#   ci/dep.sh                          what building and mounting need
#   ci/dep.sh minio                    what building MinIO needs: Go
#   ci/dep.sh test [--without-minio]   also what the tests need; --without-minio: without Go
#   ci/dep.sh fuzz                     what guided fuzzing needs: cargo-bolero
#   ci/dep.sh mutants                  what ci/mutants.sh needs: cargo-mutants, in the user's home
#   ci/dep.sh vm                       all of it, with Rust and just in the user's home: for a machine of its own
#
# Quick when everything is there. Uses sudo when it is not run as root.

set -euo pipefail

# A C++ toolchain and libclang: RocksDB is built from source, its bindings are generated.
# fuse3: /dev/fuse for everyone, and fusermount3 for mounts by ordinary users.
build=(build-essential libclang-dev ca-certificates fuse3)
# What the scripts of this folder work with: real programs, loop devices, certificates for TLS, a clock that is wrong,
# the POSIX suites that are packages.
tests=(git rsync sqlite3 tar attr acl vim-tiny e2fsprogs mount util-linux openssl faketime jq curl fio stress-ng)

# From this version on, Go fetches the newer one that a program asks for by itself.
go_wanted=1.21
# Debian 12 has no package of these.
just_wanted=1.59.0
bolero_wanted=0.13.5
mutants_wanted=27.1.0

die() { echo "dep.sh: $*" >&2; exit 1; }

group=build
without_minio=
for word in "$@"; do
    case $word in
    build | minio | test | fuzz | mutants | vm) group=$word ;;
    --without-minio) without_minio=1 ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "dep.sh: unknown argument $word (build, minio, test, fuzz, mutants or vm)" >&2; exit 2 ;;
    esac
done
go=
lists=
case $group in
build) packages=("${build[@]}") ;;
minio) packages=(ca-certificates) go=1 ;;
fuzz) packages=(build-essential ca-certificates) ;;
test) packages=("${build[@]}" "${tests[@]}") go=$([ -n "$without_minio" ] || echo 1) ;;
mutants) packages=(git jq openssl patch) ;;
vm) packages=("${build[@]}" "${tests[@]}") go=1 ;;
esac

# At its first start a machine may be busy with packages of its own.
apt=(apt-get -o DPkg::Lock::Timeout=300)

# Runs a command as root. `DEBIAN_FRONTEND`: nobody is there to answer a package's questions.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        command -v sudo >/dev/null || die "run it as root, or install sudo"
        sudo env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

# `apt_install [OPTION...] PACKAGE...`, with fresh lists.
apt_install() {
    command -v apt-get >/dev/null || die "no apt-get here; install what stands for: $*"
    echo "-- installing $*" >&2
    as_root "${apt[@]}" update -qq || die "apt-get update failed"
    as_root "${apt[@]}" install -y -qq --no-install-recommends "$@" >/dev/null || die "cannot install $*"
}

# Whether a version (`$2`) is there and at least `$1`.
at_least() { [ -n "$2" ] && { echo "$1" && echo "$2"; } | sort -V -C; }

missing=()
for package in "${packages[@]}"; do
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) in
    *' installed') ;;
    *) missing+=("$package") ;;
    esac
done
[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"

# Go from wherever it is: its own installer puts it into /usr/local/go, outside of many a PATH.
go_found() { { go env GOVERSION || /usr/local/go/bin/go env GOVERSION; } 2>/dev/null | sed 's/^go//; s/[^0-9.].*//'; }

# Go as a package. Debian 12's own is too old, the one in its backports is not; these are asked this one time, the list
# of sources stays as it is.
install_go() {
    local candidate codename mirror options=()
    command -v apt-get >/dev/null || die "Go $go_wanted or newer is needed (found: ${1:-none}): https://go.dev/dl"
    as_root "${apt[@]}" update -qq || die "apt-get update failed"
    candidate=$(apt-cache policy golang-go | sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}\([0-9.]*\).*/\2/p')
    if at_least "$go_wanted" "$candidate"; then
        apt_install golang-go
        return
    fi
    codename=$(sed -n "s/^VERSION_CODENAME=//p" /etc/os-release)
    [ "$codename" = bookworm ] ||
        die "Go $go_wanted or newer is needed (found: ${1:-none}), the package here is ${candidate:-none}: https://go.dev/dl"
    # From where this machine has its packages.
    # shellcheck disable=SC2016  # apt-get expands it
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $codename" | head -n 1)
    [ -n "$mirror" ] || die "Go $go_wanted or newer is needed, and apt-get knows no mirror of $codename: https://go.dev/dl"
    lists=$(mktemp -d)
    trap 'as_root rm -rf "$lists"' EXIT # apt's files in it are root's
    # Readable for the user that apt drops to.
    chmod 755 "$lists"
    mkdir -p "$lists/parts" "$lists/lists/partial"
    {
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $codename main"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $codename-backports main"
    } >"$lists/sources.list"
    options=(-o "Dir::Etc::sourcelist=$lists/sources.list" -o "Dir::Etc::sourceparts=$lists/parts" -o "Dir::State::lists=$lists/lists")
    echo "-- installing golang-go from $codename-backports (the one of $codename is ${candidate:-missing}, $go_wanted is needed)" >&2
    as_root "${apt[@]}" "${options[@]}" update -qq || die "apt-get update failed"
    as_root "${apt[@]}" "${options[@]}" install -y -qq --no-install-recommends -t "$codename-backports" golang-go >/dev/null ||
        die "cannot install golang-go from $codename-backports"
}

if [ -n "$go" ]; then
    found=$(go_found || true)
    if ! at_least "$go_wanted" "$found"; then
        install_go "$found"
        found=$(go_found || true)
        at_least "$go_wanted" "$found" ||
            die "Go $go_wanted or newer is needed, and $(command -v go || echo none) comes first in PATH (${found:-none})"
    fi
fi
[ "$group" != minio ] || exit 0

PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

# A program of crates.io, into the cargo home: `install_tool NAME VERSION`.
install_tool() {
    local command=("$1")
    case $1 in cargo-*) command+=("${1#cargo-}") ;; esac
    case $("${command[@]}" --version 2>/dev/null) in "$1 $2") return ;; esac
    echo "-- installing $1" >&2
    # From the root folder: no workspace's cargo settings are meant for it.
    (cd / && env -u CARGO_TARGET_DIR cargo install --quiet --locked "$1" --version "$2") || die "cannot install $1 $2"
}

case $group in
fuzz) install_tool cargo-bolero "$bolero_wanted"; exit 0 ;;
mutants) install_tool cargo-mutants "$mutants_wanted"; exit 0 ;;
esac

[ -e /dev/fuse ] ||
    die "/dev/fuse is missing: load the kernel module (modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN"

if [ "$group" = vm ]; then
    if ! command -v rustup >/dev/null; then
        echo "-- installing Rust through rustup" >&2
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --quiet --profile minimal --component rustfmt --component clippy || die "rustup cannot be installed"
    fi
    install_tool just "$just_wanted"
fi

# Lima carries this script alone into its machine: the workspace is not beside it there.
manifest=$(dirname "$0")/../Cargo.toml
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$manifest" 2>/dev/null || true)
found=$(rustc --version 2>/dev/null | awk '{ print $2 }' || true)
if ! at_least "${wanted:-1}" "${found%%-*}"; then
    echo "dep.sh: Rust ${wanted:-} or newer is needed (found: ${found:-none}). Get it from https://rustup.rs:" >&2
    echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\"" >&2
    exit 1
fi
if [ "$group" != build ]; then
    for component in fmt clippy; do
        cargo "$component" --version >/dev/null 2>&1 || die "cargo $component is missing: rustup component add rustfmt clippy"
    done
fi
