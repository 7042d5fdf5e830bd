//! First crack: in a gap, and in long roasts.

use contract::EventKind;
use roast::event::MarkChange;
use roast::machine_model::MachineModel;
use roast::replay::replay;

use crate::curves::{curve, made};
use crate::found;

#[test]
fn a_first_crack_in_a_gap_is_placed_in_the_gap() {
    let mut recording = made(800, curve(660.0, 0.0));
    let whole = found(&recording).unwrap();
    let cracked = whole.mark(EventKind::Fc).unwrap().at_ms;
    recording.samples.retain(|s| !(cracked - 60_000..cracked + 60_000).contains(&s.t_ms));
    let roast = found(&recording).unwrap();
    let found = roast.mark(EventKind::Fc).unwrap();
    assert!((found.at_ms - cracked).abs() <= 10_000, "{found:?}, was {cracked}");
    assert!(found.known_ms >= cracked + 60_000, "detected before data came back");
}

#[test]
fn a_long_roast_has_a_wide_interval_of_first_crack() {
    // 30 minutes, turning at 80 °C, 200 °C at the mark, 25 minutes after CHARGE.
    let bt = |s: f64| match s {
        s if s <= 60.0 => 190.0,
        s => 234.0 - 174.0 * (-(s - 60.0) / 920.0).exp() + 130.0 * (-(s - 60.0) / 20.0).exp(),
    };
    let recording = made(1_860, bt);
    let walk = replay(&recording, &MachineModel::default());
    let changes = walk.changes.iter();
    let fc = changes
        .filter_map(|c| match c {
            MarkChange::Detected(mark) if mark.kind == EventKind::Fc => Some(*mark),
            _ => None,
        })
        .next_back()
        .unwrap();
    assert!(fc.confidence < roast::analysis::CONFIDENCE_MIN, "{fc:?}");
    assert!((fc.from_ms..=fc.to_ms).contains(&1_560_000), "{fc:?}");
}
