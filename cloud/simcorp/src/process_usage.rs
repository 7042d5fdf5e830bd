//! What this process uses of the computer, as Linux tells it under `/proc/self`.

/// Linux counts processor time in this unit on every architecture that this program runs on.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time in whole seconds since the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuSeconds {
    pub user: u64,
    pub system: u64,
    pub total: u64,
}

/// Returns the resident memory; `None` where the system does not tell it.
pub fn resident_bytes() -> Option<u64> {
    resident_of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Returns the processor time; `None` where the system does not tell it.
pub fn cpu_seconds() -> Option<CpuSeconds> {
    cpu_of(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

fn resident_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1_024)
}

fn cpu_of(stat: &str) -> Option<CpuSeconds> {
    // The second field, the program's name in parentheses, may contain spaces.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (fields.next()?.ok()?, fields.next()?.ok()?);
    let total = user.saturating_add(system) / TICKS_PER_SECOND;
    Some(CpuSeconds { user: user / TICKS_PER_SECOND, system: system / TICKS_PER_SECOND, total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_processor_time_are_read_from_the_system_s_text() {
        let status = "Name:\tsimcorp\nVmPeak:\t  900 kB\nVmRSS:\t   512 kB\nThreads:\t9\n";
        assert_eq!(resident_of(status), Some(512 * 1_024));
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 10 0 0 0 1250 340 0 0 20 0 9 0 100 1 2";
        assert_eq!(cpu_of(stat), Some(CpuSeconds { user: 12, system: 3, total: 15 }));
        assert_eq!((resident_of(""), cpu_of("7 (a) S 1")), (None, None));
    }
}
