//! Programs in a mount namespace of their own, where something of the host is covered or missing.

/// The words that run a program after this shell command has changed its mounts, which nobody else sees.
pub fn after(command: &str) -> Vec<String> {
    let script = format!("{command} && exec \"$@\"");
    let words = [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        &script,
        "sh",
    ];
    words.map(str::to_owned).into()
}
