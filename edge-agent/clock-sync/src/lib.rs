//! Whether the kernel holds the wall clock for set: what every time service tells it.

/// True while a time service (systemd-timesyncd, chrony, ntpd, PTP) has told the kernel that the
/// clock follows a reference, and for about nine hours after it was last heard: by then the error
/// that the kernel reckons with has grown past its limit of 16 s (`NTP_PHASE_LIMIT`). chrony tells
/// it when its configuration says `rtcsync`, as Debian's does.
///
/// `None` when the kernel does not say, as behind a system call filter without `adjtimex`.
#[must_use]
pub fn is_synchronised() -> Option<bool> {
    #[allow(unsafe_code)]
    // SAFETY: `timex` is integers alone, for which zero is a value; with `modes` zero adjtimex(2)
    // sets nothing and fills in what the pointer leads to, which lives through the call.
    let (state, status) = unsafe {
        let mut told: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut told), told.status)
    };
    match state {
        -1 => None,
        state => Some(state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// The same question asked by somebody else.
    #[test]
    fn the_kernel_says_what_adjtimex_of_another_program_says() {
        let script = "import ctypes; b = ctypes.create_string_buffer(512); \
                      s = ctypes.CDLL(None).adjtimex(b); \
                      print(s != 5 and not int.from_bytes(b[40:44], 'little') & 0x40)";
        let asked = Command::new("python3").args(["-c", script]).output().expect("python3");
        let said = String::from_utf8_lossy(&asked.stdout);
        assert_eq!(super::is_synchronised(), Some(said.trim() == "True"), "{asked:?}");
    }
}
