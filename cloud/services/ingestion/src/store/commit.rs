//! Commits one batch in one transaction: locks the chains, decides which frames are new, inserts
//! them and records the progress.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use ::database::sqlx::{self, AssertSqlSafe};
use ::database::{Pool, StoreError};
use contract::{Digest, EpochMs, EventKind, FrameRange, MachineEvent, Refusal, SessionId};

use super::batch_tx::{BatchTx, NewFrame, Progress, number};
use super::clock_correction::{ClockOffset, FrameDate};
use super::{ChainNo, IngestStore, SessionChange};
use crate::chain::{ChainState, FramePosition};
use crate::legacy::roast::{Known, LastSample};
use crate::legacy::stamp::FAST_MAX_MS;
use crate::published::PublishedMessage;
use crate::verified_frame::{Numbering, Opening, Repeats, VerifiedFrame};

/// The number of newest frames among which a repeated message is sought if its time says nothing.
const REPEATS_SOUGHT: i64 = 1_024;

/// The clock offsets of boots, by chain number and boot id.
type Offsets = BTreeMap<(i64, i64), ClockOffset>;

/// The result for one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    /// It had been stored before, bit for bit, or retention has dropped the row with its number.
    Duplicate,
    Refused(Refusal),
    /// Its chain has too many gaps: neither stored nor acknowledged.
    Deferred,
}

/// The result for a batch.
#[derive(Debug, Default)]
pub struct Committed {
    /// In the order of the frames given.
    pub outcomes: Vec<Outcome>,
    /// The frames that each chain of the batch still lacks.
    pub gaps: HashMap<i64, Vec<FrameRange>>,
}

impl IngestStore {
    /// Stores a batch of verified frames with their events, all or nothing. `chains` has the chain
    /// of each frame.
    ///
    /// # Errors
    /// When the database does not answer: nothing of the batch is stored, and the caller may retry
    /// with the same frames.
    pub async fn commit(
        &self,
        chains: &[ChainNo],
        frames: &[VerifiedFrame],
        now: EpochMs,
    ) -> Result<Committed, StoreError> {
        const DOING: &str = "storing frames";
        let boots = chains.iter().zip(frames).map(|(no, verified)| boot_of(*no, verified));
        let offsets: Offsets =
            boots.filter_map(|boot| Some((boot, self.offsets.get(&boot)?))).collect();
        let _turn = self.database.write_turn().await;
        let result = match self.database.pool() {
            Pool::Postgres(pool) => match pool.begin().await {
                Ok(mut tx) => match store_batch(&mut tx, chains, frames, offsets, now).await {
                    Ok(done) => tx.commit().await.map(|()| done),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            },
            Pool::Sqlite(pool) => match pool.begin_with(AssertSqlSafe("BEGIN IMMEDIATE")).await {
                Ok(mut tx) => match store_batch(&mut tx, chains, frames, offsets, now).await {
                    Ok(done) => tx.commit().await.map(|()| done),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            },
        };
        result.map_err(StoreError::query(DOING))
    }
}

async fn store_batch(
    tx: &mut impl BatchTx,
    names: &[ChainNo],
    frames: &[VerifiedFrame],
    offsets: Offsets,
    now: EpochMs,
) -> Result<Committed, sqlx::Error> {
    let mut nos: Vec<i64> = names.iter().map(|no| no.chain).collect();
    nos.sort_unstable();
    nos.dedup();
    let mut chains: BTreeMap<i64, ChainState> = BTreeMap::new();
    let mut called: HashMap<i64, (String, Vec<u8>)> = HashMap::new();
    for (chain_no, next, gaps, last, org, chain) in tx.lock_chains(&nos).await? {
        chains.insert(chain_no, state_of(next, &gaps, last));
        called.insert(chain_no, (org, chain));
    }
    // A database restored to a time before a chain got its number may since have given that number
    // to another chain: the caller must look it up again.
    let names_match = |(no, verified): (&ChainNo, &VerifiedFrame)| {
        called.get(&no.chain).is_some_and(|(org, chain)| {
            org == verified.frame.origin.org.as_str() && *chain == verified.frame.chain.0
        })
    };
    if !names.iter().zip(frames).all(names_match) {
        return Err(sqlx::Error::RowNotFound);
    }
    let offsets = stored_offsets(tx, offsets).await?;
    // In the order of their numbers, so that a batch that arrived out of order leaves no gaps.
    let mut order: Vec<usize> = (0..frames.len()).collect();
    order.sort_by_key(|i| (names[*i].chain, frames[*i].frame.number));
    let mut outcomes = vec![Outcome::Deferred; frames.len()];
    let mut fresh: Vec<NewFrame<'_>> = Vec::with_capacity(frames.len());
    let mut in_batch: HashMap<(i64, u64), Digest> = HashMap::new();
    for i in order {
        let (no, verified) = (&names[i], &frames[i]);
        let date = FrameDate::of(verified, offsets.get(&boot_of(*no, verified)).copied());
        let frame = &verified.frame;
        let Some(state) = chains.get_mut(&no.chain) else { continue };
        if let Numbering::Arrival { repeats, .. } = verified.numbering {
            outcomes[i] = Outcome::Duplicate;
            let next = state.next.max(1);
            if !is_repeated(tx, no.chain, (verified, repeats), number(next)).await? {
                state.accept(next, verified.digest);
                let (org, n) = (frame.origin.org.as_str(), number(next));
                fresh.push(NewFrame { org, no: *no, number: n, first_seq: n, date, verified });
                outcomes[i] = Outcome::Stored;
            }
            continue;
        }
        outcomes[i] = match state.position_of(frame.number) {
            FramePosition::TooManyGaps => Outcome::Deferred,
            FramePosition::Seen => {
                let stored = match in_batch.get(&(no.chain, frame.number)) {
                    Some(digest) => Some(digest.0.to_vec()),
                    None => tx.digest_of(no.chain, number(frame.number)).await?,
                };
                // A number whose row retention has dropped counts as stored.
                match stored {
                    Some(stored) if stored != verified.digest.0 => {
                        Outcome::Refused(Refusal::SequenceReused)
                    }
                    _ => Outcome::Duplicate,
                }
            }
            FramePosition::Next | FramePosition::Ahead | FramePosition::FillsGap
                if !state.link_is_plausible(frame.number, frame.previous) =>
            {
                Outcome::Refused(Refusal::BrokenChain)
            }
            FramePosition::Next | FramePosition::Ahead | FramePosition::FillsGap => {
                state.accept(frame.number, verified.digest);
                in_batch.insert((no.chain, frame.number), verified.digest);
                fresh.push(NewFrame {
                    org: frame.origin.org.as_str(),
                    no: *no,
                    number: number(frame.number),
                    first_seq: number(frame.first_seq),
                    date,
                    verified,
                });
                Outcome::Stored
            }
        };
    }
    tx.insert(&fresh).await?;
    for new in &fresh {
        update_sessions(tx, new).await?;
    }
    let progress: Vec<Progress> = chains
        .iter()
        .filter(|(no, _)| fresh.iter().any(|new| new.no.chain == **no))
        .map(|(no, state)| Progress {
            chain_no: *no,
            next: number(state.next),
            gaps: serde_json::json!(state.gaps).to_string(),
            last_digest: state.last_digest.map(|digest| digest.0.to_vec()),
        })
        .collect();
    tx.update_progress(&progress, now).await?;
    let gaps = chains.into_iter().map(|(no, state)| (no, state.gaps)).collect();
    Ok(Committed { outcomes, gaps })
}

/// Returns the chain and the boot of a frame.
const fn boot_of(no: ChainNo, verified: &VerifiedFrame) -> (i64, i64) {
    (no.chain, verified.frame.boot_id.cast_signed())
}

/// Returns the cached offsets, but the estimates among them as they are stored now: another instance
/// may have replaced them. While the chains are locked they do not change.
async fn stored_offsets(tx: &mut impl BatchTx, cached: Offsets) -> Result<Offsets, sqlx::Error> {
    let mut offsets = Offsets::new();
    for (boot, offset) in cached {
        let offset = if offset.estimated {
            tx.offset_of(boot).await?.map(ClockOffset::of_row)
        } else {
            Some(offset)
        };
        offsets.extend(offset.map(|offset| (boot, offset)));
    }
    Ok(offsets)
}

/// Returns whether a message without a number has been stored before; `next` is the number that it
/// would get.
async fn is_repeated(
    tx: &mut impl BatchTx,
    chain: i64,
    (verified, repeats): (&VerifiedFrame, Repeats),
    next: i64,
) -> Result<bool, sqlx::Error> {
    let digest = &verified.digest.0;
    match repeats {
        Repeats::SameTime => tx.contains(chain, verified.frame.wall.0, digest).await,
        Repeats::Since { number, received } => {
            let number = number.max(next.saturating_sub(REPEATS_SOUGHT));
            tx.contains_since(chain, digest, number, received.0).await
        }
        Repeats::Unrecognisable => Ok(false),
    }
}

/// Opens, ends or extends sessions by a new frame, and stores its events.
async fn update_sessions(tx: &mut impl BatchTx, new: &NewFrame<'_>) -> Result<(), sqlx::Error> {
    let (mut opened_at, mut joined) = (None, None);
    match &new.verified.numbering {
        Numbering::Arrival { opens: Some(opening), .. } => {
            joined = session_opened_since(tx, new, opening).await?;
            if let Some(session) = &joined {
                if let Some(PublishedMessage::Sample(samples, _)) = &new.verified.published {
                    let samples = samples.clone().in_session(session.as_str());
                    let text = serde_json::json!(samples).to_string();
                    tx.set_published(new.no.chain, new.number, &text).await?;
                }
                if new.verified.frame.sample_count() > 0 {
                    tx.append_late(new).await?;
                }
            } else {
                let (session, started) = (&opening.session, opening.started);
                let seq = opening_seq(tx, new).await?;
                tx.end_previous(new.no, seq).await?;
                tx.apply(&SessionChange::opened(new.org, new.no, session, started, seq)).await?;
                opened_at = Some(seq);
            }
        }
        Numbering::Arrival { opens: None, .. } if new.verified.frame.sample_count() > 0 => {
            tx.append_late(new).await?;
        }
        Numbering::Arrival { .. } | Numbering::Edge => {}
    }
    for event in &new.verified.frame.events {
        let event = match &joined {
            Some(session) => Cow::Owned(MachineEvent { session: session.clone(), ..event.clone() }),
            None => Cow::Borrowed(event),
        };
        let seq = match opened_at {
            Some(seq) => seq,
            None => seq_of(tx, new, &event).await?,
        };
        let trust = new.verified.trust.code();
        let published = new.verified.published.as_ref().and_then(PublishedMessage::of_event);
        let change = SessionChange::from_event(new.org, new.no, seq, &event)
            .with_trust(trust)
            .with_published(published);
        let change = match new.verified.numbering {
            Numbering::Edge => change.with_clocks(&new.verified.frame, &new.date),
            Numbering::Arrival { .. } => change,
        };
        tx.apply(&change).await?;
    }
    Ok(())
}

/// Returns the session that another instance has opened for the roast of a message since the message
/// was read and taken for the beginning of that roast. To open it again would move its beginning, and
/// end it before that.
async fn session_opened_since(
    tx: &mut impl BatchTx,
    new: &NewFrame<'_>,
    opening: &Opening,
) -> Result<Option<SessionId>, sqlx::Error> {
    if tx.has_session(new.org, new.no, opening.session.as_str()).await? {
        return Ok(Some(opening.session.clone()));
    }
    // The same one that the reading instance sought.
    let latest = new.verified.received.plus_ms(FAST_MAX_MS);
    let newest = tx.newest_session(new.no).await?;
    let Some(session) = newest.filter(|session| session.started_ms <= latest.0) else {
        return Ok(None);
    };
    if opening.after.as_ref() == Some(&session.session_id) {
        return Ok(None);
    }
    // Under the chain's lock, what the reading instance decided is decided again.
    let last = tx.frame_before(new.no.chain, new.number).await?;
    let charged = tx.charged_at(new.org, &session.session_id).await?;
    let known = Known { session: Some(&session), last: last.as_ref().map(LastSample::of) };
    if known.begins_with(new.verified, charged.map(EpochMs)) {
        return Ok(None);
    }
    Ok(SessionId::new(session.session_id).ok())
}

/// Returns the number of the first sample of a session that begins with a single message. A CHARGE
/// may be detected late: the samples since its time belong to its session, but none of a session
/// that has ended.
async fn opening_seq(tx: &mut impl BatchTx, new: &NewFrame<'_>) -> Result<i64, sqlx::Error> {
    let Some(event) = new.verified.frame.events.first() else { return Ok(new.first_seq) };
    let before = tx.sample_before(new.no.chain, event.at.0).await?.unwrap_or(0);
    let ended = tx.newest_end(new.no).await?.unwrap_or(0);
    Ok(before.max(ended).saturating_add(1).min(new.first_seq))
}

/// Returns the number of the sample at which an event lies. An event with a message of its own is
/// sent after it happened: it lies where its time says, not where it arrived.
async fn seq_of(
    tx: &mut impl BatchTx,
    new: &NewFrame<'_>,
    event: &MachineEvent,
) -> Result<i64, sqlx::Error> {
    let chain = new.no.chain;
    Ok(match new.verified.numbering {
        Numbering::Edge => number(event.seq),
        Numbering::Arrival { .. } if event.kind == EventKind::Charge => {
            tx.sample_before(chain, event.at.0).await?.unwrap_or(0).saturating_add(1)
        }
        Numbering::Arrival { .. } => {
            tx.sample_before(chain, event.at.0.saturating_add(1)).await?.unwrap_or(new.first_seq)
        }
    })
}

pub(super) fn state_of(next: i64, gaps: &str, last: Option<Vec<u8>>) -> ChainState {
    let last_digest = last.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).map(Digest);
    ChainState {
        next: u64::try_from(next).unwrap_or(0),
        gaps: serde_json::from_str(gaps).unwrap_or_default(),
        last_digest,
    }
}
