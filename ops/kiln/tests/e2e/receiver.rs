//! A receiver of webhooks, which verifies what it is sent as the specification of Standard Webhooks says: on its own, with nothing of ours.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver as Channel, Sender, channel};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::farm::Place;

/// Who is told. It answers the first message with an error, then takes whatever comes.
pub struct Receiver {
    /// Its address.
    pub address: String,
    secret: [u8; 32],
    told: Channel<Told>,
    /// What it took, by id: it is told at least once, and looks at it once.
    taken: RefCell<BTreeSet<String>>,
}

/// A message that was signed well.
#[derive(Clone, Debug)]
pub struct Told {
    /// `webhook-id`.
    pub id: String,
    /// The status that it was answered with.
    pub status: u16,
    /// The body.
    pub body: Value,
}

impl Receiver {
    /// Listens, and writes the secret where a configuration can name it.
    pub fn listen(place: &Place, first_fails: bool) -> Self {
        let secret = [7; 32];
        std::fs::write(place.path("webhook.secret"), format!("whsec_{}\n", STANDARD.encode(secret))).expect("write");
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (sender, told) = channel();
        // It ends with the process, or when nobody reads what it was told.
        std::thread::spawn(move || {
            let mut status = if first_fails { 500 } else { 204 };
            for stream in listener.incoming().map_while(Result::ok) {
                if take(&stream, &secret, status, &sender).is_none() {
                    return;
                }
                status = 204;
            }
        });
        Self { address, secret, told, taken: RefCell::default() }
    }

    /// Returns the lines of a configuration that name it.
    pub fn configured(&self, place: &Place, more: &str) -> String {
        let secret_file = place.path("webhook.secret");
        let (address, secret_file) = (&self.address, secret_file.display());
        format!("\n[[webhooks]]\nname = 'chat'\nurl = 'http://{address}/hook?token=t0k3n'\nsecret_file = '{secret_file}'\n{more}")
    }

    /// Returns what a secret file says of it, which must be nowhere else.
    pub fn secret(&self) -> String {
        STANDARD.encode(self.secret)
    }

    /// Waits for the next message that it has not taken before.
    pub fn next(&self) -> Told {
        loop {
            let told = self.next_at_all();
            if !self.taken.borrow().contains(&told.id) {
                if told.status == 204 {
                    self.taken.borrow_mut().insert(told.id.clone());
                }
                return told;
            }
        }
    }

    /// Waits for the next message of which this holds, whether it was taken before or not.
    pub fn next_where(&self, is_it: impl Fn(&Told) -> bool) -> Told {
        loop {
            let told = self.next_at_all();
            if is_it(&told) {
                return told;
            }
        }
    }

    fn next_at_all(&self) -> Told {
        self.told.recv_timeout(PATIENCE).expect("a message comes")
    }
}

/// Reads one request, checks its signature, answers it and tells it; none if nobody listens.
fn take(mut stream: &TcpStream, secret: &[u8], status: u16, sender: &Sender<Told>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut id, mut at, mut signature, mut length) = (String::new(), String::new(), String::new(), 0_usize);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
        let (name, value) = line.split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "webhook-id" => id = value.trim().to_owned(),
            "webhook-timestamp" => at = value.trim().to_owned(),
            "webhook-signature" => signature = value.trim().to_owned(),
            "content-length" => length = value.trim().parse().expect("a number"),
            _ => {}
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a whole body");
    let signed = [format!("{id}.{at}.").as_bytes(), &body].concat();
    let is_genuine = signature.split(' ').filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok()).any(|tag| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        hmac::verify(&key, &signed, &tag).is_ok()
    });
    assert!(is_genuine, "the signature of {id} is wrong: {signature}");
    write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").expect("answer");
    sender.send(Told { id, status, body: serde_json::from_slice(&body).expect("JSON") }).ok()
}

/// Longer than anything here takes on a machine that does other work too.
const PATIENCE: Duration = Duration::from_secs(120);
