//! Tests a connection to a real Mosquitto that is killed and restarted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::sync::atomic::Ordering;
use std::time::Duration;

use rumqttc::{PublishOptions, QoS};
use service::mqtt::{
    BrokerSettings, ConnectionBounds, ConnectionEvent, MqttConnection, NameConflict,
};
use testbed::Mosquitto;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

fn link(name: &str, port: u16, topics: &'static [&str]) -> MqttConnection {
    let broker = BrokerSettings { host: "127.0.0.1".to_owned(), port, ..BrokerSettings::default() };
    let bounds = ConnectionBounds { in_flight: 8, receive: 8, packet: 1024 };
    let options = broker.options(name, bounds).unwrap();
    let topics = || topics.iter().map(|topic| (*topic).to_owned()).collect();
    MqttConnection::new(options, 8, topics, (Duration::from_millis(200), || 7))
}

async fn until(
    link: &mut MqttConnection,
    stop: &CancellationToken,
    wanted: fn(&ConnectionEvent) -> bool,
) -> ConnectionEvent {
    let mut told = Vec::new();
    let end = Instant::now() + PATIENCE;
    loop {
        let news = tokio::time::timeout_at(end, link.next(stop)).await;
        let news =
            news.unwrap_or_else(|_| panic!("expected event missing; received {told:?}")).unwrap();
        if wanted(&news) {
            return news;
        }
        told.push(news);
    }
}

#[tokio::test]
async fn subscriptions_are_restored_after_the_broker_restarts() {
    let mut broker = Mosquitto::start().await.unwrap();
    let stop = CancellationToken::new();
    let mut link = self::link("one", broker.port, &["a/+", "b"]);
    let (client, up) = (link.client(), link.ready_flag());
    for round in 0..2 {
        until(&mut link, &stop, |news| matches!(news, ConnectionEvent::Ready)).await;
        assert!(up.load(Ordering::Relaxed));
        for topic in ["a/1", "c", "b"] {
            let options = PublishOptions::new(QoS::AtLeastOnce);
            client.publish(topic, round.to_string(), options).await.unwrap();
        }
        for expected in ["a/1", "b"] {
            let heard =
                until(&mut link, &stop, |news| matches!(news, ConnectionEvent::Message { .. }))
                    .await;
            let ConnectionEvent::Message { topic, payload } = heard else { panic!("{heard:?}") };
            assert_eq!((topic.as_str(), payload), (expected, round.to_string().into_bytes()));
        }
        if round == 0 {
            broker.kill();
            until(&mut link, &stop, |news| matches!(news, ConnectionEvent::Down(_))).await;
            assert!(!up.load(Ordering::Relaxed));
            // The connection is retried repeatedly, with waits in between.
            let tries = Instant::now();
            for _ in 0..3 {
                until(&mut link, &stop, |news| matches!(news, ConnectionEvent::Down(_))).await;
            }
            assert!(tries.elapsed() >= Duration::from_millis(200), "{:?}", tries.elapsed());
            broker.restart().await.unwrap();
        }
    }
    // The last message is still sent.
    let mut other = self::link("another", broker.port, &["b"]);
    until(&mut other, &stop, |news| matches!(news, ConnectionEvent::Ready)).await;
    let options = PublishOptions::new(QoS::AtLeastOnce);
    client.publish("b", "goodbye", options).await.unwrap();
    let ended = CancellationToken::new();
    ended.cancel();
    assert!(link.next(&ended).await.is_none());
    assert!(!up.load(Ordering::Relaxed));
    link.drain(Duration::from_millis(500)).await;
    let heard =
        until(&mut other, &stop, |news| matches!(news, ConnectionEvent::Message { .. })).await;
    let ConnectionEvent::Message { payload, .. } = heard else { panic!("{heard:?}") };
    assert_eq!(payload, b"goodbye");
}

#[tokio::test]
async fn a_connection_without_subscriptions_is_ready_at_once() {
    let broker = Mosquitto::start().await.unwrap();
    let mut link = self::link("one", broker.port, &[]);
    let ready = until(&mut link, &CancellationToken::new(), |_| true).await;
    assert!(matches!(ready, ConnectionEvent::Ready), "{ready:?}");
}

/// As after a panic of the task that owns it.
#[tokio::test]
async fn a_connection_that_its_owner_drops_is_made_anew_for_the_same_clients() {
    let broker = Mosquitto::start().await.unwrap();
    let stop = CancellationToken::new();
    let mut link = self::link("one", broker.port, &["a"]);
    link.reconnect();
    let (client, up) = (link.client(), link.ready_flag());
    until(&mut link, &stop, |news| matches!(news, ConnectionEvent::Ready)).await;
    link.reconnect();
    assert!(!up.load(Ordering::Relaxed));
    until(&mut link, &stop, |news| matches!(news, ConnectionEvent::Ready)).await;
    client.publish("a", "again", PublishOptions::new(QoS::AtLeastOnce)).await.unwrap();
    until(&mut link, &stop, |news| matches!(news, ConnectionEvent::Message { .. })).await;
}

#[tokio::test]
async fn two_clients_with_one_name_back_off_and_know_the_cause() {
    let broker = Mosquitto::start().await.unwrap();
    let stop = CancellationToken::new();
    let mut first = self::link("one", broker.port, &["a"]);
    until(&mut first, &stop, |news| matches!(news, ConnectionEvent::Ready)).await;
    assert_eq!(first.name_conflict(), None);
    let mut second = self::link("one", broker.port, &["a"]);
    let running = stop.clone();
    tokio::spawn(async move { while second.next(&running).await.is_some() {} });
    // Mosquitto 2.0 ends the older connection without a reason; only the repetition tells.
    while first.name_conflict().is_none() {
        until(&mut first, &stop, |news| matches!(news, ConnectionEvent::Down(_))).await;
    }
    // A connection that was only lost is back within 200 ms.
    let lost = Instant::now();
    until(&mut first, &stop, |news| matches!(news, ConnectionEvent::Ready)).await;
    assert!(lost.elapsed() >= Duration::from_millis(900), "{:?}", lost.elapsed());
    assert_eq!(first.name_conflict(), Some(NameConflict::ShortConnections), "while connected");
    stop.cancel();
}
