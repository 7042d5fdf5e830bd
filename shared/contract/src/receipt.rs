//! Receipts: the edge agent's signed statement of what one roast consists of, so that the cloud can
//! report the roast as complete, or name exactly what is missing.

use crate::cbor::{DecodeError, NUMBER_EXPECTED, NUMBER_MAX, Reader, infallible};
use crate::{ChainId, Digest, EpochMs, Origin, SessionId};

/// The statement of what one closed roast consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The machine that roasted.
    pub origin: Origin,
    /// The session that the receipt is about.
    pub session: SessionId,
    /// The chain that holds the roast.
    pub chain: ChainId,
    /// The first frame that holds the roast.
    pub first_frame: u64,
    /// The last frame that holds the roast, included.
    pub last_frame: u64,
    /// The roast's first sample.
    pub first_seq: u64,
    /// The roast's last sample, included.
    pub last_seq: u64,
    /// When the roast started, by the gateway's wall clock.
    pub started: EpochMs,
    /// When the roast ended, by the gateway's wall clock.
    pub ended: EpochMs,
    /// SHA-256 over the digests of the frames, in order.
    pub digest: Digest,
}

const VERSION: u64 = 1;
const FIELDS: usize = 13;

impl Receipt {
    /// Returns how many samples the roast has.
    #[must_use]
    pub const fn sample_count(&self) -> u64 {
        self.last_seq.saturating_sub(self.first_seq).saturating_add(1)
    }

    /// Encodes the receipt as the CBOR bytes that are signed: an array of thirteen items.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        let mut e = minicbor::Encoder::new(&mut bytes);
        infallible(e.array(FIELDS as u64));
        infallible(e.u64(VERSION));
        infallible(e.str(self.origin.org.as_str()));
        infallible(e.str(self.origin.site.as_str()));
        infallible(e.str(self.origin.machine.as_str()));
        infallible(e.str(self.session.as_str()));
        infallible(e.bytes(&self.chain.0));
        infallible(e.u64(self.first_frame));
        infallible(e.u64(self.last_frame));
        infallible(e.u64(self.first_seq));
        infallible(e.u64(self.last_seq));
        infallible(e.i64(self.started.0));
        infallible(e.i64(self.ended.0));
        infallible(e.bytes(&self.digest.0));
        bytes
    }

    /// Decodes the bytes that [`Receipt::encode`] wrote.
    ///
    /// # Errors
    /// Names the field that is malformed, or whose range ends before it begins.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        r.tuple("receipt", FIELDS)?;
        let version = r.u64("version")?;
        if version != VERSION {
            return Err(r.malformed("version", format!("{version}; this cloud reads 1")));
        }
        let receipt = Self {
            origin: Origin {
                org: r.id("orgId")?,
                site: r.id("siteId")?,
                machine: r.id("machineId")?,
            },
            session: r.id("sessionId")?,
            chain: ChainId(r.bytes("chain")?),
            first_frame: r.up_to("firstFrame", NUMBER_MAX, NUMBER_EXPECTED)?,
            last_frame: r.up_to("lastFrame", NUMBER_MAX, NUMBER_EXPECTED)?,
            first_seq: r.up_to("firstSeq", NUMBER_MAX, NUMBER_EXPECTED)?,
            last_seq: r.up_to("lastSeq", NUMBER_MAX, NUMBER_EXPECTED)?,
            started: EpochMs(r.i64("started")?),
            ended: EpochMs(r.i64("ended")?),
            digest: Digest(r.bytes("digest")?),
        };
        r.end()?;
        for (field, first, last) in [
            ("lastFrame", receipt.first_frame, receipt.last_frame),
            ("lastSeq", receipt.first_seq, receipt.last_seq),
        ] {
            if last < first {
                return Err(r.malformed(field, "before the first"));
            }
        }
        if !receipt.started.is_plausible() || !receipt.ended.is_plausible() {
            return Err(r.malformed("started", "not a time between 1970 and 9999"));
        }
        Ok(receipt)
    }
}
