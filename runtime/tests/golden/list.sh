#!/bin/sh
# list.sh DIR: everything that a golden volume promises about the tree in DIR, one line for each name, in order.
set -eu
cd "$1"
export LC_ALL=C TZ=UTC
find . -mindepth 1 -printf '%P|%y|%m|%U:%G|links %n|size %s|-> %l|%T+\n' | sort
find . -type f -print0 | sort -z | xargs -0 sha256sum
