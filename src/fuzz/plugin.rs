//! What a container runtime says to a plugin, and what is chained behind it.

use serde_json::Value;

use crate::cni::conf::NetConf;
use crate::cni::conflist::{Chained, Conflist};
use crate::cni::environment::Environment;
use crate::cni::request::{self, Request};

/// A call: the variables, a line each, an empty line, and stdin. Whatever is refused is refused with an error that is
/// JSON of the plugin's own making.
pub fn plugin_calls(data: &[u8]) {
    let (variables, stdin) = match data.windows(2).position(|two| two == b"\n\n") {
        Some(end) => (data.get(..end), data.get(end.saturating_add(2)..)),
        None => (None, Some(data)),
    };
    let variables = String::from_utf8_lossy(variables.unwrap_or_default()).into_owned();
    let get = |name: &str| {
        let mut lines = variables.lines().filter_map(|line| line.split_once('='));
        let found = lines.find(|(key, _)| *key == name);
        found.map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let stdin = stdin.unwrap_or_default().to_vec();
    let error = match request::read(Environment::read(get), || Ok(stdin)) {
        Ok(Request::Version) => return,
        Ok(Request::Call(call)) => match NetConf::parse(&call.stdin, call.version) {
            Ok(conf) => return judge(&conf),
            Err(_) => return,
        },
        Err(error) => error.to_json(),
    };
    assert!(
        serde_json::from_str::<Value>(&error)
            .is_ok_and(|error| error.get("code").is_some_and(Value::is_number)),
        "an error that no runtime can read: {error}"
    );
}

fn judge(conf: &NetConf) {
    assert!(
        crate::net::layout::MTU.contains(&conf.mtu),
        "an MTU no link takes: {}",
        conf.mtu
    );
    assert!(
        conf.veth_prefix.len() <= crate::net::veth::MAX_PREFIX,
        "a name too long"
    );
}

/// A file of the chain directory: what is taken comes out again with every key, behind our plugin, which no chained one
/// stands in for.
pub fn chained_plugins(data: &[u8]) {
    let Ok(conf) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let Ok(chained) = Chained::new(conf.clone()) else {
        return;
    };
    let conflist = Conflist {
        veth_prefix: "eni".to_owned(),
        mtu: 9001,
        log_file: None,
        log_level: "info".to_owned(),
        add_deadline: None,
        chained: vec![chained],
    };
    if conflist.check().is_err() {
        return;
    }
    let list: Value = match serde_json::from_str(&conflist.render()) {
        Ok(list) => list,
        Err(error) => panic!("what was rendered is not JSON: {error}"),
    };
    let plugin = |path: &str| list.pointer(path).cloned().unwrap_or_default();
    assert_eq!(plugin("/plugins/0/type"), "aws-cni");
    assert_eq!(plugin("/plugins/1"), conf, "a key was lost");
}
