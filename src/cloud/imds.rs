//! The instance metadata service, version 2
//! (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>).
//!
//! Our own client and not the SDK's, because it is the first thing a start waits for: one connection, one token, no
//! set-up, answers bounded in size and time. It never goes through a proxy.

use std::time::{Duration, Instant};

use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::imds_error::ImdsError;
use super::imds_http::{Request, Response, WireError, exchange};

const DEFAULT_ENDPOINT: &str = "http://169.254.169.254";
const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN_SECONDS: &str = "21600";

/// A token is renewed this long after it was issued: well before its six hours are over.
const TOKEN_AGE: Duration = Duration::from_hours(5);

/// How long is waited, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImdsLimits {
    /// For a connection. The service is on the host's own hypervisor: answers take under a millisecond.
    pub connect: Duration,
    /// For one answer.
    pub answer: Duration,
    /// Attempts of one request.
    pub attempts: u32,
    /// Before the second attempt; doubled before each further one.
    pub pause: Duration,
}

impl Default for ImdsLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(2),
            attempts: 3,
            pause: Duration::from_millis(100),
        }
    }
}

/// A client of the instance metadata service.
#[derive(Debug)]
pub struct Imds {
    /// `host:port`, as connected to.
    address: String,
    /// `Host` header.
    host: String,
    limits: ImdsLimits,
    session: Mutex<Session>,
}

#[derive(Debug, Default)]
struct Session {
    stream: Option<BufReader<TcpStream>>,
    token: Option<(String, Instant)>,
    requests: u32,
}

impl Imds {
    /// A client of the given endpoint, or of the standard one. Connects when first asked.
    pub fn new(endpoint: Option<&str>, limits: ImdsLimits) -> Result<Self, ImdsError> {
        let endpoint = endpoint.unwrap_or(DEFAULT_ENDPOINT);
        let bad = || ImdsError::Endpoint {
            endpoint: endpoint.to_owned(),
        };
        let authority = endpoint.strip_prefix("http://").ok_or_else(bad)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.is_empty()
            || !authority
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"[]:.-_".contains(&b))
        {
            return Err(bad());
        }
        let has_port = match authority.rsplit_once(']') {
            Some((_, after)) => after.starts_with(':'),
            None => authority.contains(':'),
        };
        let address = if has_port {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        };
        Ok(Self {
            address,
            host: authority.to_owned(),
            limits,
            session: Mutex::default(),
        })
    }

    /// The value under a path such as `/latest/meta-data/mac`; `None` when there is none (404).
    pub async fn get(&self, path: &str) -> Result<Option<String>, ImdsError> {
        let mut session = self.session.lock().await;
        let mut pause = self.limits.pause;
        let mut attempt = 1;
        loop {
            match self.attempt(&mut session, path).await {
                Err(error) if attempt < self.limits.attempts && error.may_pass() => {
                    tracing::debug!(path, attempt, %error, "instance metadata: trying again");
                }
                ended => return ended,
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2);
            attempt = attempt.saturating_add(1);
        }
    }

    /// How many requests were sent so far, tokens included.
    pub async fn requests(&self) -> u32 {
        self.session.lock().await.requests
    }

    async fn attempt(&self, session: &mut Session, path: &str) -> Result<Option<String>, ImdsError> {
        let answer = self.ask(session, path).await?;
        // The service forgets tokens when the instance is stopped and started elsewhere.
        let answer = if answer.status == 401 {
            session.token = None;
            self.ask(session, path).await?
        } else {
            answer
        };
        match answer.status {
            200 => String::from_utf8(answer.body)
                .map(Some)
                .map_err(|error| ImdsError::Invalid {
                    path: path.to_owned(),
                    text: excerpt(&String::from_utf8_lossy(error.as_bytes())),
                    expected: "text",
                }),
            404 => Ok(None),
            status @ (401 | 403) => Err(ImdsError::Refused {
                path: path.to_owned(),
                status,
            }),
            status => Err(ImdsError::Status {
                path: path.to_owned(),
                status,
            }),
        }
    }

    async fn ask(&self, session: &mut Session, path: &str) -> Result<Response, ImdsError> {
        let token = self.token(session).await?;
        let header = ("X-aws-ec2-metadata-token", token.as_str());
        self.send(
            session,
            Request {
                method: "GET",
                host: &self.host,
                path,
                header,
            },
        )
        .await
    }

    async fn token(&self, session: &mut Session) -> Result<String, ImdsError> {
        if let Some((token, since)) = &session.token
            && since.elapsed() < TOKEN_AGE
        {
            return Ok(token.clone());
        }
        let header = ("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS);
        let request = Request {
            method: "PUT",
            host: &self.host,
            path: TOKEN_PATH,
            header,
        };
        let answer = match self.send(session, request).await {
            Err(ImdsError::NoAnswer { endpoint, .. }) => {
                return Err(ImdsError::NoToken {
                    endpoint,
                    waited: self.limits.answer,
                });
            }
            answer => answer?,
        };
        let path = TOKEN_PATH.to_owned();
        match answer.status {
            200 => {}
            status @ (400..=499) => return Err(ImdsError::Refused { path, status }),
            status => return Err(ImdsError::Status { path, status }),
        }
        let token = String::from_utf8(answer.body).unwrap_or_default();
        // It goes into a header of every request: nothing but visible ASCII may.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ImdsError::Invalid {
                path,
                text: excerpt(&token),
                expected: "a token",
            });
        }
        session.token = Some((token.clone(), Instant::now()));
        Ok(token)
    }

    /// One exchange on the kept connection, or on a new one when that has been closed meanwhile.
    async fn send(&self, session: &mut Session, request: Request<'_>) -> Result<Response, ImdsError> {
        let kept = session.stream.take();
        let reused = kept.is_some();
        match self.exchange_on(session, kept, request).await {
            // An idle connection may have been closed by the other side at any time; that says nothing.
            Err(Broken { closed: true, .. }) if reused => self
                .exchange_on(session, None, request)
                .await
                .map_err(|broken| broken.error),
            ended => ended.map_err(|broken| broken.error),
        }
    }

    async fn exchange_on(
        &self,
        session: &mut Session,
        stream: Option<BufReader<TcpStream>>,
        request: Request<'_>,
    ) -> Result<Response, Broken> {
        let mut stream = match stream {
            Some(stream) => stream,
            None => self
                .connect()
                .await
                .map_err(|error| Broken { error, closed: false })?,
        };
        session.requests = session.requests.saturating_add(1);
        let no_answer = |cause: String| ImdsError::NoAnswer {
            endpoint: self.address.clone(),
            path: request.path.to_owned(),
            cause,
        };
        match tokio::time::timeout(self.limits.answer, exchange(&mut stream, request)).await {
            Ok(Ok(answer)) => {
                session.stream = answer.keep.then_some(stream);
                Ok(answer)
            }
            Ok(Err(WireError::Io(error))) => Err(Broken {
                error: no_answer(error.to_string()),
                closed: true,
            }),
            Ok(Err(WireError::Protocol(what))) => {
                let (endpoint, path) = (self.address.clone(), request.path.to_owned());
                Err(Broken {
                    error: ImdsError::Protocol { endpoint, path, what },
                    closed: false,
                })
            }
            Err(_) => {
                let cause = format!("nothing within {:?}", self.limits.answer);
                Err(Broken {
                    error: no_answer(cause),
                    closed: false,
                })
            }
        }
    }

    async fn connect(&self) -> Result<BufReader<TcpStream>, ImdsError> {
        let failed = |cause: String| ImdsError::Connect {
            endpoint: self.address.clone(),
            cause,
        };
        let connecting = TcpStream::connect(&self.address);
        let stream = match tokio::time::timeout(self.limits.connect, connecting).await {
            Ok(stream) => stream.map_err(|error| failed(error.to_string()))?,
            Err(_) => return Err(failed(format!("nothing within {:?}", self.limits.connect))),
        };
        stream
            .set_nodelay(true)
            .map_err(|error| failed(error.to_string()))?;
        Ok(BufReader::new(stream))
    }
}

/// A failed exchange; `closed` when the connection ended instead of answering.
struct Broken {
    error: ImdsError,
    closed: bool,
}

impl ImdsError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::NoToken { .. } | Self::NoAnswer { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

/// As much of a wrong value as belongs into an error.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}
