//! The C library's memory arenas.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The environment variable by which the C library takes the largest number of arenas.
const VARIABLE: &str = "MALLOC_ARENA_MAX";
/// Each arena keeps memory that was freed in it, and by default there are eight for each processor.
/// Under `simcorp-bench attack` the process took a sixth less memory with four on two processors.
const ARENAS: &str = "4";

/// Continues as the same program with few arenas, unless the environment already says how many. The C
/// library reads the variable only at the start, so the process executes its program once more: its
/// id, files and arguments stay.
pub fn limit() {
    if !cfg!(target_env = "gnu") || std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    // By its path, of which the system takes the name that `ps` and `pgrep` show.
    let path = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let mut program = Command::new(path);
    if let Some(name) = arguments.next() {
        program.arg0(name);
    }
    // Returns only if it fails; then the process takes more memory, and works.
    let error = program.args(arguments).env(VARIABLE, ARENAS).exec();
    eprintln!("simcorp: cannot limit the arenas of memory ({VARIABLE}): {error}");
}
