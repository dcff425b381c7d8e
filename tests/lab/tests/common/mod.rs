//! What the lab's own tests share.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_cni_lab::lab::Lab;
use aws_cni_lab::node::Node;
use aws_cni_lab::vpc::{AttachEni, CreateEni, Eni, Stages, Want, Wanted};

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Attaches a new ENI without any delay.
pub(crate) fn attach(lab: &Lab, node: &str, device: u32) -> Arc<Eni> {
    let instance = lab.node(node).unwrap().instance().clone();
    let ids = lab.vpc().clone();
    lab.cloud().model(|model| {
        let now = Instant::now();
        let create = CreateEni::plain(ids.subnets[0].clone(), vec![ids.group]);
        let eni = model.create_eni(create, now).unwrap();
        let request = AttachEni {
            eni: eni.id.clone(),
            instance,
            device,
            card: 0,
        };
        model.attach_eni(&request, Stages::default(), now).unwrap();
        eni
    })
}

pub(crate) fn detach(lab: &Lab, eni: &Eni) {
    lab.cloud().model(|model| {
        let attachment = model.enis()[&eni.id].attachment.clone().unwrap();
        model
            .detach_eni(&attachment.id, Stages::default(), Instant::now())
            .unwrap();
    });
}

/// Another process writes the file: while a thread of this one starts a child, the child holds a copy of every
/// descriptor, and a program that is open for writing can't be run (`ETXTBSY`).
pub(crate) fn install_script(node: &Node, script: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(node.dirs().bin.join("aws-cni"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

/// A plugin of a few lines that takes addresses of the primary ENI from a directory and wires pods with `ip`.
pub(crate) fn install_script_plugin(lab: &Lab, node: &Node, addresses: u32) {
    let wanted = Wanted {
        addresses: Want::Count(addresses),
        ..Wanted::default()
    };
    let assign = |model: &mut aws_cni_lab::vpc::Model| {
        model
            .assign(node.primary_eni(), &wanted, false, Instant::now())
            .unwrap()
    };
    let free = node.dirs().state.join("free");
    std::fs::create_dir_all(&free).unwrap();
    for address in lab.cloud().model(assign).addresses {
        std::fs::write(free.join(address.to_string()), "").unwrap();
    }
    install_script(node, SCRIPT_PLUGIN);
}

const SCRIPT_PLUGIN: &str = r#"#!/bin/sh
set -e
cat > /dev/null
cd "$AWS_CNI_STATE_DIR"
veth=eni$(printf %s "$CNI_CONTAINERID" | cut -c1-11)
case $CNI_COMMAND in
DEL)
  if [ -e "$CNI_CONTAINERID" ]; then
    ip link delete $veth 2>/dev/null || true
    mv "$CNI_CONTAINERID" free/$(cat "$CNI_CONTAINERID")
  fi ;;
ADD)
  for address in $(ls free); do
    mv free/$address "$CNI_CONTAINERID" 2>/dev/null && break
  done
  echo $address > "$CNI_CONTAINERID"
  ip link add $veth type veth peer name eth0 netns "$CNI_NETNS"
  echo 0 > /proc/sys/net/ipv4/conf/$veth/rp_filter
  ip link set $veth up
  ip route add $address/32 dev $veth
  mac=$(cat /sys/class/net/$veth/address 2>/dev/null || ip -br link show $veth | awk '{print $3}')
  nsenter --net="$CNI_NETNS" ip -batch - <<BATCH
link set eth0 up
addr add $address/32 dev eth0
route add 169.254.1.1 dev eth0
route add default via 169.254.1.1 dev eth0
neigh add 169.254.1.1 lladdr $mac dev eth0 nud permanent
BATCH
  echo "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"$address/32\"}]}" ;;
esac
"#;

pub(crate) fn eventually(mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < until, "it did not happen within {SOON:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
