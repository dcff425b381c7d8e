//! `runtimeConfig.portMappings`, the capability `portMappings` (CNI conventions; the semantics are portmap's).

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::ipam::ports::{HostPort, MOST_TEXT, Transport, fit};

/// One mapping as the runtime sends it.
#[derive(Debug, Default, Deserialize)]
pub struct PortMapping {
    #[serde(default, rename = "hostPort")]
    host_port: Value,
    #[serde(default, rename = "containerPort")]
    container_port: Value,
    #[serde(default)]
    protocol: Value,
    #[serde(default, rename = "hostIP")]
    host_ip: Value,
}

/// What is wrong with the mappings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// A field has no usable value.
    #[error("runtimeConfig.portMappings[{index}].{field}: {found} is not {expected}")]
    Field {
        /// Which mapping.
        index: usize,
        /// Its field.
        field: &'static str,
        /// What is there.
        found: String,
        /// What could be.
        expected: &'static str,
    },
    /// Two mappings of one pod claim the same port.
    #[error("runtimeConfig.portMappings[{index}].hostPort: {place} is mapped twice")]
    Twice {
        /// Which mapping.
        index: usize,
        /// What they claim.
        place: String,
    },
    /// A record does not hold so many.
    #[error("runtimeConfig.portMappings: more than fit into the pod's record of {MOST_TEXT} bytes")]
    TooMany,
}

/// The mappings, checked; one that stands there twice counts once.
///
/// # Errors
/// The first field that can't be used.
pub fn checked(mappings: &[PortMapping]) -> Result<Vec<HostPort>, PortError> {
    let mut ports: Vec<HostPort> = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        let port = mapping.checked(index)?;
        if ports.contains(&port) {
            continue;
        }
        if ports.iter().any(|other| other.overlaps(&port)) {
            let place = port.place();
            return Err(PortError::Twice { index, place });
        }
        ports.push(port);
    }
    if fit(&ports) {
        Ok(ports)
    } else {
        Err(PortError::TooMany)
    }
}

/// A mapping of an address of the node that is not of the pod's family leads nowhere.
///
/// # Errors
/// Its field.
pub fn check_family(ports: &[HostPort], pod: IpAddr) -> Result<(), PortError> {
    let (expected, is_v4) = match pod {
        IpAddr::V4(_) => ("an IPv4 address, as the pod's", true),
        IpAddr::V6(_) => ("an IPv6 address, as the pod's", false),
    };
    let other = |port: &HostPort| port.host_ip.is_some_and(|ip| ip.is_ipv4() != is_v4);
    let found = ports.iter().enumerate().find(|(_, port)| other(port));
    found.map_or(Ok(()), |(index, port)| {
        Err(PortError::Field {
            index,
            field: "hostIP",
            found: port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            expected,
        })
    })
}

impl PortMapping {
    fn checked(&self, index: usize) -> Result<HostPort, PortError> {
        let wrong = |field, found: &Value, expected| PortError::Field {
            index,
            field,
            found: found.to_string(),
            expected,
        };
        let port = |field, value: &Value| {
            let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
            let number = number.filter(|number| *number != 0);
            number.ok_or_else(|| wrong(field, value, "a port (1 to 65535)"))
        };
        let transport = match &self.protocol {
            // What a container's port has without being asked.
            Value::Null => Some(Transport::Tcp),
            Value::String(name) => Transport::named(name),
            _ => None,
        };
        Ok(HostPort {
            transport: transport.ok_or_else(|| wrong("protocol", &self.protocol, "tcp, udp or sctp"))?,
            host_port: port("hostPort", &self.host_port)?,
            container_port: port("containerPort", &self.container_port)?,
            host_ip: host_ip(&self.host_ip)
                .map_err(|NoAddress| wrong("hostIP", &self.host_ip, "an IPv4 or IPv6 address"))?,
        })
    }
}

struct NoAddress;

/// `0.0.0.0` and `::` mean every address, as none does.
fn host_ip(value: &Value) -> Result<Option<IpAddr>, NoAddress> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => {
            let address: IpAddr = text.parse().map_err(|_| NoAddress)?;
            Ok((!address.is_unspecified()).then_some(address))
        }
        _ => Err(NoAddress),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(mappings: Value) -> Result<Vec<String>, String> {
        let mappings: Vec<PortMapping> = serde_json::from_value(mappings).unwrap();
        let ports = checked(&mappings).map_err(|error| error.to_string())?;
        Ok(ports.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn mappings_are_read_as_portmap_reads_them() {
        let found = read(json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": ""},
            {"hostPort": 9, "containerPort": 9, "protocol": "Sctp", "hostIP": "0.0.0.0"},
            {"hostPort": 1, "containerPort": 2, "protocol": "udp", "hostIP": "10.0.0.1"},
            {"hostPort": 1, "containerPort": 2, "protocol": "tcp", "hostIP": "fd00::1"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "::"},
            {"hostPort": 7, "containerPort": 7},
        ]));
        let wanted = [
            "tcp:8080:80",
            "udp:53:53",
            "sctp:9:9",
            "udp:1:2:10.0.0.1",
            "tcp:1:2:fd00::1",
            "tcp:7:7",
        ];
        assert_eq!(found.unwrap(), wanted);
        assert_eq!(read(json!([])).unwrap(), [""; 0]);
    }

    #[test]
    fn a_mapping_that_cannot_be_had_is_named_by_its_field() {
        let good = json!({"hostPort": 1, "containerPort": 1, "protocol": "tcp"});
        for (field, value) in [
            ("hostPort", json!(0)),
            ("hostPort", json!(65536)),
            ("hostPort", json!(-1)),
            ("hostPort", json!("80")),
            ("hostPort", Value::Null),
            ("containerPort", json!(0)),
            ("protocol", json!("icmp")),
            ("protocol", json!("")),
            ("protocol", json!(6)),
            ("hostIP", json!("localhost")),
            ("hostIP", json!(1)),
        ] {
            let mut bad = good.clone();
            bad[field] = value.clone();
            let error = read(json!([good, bad])).unwrap_err();
            let place = format!("runtimeConfig.portMappings[1].{field}: {value} is not ");
            assert!(error.starts_with(&place), "{error}");
        }
        let other = json!({"hostPort": 1, "containerPort": 2, "protocol": "TCP", "hostIP": "10.0.0.1"});
        let error = read(json!([good, other])).unwrap_err();
        assert_eq!(
            error,
            "runtimeConfig.portMappings[1].hostPort: tcp port 1 of 10.0.0.1 is mapped twice"
        );
        let many: Vec<Value> = (1..200)
            .map(|port| json!({"hostPort": port, "containerPort": port, "protocol": "sctp"}))
            .collect();
        assert!(read(many.into()).unwrap_err().contains("more than fit"));
    }

    #[test]
    fn an_address_of_the_other_family_is_named() {
        let ports = ["tcp:1:1".parse().unwrap(), "tcp:2:2:fd00::1".parse().unwrap()];
        assert!(check_family(&ports, "fd00::9".parse().unwrap()).is_ok());
        let error = check_family(&ports, "10.0.0.9".parse().unwrap()).unwrap_err();
        let wanted = "runtimeConfig.portMappings[1].hostIP: fd00::1 is not an IPv4 address, as the pod's";
        assert_eq!(error.to_string(), wanted);
    }
}
