//! Prints what a link does between two ends of this machine: MB/s of one verified blob, µs of one small request and its answer.
//!
//! `cargo run --release -p kiln-link --example speed`

use std::error::Error;
use std::time::{Duration, Instant};

use kiln_link::{Authority, Connection, Dialer, Identity, Listener, blob_root};

const BLOB_BYTES: usize = 1 << 30;
const REQUESTS: u32 = 20_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let day = Duration::from_secs(86_400);
    let authority = Authority::ephemeral(&"speed".parse()?)?;
    let coordinator = Identity::from_credentials(&authority.issue(&"coordinator/1".parse()?, day)?)?;
    let worker = Identity::from_credentials(&authority.issue(&"worker/w1".parse()?, day)?)?;
    let listener = Listener::bind("127.0.0.1:0".parse()?, &coordinator, None)?;
    let dialer = Dialer::new(&worker)?;
    let began = Instant::now();
    let (dialled, accepted) = tokio::join!(dialer.connect(listener.local_addr()), listener.accept());
    let (dialled, accepted) = (dialled?, accepted.ok_or("the listener is closed")?);
    println!("connect: {} µs", began.elapsed().as_micros());
    requests(&dialled, accepted.clone()).await?;
    blob(&dialled, accepted).await
}

async fn requests(dialled: &Connection, accepted: Connection) -> Result<(), Box<dyn Error>> {
    let answering = tokio::spawn(async move {
        for _ in 0..REQUESTS {
            let Ok(Some((mut sender, mut receiver))) = accepted.accept().await else { return };
            let Ok(Some(number)) = receiver.recv::<u32>().await else { return };
            if sender.send(&(number, "x".repeat(200))).await.is_err() {
                return;
            }
        }
    });
    let began = Instant::now();
    for number in 0..REQUESTS {
        let (mut sender, mut receiver) = dialled.open().await?;
        sender.send(&number).await?;
        let _answer: Option<(u32, String)> = receiver.recv().await?;
    }
    println!("request and answer, a stream each: {} µs", began.elapsed().as_micros() / u128::from(REQUESTS));
    answering.await?;
    Ok(())
}

async fn blob(dialled: &Connection, accepted: Connection) -> Result<(), Box<dyn Error>> {
    let bytes: Vec<u8> = (0..BLOB_BYTES / 8).flat_map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let root = blob_root(&bytes[..])?;
    let receiving = tokio::spawn(async move {
        let (_sender, mut receiver) = accepted.accept().await.ok().flatten()?;
        let mut count = 0;
        let sink = |piece: &[u8]| -> std::io::Result<()> {
            count += piece.len();
            Ok(())
        };
        receiver.recv_blob(root, BLOB_BYTES as u64, 0, sink).await.ok()?;
        Some(count)
    });
    let began = Instant::now();
    let (mut sender, _receiver) = dialled.open().await?;
    sender.send_blob(bytes, BLOB_BYTES as u64, 0).await?;
    sender.finish().await?;
    let count = receiving.await?.ok_or("the blob did not arrive")?;
    println!("verified blob: {:.0} MB/s", count as f64 / 1e6 / began.elapsed().as_secs_f64());
    Ok(())
}
