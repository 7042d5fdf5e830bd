//! Detects that two agents send under one device name and key, as after a copied memory card: the
//! frames of one machine are of two chains in turn, or use one number twice with different contents.

use contract::{ChainId, EpochMs, Origin, Refusal};
use quick_cache::sync::Cache;

use crate::store::Outcome;
use crate::verified_frame::{Numbering, VerifiedFrame};

/// The maximum number of machines and keys that are remembered.
const REMEMBERED_MAX: usize = 10_000;
/// This many signs within [`WITHIN_MS`] mean a second agent. A journal that is replaced, restored or
/// kept in memory for a while gives one or two.
const SIGNS_MIN: u32 = 4;
const WITHIN_MS: i64 = 15 * 60_000;
/// Signs that follow each other faster count once: a restored journal sends several numbers again
/// before it hears that the first one was refused.
const SIGNS_APART_MS: i64 = 5_000;
/// Only frames this near their arrival count: those of an old chain that waited in a journal are sent
/// in turn with those of the new one.
const RECENT_MS: i64 = 2 * 60_000;
/// And only frames that are not older than this before the machine's newest one: those that an old
/// chain has left were made before the new one began.
const CLOCKS_APART_MS: i64 = 5_000;
/// How often a conflict is reported.
const REPORT_MS: i64 = 60_000;

/// The chains of one machine under one key.
#[derive(Debug, Clone, Copy)]
struct ChainTurns {
    newest: ChainId,
    before: Option<ChainId>,
    /// The date of the newest frame.
    dated: EpochMs,
    signs: u32,
    /// The time of the first sign.
    since: EpochMs,
    /// The time of the last sign.
    last_sign: Option<EpochMs>,
}

/// A machine, and the key that signed its frames. Two gateways with names of their own may serve one
/// machine.
type MachineKey = (Origin, String);

/// What is known of the chains of machines.
pub(super) struct NameConflicts {
    turns: Cache<MachineKey, ChainTurns>,
    reported: Cache<MachineKey, EpochMs>,
}

impl Default for NameConflicts {
    fn default() -> Self {
        Self { turns: Cache::new(REMEMBERED_MAX), reported: Cache::new(REMEMBERED_MAX) }
    }
}

impl NameConflicts {
    /// Notes a frame and what became of it. Returns whether two agents send for its machine, at most
    /// once a minute.
    pub(super) fn note(&self, verified: &VerifiedFrame, outcome: Outcome) -> bool {
        let (frame, now) = (&verified.frame, verified.received);
        let last = frame.offsets_ms.last().copied().map_or(0, i64::from);
        let dated = frame.wall.plus_ms(last);
        let apart_ms = now.ms_since(dated).saturating_abs();
        let reused = outcome == Outcome::Refused(Refusal::SequenceReused);
        let counts = reused || (outcome == Outcome::Stored && apart_ms <= RECENT_MS);
        if verified.numbering != Numbering::Edge || verified.kid.is_empty() || !counts {
            return false;
        }
        let key = (frame.origin.clone(), verified.kid.clone());
        let Some(turns) = self.turns.get(&key) else {
            let (newest, since) = (frame.chain, now);
            let first =
                ChainTurns { newest, before: None, dated, signs: 0, since, last_sign: None };
            self.turns.insert(key, first);
            return false;
        };
        let same = turns.newest == frame.chain;
        if same && !reused {
            if dated > turns.dated {
                self.turns.insert(key, ChainTurns { dated, ..turns });
            }
            return false;
        }
        if !reused && turns.dated.ms_since(dated) > CLOCKS_APART_MS {
            return false;
        }
        let apart = |at: EpochMs| !(0..SIGNS_APART_MS).contains(&now.ms_since(at));
        let sign =
            (reused || turns.before == Some(frame.chain)) && turns.last_sign.is_none_or(apart);
        let expired = !(0..=WITHIN_MS).contains(&now.ms_since(turns.since));
        let (signs, since) = if expired { (0, now) } else { (turns.signs, turns.since) };
        let turns = ChainTurns {
            newest: frame.chain,
            before: if same { turns.before } else { Some(turns.newest) },
            dated: dated.max(turns.dated),
            signs: signs.saturating_add(u32::from(sign)),
            since,
            last_sign: if sign { Some(now) } else { turns.last_sign },
        };
        self.turns.insert(key.clone(), turns);
        turns.signs >= SIGNS_MIN && self.is_due(key, now)
    }

    fn is_due(&self, key: MachineKey, now: EpochMs) -> bool {
        let reported = self.reported.get(&key);
        let due = reported.is_none_or(|at| !(0..REPORT_MS).contains(&now.ms_since(at)));
        if due {
            self.reported.insert(key, now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use contract::{ClockQuality, Digest, Frame};

    use super::*;
    use crate::verified_frame::Trust;

    const NOW: EpochMs = EpochMs(1_795_000_000_000);

    /// A frame of chain `chain` that arrives `s` seconds after [`NOW`] and was made `age_s` before.
    fn frame(chain: u8, s: i64, age_s: i64) -> VerifiedFrame {
        let received = NOW.plus_ms(s * 1000);
        let frame = Frame {
            origin: "acme/leipzig/r-1".parse().unwrap(),
            chain: ChainId([chain; 16]),
            number: 1,
            previous: None,
            boot_id: u64::from(chain),
            first_seq: 0,
            mono_ms: 0,
            wall: received.plus_ms(-age_s * 1000),
            clock: ClockQuality::Synchronised,
            profile_digest: None,
            offsets_ms: vec![0],
            columns: vec![],
            events: vec![],
        };
        VerifiedFrame {
            frame,
            digest: Digest([0; 32]),
            signed: vec![],
            kid: "device:gw-1@leipzig".to_owned(),
            trust: Trust::Verified,
            numbering: Numbering::Edge,
            published: None,
            received,
        }
    }

    #[test]
    fn two_chains_in_turn_are_two_agents_with_one_name() {
        let conflicts = NameConflicts::default();
        let told: Vec<i64> = (0..20)
            .filter(|s| {
                let chain = if s % 2 == 0 { 1 } else { 2 };
                conflicts.note(&frame(chain, s * 10, 1), Outcome::Stored)
            })
            .collect();
        assert_eq!(told, [5, 11, 17], "once a minute");
    }

    #[test]
    fn one_number_with_two_contents_is_a_copied_journal() {
        let conflicts = NameConflicts::default();
        let reused = Outcome::Refused(Refusal::SequenceReused);
        let told = (0..6).filter(|s| conflicts.note(&frame(1, *s * 5, 1), reused)).count();
        assert_eq!(told, 1);
    }

    #[test]
    fn a_restored_journal_that_sends_many_numbers_again_is_no_second_agent() {
        let conflicts = NameConflicts::default();
        let reused = Outcome::Refused(Refusal::SequenceReused);
        for s in 0..64 {
            assert!(!conflicts.note(&frame(1, s / 16, 1), reused));
        }
        for s in 5..60 {
            assert!(!conflicts.note(&frame(2, s, 1), Outcome::Stored), "the new chain");
        }
    }

    #[test]
    fn two_gateways_with_names_of_their_own_may_serve_one_machine() {
        let conflicts = NameConflicts::default();
        for s in 0..60 {
            let mut other = frame(2, s * 10, 1);
            other.kid = "device:gw-2@leipzig".to_owned();
            assert!(!conflicts.note(&frame(1, s * 10, 1), Outcome::Stored));
            assert!(!conflicts.note(&other, Outcome::Stored));
        }
    }

    #[test]
    fn the_waiting_frames_of_an_old_chain_are_no_second_agent() {
        let conflicts = NameConflicts::default();
        for s in 0..100 {
            assert!(!conflicts.note(&frame(1, s, 3_600), Outcome::Stored), "waited in a journal");
            assert!(!conflicts.note(&frame(2, s, 1), Outcome::Stored));
        }
        // What the old chain has left of the last minute is sent between the frames of the new one.
        let conflicts = NameConflicts::default();
        assert!(!conflicts.note(&frame(1, 0, 1), Outcome::Stored));
        for s in 10..70 {
            assert!(!conflicts.note(&frame(2, s, 1), Outcome::Stored));
            assert!(!conflicts.note(&frame(1, s, s), Outcome::Stored));
        }
        // A journal is replaced every few minutes.
        for chain in 3..90 {
            assert!(
                !conflicts.note(&frame(chain, 100 + i64::from(chain) * 60, 1), Outcome::Stored)
            );
        }
    }
}
