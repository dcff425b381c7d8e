//! How requests and replies are written: one JSON object per frame, each ended by a NUL byte.
//!
//! JSON never contains a raw NUL (RFC 8259 §7 wants control characters escaped), so the byte is an unambiguous end.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::types::{
    Allocation, Assigned, Collected, ErrorKind, INTERFACE, Released, Reply, Request, SUPPORTED_INTERFACES,
    ServiceError, Status,
};

/// Largest request; the largest real one is a GC listing of every sandbox of the largest instance, some 750 of a hundred
/// bytes each.
pub const MAX_REQUEST: usize = 256 * 1024;

/// Largest reply; the largest real one is a dump of the whole state.
pub const MAX_REPLY: usize = 8 * 1024 * 1024;

const END: u8 = 0;

/// Why bytes from the other side are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No end within the permitted size.
    #[error("frame is larger than {limit} bytes")]
    TooLarge {
        /// What is permitted.
        limit: usize,
    },
    /// More came than one request.
    #[error("{extra} bytes after the request's end; one request per connection")]
    Trailing {
        /// How much more.
        extra: usize,
    },
    /// Not the JSON that was expected.
    #[error("frame is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// A reply that does not belong to the request.
    #[error("reply has neither parameters nor an error")]
    Empty,
}

/// Collects bytes and cuts frames out of them, never holding more than its limit plus one read.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    scanned: usize,
    limit: usize,
}

impl FrameBuffer {
    /// A buffer for frames of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            scanned: 0,
            limit,
        }
    }

    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame without its end byte, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when no end came within the limit.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let unseen = self.bytes.get(self.scanned..).unwrap_or_default();
        let Some(offset) = unseen.iter().position(|&byte| byte == END) else {
            self.scanned = self.bytes.len();
            return self.within_limit(self.bytes.len()).map(|()| None);
        };
        let end = self.scanned.saturating_add(offset);
        self.within_limit(end)?;
        let rest = self.bytes.split_off(end.saturating_add(1));
        let mut frame = std::mem::replace(&mut self.bytes, rest);
        frame.truncate(end);
        self.scanned = 0;
        Ok(Some(frame))
    }

    /// How many bytes wait that no frame has claimed yet.
    pub fn pending(&self) -> usize {
        self.bytes.len()
    }

    fn within_limit(&self, len: usize) -> Result<(), FrameError> {
        if len > self.limit {
            return Err(FrameError::TooLarge { limit: self.limit });
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Call<'a, P> {
    method: String,
    parameters: &'a P,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

/// A request as a frame, end byte included.
///
/// # Errors
/// When the value can't be written as JSON or exceeds [`MAX_REQUEST`].
pub fn encode_request(request: &Request) -> Result<Vec<u8>, FrameError> {
    let frame = match request {
        Request::Add(add) => call(request, add),
        Request::Del(del) => call(request, del),
        Request::Check(check) => call(request, check),
        Request::Gc(gc) => call(request, gc),
        Request::Cordon(cordon) => call(request, cordon),
        Request::Status | Request::Dump => call(request, &serde_json::Map::new()),
    }?;
    if frame.len() > MAX_REQUEST {
        return Err(FrameError::TooLarge { limit: MAX_REQUEST });
    }
    Ok(frame)
}

fn call(request: &Request, parameters: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    ended(&Call {
        method: format!("{INTERFACE}.{}", request.method()),
        parameters,
        more: matches!(request, Request::Add(_) | Request::Del(_)),
    })
}

fn ended(value: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(END);
    Ok(bytes)
}

#[derive(Deserialize)]
struct IncomingCall {
    method: String,
    #[serde(default)]
    parameters: Value,
}

/// Reads a request frame; what can't be served comes back as the error to answer.
///
/// # Errors
/// [`ErrorKind::BadRequest`] with the reason, naming the supported interfaces when another was asked for.
pub fn decode_request(frame: &[u8]) -> Result<Request, Box<ServiceError>> {
    let call: IncomingCall = serde_json::from_slice(frame).map_err(|error| bad_request(&error))?;
    let (interface, method) = call.method.rsplit_once('.').unwrap_or(("", &call.method));
    if interface != INTERFACE {
        return Err(unknown_interface(interface));
    }
    match method {
        "Add" => parameters(call.parameters).map(Request::Add),
        "Del" => parameters(call.parameters).map(Request::Del),
        "Check" => parameters(call.parameters).map(Request::Check),
        "Gc" => parameters(call.parameters).map(Request::Gc),
        "Cordon" => parameters(call.parameters).map(Request::Cordon),
        "Status" => Ok(Request::Status),
        "Dump" => Ok(Request::Dump),
        other => Err(ServiceError::new(
            ErrorKind::BadRequest,
            format!("{INTERFACE} has no method {other:?}"),
        )
        .into()),
    }
}

fn parameters<T: for<'de> Deserialize<'de>>(value: Value) -> Result<T, Box<ServiceError>> {
    serde_json::from_value(value).map_err(|error| bad_request(&error))
}

fn bad_request(error: &serde_json::Error) -> Box<ServiceError> {
    ServiceError::new(
        ErrorKind::BadRequest,
        format!("request is not understood: {error}"),
    )
    .into()
}

fn unknown_interface(interface: &str) -> Box<ServiceError> {
    let mut error = ServiceError::new(
        ErrorKind::BadRequest,
        format!(
            "interface {interface:?} is not spoken here; supported: {}",
            SUPPORTED_INTERFACES.join(", ")
        ),
    )
    .with_next_step("install plugin and daemon of the same release");
    error.supported = SUPPORTED_INTERFACES.iter().map(ToString::to_string).collect();
    error.into()
}

#[derive(Serialize)]
struct Answer<'a, P> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    parameters: &'a P,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    continues: bool,
}

/// A reply as a frame, end byte included.
///
/// # Errors
/// When the value can't be written as JSON or exceeds [`MAX_REPLY`].
pub fn encode_reply(reply: &Reply) -> Result<Vec<u8>, FrameError> {
    let frame = match reply {
        Reply::Assigned(value) => answer(value, true),
        Reply::Durable | Reply::Settled => answer(&serde_json::Map::new(), false),
        Reply::Released(value) => answer(value, true),
        Reply::Checked(value) => answer(value, false),
        Reply::Collected(value) => answer(value, false),
        Reply::Status(value) => answer(value, false),
        Reply::Dump(value) => answer(value, false),
    }?;
    if frame.len() > MAX_REPLY {
        return Err(FrameError::TooLarge { limit: MAX_REPLY });
    }
    Ok(frame)
}

fn answer(parameters: &impl Serialize, continues: bool) -> Result<Vec<u8>, FrameError> {
    ended(&Answer {
        error: None,
        parameters,
        continues,
    })
}

/// A failure as a frame, end byte included.
///
/// # Errors
/// When the value can't be written as JSON.
pub fn encode_error(error: &ServiceError) -> Result<Vec<u8>, FrameError> {
    ended(&Answer {
        error: Some(format!("{INTERFACE}.{}", error.kind.name())),
        parameters: error,
        continues: false,
    })
}

/// A reply frame whose parameters are still JSON.
#[derive(Debug, Deserialize)]
pub struct RawReply {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    parameters: Option<Value>,
    /// Whether another frame follows.
    #[serde(default)]
    pub continues: bool,
}

impl RawReply {
    /// Reads a reply frame.
    ///
    /// # Errors
    /// When it is not JSON of that shape.
    pub fn parse(frame: &[u8]) -> Result<Self, FrameError> {
        Ok(serde_json::from_slice(frame)?)
    }

    /// The parameters as `T`, or the failure that the daemon reports.
    ///
    /// # Errors
    /// [`FrameError`] when the parameters are not a `T`.
    pub fn into_result<T: for<'de> Deserialize<'de>>(
        self,
    ) -> Result<Result<T, Box<ServiceError>>, FrameError> {
        let parameters = self.parameters;
        if let Some(name) = self.error {
            return Ok(Err(named_error(&name, parameters)));
        }
        Ok(Ok(serde_json::from_value(parameters.ok_or(FrameError::Empty)?)?))
    }
}

/// An error of a newer daemon keeps its text even when its name or shape is not known here.
fn named_error(name: &str, parameters: Option<Value>) -> Box<ServiceError> {
    let parameters = parameters.unwrap_or_default();
    let mut error: ServiceError = serde_json::from_value(parameters.clone())
        .unwrap_or_else(|_| ServiceError::new(ErrorKind::Internal, format!("{name}: {parameters}")));
    let short = name.rsplit_once('.').map_or(name, |(_, short)| short);
    error.kind = ErrorKind::ALL
        .into_iter()
        .find(|kind| kind.name() == short)
        .unwrap_or(ErrorKind::Internal);
    if error.message.is_empty() {
        error.message = format!("the daemon answered {name}");
    }
    error.into()
}

/// Reads a reply frame as the answer to `request`; `Durable` is what an ADD's last frame means, and
/// `Settled` a DEL's.
///
/// # Errors
/// [`FrameError`] when the frame is not an answer to that request.
pub fn decode_reply(request: &Request, frame: &[u8]) -> Result<Result<Reply, Box<ServiceError>>, FrameError> {
    let raw = RawReply::parse(frame)?;
    Ok(match request {
        Request::Add(_) if raw.continues => raw.into_result::<Assigned>()?.map(Reply::Assigned),
        Request::Add(_) => raw.into_result::<Value>()?.map(|_| Reply::Durable),
        Request::Del(_) if raw.continues => raw.into_result::<Released>()?.map(Reply::Released),
        Request::Del(_) | Request::Cordon(_) => raw.into_result::<Value>()?.map(|_| Reply::Settled),
        Request::Check(_) => raw.into_result::<Allocation>()?.map(Reply::Checked),
        Request::Gc(_) => raw.into_result::<Collected>()?.map(Reply::Collected),
        Request::Status => raw.into_result::<Status>()?.map(Reply::Status),
        Request::Dump => raw.into_result::<Value>()?.map(Reply::Dump),
    })
}
