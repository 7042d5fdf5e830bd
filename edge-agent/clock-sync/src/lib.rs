//! Reads from the kernel whether the wall clock is synchronised. Every time service reports this to
//! the kernel.

/// Returns whether a time service keeps the wall clock synchronised.
///
/// True while a time service (systemd-timesyncd, chrony, ntpd, PTP) reports to the kernel that the
/// clock follows a time source, and for about nine hours after its last report: by then the error
/// that the kernel assumes has grown past its limit of 16 s (`NTP_PHASE_LIMIT`). chrony reports it
/// if its configuration has `rtcsync`, as Debian's does.
///
/// Returns `None` if the kernel does not answer, as behind a system call filter without `adjtimex`.
#[must_use]
pub fn is_synchronised() -> Option<bool> {
    #[allow(unsafe_code)]
    // SAFETY: `timex` consists of integers only, for which zero is a valid value. With `modes` zero
    // adjtimex(2) sets nothing and fills in the struct, which outlives the call.
    let (state, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    match state {
        -1 => None,
        state => Some(state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Compares the result with that of an independent program.
    #[test]
    fn the_result_equals_that_of_adjtimex_in_another_program() {
        let script = "import ctypes; b = ctypes.create_string_buffer(512); \
                      s = ctypes.CDLL(None).adjtimex(b); \
                      print(s != 5 and not int.from_bytes(b[40:44], 'little') & 0x40)";
        let asked = Command::new("python3").args(["-c", script]).output().expect("python3");
        let said = String::from_utf8_lossy(&asked.stdout);
        assert_eq!(super::is_synchronised(), Some(said.trim() == "True"), "{asked:?}");
    }
}
