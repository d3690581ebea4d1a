//! Debian with systemd, as a machine of its own.

use mica::container::bundle::Observed;
use mica::container::config::Volume;

use crate::stage::{Cell, Wish, with_both};
use crate::support::again_until;

with_both!(systemd_boots_to_running_and_shuts_down_when_asked, systemd_boots_privileged_too,);

/// Waits for the boot's end; what systemd says of itself.
fn booted(cell: &Cell) -> String {
    let mut state = String::new();
    again_until("systemd has booted", || {
        let (_, output, errors) = cell.shell("systemctl is-system-running");
        state = format!("{}{errors}", output);
        ["running", "degraded", "maintenance"].contains(&output.trim())
    });
    if state.trim() != "running" {
        state.push_str(
            &cell.shell("systemctl --failed --no-legend; journalctl -b -p err --no-pager | tail").1,
        );
    }
    state.trim().to_owned()
}

fn systemd_boots_to_running_and_shuts_down_when_asked(runtime: &str) {
    // A machine takes its name from its own file, which is the host's to give.
    let name = crate::stage::ground().scratch.path().join(format!("hostname-{runtime}"));
    std::fs::write(&name, "web1\n").unwrap();
    let mut wish = Wish::system().with(&[("hostname", "web1")]);
    wish.files.push(Volume { source: name, target: "/etc/hostname".into(), read_only: true });
    let cell = Cell::start(runtime, wish);
    assert_eq!(booted(&cell), "running");
    assert_eq!(
        cell.run("systemd-detect-virt --container; hostname; cat /proc/1/comm"),
        "container-other\nweb1\nsystemd"
    );
    // Services run in groups of their own, users log in on terminals of their own.
    assert_eq!(cell.run("systemctl is-active dbus systemd-journald"), "active\nactive");
    assert!(
        cell.run("systemctl show -p ControlGroup dbus").ends_with("/system.slice/dbus.service")
    );
    assert_eq!(cell.run("systemd-run --wait --pipe -q id -u"), "0");
    assert!(cell.output().contains("Welcome to"), "{}", cell.output());
    let created = cell.init();
    cell.runtime.kill(&cell.bundle, cell.config.ending_signal()).unwrap();
    let exit = cell.exit();
    assert!(exit.is_power_off(), "{exit:?}: {}", cell.output());
    assert!(cell.cgroup.processes().unwrap().is_empty());
    // The same machine again.
    cell.delete().unwrap();
    let again = cell.create();
    assert_ne!(again.pid, created.pid);
    cell.runtime.start(&cell.bundle).unwrap();
    assert_eq!(booted(&cell), "running");
    // Asked from inside.
    let _status = cell.shell("systemctl poweroff");
    again_until("it is off", || matches!(cell.bundle.observe().unwrap(), Observed::Exited(_)));
}

fn systemd_boots_privileged_too(runtime: &str) {
    let cell = Cell::start(runtime, Wish::system().with(&[("privileged", "yes")]));
    assert_eq!(booted(&cell), "running");
    cell.runtime.kill(&cell.bundle, cell.config.ending_signal()).unwrap();
    assert!(cell.exit().is_power_off());
}
