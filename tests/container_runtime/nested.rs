//! Containers inside a container: podman of Debian, with overlayfs on our root.

use crate::stage::{Cell, Wish, with_both};
use crate::support::again_until;

with_both!(
    podman_is_refused_groups_inside_an_unprivileged_machine,
    podman_runs_a_container_inside_a_privileged_one
);

/// An image of one static program, imported and run by podman inside; what it says.
fn podman(cell: &Cell) -> (i32, String) {
    again_until("systemd has booted", || {
        let (_, output, _) = cell.shell("systemctl is-system-running");
        ["running", "degraded"].contains(&output.trim())
    });
    let script = r#"set -e; exec 2>&1
        mkdir -p /srv/image/bin /etc/containers
        printf '[storage]\ndriver="overlay"\nrunroot="/run/containers/storage"\ngraphroot="/var/lib/containers/storage"\n' \
            > /etc/containers/storage.conf
        cp /bin/busybox /srv/image/bin/true
        tar -C /srv/image -c . | podman import -q - localhost/true
        podman info --format '{{.Store.GraphDriverName}}'
        podman --runtime runc --cgroup-manager cgroupfs run --rm --network none localhost/true /bin/true
        echo ran"#;
    let (status, output, errors) = cell.shell(script);
    (status, format!("{output}{errors}"))
}

fn podman_is_refused_groups_inside_an_unprivileged_machine(runtime: &str) {
    let mut wish = Wish::system();
    wish.template = "podman";
    let cell = Cell::start(runtime, wish);
    let (status, told) = podman(&cell);
    // Overlayfs on our root works; a group of its own is what it may not make in the hierarchies
    // whose limits are the host's.
    let refusal = "libpod_parent: permission denied";
    assert!(
        status == 126 && told.contains("overlay") && told.contains(refusal),
        "{status}: {told}"
    );
}

fn podman_runs_a_container_inside_a_privileged_one(runtime: &str) {
    let mut wish = Wish::system().with(&[("privileged", "yes")]);
    wish.template = "podman";
    let cell = Cell::start(runtime, wish);
    let (status, told) = podman(&cell);
    assert!(status == 0 && told.contains("overlay") && told.ends_with("ran\n"), "{status}: {told}");
}
