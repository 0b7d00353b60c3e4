//! Without `--cfg madsim` there is no simulator, and the other tests of this package are empty: this one runs them
//! again with the flag. It happens where `RUSTFLAGS` is set, which hides `.cargo/config.toml`.
#![cfg(not(madsim))]

use std::path::Path;
use std::process::Command;

#[test]
fn the_tests_run_with_the_simulator() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let status = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["test", "-p", "sim", "--lib", "--tests"])
        .current_dir(root)
        // The flag changes what is compiled; the caller's folder is locked and holds the other kind.
        .env("CARGO_TARGET_DIR", root.join("target/madsim"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", format!("{flags} --cfg madsim"))
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "the tests of `sim` fail with --cfg madsim");
}
