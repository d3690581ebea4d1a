//! Containers inside a container: podman and docker of Debian, on our root.

use crate::stage::{Cell, EMBEDDED, Wish, with_both};
use crate::support::again_until;

with_both!(
    podman_runs_a_container_inside_an_unprivileged_machine_that_may,
    podman_runs_a_container_inside_a_privileged_one,
);

/// A machine of a template with podman or docker in it, booted.
fn machine(runtime: &str, template: &str, settings: &[(&str, &str)]) -> Cell {
    let mut wish = Wish::system().with(settings);
    wish.template = template;
    let cell = Cell::start(runtime, wish);
    again_until("systemd has booted", || {
        let (_, output, _) = cell.shell("systemctl is-system-running");
        ["running", "degraded"].contains(&output.trim())
    });
    cell
}

/// An image of one static program, imported and run by podman inside; what it says.
fn podman(cell: &Cell) -> (i32, String) {
    // Debian's podman asks for more descriptors than a host like this may hand on.
    let script = r#"set -e; exec 2>&1
        mkdir -p /srv/image/bin /etc/containers
        printf '[storage]\ndriver="overlay"\nrunroot="/run/containers/storage"\ngraphroot="/var/lib/containers/storage"\n' \
            > /etc/containers/storage.conf
        cp /bin/busybox /srv/image/bin/true
        tar -C /srv/image -c . | podman import -q - localhost/true
        podman info --format '{{.Store.GraphDriverName}}'
        podman --runtime runc --cgroup-manager cgroupfs run --rm --network none \
            --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 localhost/true /bin/true
        echo ran"#;
    let (status, output, errors) = cell.shell(script);
    (status, format!("{output}{errors}"))
}

fn ran(told: &(i32, String)) -> bool {
    told.0 == 0 && told.1.contains("overlay") && told.1.ends_with("ran\n")
}

fn podman_runs_a_container_inside_an_unprivileged_machine_that_may(runtime: &str) {
    let cell = machine(runtime, "podman", &[("nesting", "yes")]);
    let told = podman(&cell);
    assert!(ran(&told), "{told:?}");
}

fn long() -> bool {
    std::env::var("MICA_TEST_COUNTS").as_deref() == Ok("long")
}

fn podman_runs_a_container_inside_a_privileged_one(runtime: &str) {
    if runtime != EMBEDDED && !long() {
        // What is different about a privileged one is in the bundle, not in who reads it.
        return;
    }
    let cell = machine(runtime, "podman", &[("privileged", "yes")]);
    let told = podman(&cell);
    assert!(ran(&told), "{told:?}");
}

#[test]
fn podman_is_refused_some_kinds_of_groups_where_nesting_is_not_wanted() {
    let cell = machine(EMBEDDED, "podman", &[]);
    let (status, told) = podman(&cell);
    // Overlayfs on our root works. What a tenant may not have is a group of its own where that frees
    // it from a limit, is one less for others or disturbs the host.
    let refusal = "/libpod_parent: permission denied";
    assert!(
        status == 126 && told.contains("overlay") && told.contains(refusal),
        "{status}: {told}"
    );
}

/// The same with docker, whose daemon has no network to set up here.
fn docker(cell: &Cell) -> (i32, String) {
    let script = r#"set -e; exec 2>&1
        mkdir -p /srv/image/bin
        cp /bin/busybox /srv/image/bin/true
        systemctl stop docker.socket docker containerd
        containerd >/var/log/containerd 2>&1 &
        dockerd --bridge=none --iptables=false --containerd /run/containerd/containerd.sock >/var/log/dockerd 2>&1 &
        for i in $(seq 600); do docker info >/dev/null 2>&1 && break; sleep 0.1; done
        docker info --format '{{.Driver}}' || tail -15 /var/log/dockerd
        tar -C /srv/image -c . | docker import - true:latest
        docker run --rm --network none true:latest /bin/true
        echo ran"#;
    let (status, output, errors) = cell.shell(script);
    (status, format!("{output}{errors}"))
}

/// Half a gigabyte of packages: with all counts only.
#[test]
fn docker_runs_a_container_inside_a_machine_that_may() {
    if !long() {
        return;
    }
    // Debian 12's docker mounts its overlay without `userxattr`, which the kernel refuses in a user
    // namespace when the upper directory is on FUSE; it takes another way by itself.
    for (setting, driver) in [("nesting", "vfs"), ("privileged", "overlay2")] {
        let cell = machine(EMBEDDED, "docker", &[(setting, "yes")]);
        let (status, told) = docker(&cell);
        let first = told.lines().next().unwrap_or_default();
        assert_eq!((status, first), (0, driver), "{setting}: {told}");
        assert!(told.ends_with("ran\n"), "{setting}: {told}");
    }
}
