//! The server as a client of S3 sees it, well and unwell.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kiln_s3::{Config, Faults, S3Server};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{BackoffConfig, Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig};
use tempfile::TempDir;

struct Place {
    server: S3Server,
    dir: TempDir,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let server = S3Server::start(config(&dir, "127.0.0.1:0")).await.expect("starts");
        Self { server, dir }
    }

    fn client(&self, secret: &str, retries: usize) -> AmazonS3 {
        let backoff = BackoffConfig { init_backoff: Duration::from_millis(1), max_backoff: Duration::from_millis(10), base: 2. };
        let retry = RetryConfig { backoff, max_retries: retries, retry_timeout: Duration::from_secs(30) };
        AmazonS3Builder::new()
            .with_endpoint(self.server.endpoint())
            .with_allow_http(true)
            .with_bucket_name("kiln")
            .with_region("us-east-1")
            .with_access_key_id("key")
            .with_secret_access_key(secret)
            .with_retry(retry)
            .build()
            .expect("a client")
    }
}

fn config(dir: &TempDir, listen: &str) -> Config {
    Config {
        listen: listen.parse().expect("an address"),
        dir: dir.path().to_owned(),
        access_key: "key".to_owned(),
        secret_key: "secret".to_owned(),
        buckets: vec!["kiln".to_owned()],
    }
}

async fn read(client: &AmazonS3, key: &str) -> Vec<u8> {
    client.get(&Path::from(key)).await.expect("is there").bytes().await.expect("reads").to_vec()
}

#[tokio::test]
async fn what_a_store_needs_of_s3_is_answered() {
    let place = Place::new().await;
    let client = place.client("secret", 0);
    let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    client.put(&Path::from("a/one"), content.clone().into()).await.expect("put");
    assert_eq!(read(&client, "a/one").await, content);
    assert_eq!(client.get_range(&Path::from("a/one"), 500..777).await.expect("range"), content[500..777]);
    assert_eq!(client.head(&Path::from("a/one")).await.expect("head").size, 100_000);
    assert!(matches!(client.head(&Path::from("a/two")).await, Err(Error::NotFound { .. })));
    let mut upload = client.put_multipart(&Path::from("a/large")).await.expect("begins");
    let part = vec![7u8; 5 << 20];
    for bytes in [part.clone(), part.clone(), vec![8; 10]] {
        upload.put_part(PutPayload::from(bytes)).await.expect("a part");
    }
    assert!(matches!(client.head(&Path::from("a/large")).await, Err(Error::NotFound { .. })), "nothing is visible before the end");
    upload.complete().await.expect("completes");
    assert_eq!(client.head(&Path::from("a/large")).await.expect("head").size, (10 << 20) + 10);
    for number in 0..1100 {
        client.put(&Path::from(format!("many/{number:04}")), PutPayload::new()).await.expect("put");
    }
    assert_eq!(client.list(Some(&Path::from("many"))).count().await, 1100, "more than one page");
    let listed = client.list_with_delimiter(Some(&Path::from("a"))).await.expect("lists");
    assert_eq!(listed.objects.iter().map(|object| object.location.as_ref()).collect::<Vec<_>>(), ["a/large", "a/one"]);
    client.delete(&Path::from("a/one")).await.expect("delete");
    assert!(matches!(client.get(&Path::from("a/one")).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_wrong_secret_is_refused() {
    let place = Place::new().await;
    let refused = place.client("guessed", 0).put(&Path::from("one"), "x".into()).await.expect_err("refused");
    assert!(matches!(refused, Error::PermissionDenied { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_create_one_object_one_wins() {
    let place = Place::new().await;
    let client = Arc::new(place.client("secret", 0));
    for round in 0..10 {
        let races = (0..16).map(|racer: u8| {
            let client = Arc::clone(&client);
            tokio::spawn(async move {
                client.put_opts(&Path::from(format!("race-{round}")), vec![racer].into(), PutMode::Create.into()).await.is_ok()
            })
        });
        let won = futures::future::join_all(races).await.into_iter().filter(|won| *won.as_ref().expect("ends")).count();
        assert_eq!(won, 1, "round {round}");
    }
}

#[tokio::test]
async fn each_fault_is_seen_and_a_client_that_tries_again_gets_through() {
    let place = Place::new().await;
    let (once, again) = (place.client("secret", 0), place.client("secret", 10));
    let content = vec![5u8; 300_000];
    again.put(&Path::from("there"), content.clone().into()).await.expect("put");
    let one = |faults: &str| place.server.set_faults(Faults::parse(faults).expect("faults"));
    for (faults, is_written) in
        [("errors_percent=100", false), ("cut_percent=100", false), ("away=true", false), ("lost_percent=100", true)]
    {
        one(faults);
        once.put(&Path::from(faults), content.clone().into()).await.expect_err(faults);
        let read = async { once.get(&Path::from("there")).await?.bytes().await };
        read.await.expect_err(faults);
        one("");
        assert_eq!(once.head(&Path::from(faults)).await.is_ok(), is_written, "{faults}");
    }
    one("errors_percent=20&lost_percent=15&cut_percent=15&delay_ms=1&seed=7");
    for number in 0..30 {
        let key = format!("again/{number}");
        again.put(&Path::from(key.as_str()), content.clone().into()).await.expect("gets through");
        assert_eq!(read(&again, &key).await, content);
    }
    assert!(place.server.served().faults > 20, "{:?}", place.server.served());
}

#[tokio::test]
async fn who_sends_much_reads_the_error_that_was_asked_for() {
    let place = Place::new().await;
    let once = place.client("secret", 0);
    place.server.set_faults(Faults::parse("errors_percent=100").expect("faults"));
    let content = vec![5u8; 16 << 20];
    for number in 0..5 {
        let failed = once.put(&Path::from(format!("large/{number}")), content.clone().into()).await.expect_err("an error");
        assert!(failed.to_string().contains("SlowDown"), "{failed}");
    }
}

#[tokio::test]
async fn a_server_that_comes_back_has_what_it_had() {
    let Place { server, dir } = Place::new().await;
    let place = Place { server, dir };
    place.client("secret", 0).put(&Path::from("one"), "content".into()).await.expect("put");
    let addr = place.server.addr();
    place.server.stop().await;
    let server = S3Server::start(config(&place.dir, &addr.to_string())).await.expect("starts again");
    let place = Place { server, dir: place.dir };
    assert_eq!(read(&place.client("secret", 0), "one").await, b"content");
}
