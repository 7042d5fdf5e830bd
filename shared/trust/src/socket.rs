//! The signer's socket: a key in another process, which keeps it in a PKCS#11 token.
//!
//! One request is `length (u32, big-endian), operation, message`; one response is `length, status,
//! content`. Every request ends within a time limit, whatever goes wrong: a token that hangs must
//! not block the caller.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use contract::KeyId;

use crate::key::{PublicKey, SignError, Signer};
use crate::purpose::MESSAGE_BYTES_MAX;

/// The largest request or response, without its length.
pub const BODY_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 64;
/// The operation that returns the public key; clients request it first.
const OPERATION_PUBLIC_KEY: u8 = 1;
const OPERATION_SIGN: u8 = 2;
const STATUS_OK: u8 = 0;

/// A request to the signer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignerRequest {
    /// Requests the public key, as a DER `SubjectPublicKeyInfo`.
    PublicKey,
    /// Requests the signature of this message.
    Sign(Vec<u8>),
}

/// Why the signer refuses a request. The numbers are part of the wire format and must never be
/// reused with another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignRefusal {
    /// The message has no purpose for which this key signs.
    ForbiddenPurpose = 1,
    /// Too many requests are already waiting.
    Busy = 2,
    /// The token does not answer in time.
    TokenTimeout = 3,
    /// The token is absent, locked or broken.
    TokenUnavailable = 4,
    /// The request is malformed.
    Malformed = 5,
}

impl SignRefusal {
    /// Returns the reason in words.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::ForbiddenPurpose => "the signer does not sign such a message with this key",
            Self::Busy => "the signer is busy: too many requests wait",
            Self::TokenTimeout => "the token does not answer in time",
            Self::TokenUnavailable => "the token cannot be used; see the signer's log",
            Self::Malformed => "the signer did not understand the request",
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::ForbiddenPurpose,
            2 => Self::Busy,
            3 => Self::TokenTimeout,
            4 => Self::TokenUnavailable,
            _ => Self::Malformed,
        }
    }
}

/// Reads one request.
///
/// # Errors
/// When the connection ends, or what arrives is too long or not a request.
pub fn read_request(stream: &mut impl Read) -> io::Result<SignerRequest> {
    let body = read_body(stream)?;
    match body.split_first() {
        Some((&OPERATION_PUBLIC_KEY, [])) => Ok(SignerRequest::PublicKey),
        Some((&OPERATION_SIGN, message)) => Ok(SignerRequest::Sign(message.to_vec())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a request")),
    }
}

/// Writes one response.
///
/// # Errors
/// When the connection has ended.
pub fn write_response(
    stream: &mut impl Write,
    answer: &Result<Vec<u8>, SignRefusal>,
) -> io::Result<()> {
    match answer {
        Ok(content) => write_body(stream, STATUS_OK, content),
        Err(refusal) => write_body(stream, *refusal as u8, &[]),
    }
}

fn write_body(stream: &mut impl Write, first: u8, rest: &[u8]) -> io::Result<()> {
    let length = u32::try_from(rest.len().saturating_add(1)).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(rest.len().saturating_add(5));
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.push(first);
    bytes.extend_from_slice(rest);
    stream.write_all(&bytes)
}

fn read_body(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if !(1..=BODY_BYTES_MAX).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// A key that is used through the signer's socket.
pub struct SocketKey {
    path: PathBuf,
    key_id: KeyId,
    time_limit: Duration,
    /// Requested once, because a key never changes under its name.
    public: OnceLock<PublicKey>,
}

impl SocketKey {
    /// Creates a handle without connecting, because the signer may start later than this process.
    #[must_use]
    pub fn new(path: &Path, key_id: KeyId, time_limit: Duration) -> Self {
        Self { path: path.to_owned(), key_id, time_limit, public: OnceLock::new() }
    }

    fn exchange(&self, request: &SignerRequest) -> Result<Vec<u8>, SignError> {
        let unheard = |error: io::Error| {
            let problem = match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    format!("the signer does not answer within {} ms", self.time_limit.as_millis())
                }
                _ => format!("the signer at {} cannot be reached: {error}", self.path.display()),
            };
            SignError { key_id: self.key_id.clone(), problem }
        };
        let exchange = || -> io::Result<Vec<u8>> {
            let mut stream = connect(&self.path)?;
            stream.set_read_timeout(Some(self.time_limit))?;
            stream.set_write_timeout(Some(self.time_limit))?;
            match request {
                SignerRequest::PublicKey => write_body(&mut stream, OPERATION_PUBLIC_KEY, &[])?,
                SignerRequest::Sign(message) => write_body(&mut stream, OPERATION_SIGN, message)?,
            }
            read_body(&mut stream)
        };
        let body = exchange().map_err(unheard)?;
        match body.split_first() {
            Some((&STATUS_OK, content)) => Ok(content.to_vec()),
            other => {
                let refusal = SignRefusal::from_code(other.map_or(u8::MAX, |(code, _)| *code));
                let problem = refusal.message().to_owned();
                Err(SignError { key_id: self.key_id.clone(), problem })
            }
        }
    }
}

/// Connects without blocking. When a signer accepts no connections, its queue fills up, and a
/// blocking `connect` would wait for room in it without a time limit.
fn connect(path: &Path) -> io::Result<UnixStream> {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

impl Signer for SocketKey {
    fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    fn public_key(&self) -> Result<PublicKey, SignError> {
        if let Some(cached) = self.public.get() {
            return Ok(cached.clone());
        }
        let spki = self.exchange(&SignerRequest::PublicKey)?;
        let public = PublicKey::from_spki(&spki).map_err(|error| SignError {
            key_id: self.key_id.clone(),
            problem: format!("the signer's key is {error}"),
        })?;
        Ok(self.public.get_or_init(|| public).clone())
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.exchange(&SignerRequest::Sign(message.to_vec()))
    }
}
