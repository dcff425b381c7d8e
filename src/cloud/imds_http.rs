//! Just enough HTTP/1.1 for the instance metadata service: one kept connection, small bounded answers.

use std::fmt;
use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// The largest real answers (user data) are 16 KiB; nothing asked for here comes near this.
pub(super) const MOST_BODY_BYTES: usize = 64 * 1024;

const MOST_HEAD_BYTES: u64 = 16 * 1024;

/// One request: `GET` or `PUT`, never with a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) host: &'a str,
    pub(super) path: &'a str,
    /// The one header that goes along, name and value.
    pub(super) header: (&'static str, &'a str),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Whether the connection can carry another request.
    pub(super) keep: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum WireError {
    /// The connection failed or ended early.
    Io(io::Error),
    /// What came is not HTTP, or too much of it.
    Protocol(&'static str),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            method,
            host,
            path,
            header: (name, value),
        } = self;
        write!(
            f,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{name}: {value}\r\nAccept: */*\r\n"
        )?;
        if *method == "PUT" {
            f.write_str("Content-Length: 0\r\n")?;
        }
        f.write_str("\r\n")
    }
}

/// Sends a request and reads its whole answer.
pub(super) async fn exchange(
    stream: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>,
    request: Request<'_>,
) -> Result<Response, WireError> {
    stream.get_mut().write_all(request.to_string().as_bytes()).await?;
    loop {
        let head = read_head(stream).await?;
        // 1xx answers precede the real one (RFC 9110, 15.2).
        if head.status >= 200 {
            return read_body(stream, head).await;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    keep: bool,
    length: Length,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Known(usize),
    Chunked,
    UntilClosed,
}

async fn read_line(
    stream: &mut BufReader<impl AsyncRead + Unpin>,
    budget: &mut u64,
) -> Result<String, WireError> {
    let mut line = Vec::new();
    let read = stream.take(*budget).read_until(b'\n', &mut line).await?;
    *budget = budget.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
    if line.pop() != Some(b'\n') {
        return Err(match *budget {
            0 => WireError::Protocol("its headers are too large"),
            _ => WireError::Io(io::ErrorKind::UnexpectedEof.into()),
        });
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| WireError::Protocol("its headers are not text"))
}

async fn read_head(stream: &mut BufReader<impl AsyncRead + Unpin>) -> Result<Head, WireError> {
    let mut budget = MOST_HEAD_BYTES;
    let (mut head, http_1_0) = parse_status(&read_line(stream, &mut budget).await?)?;
    head.keep = !http_1_0;
    loop {
        let line = read_line(stream, &mut budget).await?;
        if line.is_empty() {
            break;
        }
        parse_header(&line, &mut head)?;
    }
    if matches!(head.status, 204 | 304) {
        head.length = Length::Known(0);
    }
    head.keep &= head.length != Length::UntilClosed;
    Ok(head)
}

fn parse_status(line: &str) -> Result<(Head, bool), WireError> {
    let not_http = WireError::Protocol("it does not speak HTTP");
    let mut words = line.splitn(3, ' ');
    let version = words.next().filter(|word| word.starts_with("HTTP/1."));
    let status = words
        .next()
        .and_then(|word| word.parse().ok())
        .filter(|status| (100..600).contains(status));
    match (version, status) {
        (Some(version), Some(status)) => {
            let head = Head {
                status,
                keep: true,
                length: Length::UntilClosed,
            };
            Ok((head, version == "HTTP/1.0"))
        }
        _ => Err(not_http),
    }
}

fn parse_header(line: &str, head: &mut Head) -> Result<(), WireError> {
    let Some((name, value)) = line.split_once(':') else {
        return Err(WireError::Protocol("it sends a header without a colon"));
    };
    let value = value.trim();
    if name.eq_ignore_ascii_case("content-length") && head.length != Length::Chunked {
        let length = value
            .parse()
            .map_err(|_| WireError::Protocol("its Content-Length is not a number"))?;
        if length > MOST_BODY_BYTES {
            return Err(WireError::Protocol("its answer is too large"));
        }
        head.length = Length::Known(length);
    } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
        head.length = Length::Chunked;
    } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
        head.keep = false;
    }
    Ok(())
}

async fn read_body(
    stream: &mut BufReader<impl AsyncRead + Unpin>,
    head: Head,
) -> Result<Response, WireError> {
    let body = match head.length {
        Length::Known(length) => read_exactly(stream, length).await?,
        Length::Chunked => read_chunks(stream).await?,
        Length::UntilClosed => {
            let mut body = Vec::new();
            let most = u64::try_from(MOST_BODY_BYTES.saturating_add(1)).unwrap_or(u64::MAX);
            stream.take(most).read_to_end(&mut body).await?;
            body
        }
    };
    if body.len() > MOST_BODY_BYTES {
        return Err(WireError::Protocol("its answer is too large"));
    }
    Ok(Response {
        status: head.status,
        body,
        keep: head.keep,
    })
}

async fn read_exactly(
    stream: &mut BufReader<impl AsyncRead + Unpin>,
    length: usize,
) -> Result<Vec<u8>, WireError> {
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn read_chunks(stream: &mut BufReader<impl AsyncRead + Unpin>) -> Result<Vec<u8>, WireError> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream, &mut { MOST_HEAD_BYTES }).await?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size =
            usize::from_str_radix(size, 16).map_err(|_| WireError::Protocol("its chunks have no size"))?;
        if size.saturating_add(body.len()) > MOST_BODY_BYTES {
            return Err(WireError::Protocol("its answer is too large"));
        }
        if size == 0 {
            break;
        }
        body.extend(read_exactly(stream, size).await?);
        read_line(stream, &mut { MOST_HEAD_BYTES }).await?;
    }
    // Trailers end with an empty line.
    let mut budget = MOST_HEAD_BYTES;
    while !read_line(stream, &mut budget).await?.is_empty() {}
    Ok(body)
}
