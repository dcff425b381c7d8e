//! Inside the machine: open the store, say everything that is in it, then count up and say what is acknowledged.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::store::{Options, ProbeCommand, Store, Write};

/// Side by side, so that commits share a flush.
pub(crate) const WRITERS: u32 = 6;

/// Writes lines to the port, each in one piece.
struct Port(Mutex<std::fs::File>);

impl Port {
    fn say(&self, line: &str) {
        let mut file = self.0.lock().unwrap();
        file.write_all(format!("{line} .\n").as_bytes()).unwrap();
    }
}

pub(crate) fn live(directory: &Path, port: &Path) -> ExitCode {
    let file = OpenOptions::new().write(true).open(port).unwrap();
    let port = Arc::new(Port(Mutex::new(file)));
    port.say("opening");
    let options = Options {
        probe: Some(ProbeCommand {
            program: std::env::current_exe().unwrap(),
            arguments: vec!["probe".into()],
            deadline: Duration::from_mins(2),
        }),
        ballast_bytes: 64 << 10,
        // So that sled, the copy and the journal's start are written all the time.
        copy_every: 50,
        copy_when_quiet: Duration::from_millis(30),
        copy_max_age: Duration::from_millis(200),
        ..Options::default()
    };
    let (store, loaded) = match Store::open(directory, options) {
        Ok(opened) => opened,
        Err(error) => {
            port.say(&format!("refused {}", crate::causes::chain(&error)));
            return ExitCode::FAILURE;
        }
    };
    for (key, value) in &loaded.entries {
        let value = String::from_utf8_lossy(value);
        port.say(&format!("has {key} {}", value.trim()));
    }
    for doubt in &loaded.doubts {
        port.say(&format!("doubt {doubt:?}"));
    }
    let origin = format!("{:?}", loaded.origin);
    let damage = loaded.damage.unwrap_or_default().replace('\n', " ");
    port.say(&format!("opened {} {origin} {damage}", loaded.generation));
    let store = Arc::new(store);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let left = loaded.entries.get(&format!("left/{writer}"));
            let count = left.map_or(0, |value| String::from_utf8_lossy(value).trim().parse().unwrap());
            let (store, port) = (Arc::clone(&store), Arc::clone(&port));
            thread::spawn(move || count_up(&store, &port, writer, count))
        })
        .collect();
    for writer in writers {
        drop(writer.join());
    }
    ExitCode::FAILURE
}

fn count_up(store: &Store, port: &Port, writer: u32, mut count: u64) {
    loop {
        count += 1;
        // Padding, so that the log turns over and its segments are reused.
        let text = format!("{count:<600}").into_bytes();
        let put = |key: String, value: &[u8]| Write::Put {
            key,
            value: value.to_vec(),
        };
        let (tell, told) = channel();
        store.commit(
            vec![
                put(format!("left/{writer}"), &text),
                put(format!("right/{writer}"), &text),
                put(format!("step/{writer}/{count}"), b"x"),
                Write::Remove {
                    key: format!("step/{writer}/{}", count - 1),
                },
            ],
            Box::new(move |result| drop(tell.send(result))),
        );
        match told.recv().unwrap() {
            Ok(generation) => port.say(&format!("ack {writer} {count} {generation}")),
            Err(error) => {
                port.say(&format!("failed {error}"));
                return;
            }
        }
    }
}
