//! Phases of a roast between its marks: drying (CHARGE → dry end), Maillard (→ first crack),
//! development (→ DROP). Artisan's definitions; shares are of the time so far.

/// Where the phases meet, in seconds since CHARGE.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PhaseMarks {
    pub dry_end_s: Option<f64>,
    pub first_crack_s: Option<f64>,
    /// DROP, or the newest sample while the roast runs.
    pub end_s: f64,
}

/// One phase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phase {
    pub name: &'static str,
    pub start_s: f64,
    pub end_s: f64,
    /// Of the whole roast, 0..1.
    pub share: f64,
}

/// The phases that have begun, in order. Marks out of order end the list at the contradiction.
#[must_use]
pub fn phases(marks: PhaseMarks) -> Vec<Phase> {
    let mut phases = Vec::with_capacity(3);
    let mut start_s = 0.0;
    let limits =
        [("drying", marks.dry_end_s), ("Maillard", marks.first_crack_s), ("development", None)];
    for (name, limit) in limits {
        let end_s = limit.unwrap_or(marks.end_s).min(marks.end_s);
        if end_s < start_s || marks.end_s <= 0.0 {
            break;
        }
        phases.push(Phase { name, start_s, end_s, share: (end_s - start_s) / marks.end_s });
        if limit.is_none_or(|limit| limit >= marks.end_s) {
            break;
        }
        start_s = end_s;
    }
    phases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_whole() {
        let all =
            phases(PhaseMarks { dry_end_s: Some(300.0), first_crack_s: Some(480.0), end_s: 600.0 });
        let text: Vec<_> = all.iter().map(|p| (p.name, (p.share * 100.0).round())).collect();
        assert_eq!(text, [("drying", 50.0), ("Maillard", 30.0), ("development", 20.0)]);
    }

    #[test]
    fn a_roast_that_has_just_begun_is_drying() {
        let now = phases(PhaseMarks { end_s: 42.0, ..PhaseMarks::default() });
        assert_eq!(now.len(), 1);
        assert_eq!((now[0].name, now[0].share), ("drying", 1.0));
        assert_eq!(phases(PhaseMarks::default()), []);
    }
}
