//! A hand-written HTTP server for the edges of both protocols: it answers what the test says, byte for byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::ec2::Ec2;
use super::settings::Ec2Settings;
use crate::config::AccessKey;
use crate::ipam::cloud::{CloudCall, CloudFailure};

/// How an endpoint of a test is reached.
pub(super) fn settings(endpoint: String) -> Ec2Settings {
    Ec2Settings {
        region: Some("eu-west-1".into()),
        endpoint: Some(endpoint),
        metadata_endpoint: None,
        profile: None,
        access_key: Some(AccessKey {
            id: "AKIAX".into(),
            secret: "s".into(),
            session_token: None,
        }),
        use_fips: None,
        use_dual_stack: None,
        ca_bundle: None,
        connect_timeout: Duration::from_secs(3),
        attempt_timeout: Duration::from_secs(20),
        max_attempts: 2,
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether the form body has this pair, percent-encoding left as sent.
    pub(super) fn has(&self, pair: &str) -> bool {
        self.body.split('&').any(|found| found == pair)
    }
}

/// What to do with a request.
pub(super) enum Action {
    /// An answer with a length; the connection stays.
    Answer(u16, String),
    /// These bytes, then the end.
    Raw(Vec<u8>),
    /// These bytes; the connection stays.
    RawAndKeep(Vec<u8>),
    /// The end without an answer.
    Close,
    /// A kept answer after which the connection is closed without a word about it.
    AnswerAndClose(u16, String),
    /// Silence.
    Hang,
}

pub(super) fn ok(body: &str) -> Action {
    Action::Answer(200, body.to_owned())
}

/// The server; it ends with the runtime of its test.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) log: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub(super) async fn start(answer: impl Fn(&Asked) -> Action + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (shared, answer) = (Arc::clone(&log), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answer), Arc::clone(&shared)));
            }
        });
        Self { address, log }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }
}

async fn serve(
    stream: TcpStream,
    answer: Arc<impl Fn(&Asked) -> Action + Send + Sync + 'static>,
    log: Arc<Mutex<Vec<Asked>>>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(asked) = read(&mut stream).await {
        log.lock().unwrap().push(asked.clone());
        let (bytes, keep) = match answer(&asked) {
            Action::Answer(status, body) => (with_length(status, &body), true),
            Action::AnswerAndClose(status, body) => (with_length(status, &body), false),
            Action::Raw(bytes) => (bytes, false),
            Action::RawAndKeep(bytes) => (bytes, true),
            Action::Close => return,
            Action::Hang => {
                tokio::time::sleep(Duration::from_hours(1)).await;
                return;
            }
        };
        if stream.get_mut().write_all(&bytes).await.is_err() || !keep {
            return;
        }
    }
}

fn with_length(status: u16, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map_or("0", |(_, value)| value);
    let mut body = vec![0; length.parse().ok()?];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked {
        method,
        path,
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// An ENI as EC2 writes it.
pub(super) const ENI: &str = "<networkInterfaceId>eni-1</networkInterfaceId><subnetId>subnet-1</subnetId>\
    <macAddress>02:00:00:00:00:0a</macAddress><privateIpAddress>10.0.0.4</privateIpAddress>\
    <description>aws-K8S-i-1</description><interfaceType>interface</interfaceType>\
    <tagSet><item><key>k</key><value>v</value></item></tagSet>\
    <privateIpAddressesSet><item><privateIpAddress>10.0.0.4</privateIpAddress><primary>true</primary></item>\
    <item><privateIpAddress>10.0.0.5</privateIpAddress><primary>false</primary></item></privateIpAddressesSet>";

pub(super) fn xml(action: &str, body: &str) -> Action {
    Action::Answer(
        200,
        format!(
            "<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>req-1</requestId>\
             {body}</{action}Response>"
        ),
    )
}

pub(super) fn fault(status: u16, code: &str, message: &str) -> Action {
    Action::Answer(
        status,
        format!(
            "<?xml version=\"1.0\"?><Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error>\
             </Errors><RequestID>req-9</RequestID></Response>"
        ),
    )
}

pub(super) async fn start(answer: impl Fn(&Asked) -> Action + Send + Sync + 'static) -> (Server, Ec2) {
    let server = Server::start(answer).await;
    let ec2 = Ec2::new(settings(server.url()));
    (server, ec2)
}

pub(super) fn sent(server: &Server, pairs: &[&str]) {
    let asked = server.asked();
    let last = asked.last().unwrap();
    for pair in pairs {
        assert!(last.has(pair), "{pair} is not in {}", last.body);
    }
}

pub(super) async fn failing(
    call: &CloudCall,
    answer: impl Fn(&Asked) -> Action + Send + Sync + 'static,
) -> (CloudFailure, usize) {
    let (server, ec2) = start(answer).await;
    let failure = ec2.execute(call).await.unwrap_err();
    (failure, server.asked().len())
}
