//! The `millrace-agent` binary.

fn main() {}
