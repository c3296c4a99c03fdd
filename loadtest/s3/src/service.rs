//! One request: its fate is chosen, then S3 answers it.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::{IF_MATCH, IF_NONE_MATCH};
use hyper::{Method, Request, Response, StatusCode};
use s3s::Body;
use s3s::service::S3Service;
use tokio::sync::Mutex;

use crate::body::half;
use crate::faults::{Chooser, Fate, Faults};

/// Answers requests. One for all connections.
pub(crate) struct Service {
    s3: S3Service,
    pub(crate) faults: Chooser,
    /// Conditional writes of one object exclude each other: s3s-fs looks first and writes then.
    conditional: [Mutex<()>; CONDITIONAL_LOCKS],
}

/// The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed without an answer")]
pub(crate) struct Closed;

const CONDITIONAL_LOCKS: usize = 64;
const CONTROL: &str = "/-/faults";

impl Service {
    pub(crate) fn new(s3: S3Service) -> Self {
        Self { s3, faults: Chooser::default(), conditional: std::array::from_fn(|_| Mutex::default()) }
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
        if request.uri().path() == CONTROL {
            return Ok(self.control(request.method(), request.uri().query().unwrap_or_default()));
        }
        let (fate, delay_ms) = self.faults.next();
        if delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        }
        match fate {
            Fate::Fine => self.carry_out(request.map(Body::from)).await,
            Fate::Error => {
                // Who still sends when the connection ends sees that it broke, and no answer.
                request.into_body().into_data_stream().for_each(|_| std::future::ready(())).await;
                Ok(slow_down())
            }
            Fate::Away => Err(Closed),
            Fate::Lost => {
                self.carry_out(request.map(Body::from)).await?;
                Err(Closed)
            }
            Fate::Cut => self.cut(request).await,
        }
    }

    /// Breaks off the upload if there is one, else the answer.
    async fn cut(&self, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
        let size_bytes = request.body().size_hint().exact().unwrap_or(0);
        if size_bytes > 0 {
            let (head, body) = request.into_parts();
            self.carry_out(Request::from_parts(head, half(body, size_bytes))).await?;
            return Err(Closed);
        }
        let answer = self.carry_out(request.map(Body::from)).await?;
        let size_bytes = answer.body().size_hint().exact().unwrap_or(0);
        Ok(answer.map(|body| half(body, size_bytes)))
    }

    async fn carry_out(&self, request: Request<Body>) -> Result<Response<Body>, Closed> {
        let headers = request.headers();
        let _alone = match headers.contains_key(IF_MATCH) || headers.contains_key(IF_NONE_MATCH) {
            true => Some(self.conditional[shard(request.uri().path())].lock().await),
            false => None,
        };
        self.s3.call(request).await.map_err(|_| Closed)
    }

    fn control(&self, method: &Method, query: &str) -> Response<Body> {
        if *method == Method::PUT {
            match Faults::parse(query) {
                Ok(faults) => self.faults.set(faults),
                Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            }
        }
        let served = self.faults.served();
        text(StatusCode::OK, format!("{}\nrequests={} faults={}\n", self.faults.faults(), served.requests, served.faults))
    }
}

fn shard(path: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    usize::try_from(hasher.finish() % CONDITIONAL_LOCKS as u64).expect("below the count of locks")
}

fn slow_down() -> Response<Body> {
    let xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SlowDown</Code><Message>as was asked</Message></Error>";
    text(StatusCode::SERVICE_UNAVAILABLE, xml.to_owned())
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    answer
}
