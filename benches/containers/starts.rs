//! From nothing to a process, and to its end.

use std::process::Stdio;

use crate::node::{Node, TEMPLATE};
use crate::peers::Peers;
use crate::support::Succeed;
use crate::{Size, tell, timed};

pub(crate) fn measure(node: &Node, peers: &Peers, size: &Size) {
    println!("\n| what | median | least – most | mark |\n|---|---|---|---|");
    let mut times: Vec<(String, &str, Vec<_>)> = Vec::new();
    let mut took = |what: &str, mark: &'static str, time| match times
        .iter_mut()
        .find(|(known, _, _)| known == what)
    {
        Some((_, _, all)) => all.push(time),
        None => times.push((what.to_owned(), mark, vec![time])),
    };
    // The first container with a network makes the bridge, the last takes it away: not one of these.
    node.run(&["create", "beside", TEMPLATE, "--", "sleep", "infinity"]);
    node.run(&["start", "beside"]);
    for round in 0..size.rounds {
        for network in ["none", "bridge"] {
            let name = format!("start-{network}-{round}");
            let setting = format!("network={network}");
            let words = ["create", &name, TEMPLATE, &setting, "--", "/bin/true"];
            let (made, _) = timed(|| node.run(&words));
            // The first start makes the container's own directories; it is of `create+start`.
            let (first, _) = timed(|| node.run(&["start", &name]));
            await_end(node, &name);
            let (again, _) = timed(|| node.run(&["start", &name]));
            await_end(node, &name);
            took(&format!("create, network={network}"), "", made);
            took(&format!("create and start, network={network}"), "≤ 120 ms", made + first);
            took(&format!("start of a ready container, network={network}"), "≤ 60 ms", again);
            node.run(&["delete", &name]);
        }
        let words = ["run", "--rm", TEMPLATE, "network=none", "--", "/bin/true"];
        let (run, _) = timed(|| node.run(&words));
        took("run --rm: make, start, end, delete", "", run);
        let root = format!("{}/bench-root", std::env::temp_dir().display());
        let (mount, _) = timed(|| node.run(&["mount", TEMPLATE, &root]));
        took("mica mount alone", "", mount);
        node.run(&["umount", &root]);
        for (name, mut command) in peers.commands() {
            let (time, _) = timed(|| command.stdin(Stdio::null()).succeed());
            took(name, "", time);
        }
    }
    node.run(&["delete", "--force", "beside"]);
    for (what, mark, times) in times {
        tell(&what, mark, times);
    }
}

fn await_end(node: &Node, name: &str) {
    crate::support::again_until("it ended", || {
        let told = node.run(&["info", "--json", name]);
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        told["phase"] == "stopped"
    });
}
