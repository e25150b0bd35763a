// SPDX-License-Identifier: Apache-2.0
//! The CNI plugin: this binary under the plugin's name, as the container runtime executes it.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use meltemi_cni::plugin::{self, Call};

/// Longest configuration that is read from the standard input, in bytes.
const MAX_INPUT: u64 = 4 * 1024 * 1024;

/// Whether the program is executed under the plugin's name.
pub fn is_plugin(name: &OsStr) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(meltemi_cni::PLUGIN))
}

/// Answers one call of the container runtime.
pub fn run() -> ExitCode {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let mut input = Vec::new();
    // What is not read whole is not valid, and the plugin says so.
    let _ = std::io::stdin().take(MAX_INPUT).read_to_end(&mut input);
    let call = Call {
        command: variable("CNI_COMMAND"),
        container: variable("CNI_CONTAINERID"),
        netns: variable("CNI_NETNS"),
        args: variable("CNI_ARGS"),
        input,
    };
    let (said, succeeded) = plugin::answer(&call);
    // A result that the runtime does not get is a failure to it.
    match std::io::stdout().write_all(said.as_bytes()) {
        Ok(()) if succeeded => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        for (name, expected) in
            [("/opt/cni/bin/meltemi-cni", true), ("meltemi-cni", true), ("/usr/bin/meltemi", false)]
        {
            assert_eq!(is_plugin(OsStr::new(name)), expected, "{name}");
        }
    }
}
