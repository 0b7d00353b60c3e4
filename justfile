# `just` alone lists what there is.

meta := env("KISEKI_META", home_directory() / ".kiseki/quickstart/meta")
mountpoint := env("KISEKI_MOUNT", "/tmp/kiseki")

[private]
default:
    @just --list

# Build the release binary.
build:
    ci/dep.sh
    cargo build --release --locked -p kiseki

# Make the volume of ci/quickstart.sh if it is not there, and mount it.
mount: build
    KISEKI_MOUNT={{ mountpoint }} ci/quickstart.sh --no-copy

# Unmount it.
umount:
    "${CARGO_TARGET_DIR:-target}/release/kiseki" umount {{ mountpoint }}

# Run every test.
test:
    ci/test.sh

# Run the simulator: `just sim 1000` for that many seeds.
sim *args:
    ci/sim.sh {{ args }}

# Run the fuzz targets on random inputs: `just fuzz 1000000` for that many each.
fuzz iterations="100000":
    BOLERO_RANDOM_ITERATIONS={{ iterations }} cargo test --locked -p fuzz

# Compare with the local disk and with a file system that stores nothing.
bench *args:
    ci/bench.sh {{ args }}
