//! Running `nft`: one transaction at a time, whole or not at all.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::error::NetworkError;

/// Carries out `script` in the network namespace of this thread.
pub(super) fn apply(script: &str) -> Result<(), NetworkError> {
    run(&["-f", "-"], script).map(drop)
}

/// What both tables called `name` hold; a table that is not there holds nothing.
pub(super) fn list(name: &str) -> Result<serde_json::Value, NetworkError> {
    let mut objects = Vec::new();
    for family in ["inet", "bridge"] {
        let said = match run(&["--json", "list", "table", family, name], "") {
            Ok(said) => said,
            Err(NetworkError::Rules(refusal)) if refusal.contains("No such file") => continue,
            Err(error) => return Err(error),
        };
        let listing: serde_json::Value = serde_json::from_str(&said)
            .map_err(|error| NetworkError::Rules(format!("an answer that is no JSON: {error}")))?;
        objects.extend(
            listing.get("nftables").and_then(|all| all.as_array()).cloned().unwrap_or_default(),
        );
    }
    Ok(serde_json::json!({ "nftables": objects }))
}

fn run(arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NetworkError::NoNft)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It reads all before it answers anything; one that died already is told about below.
        let _written: io::Result<()> = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(NetworkError::NoNft)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said =
        said.lines().map(str::trim).filter(|line| !line.starts_with('^')).collect::<Vec<_>>();
    Err(NetworkError::Rules(said.join(" ")))
}
