//! The other end of the socket: what the command line is.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::refusal::{NOT_EXECUTABLE, NOT_FOUND};
use super::wire::Refusal;
use crate::container::console;
use crate::node::life;

/// What a connection is upgraded to that carries the streams of a process: one byte, then frames
/// as on a monitor's own socket (`container/console.rs`).
pub(super) const STREAMS: &str = "mica-streams/1";

/// Letters of a name that mean themselves in a path.
const PLAIN: &[u8] = b"-_.~";

/// Why the daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("no daemon runs for the store at {store}; start it with `mica node start`")]
    NoDaemon {
        /// The store.
        store: PathBuf,
    },
    /// It says no.
    #[error("{}", .0.error)]
    Refused(Refusal),
    /// The connection broke.
    #[error("the daemon did not answer: {0}; `mica node status` tells whether it runs")]
    Lost(#[source] hyper::Error),
    /// What came is not of this version's making.
    #[error(
        "the daemon answered something that this version does not understand: {0}; restart it (mica node stop, mica node start)"
    )]
    Protocol(#[source] serde_json::Error),
    /// The system refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl ClientError {
    /// The kind of a refusal, for programs.
    #[must_use]
    pub fn kind(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => Some(&refusal.kind),
            Self::NoDaemon { .. } | Self::Lost(_) | Self::Protocol(_) | Self::System { .. } => None,
        }
    }

    /// What a shell would answer, if a container's command is the reason: 126 or 127.
    #[must_use]
    pub fn command_status(&self) -> Option<u8> {
        match self.kind()? {
            NOT_FOUND => Some(127),
            NOT_EXECUTABLE => Some(126),
            _other => None,
        }
    }
}

/// The daemon of one store, as its client sees it.
#[derive(Debug)]
pub struct Client {
    store: PathBuf,
    runtime: tokio::runtime::Runtime,
}

/// A connection that carries the streams of a process.
#[derive(Debug)]
pub struct Connection {
    /// The connection.
    pub stream: UnixStream,
    /// What came already.
    pub early: Vec<u8>,
}

/// A name as part of a path.
fn escaped(name: &str) -> String {
    let letter = |byte: u8| {
        if byte.is_ascii_alphanumeric() || PLAIN.contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    name.bytes().map(letter).collect()
}

/// The path of a container, or of something beneath it.
#[must_use]
pub fn at(name: &str, what: &str) -> String {
    let slash = if what.is_empty() { "" } else { "/" };
    format!("/v1/containers/{}{slash}{what}", escaped(name))
}

/// The query that means containers.
#[must_use]
pub fn of(path: &str, words: &[String]) -> String {
    if words.is_empty() {
        return path.to_owned();
    }
    let words: Vec<String> = words.iter().map(|word| escaped(word)).collect();
    format!("{path}?ct={}", words.join("%2C"))
}

impl Client {
    /// The daemon of the store at `store`, if one answers.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`].
    pub fn connect(store: &Path) -> Result<Self, ClientError> {
        let store = store.canonicalize().unwrap_or_else(|_| store.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| ClientError::System { what: "make an event loop", source })?;
        let client = Self { store, runtime };
        client.open()?;
        Ok(client)
    }

    fn open(&self) -> Result<UnixStream, ClientError> {
        console::connect(&life::socket(&self.store)).map_err(|source| {
            use io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound};
            if matches!(source.kind(), NotFound | ConnectionRefused | NotADirectory) {
                ClientError::NoDaemon { store: self.store.clone() }
            } else {
                ClientError::System { what: "talk to the daemon", source }
            }
        })
    }

    async fn hands(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let system = |source| ClientError::System { what: "talk to the daemon", source };
        let stream = self.open()?;
        stream.set_nonblocking(true).map_err(system)?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(system)?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Lost)?;
        // Its end is told to whoever waits for an answer.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        upgrade: bool,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut sender = self.hands().await?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|error| ClientError::System {
            what: "ask for that",
            source: io::Error::other(error),
        })?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, header::HeaderValue::from_static("mica"));
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        if upgrade {
            headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, header::HeaderValue::from_static(STREAMS));
        }
        sender.send_request(request).await.map_err(ClientError::Lost)
    }

    fn json(body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
        serde_json::to_vec(body).map_err(ClientError::Protocol)
    }

    async fn answer<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
        let status = response.status();
        let body = response.into_body().collect().await.map_err(ClientError::Lost)?.to_bytes();
        if status.is_success() {
            serde_json::from_slice(&body).map_err(ClientError::Protocol)
        } else {
            Err(ClientError::Refused(serde_json::from_slice(&body).map_err(ClientError::Protocol)?))
        }
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        self.runtime
            .block_on(async { Self::answer(self.send(method, path, body, false).await?).await })
    }

    /// Asks for something to look at.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Vec::new())
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.ask(Method::POST, path, Self::json(body)?)
    }

    /// Asks for something to be changed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.ask(Method::PATCH, path, Self::json(body)?)
    }

    /// Asks for something to be removed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::DELETE, path, Vec::new())
    }

    /// Gives `take` what comes, piece by piece, until it answers false or nothing more comes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pour(&self, path: &str, mut take: impl FnMut(&[u8]) -> bool) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let response = self.send(Method::GET, path, Vec::new(), false).await?;
            if !response.status().is_success() {
                return Self::answer::<serde_json::Value>(response).await.map(drop);
            }
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(ClientError::Lost)?;
                if frame.data_ref().is_some_and(|data| !take(data)) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Asks for the streams of a process.
    ///
    /// # Errors
    /// [`ClientError`]; nothing was started then.
    pub fn streams(&self, path: &str, body: &impl Serialize) -> Result<Connection, ClientError> {
        let body = Self::json(body)?;
        let system = |source| ClientError::System { what: "take over the connection", source };
        self.runtime.block_on(async {
            let response = self.send(Method::POST, path, body, true).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let answer = Self::answer::<serde_json::Value>(response).await;
                return Err(answer.err().unwrap_or_else(|| {
                    system(io::Error::other("the daemon did not hand it over"))
                }));
            }
            let upgraded = hyper::upgrade::on(response).await.map_err(ClientError::Lost)?;
            let parts = upgraded
                .downcast::<TokioIo<tokio::net::UnixStream>>()
                .map_err(|_| system(io::Error::other("it is no socket")))?;
            let stream = parts.io.into_inner().into_std().map_err(system)?;
            stream.set_nonblocking(false).map_err(system)?;
            Ok(Connection { stream, early: parts.read_buf.to_vec() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_part_of_a_path_whatever_they_hold() {
        assert_eq!(at("web1", ""), "/v1/containers/web1");
        assert_eq!(at("../x?y#z", "start"), "/v1/containers/..%2Fx%3Fy%23z/start");
        let words = ["web*".to_owned(), "label=a=b".to_owned()];
        assert_eq!(of("/v1/usage", &words), "/v1/usage?ct=web%2A%2Clabel%3Da%3Db");
    }
}
