//! Compiles the init of containers (`src/sys/init.rs`), which is no part of the program but goes
//! into it as bytes: a static program without a library, so that it runs in any root.

use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "src/sys/init.rs";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let output = PathBuf::from(variable("OUT_DIR")).join("init");
    let known = ["x86_64", "aarch64"].contains(&variable("CARGO_CFG_TARGET_ARCH").as_str());
    if !known || variable("CARGO_CFG_TARGET_OS") != "linux" {
        // A host without it refuses init=yes, and that alone.
        if let Err(error) = std::fs::write(&output, b"") {
            panic!("cannot write {}: {error}", output.display());
        }
        return;
    }
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition=2024", "--crate-type=bin", "--crate-name=init", SOURCE]);
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Crelocation-model=static"]);
    for option in ["-nostartfiles", "-nostdlib", "-static", "-Wl,--build-id=none"] {
        rustc.arg(format!("-Clink-arg={option}"));
    }
    rustc.arg("--target").arg(variable("TARGET")).arg("-o").arg(&output);
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{SOURCE} was not compiled: {status}"),
        Err(error) => panic!("cannot run rustc for {SOURCE}: {error}"),
    }
}
