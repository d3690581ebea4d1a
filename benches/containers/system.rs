//! A whole machine, from nothing to `running`.

use std::process::Command;

use crate::node::{Node, TEMPLATE};
use crate::peers::Peers;
use crate::support::{Succeed, again_until};
use crate::{Size, tell, timed};

const ASK: [&str; 2] = ["systemctl", "is-system-running"];

fn booted(mut ask: impl FnMut() -> Command) {
    again_until("systemd has booted", || {
        let told = String::from_utf8_lossy(&ask().capture().stdout).trim().to_owned();
        ["running", "degraded"].contains(&told.as_str())
    });
}

pub(crate) fn measure(node: &Node, peers: &Peers, size: &Size) {
    println!("\n| systemd to `running` | median | least – most | mark |\n|---|---|---|---|");
    let (mut ours, mut lxc) = (Vec::new(), Vec::new());
    for round in 0..size.rounds.div_ceil(3) {
        let name = format!("machine-{round}");
        node.run(&["create", &name, TEMPLATE, "--system"]);
        let (time, ()) = timed(|| {
            node.run(&["start", &name]);
            booted(|| {
                let mut ask = node.mica();
                ask.args(["exec", &name, "--"]).args(ASK);
                ask
            });
        });
        ours.push(time);
        node.run(&["delete", "--force", &name]);
        if peers.lxc {
            let (time, ()) = timed(|| {
                peers.lxc_boot().succeed();
                booted(|| peers.lxc_attach(&ASK));
            });
            lxc.push(time);
            peers.lxc_kill().succeed();
        }
    }
    tell("mica start, asked by mica exec", "≤ 1 s", ours);
    if peers.lxc {
        tell("lxc-start, asked by lxc-attach", "", lxc);
    }
}
