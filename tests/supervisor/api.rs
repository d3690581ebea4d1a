//! The daemon's door: whatever is said to it, it goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::stage::Stage;
use crate::support::{PATIENCE, again_until};

fn talk(stage: &Stage, bytes: &[u8], ends: bool) -> String {
    // A socket's path is short; a store's need not be.
    let directory = std::fs::File::open(stage.store.path().join("node")).expect("there");
    let short = format!("/proc/self/fd/{}/socket", std::os::fd::AsRawFd::as_raw_fd(&directory));
    let mut stream = UnixStream::connect(short).expect("the daemon answers");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    // It may hang up on nonsense before it has all of it.
    let _sent = stream.write_all(bytes);
    if ends {
        // A request that is cut short has its end here.
        let _ended = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _read = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: mica\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

#[test]
fn a_thousand_malformed_requests_change_nothing() {
    let stage = Stage::new("supervisor-malformed");
    stage.create("c1", &[], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    let before = stage.info("c1");
    let descriptors =
        || std::fs::read_dir(format!("/proc/{}/fd", stage.daemon())).expect("it runs").count();
    // The first few make what stays: threads, the connection to nobody.
    talk(&stage, request("GET", "/v1/node", "").as_bytes(), false);
    let open = descriptors();
    let mut random = fastrand::Rng::with_seed(0x6d69_6361);
    let paths = [
        "/v1/containers",
        "/v1/containers/c1",
        "/v1/containers/c1/exec",
        "/v1/containers/c1/attach",
        "/v1/containers/c1/stop",
        "/v1/containers/%00",
        "/v1/containers/..%2f..%2fetc/start",
        "/v1/containers/c1/rename",
        "/v1/containers/c1/copy",
        "/v1/containers/c1/password",
        "/v1/usage?ct=%ff",
        "/v1/containers?ct=a,,b",
        "/v1/node/stop",
        "/",
        "//",
        "/metrics/x",
        "/v1/containers/c1/logs?tail=-1",
        "/v1/containers/c1?force=perhaps",
    ];
    let bodies = [
        "{",
        "null",
        "[]",
        "\"\"",
        "{\"kill\":\"yes\"}",
        "{\"command\":[]}",
        "{\"command\":7}",
        "{\"name\":\"../x\",\"template\":\"y\"}",
        "{\"name\":\"a b\"}",
        "{\"settings\":[[\"a\"]]}",
        "{\"settings\":[[\"limits.memory\",\"many\"]]}",
        "{\"unknown\":1}",
        "\u{0}\u{1}",
        "{\"userpasswd\":\"x\"}",
        "{\"name\":\"\",\"template\":\"\"}",
    ];
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW", ""];
    let mut refused = 0;
    for number in 0..1000 {
        let bytes = match number % 4 {
            0 => {
                let length = random.usize(0..300);
                std::iter::repeat_with(|| random.u8(..)).take(length).collect()
            }
            1 => {
                let mut whole = request("POST", "/v1/containers", "{\"name\":\"x\"}").into_bytes();
                whole.truncate(random.usize(0..whole.len()));
                whole
            }
            _ => {
                let pick = |list: &[&str], random: &mut fastrand::Rng| {
                    list[random.usize(0..list.len())].to_owned()
                };
                let method = pick(&methods, &mut random);
                let path = pick(&paths, &mut random);
                let body = pick(&bodies, &mut random);
                // A body that is understood ends the daemon or the container, and is no mistake.
                let sound = body == "{}"
                    || matches!(method.as_str(), "GET")
                    || path == "/v1/containers/c1" && method == "DELETE";
                if sound {
                    b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec()
                } else {
                    request(&method, &path, &body).into_bytes()
                }
            }
        };
        let answer = talk(&stage, &bytes, number % 4 < 2);
        assert!(
            !answer.starts_with("HTTP/1.1 2") && !answer.starts_with("HTTP/1.1 5"),
            "{:?}: {answer}",
            String::from_utf8_lossy(&bytes)
        );
        if answer.contains("\"error\":") {
            refused += 1;
        }
    }
    assert!(refused > 300, "only {refused} were refused in words");
    assert_eq!(stage.info("c1")["pid"], before["pid"]);
    assert_eq!(stage.mica(["ps", "-a", "-q"]).trim(), "c1");
    // It may still be hanging up on the last ones.
    again_until("descriptors are left", || descriptors() <= open + 3);
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let stage = Stage::new("supervisor-metrics");
    stage.create("c1", &[], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    let answer = talk(&stage, request("GET", "/metrics", "").as_bytes(), false);
    let (head, text) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("version=0.0.4"), "{head}");
    assert!(text.contains("mica_node_containers{phase=\"running\"} 1\n"), "{text}");
    assert!(text.contains("mica_container_memory_bytes{name=\"c1\"} "), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(name.starts_with("mica_") && value.parse::<f64>().is_ok(), "{line}");
    }
    let kept = talk(&stage, request("GET", "/nowhere", "").as_bytes(), false);
    assert!(kept.starts_with("HTTP/1.1 404") && kept.contains("no-route"), "{kept}");
}

#[test]
fn only_root_reaches_the_socket() {
    use std::os::unix::fs::PermissionsExt;
    let stage = Stage::new("supervisor-socket");
    for (path, mode) in [("", 0o700), ("node", 0o700), ("node/socket", 0o600)] {
        let metadata = std::fs::metadata(stage.store.path().join(path)).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{path}");
    }
    let second = stage.ask(["node", "run"]);
    assert!(!second.status.success(), "a second daemon");
    assert!(String::from_utf8_lossy(&second.stderr).contains("already"), "{second:?}");
}
