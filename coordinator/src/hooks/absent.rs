//! That nobody leads is told by those who miss the leader: the first of them, and the others where that is away.
//!
//! A coordinator cannot tell a farm without a leader from one whose leader it alone does not reach, so a message says who saw it. Nothing of
//! this is in the log, which takes nothing without a leader: whoever is restarted meanwhile tells it again, under the same id.

use std::sync::Arc;
use std::time::Duration;

use kiln_core::pause_ms;
use kiln_wire::limits::WEBHOOK_TRIES_MAX;
use kiln_wire::{NodeId, Timestamp};
use reqwest::Client;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::config::{Kind, Receiver};
use super::message::Message;
use super::{chance, send};
use crate::parts::Parts;

/// Tells receivers whenever nobody has led for as long as each waits.
pub(crate) async fn run(parts: Arc<Parts>) {
    let wanted: Vec<Receiver> =
        parts.hooks.receivers.iter().filter(|receiver| receiver.events.contains(&Kind::NoLeader)).cloned().collect();
    let Some(client) = parts.hooks.client.clone().filter(|_| !wanted.is_empty()) else { return };
    loop {
        wait_until(&parts, false).await;
        let (since, since_at) = (Instant::now(), parts.clock.now());
        let mut telling = JoinSet::new();
        for receiver in wanted.iter().cloned() {
            telling.spawn(tell(parts.clone(), client.clone(), receiver, since, since_at));
        }
        wait_until(&parts, true).await;
        // Whoever was not told by now need not be.
        telling.abort_all();
    }
}

/// Waits until this coordinator knows of a leader, or of none. One that has no vote misses nobody: it may
/// have been taken out of the group, or not be in it yet.
async fn wait_until(parts: &Parts, is_led: bool) {
    while has_leader(parts) != is_led {
        tokio::time::sleep(LOOK).await;
    }
}

fn has_leader(parts: &Parts) -> bool {
    let node = parts.consensus.node();
    parts.consensus.is_led() || !parts.consensus.members().iter().any(|of| of.node == node && of.votes)
}

/// Tells one receiver, once its time has come.
async fn tell(parts: Arc<Parts>, client: Client, receiver: Receiver, since: Instant, since_at: Timestamp) {
    let patience = Duration::from_secs(receiver.no_leader_seconds);
    tokio::time::sleep_until(since + patience).await;
    if !is_first(&parts).await {
        // It is the other's turn. If there is still nobody then, the other could not tell it, or nobody acted on it.
        tokio::time::sleep_until(since + patience * OTHERS_AFTER).await;
    }
    let last = parts.consensus.leadership().borrow().leader;
    let message = parts.hooks.sender.no_leader(parts.consensus.node(), since_at, last);
    for tries in 1..=WEBHOOK_TRIES_MAX {
        match post(&parts, &client, &receiver, &message).await {
            Ok(()) => {
                parts.meter.hooks.delivered();
                tracing::warn!(receiver = receiver.name, "nobody leads: a receiver of webhooks was told");
                return;
            }
            Err(error) => {
                parts.meter.hooks.failed();
                tracing::warn!(receiver = receiver.name, tries, error, "tell that nobody leads");
            }
        }
        tokio::time::sleep(Duration::from_millis(pause_ms(tries, chance()))).await;
    }
    parts.meter.hooks.given_up();
}

async fn post(parts: &Parts, client: &Client, receiver: &Receiver, message: &Message) -> Result<(), String> {
    send::post(client, receiver, message, parts.clock.now().0 / 1000).await
}

/// Returns whether no coordinator with a lower number answers.
async fn is_first(parts: &Parts) -> bool {
    let Ok(client) = send::client_inside() else { return true };
    let node: NodeId = parts.consensus.node();
    let lower: Vec<String> =
        parts.consensus.members().into_iter().filter(|of| of.votes && of.node < node).map(|of| of.member.http).collect();
    let asked = lower.into_iter().map(|http| {
        let request = client.get(format!("http://{http}/nix-cache-info")).timeout(ALIVE);
        async move { request.send().await.is_ok_and(|answer| answer.status().is_success()) }
    });
    !futures::future::join_all(asked).await.contains(&true)
}

/// Between two looks whether somebody leads: well below the shortest patience.
const LOOK: Duration = Duration::from_millis(200);
/// After how many times the patience those tell it too whose turn it was not.
const OTHERS_AFTER: u32 = 4;
/// How soon a coordinator answers that lives.
const ALIVE: Duration = Duration::from_secs(2);
