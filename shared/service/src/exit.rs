//! The exit status of every program.

use std::process::ExitCode;

use crate::config::ConfigError;

/// The configuration is wrong, so a restart does not help. 64 is `EX_USAGE` of sysexits; its
/// `EX_CONFIG` is 78, but unit files and scripts already test for 64.
const WRONG_CONFIGURATION: u8 = 64;

/// Returns the exit status of `program`. Prints an error as one sentence with its causes, never a
/// backtrace.
pub fn exit_status(program: &str, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("{program}: {error:#}");
    if error.is::<ConfigError>() { ExitCode::from(WRONG_CONFIGURATION) } else { ExitCode::FAILURE }
}
