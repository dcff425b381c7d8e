//! A daemon that answers what the test tells it to, on a socket of its own.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use aws_cni::rpc::frame::{FrameBuffer, decode_request, encode_error, encode_reply};
use aws_cni::rpc::types::{Reply, Request, ServiceError};

/// What one request is answered with, frame by frame; nothing closes the connection.
pub type Answers = Vec<Result<Reply, ServiceError>>;

pub struct FakeDaemon {
    path: PathBuf,
    seen: Arc<Mutex<Vec<Request>>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDaemon {
    pub fn start(folder: &Path, answer: impl Fn(&Request) -> Answers + Send + 'static) -> Self {
        let path = folder.join("ipamd.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            while let Some((stream, request)) = next(&listener) {
                log.lock().unwrap().push(request.clone());
                serve(stream, &answer(&request));
            }
        });
        Self {
            path,
            seen,
            thread: Some(thread),
        }
    }

    /// What was asked so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// The methods that were asked for so far.
    pub fn methods(&self) -> Vec<&'static str> {
        self.seen().iter().map(Request::method).collect()
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        // A connection without a request ends the loop.
        drop(UnixStream::connect(&self.path));
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        std::fs::remove_file(&self.path).ok();
    }
}

fn next(listener: &UnixListener) -> Option<(UnixStream, Request)> {
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = FrameBuffer::new(64 * 1024);
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk).unwrap_or(0);
        if count == 0 {
            return None;
        }
        buffer.push(&chunk[..count]);
        if let Some(frame) = buffer.next_frame().unwrap() {
            return Some((stream, decode_request(&frame).unwrap()));
        }
    }
}

fn serve(mut stream: UnixStream, answers: &Answers) {
    for answer in answers {
        let frame = match answer {
            Ok(reply) => encode_reply(reply),
            Err(error) => encode_error(error),
        };
        stream.write_all(&frame.unwrap()).ok();
    }
}
