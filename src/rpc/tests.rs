use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot};

use super::client::{Client, ClientError};
use super::frame::{FrameBuffer, FrameError, MAX_REQUEST, RawReply, decode_reply, decode_request};
use super::frame::{encode_error, encode_reply, encode_request};
use super::server::{Incoming, Limits, bind, serve};
use super::types::*;
use crate::ipam::ids::{CardIndex, DeviceIndex, PodRef, TableId};

const PATIENCE: Duration = Duration::from_secs(20);

fn add() -> Add {
    Add {
        network: "aws-cni".into(),
        container_id: "c1".into(),
        ifname: "eth0".into(),
        netns: "/run/netns/x".to_owned(),
        pod: PodRef {
            namespace: "default".to_owned(),
            name: "nginx".to_owned(),
            uid: String::new(),
        },
        host_veth: "enic440f455693".to_owned(),
        deadline_ms: 30_000,
        card: None,
        main: None,
        host_ports: Vec::new(),
    }
}

fn del() -> Del {
    Del {
        network: "aws-cni".into(),
        container_id: "c1".into(),
        ifname: "eth0".into(),
        pod: PodRef::default(),
        reason: DelReason::PodDeleted,
    }
}

fn assigned() -> Assigned {
    Assigned {
        allocation: Allocation {
            address: IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5)),
            eni_table: TableId(3),
            device: DeviceIndex(2),
            eni: "eni-1".into(),
            card: CardIndex(0),
            eni_primary: Some(Ipv4Addr::new(10, 0, 1, 20)),
            layout: RuleLayout::PerPod,
            host_veth: "enic440f455693".to_owned(),
        },
        repeated: false,
    }
}

fn body(frame: &[u8]) -> &[u8] {
    frame.strip_suffix(&[0]).expect("a frame ends with NUL")
}

#[test]
fn requests_round_trip() {
    for request in [
        Request::Add(add()),
        Request::Del(del()),
        Request::Check(Check {
            network: "aws-cni".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
        }),
        Request::Gc(Gc {
            network: "aws-cni".into(),
            valid: vec![Attachment {
                container_id: "c1".into(),
                ifname: "eth0".into(),
            }],
        }),
        Request::Cordon(Cordon { cordoned: true }),
        Request::Status,
        Request::Dump,
    ] {
        let frame = encode_request(&request).unwrap();
        assert_eq!(decode_request(body(&frame)).unwrap(), request);
    }
}

#[test]
fn the_wire_is_what_varlink_tools_write() {
    let frame = encode_request(&Request::Status).unwrap();
    assert_eq!(
        frame,
        b"{\"method\":\"local.awscni.Ipamd1.Status\",\"parameters\":{}}\0"
    );
    let frame = encode_reply(&Reply::Durable).unwrap();
    assert_eq!(frame, b"{\"parameters\":{}}\0");
    let text = String::from_utf8(encode_reply(&Reply::Assigned(assigned())).unwrap()).unwrap();
    assert!(
        text.starts_with("{\"parameters\":{\"address\":\"10.0.1.5\",\"eni_table\":3,"),
        "{text}"
    );
    assert!(
        text.ends_with("\"repeated\":false},\"continues\":true}\0"),
        "{text}"
    );
    let text = String::from_utf8(encode_request(&Request::Add(add())).unwrap()).unwrap();
    assert!(text.ends_with(",\"more\":true}\0"), "{text}");
}

#[test]
fn replies_round_trip() {
    let replies = [
        (Request::Add(add()), Reply::Assigned(assigned())),
        (Request::Add(add()), Reply::Durable),
        (
            Request::Del(del()),
            Reply::Released(Released {
                addresses: vec![ReleasedAddress {
                    address: IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5)),
                    eni_table: TableId(3),
                    device: DeviceIndex(2),
                    host_veth: "enix".to_owned(),
                    layout: RuleLayout::Shared,
                    host_ports: Vec::new(),
                }],
                known: true,
            }),
        ),
        (Request::Del(del()), Reply::Settled),
        (Request::Cordon(Cordon { cordoned: false }), Reply::Settled),
        (Request::Status, Reply::Status(Status::default())),
        (Request::Dump, Reply::Dump(serde_json::json!({"a": [1]}))),
    ];
    for (request, reply) in replies {
        let frame = encode_reply(&reply).unwrap();
        assert_eq!(decode_reply(&request, body(&frame)).unwrap().unwrap(), reply);
    }
}

#[test]
fn every_kind_of_error_keeps_its_kind_and_details() {
    for kind in ErrorKind::ALL {
        let mut error = ServiceError::new(kind, "what and why")
            .with_next_step("do this")
            .with_aws(AwsFailure {
                action: "CreateNetworkInterface".to_owned(),
                code: "InsufficientFreeAddressesInSubnet".to_owned(),
                request_id: "r-1".to_owned(),
            });
        error.limit = Some("t3.medium: 3 ENIs".to_owned());
        error.retry_after_ms = Some(5000);
        let frame = encode_error(&error).unwrap();
        let read = decode_reply(&Request::Status, body(&frame)).unwrap().unwrap_err();
        assert_eq!(*read, error);
    }
}

#[test]
fn errors_of_another_release_keep_their_text() {
    let raw =
        RawReply::parse(br#"{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"X"}}"#);
    let error = raw.unwrap().into_result::<Status>().unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(error.message.contains("MethodNotFound"), "{error}");
}

#[test]
fn ipamd_101_unknown_fields_are_ignored_and_unknown_interfaces_refused_by_name() {
    let call =
        br#"{"method":"local.awscni.Ipamd1.Status","parameters":{"colour":"red"},"oneway":false,"new":1}"#;
    assert_eq!(decode_request(call).unwrap(), Request::Status);
    for method in [
        "local.awscni.Ipamd2.Status",
        "Status",
        "",
        "org.varlink.service.GetInfo",
    ] {
        let call = serde_json::to_vec(&serde_json::json!({ "method": method })).unwrap();
        let error = decode_request(&call).unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadRequest);
        assert_eq!(error.supported, [INTERFACE], "{method}");
        assert!(error.message.contains(INTERFACE), "{error}");
    }
    let error = decode_request(br#"{"method":"local.awscni.Ipamd1.Explode"}"#).unwrap_err();
    assert!(error.message.contains("Explode"), "{error}");
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        decode_request(&bytes).ok();
        decode_reply(&Request::Add(add()), &bytes).ok();
        decode_reply(&Request::Status, &bytes).ok();
    }

    #[test]
    fn mangled_requests_never_panic(at in 0_usize..300, byte in any::<u8>(), cut in 0_usize..300) {
        let mut frame = encode_request(&Request::Add(add())).unwrap();
        let len = frame.len();
        frame[at % len] = byte;
        frame.truncate(cut.max(1));
        decode_request(&frame).ok();
    }

    #[test]
    fn frames_are_the_same_however_they_are_cut(
        frames in proptest::collection::vec(proptest::collection::vec(1_u8.., 0..40), 1..6),
        cuts in proptest::collection::vec(1_usize..9, 1..50),
    ) {
        let stream: Vec<u8> = frames.iter().flat_map(|frame| frame.iter().copied().chain([0])).collect();
        let mut buffer = FrameBuffer::new(64);
        let mut read = Vec::new();
        let mut rest = stream.as_slice();
        let mut sizes = cuts.iter().cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            buffer.push(now);
            rest = later;
            while let Some(frame) = buffer.next_frame().unwrap() {
                read.push(frame);
            }
        }
        prop_assert_eq!(read, frames);
        prop_assert_eq!(buffer.pending(), 0);
    }
}

#[test]
fn a_frame_may_be_as_long_as_its_limit_and_not_longer() {
    let mut buffer = FrameBuffer::new(4);
    buffer.push(b"1234\0");
    assert_eq!(buffer.next_frame().unwrap().unwrap(), b"1234");
    buffer.push(b"12345");
    assert!(matches!(
        buffer.next_frame(),
        Err(FrameError::TooLarge { limit: 4 })
    ));
    let mut buffer = FrameBuffer::new(4);
    buffer.push(b"12345\0");
    assert!(matches!(
        buffer.next_frame(),
        Err(FrameError::TooLarge { limit: 4 })
    ));
}

/// A server in its own thread whose calls the test answers.
struct Daemon {
    _folder: tempfile::TempDir,
    path: PathBuf,
    calls: mpsc::Receiver<Incoming>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    fn start(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ipamd.sock");
        let (sender, calls) = mpsc::channel(16);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let socket = path.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = bind(&socket).unwrap();
                ready.send(()).unwrap();
                serve(listener, limits, sender, async {
                    stopped.await.ok();
                })
                .await;
            });
        });
        is_ready.recv().unwrap();
        Self {
            _folder: folder,
            path,
            calls,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn next(&mut self) -> Incoming {
        self.calls.blocking_recv().expect("the server lives")
    }

    fn next_call(&mut self) -> Box<super::server::Call> {
        match self.next() {
            Incoming::Call(call) => call,
            other @ Incoming::HungUp { .. } => panic!("not a call: {other:?}"),
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path, PATIENCE).unwrap()
    }

    fn raw(&self) -> StdUnixStream {
        let stream = StdUnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn stop(mut self) -> mpsc::Receiver<Incoming> {
        self.stop.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
        self.calls
    }
}

fn read_to_end(mut stream: StdUnixStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn in_thread<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::spawn(job)
}

#[test]
fn an_add_gets_two_frames_in_one_packet_or_in_two() {
    let mut daemon = Daemon::start(Limits::default());
    for together in [true, false] {
        let client = daemon.client();
        let (first_seen, wait_first) = std::sync::mpsc::channel();
        let plugin = in_thread(move || {
            let (answer, pending) = client.send_add(add()).unwrap().assigned().unwrap();
            first_seen.send(()).unwrap();
            drop(pending.durable().unwrap());
            answer
        });
        let call = daemon.next_call();
        assert_eq!(call.request, Request::Add(add()));
        assert!(call.replies.send(Reply::Assigned(assigned())));
        if !together {
            wait_first.recv().unwrap();
        }
        assert!(call.replies.send(Reply::Durable));
        assert_eq!(plugin.join().unwrap(), assigned());
    }
    let mut calls = daemon.stop();
    assert!(
        calls.blocking_recv().is_none(),
        "no hang-up after a delivered answer"
    );
}

#[test]
fn a_failure_reaches_the_plugin_also_as_the_second_answer() {
    let mut daemon = Daemon::start(Limits::default());
    let client = daemon.client();
    let plugin = in_thread(move || {
        client
            .send_add(add())
            .unwrap()
            .assigned()
            .unwrap()
            .1
            .durable()
            .unwrap_err()
    });
    let call = daemon.next_call();
    call.replies.send(Reply::Assigned(assigned()));
    call.replies.fail(ServiceError::new(
        ErrorKind::DiskFull,
        "the disk of the store is full",
    ));
    let error = plugin.join().unwrap();
    assert_eq!(error.service().unwrap().kind, ErrorKind::DiskFull);
}

#[test]
fn a_client_that_leaves_while_it_waits_is_reported() {
    let mut daemon = Daemon::start(Limits::default());
    let mut stream = daemon.raw();
    stream
        .write_all(&encode_request(&Request::Add(add())).unwrap())
        .unwrap();
    let call = daemon.next_call();
    drop(stream);
    assert!(matches!(daemon.next(), Incoming::HungUp { id } if id == call.id));
    assert!(
        !call.replies.send(Reply::Assigned(assigned())),
        "nobody is there to be told"
    );
}

#[test]
fn a_client_that_leaves_between_the_two_frames_is_reported() {
    let mut daemon = Daemon::start(Limits::default());
    let client = daemon.client();
    let plugin = in_thread(move || drop(client.send_add(add()).unwrap().assigned().unwrap()));
    let call = daemon.next_call();
    call.replies.send(Reply::Assigned(assigned()));
    plugin.join().unwrap();
    assert!(matches!(daemon.next(), Incoming::HungUp { id } if id == call.id));
}

#[test]
fn an_answer_that_was_sent_but_never_read_is_reported() {
    let mut daemon = Daemon::start(Limits::default());
    let mut stream = daemon.raw();
    stream
        .write_all(&encode_request(&Request::Status).unwrap())
        .unwrap();
    let call = daemon.next_call();
    call.replies.send(Reply::Status(Status::default()));
    let mut one = [0_u8; 1];
    stream.read_exact(&mut one).unwrap();
    drop(stream);
    assert!(matches!(daemon.next(), Incoming::HungUp { id } if id == call.id));
}

#[test]
fn a_client_that_only_finished_sending_is_still_answered() {
    let mut daemon = Daemon::start(Limits::default());
    let mut stream = daemon.raw();
    stream
        .write_all(&encode_request(&Request::Dump).unwrap())
        .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let call = daemon.next_call();
    call.replies
        .send(Reply::Dump(serde_json::json!({"pool": "empty"})));
    assert_eq!(read_to_end(stream), "{\"parameters\":{\"pool\":\"empty\"}}\0");
}

#[test]
fn malformed_requests_are_answered_and_never_reach_the_daemon() {
    let daemon = Daemon::start(Limits::default());
    let too_large = vec![b'x'; MAX_REQUEST + 1];
    for (bytes, expected) in [
        (&b"{\0"[..], "not understood"),
        (b"\0", "not understood"),
        (b"[]\0", "not understood"),
        (
            b"{\"method\":\"local.awscni.Ipamd1.Add\",\"parameters\":{}}\0",
            "missing field",
        ),
        (
            b"{\"method\":\"local.awscni.Ipamd9.Add\"}\0",
            "local.awscni.Ipamd1",
        ),
        (
            b"{\"method\":\"local.awscni.Ipamd1.Status\"}\0{\"method\"",
            "one request per connection",
        ),
        (&too_large, "larger than"),
    ] {
        let mut stream = daemon.raw();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // A server that refuses before it has read everything resets the connection after its answer.
        stream.read_to_end(&mut answer).ok();
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.contains("Ipamd1.BadRequest") && answer.contains(expected),
            "{answer}"
        );
    }
    let mut calls = daemon.stop();
    assert!(calls.blocking_recv().is_none());
}

#[test]
fn a_silent_client_is_let_go_and_a_probe_is_no_request() {
    let limits = Limits {
        read: Duration::from_millis(50),
        ..Limits::default()
    };
    let daemon = Daemon::start(limits);
    drop(daemon.raw());
    let answer = read_to_end(daemon.raw());
    assert!(answer.contains("Ipamd1.Deadline"), "{answer}");
    let mut calls = daemon.stop();
    assert!(calls.blocking_recv().is_none());
}

#[test]
fn one_connection_too_many_is_told_to_try_again() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let mut daemon = Daemon::start(limits);
    let mut first = daemon.raw();
    first
        .write_all(&encode_request(&Request::Status).unwrap())
        .unwrap();
    let call = daemon.next_call();
    let error = daemon.client().status().unwrap_err();
    assert_eq!(
        error.service().map(|error| error.kind),
        Some(ErrorKind::TryAgain),
        "{error}"
    );
    call.replies.send(Reply::Status(Status::default()));
    assert!(read_to_end(first).starts_with("{\"parameters\""));
}

#[test]
fn a_request_nobody_answers_is_answered_at_its_deadline_and_given_up() {
    let limits = Limits {
        grace: Duration::from_millis(10),
        ..Limits::default()
    };
    let mut daemon = Daemon::start(limits);
    let client = daemon.client();
    let hurried = Add {
        deadline_ms: 10,
        card: None,
        main: None,
        host_ports: Vec::new(),
        ..add()
    };
    let plugin = in_thread(move || client.send_add(hurried).unwrap().assigned().unwrap_err());
    let call = daemon.next_call();
    let error = plugin.join().unwrap();
    assert_eq!(error.service().unwrap().kind, ErrorKind::Deadline);
    assert!(matches!(daemon.next(), Incoming::HungUp { id } if id == call.id));
}

#[test]
fn a_dropped_request_is_answered() {
    let mut daemon = Daemon::start(Limits::default());
    let client = daemon.client();
    let plugin = in_thread(move || client.status().unwrap_err());
    drop(daemon.next_call());
    assert_eq!(
        plugin.join().unwrap().service().unwrap().kind,
        ErrorKind::Internal
    );
}

#[test]
fn open_calls_are_finished_before_the_server_ends() {
    let mut daemon = Daemon::start(Limits::default());
    let client = daemon.client();
    let plugin = in_thread(move || client.status());
    let call = daemon.next_call();
    daemon.stop.take().unwrap().send(()).unwrap();
    call.replies.send(Reply::Status(Status::default()));
    plugin.join().unwrap().unwrap();
    daemon.thread.take().unwrap().join().unwrap();
}

#[test]
fn the_client_says_what_is_wrong_with_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ipamd.sock");
    let missing = Client::connect(&path, PATIENCE).unwrap_err();
    assert!(
        matches!(missing, ClientError::Connect { .. }) && missing.to_string().contains("ipamd.sock"),
        "{missing}"
    );

    let deaf = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let patience = Duration::from_millis(50);
    let silent = Client::connect(&path, patience).unwrap().status().unwrap_err();
    assert!(
        matches!(silent, ClientError::Deadline(after) if after == patience),
        "{silent}"
    );

    drop(deaf);
    std::fs::remove_file(&path).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = in_thread(move || {
        for answer in [
            &b""[..],
            b"garbage\0",
            b"{}\0",
            b"{\"parameters\":{\"serving\":7}}\0",
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut rest = [0_u8; 4096];
            assert!(stream.read(&mut rest).unwrap() > 0);
            stream.write_all(answer).unwrap();
        }
    });
    let ask = || Client::connect(&path, PATIENCE).unwrap().status().unwrap_err();
    assert!(matches!(ask(), ClientError::Closed));
    assert!(matches!(ask(), ClientError::Frame(FrameError::Json(_))));
    assert!(matches!(ask(), ClientError::Frame(FrameError::Empty)));
    assert!(matches!(ask(), ClientError::Frame(FrameError::Json(_))));
    server.join().unwrap();
}

#[test]
fn ipamd_113_a_missing_directory_is_made_and_a_stale_socket_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/aws-cni/ipamd.sock");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for _ in 0..2 {
        let listener = runtime.block_on(async { bind(&path) });
        drop(listener.unwrap());
        assert!(path.exists(), "it stays when its listener goes");
    }
}

#[test]
fn ipamd_113_the_socket_is_for_root_alone_and_a_living_daemon_keeps_it() {
    use std::os::unix::fs::PermissionsExt;
    let daemon = Daemon::start(Limits::default());
    let mode = std::fs::metadata(&daemon.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let path: &Path = &daemon.path;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let second = runtime.block_on(async { bind(path) });
    assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

const ASK_AS_STRANGER: &str = "AWS_CNI_TEST_SOCKET";

/// Not a test of its own: what [`strangers_are_refused_even_when_the_socket_lets_them_in`] runs under another uid.
#[test]
fn stranger() {
    let Some(path) = std::env::var_os(ASK_AS_STRANGER) else {
        return;
    };
    let error = Client::connect(path.as_ref(), PATIENCE)
        .unwrap()
        .status()
        .unwrap_err();
    assert_eq!(error.service().unwrap().kind, ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("uid 65534"), "{error}");
}

#[test]
fn strangers_are_refused_even_when_the_socket_lets_them_in() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !crate::testing::is_real_root() {
        println!("SKIPPED: there are no strangers in a user namespace of one user");
        return;
    }
    let daemon = Daemon::start(Limits::default());
    for path in [daemon.path.as_path(), daemon.path.parent().unwrap()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // A copy, because the build's folder may be closed to strangers.
    let binary = daemon.path.with_file_name("stranger");
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    let output = std::process::Command::new(&binary)
        .args(["--exact", "rpc::tests::stranger"])
        .env(ASK_AS_STRANGER, &daemon.path)
        .uid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    let mut calls = daemon.stop();
    assert!(calls.blocking_recv().is_none());
}

/// 15 ENIs with 49 addresses for pods each.
#[test]
fn a_gc_of_the_largest_instance_fits_with_room_to_spare() {
    let attachment = |number: u32| Attachment {
        container_id: format!("{number:064x}").as_str().into(),
        ifname: "eth0".into(),
    };
    let gc = Gc {
        network: "aws-cni".into(),
        valid: (0..15 * 49).map(attachment).collect(),
    };
    let frame = encode_request(&Request::Gc(gc)).unwrap();
    assert!(frame.len() < MAX_REQUEST / 2, "{}", frame.len());
}
