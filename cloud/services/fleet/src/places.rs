//! The places of the gateways' requests that are handled at once. They share the database with all
//! others, and strangers reach them.
//!
//! A request takes a place only when its whole body has arrived, so that a slow client holds none.
//! Clients with a certificate have places of their own, and no client may take more than a few.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http_stack::error::ApiError;
use service::connections::network_of;
use service::tls::TlsPeer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The largest body: a certificate request with the names of the gateway's machines.
const BODY_BYTES_MAX: usize = 32 * 1024;
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// The numbers of places.
#[derive(Debug, Clone, Copy)]
pub struct PlaceLimits {
    /// Of all clients with a certificate of the fleet.
    pub certified: usize,
    /// Of all clients without one.
    pub strangers: usize,
    /// Of one certificate.
    pub per_certificate: usize,
    /// Of the clients without a certificate from one address, of global IPv6 addresses from one
    /// network of 64 bits.
    pub per_address: usize,
}

impl Default for PlaceLimits {
    fn default() -> Self {
        Self { certified: 64, strangers: 32, per_certificate: 4, per_address: 8 }
    }
}

/// A client, as far as it can be told apart from others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Client {
    Certificate(Arc<[u8]>),
    Address(IpAddr),
}

impl From<&TlsPeer> for Client {
    fn from(peer: &TlsPeer) -> Self {
        match &peer.certificate {
            Some(certificate) => Self::Certificate(certificate.clone()),
            None => Self::Address(network_of(peer.address.ip())),
        }
    }
}

/// The places of one listener. Clones share them.
#[derive(Clone)]
pub struct Places {
    limits: PlaceLimits,
    certified: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    clients: Arc<Mutex<HashMap<Client, usize>>>,
}

/// A place that is taken until it is dropped.
struct Place {
    clients: Arc<Mutex<HashMap<Client, usize>>>,
    client: Client,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    #[must_use]
    pub fn new(limits: PlaceLimits) -> Self {
        Self {
            limits,
            certified: Arc::new(Semaphore::new(limits.certified)),
            strangers: Arc::new(Semaphore::new(limits.strangers)),
            clients: Arc::default(),
        }
    }

    fn take(&self, client: Client) -> Option<Place> {
        let (all, most) = match &client {
            Client::Certificate(_) => (&self.certified, self.limits.per_certificate),
            Client::Address(_) => (&self.strangers, self.limits.per_address),
        };
        let permit = all.clone().try_acquire_owned().ok()?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let held = clients.get(&client).copied().unwrap_or(0);
        if held >= most {
            return None;
        }
        clients.insert(client.clone(), held.saturating_add(1));
        Some(Place { clients: self.clients.clone(), client, _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = clients.get_mut(&self.client) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// Reads the body of a request, then lets it take a place. Answers 408 if the body comes too
/// slowly, 413 if it is too large, and 503 with `Retry-After` if there is no place.
pub async fn take_place(
    State(places): State<Places>,
    ConnectInfo(peer): ConnectInfo<TlsPeer>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = match tokio::time::timeout(BODY_TIME_MAX, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let problem = format!("more than {BODY_BYTES_MAX} bytes, or incomplete");
            return ApiError::TooLarge(problem).into_response();
        }
        Err(_) => {
            let body = serde_json::json!({"error": "the body came too slowly"});
            return (StatusCode::REQUEST_TIMEOUT, axum::Json(body)).into_response();
        }
    };
    let Some(_place) = places.take(Client::from(&peer)) else {
        metrics::counter!("simcorp_http_requests_refused_total").increment(1);
        let error = ApiError::Unavailable("too many requests at once; try again".to_owned());
        return ([(header::RETRY_AFTER, "1")], error).into_response();
    };
    next.run(Request::from_parts(parts, Body::from(body))).await
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn stranger(last: u8) -> TlsPeer {
        TlsPeer::new(SocketAddr::from(([192, 0, 2, last], 40_000)), None)
    }

    fn gateway(certificate: u8) -> TlsPeer {
        let address = SocketAddr::from(([192, 0, 2, 1], 40_000));
        TlsPeer::new(address, Some(Arc::from([certificate])))
    }

    fn take(places: &Places, peer: &TlsPeer, count: usize) -> Vec<Place> {
        (0..count).filter_map(|_| places.take(Client::from(peer))).collect()
    }

    #[test]
    fn strangers_keep_no_gateway_with_a_certificate_out() {
        let places = Places::new(PlaceLimits::default());
        let strangers: Vec<_> = (0..100).flat_map(|n| take(&places, &stranger(n), 100)).collect();
        assert_eq!(strangers.len(), 32);
        assert_eq!(take(&places, &gateway(1), 1).len(), 1);
        drop(strangers);
        assert!(places.clients.lock().unwrap().is_empty());
    }

    #[test]
    fn one_client_takes_a_few_places_only() {
        let places = Places::new(PlaceLimits::default());
        let held = (take(&places, &stranger(1), 100), take(&places, &gateway(1), 100));
        assert_eq!((held.0.len(), held.1.len()), (8, 4));
        // Of the same address: gateways behind one router do not share places.
        assert_eq!(take(&places, &gateway(2), 100).len(), 4);
        assert_eq!(take(&places, &stranger(2), 100).len(), 8);
        drop(held);
        assert_eq!(take(&places, &stranger(1), 100).len(), 8);
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_share_their_places() {
        let places = Places::new(PlaceLimits::default());
        let peer = |ip: &str| TlsPeer::new(SocketAddr::new(ip.parse().unwrap(), 40_000), None);
        let held: Vec<_> =
            (1..100).flat_map(|n| take(&places, &peer(&format!("2001:db8::{n}")), 1)).collect();
        assert_eq!(held.len(), 8);
        assert_eq!(take(&places, &peer("2001:db8:0:1::1"), 1).len(), 1);
        // An IPv4 client of a socket for both is not in the network of all others.
        let mapped = take(&places, &peer("::ffff:192.0.2.1"), 100);
        assert_eq!((mapped.len(), take(&places, &stranger(1), 1).len()), (8, 0));
    }
}
