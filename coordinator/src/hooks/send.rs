//! One try of one message over HTTP.

use std::time::Duration;

use kiln_wire::limits::WEBHOOK_TRY_MS_MAX;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};

use super::config::Receiver;
use super::message::Message;
use super::sign::signature;
use crate::driver::Chain;
use crate::upstream;

/// Makes the client that all receivers share. It follows no redirect: who is redirected sends what it signed to somebody else.
pub(super) fn client() -> reqwest::Result<Client> {
    let whole = Duration::from_millis(WEBHOOK_TRY_MS_MAX);
    upstream::client_with(|builder| builder.redirect(Policy::none()).timeout(whole).pool_max_idle_per_host(1))
}

/// Makes the client that asks other coordinators whether they live. No proxy stands between them, and could answer for one that is gone.
pub(super) fn client_inside() -> reqwest::Result<Client> {
    upstream::client_with(|builder| builder.redirect(Policy::none()).no_proxy())
}

/// Posts a message. What the receiver says beside its status is not read.
///
/// # Errors
/// Why it was not taken, in words that hold no secret.
pub(super) async fn post(client: &Client, receiver: &Receiver, message: &Message, sent_at_s: u64) -> Result<(), String> {
    let signed = signature(&receiver.secrets, &message.id, sent_at_s, &message.body);
    let request = client
        .post(receiver.url.0.clone())
        .header("content-type", "application/json")
        .header("webhook-id", &message.id)
        .header("webhook-timestamp", sent_at_s.to_string())
        .header("webhook-signature", signed)
        .body(message.body.clone());
    // The URL may hold a secret.
    let answer = request.send().await.map_err(|error| Chain(&error.without_url()).to_string())?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        StatusCode::GONE => Err("it answered with status 410 Gone: take it out of the configuration".to_owned()),
        status if status.is_redirection() => Err(format!("it answered with status {status}: redirects are not followed")),
        status => Err(format!("it answered with status {status}")),
    }
}
