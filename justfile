# `just` alone lists what there is.

[private]
default:
    @just --list

# Build the release binary.
build:
    ci/dep.sh
    cargo build --release --locked -p kiseki

# Install it as PREFIX/bin/kiseki and as the helper of mount(8) and umount(8), for /etc/fstab (needs root).
install prefix="/usr/local": build
    install -D --strip target/release/kiseki {{ prefix }}/bin/kiseki
    ln -sf {{ prefix }}/bin/kiseki /sbin/mount.fuse.kiseki
    ln -sf {{ prefix }}/bin/kiseki /sbin/umount.fuse.kiseki

# Start MinIO on this machine (built from source the first time): `just minio stop` stops it.
[no-exit-message]
minio *args:
    @ci/dep.sh minio
    @ci/minio.sh {{ args }}

# Mount a volume in that MinIO at /tmp/kiseki (or $KISEKI_MOUNT), and make it the first time.
[no-exit-message]
mount: build
    @ci/mount.sh

# Unmount it.
[no-exit-message]
umount:
    @ci/mount.sh umount

# Without MinIO: a volume in a local folder, mounted at ~/.kiseki/quickstart/mnt.
quickstart *args:
    ci/quickstart.sh {{ args }}

# Run every test: `just test --without-minio` without what needs Go.
test *args:
    ci/test.sh {{ args }}

# Run the simulator: `just sim 1000` for that many seeds.
sim *args:
    ci/sim.sh {{ args }}

# Fuzz, guided by libFuzzer: `just fuzz 600` for that many seconds; `just fuzz keep` keeps what was found.
fuzz *args="300":
    ci/fuzz.sh {{ args }}

# Compare with other file systems on this machine.
bench *args:
    ci/bench.sh {{ args }}
