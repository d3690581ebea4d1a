use super::*;

fn config() -> ContainerConfig {
    let id = ContainerId::random().expect("random numbers");
    let name = "web1".parse().expect("a name");
    ContainerConfig::new(id, name, "debian:12", Kind::System)
}

/// A value that each key takes, as `get` gives it back.
const VALUES: &[(&str, &str)] = &[
    ("limits.memory", "256MiB"),
    ("limits.swap", "1GiB"),
    ("limits.cpu", "1.5"),
    ("limits.pids", "512"),
    ("limits.io", "20MB/s"),
    ("limits.iops", "500"),
    ("limits.network", "50Mbit"),
    ("limits.disk", "2GiB"),
    ("priority", "high"),
    ("guarantee.cpu", "0.5"),
    ("guarantee.memory", "128MiB"),
    ("alert.memory", "90%"),
    ("alert.disk", "80%"),
    ("alert.pids", "70%"),
    ("alert.cpu", "100%"),
    ("hostname", "www.example.org"),
    ("description", "the shop, and its cart"),
    ("network", "none"),
    ("ip", "10.88.0.11,fd00::11/64"),
    ("port", "8080:80,127.0.0.1:53:53/udp,[::1]:443:443"),
    ("nameserver", "9.9.9.9"),
    ("searchdomain", "example.org"),
    ("restart", "on-failure:5"),
    ("autostart", "yes"),
    ("boot.priority", "-3"),
    ("stop.signal", "SIGRTMIN+3"),
    ("stop.timeout", "90s"),
    ("health.command", "curl -f 'http://localhost/?a b'"),
    ("health.interval", "30s"),
    ("health.timeout", "5s"),
    ("health.retries", "4"),
    ("health.grace", "2m"),
    ("user", "www-data:www-data"),
    ("workdir", "/srv"),
    ("command", "/bin/sh -c 'echo it'\\''s'"),
    ("init", "yes"),
    ("terminal", "yes"),
    ("interactive", "yes"),
    ("privileged", "yes"),
    ("nesting", "yes"),
    ("userns", "1000000:65536"),
    ("cap.add", "NET_ADMIN,SYS_PTRACE"),
    ("cap.drop", "NET_RAW"),
    ("device", "/dev/fuse,/dev/net/tun"),
    ("volume", "/srv/data:/data:ro,/a:/b"),
    ("read-only", "yes"),
    ("runtime", "runc"),
    ("disk-image", "yes"),
    ("reshare", "templates"),
    ("log.size", "1MiB"),
    ("log.files", "7"),
];

#[test]
fn every_key_gives_back_what_it_was_given_and_survives_json() {
    for key in KEYS.iter().filter(|key| key.name != "limits.cpu.percent") {
        let (_, value) = VALUES
            .iter()
            .find(|(name, _)| *name == key.name)
            .unwrap_or_else(|| panic!("{} has no value here", key.name));
        let fresh = config();
        for name in std::iter::once(&key.name).chain(key.aliases) {
            let mut changed = fresh.clone();
            changed.set(&format!("--{name}"), value).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(changed.get(name).expect("a key").as_deref(), Some(*value), "{name}");
            let json = serde_json::to_string(&changed).expect("JSON");
            assert_eq!(serde_json::from_str::<ContainerConfig>(&json).expect("read"), changed);
        }
    }
}

#[test]
fn an_empty_value_takes_each_setting_back() {
    for (name, value) in VALUES.iter().filter(|(name, _)| !name.starts_with("health.")) {
        let mut changed = config();
        let before = changed.clone();
        changed.set(name, value).expect("a value");
        assert_ne!(changed, before, "{name}");
        changed.set(name, "").expect("nothing");
        assert_eq!(changed, before, "{name}");
    }
}

#[test]
fn no_two_settings_have_the_same_name() {
    let mut seen = std::collections::BTreeSet::new();
    for name in KEYS.iter().flat_map(|key| std::iter::once(&key.name).chain(key.aliases)) {
        assert!(seen.insert(*name), "{name} twice");
        assert_eq!(*name, name.to_ascii_lowercase());
    }
}

#[test]
fn a_wrong_value_changes_nothing_and_says_what_would_do() {
    let mut config = config();
    let before = config.clone();
    for (name, value) in [
        ("limits.memory", "lots"),
        ("limits.memory", "0"),
        ("limits.memory", "99999999999999999999"),
        ("limits.memory", "17179869184GiB"),
        ("limits.memory", "-1"),
        ("limits.memory", "1.2.3G"),
        ("limits.cpu", "0"),
        ("limits.cpu", "NaN"),
        ("limits.cpu", "3-1"),
        ("limits.cpu", "0-99999999"),
        ("limits.pids", "0"),
        ("limits.network", "fast"),
        ("alert.memory", "101%"),
        ("hostname", "a b"),
        ("ip", "10.0.0.1,300.1.1.1"),
        ("ip", "10.0.0.1/33"),
        ("ip", "0.0.0.0"),
        ("port", "0:80"),
        ("port", "8080:80/sctp"),
        ("restart", "sometimes"),
        ("stop.signal", "65"),
        ("stop.timeout", "5x"),
        ("workdir", "srv"),
        ("volume", "/a"),
        ("volume", "/a:/b/../c"),
        ("cap.add", "CAP_FLY"),
        ("userns", "0:65536"),
        ("command", "echo 'a"),
        ("environment.", "x"),
        ("autostart", "maybe"),
        ("reshare", "some"),
    ] {
        let told = config.set(name, value).expect_err(value).to_string();
        assert!(told.contains(':'), "{told}");
        assert_eq!(config, before, "{name}={value}");
    }
    let unknown = config.set("limits.memroy", "1G").expect_err("a typo");
    assert_eq!(
        unknown.to_string(),
        "there is no setting \"limits.memroy\"; did you mean \"limits.memory\"?"
    );
}

#[test]
fn variables_and_labels_are_set_in_every_spelling() {
    let mut config = config();
    for (name, value) in [
        ("environment.LANG", "C.UTF-8"),
        ("env.Mixed_Case", "a=b"),
        ("--env", "X=1"),
        ("-e", "Y=2"),
        ("label.tier", "web"),
        ("user.owner", "me"),
        ("--label", "alone"),
    ] {
        config.set(name, value).expect(name);
    }
    let env: Vec<_> = config.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["LANG=C.UTF-8", "Mixed_Case=a=b", "X=1", "Y=2"]);
    let labels: Vec<_> = config.labels.keys().map(String::as_str).collect();
    assert_eq!(labels, ["alone", "owner", "tier"]);
    config.set("environment.X", "").expect("taken back");
    assert_eq!(config.get("environment.X").expect("a key"), None);
}

#[test]
fn processors_are_a_quota_or_a_set() {
    let set = |text| CpuLimit::parse(text).expect(text);
    assert_eq!(set("2"), CpuLimit::Quota(2.0));
    assert_eq!(set("150%"), CpuLimit::Quota(1.5));
    assert_eq!(set("0-1,3").text(), "0-1,3");
    assert_eq!(set("3-3").text(), "3-3");
    let mut config = config();
    config.set("--cpulimit", "25").expect("vzctl's percent");
    assert_eq!(config.limits.cpu, Some(CpuLimit::Quota(0.25)));
}

#[test]
fn sizes_are_read_as_people_write_them() {
    for (text, value) in [
        ("512", 512),
        ("1k", 1024),
        ("256M", 256 << 20),
        ("256MiB", 256 << 20),
        ("256MB", 256_000_000),
        ("1.5GiB", 3 << 29),
        ("0.1k", 102),
    ] {
        assert_eq!(parse_bytes(text).expect(text), value, "{text}");
        assert_eq!(parse_bytes(&bytes(value)).expect("its own text"), value);
    }
    assert_eq!(parse_duration("1h30m").expect("a time"), 5400);
    assert_eq!(parse_signal("sigterm").expect("a signal"), 15);
}

#[test]
fn everything_that_cannot_work_is_told_at_once() {
    let mut config = config();
    config.kind = Kind::Application;
    for (name, value) in [
        ("network", "none"),
        ("ip", "10.0.0.1"),
        ("port", "80,80:81"),
        ("limits.memory", "1MiB"),
        ("guarantee.memory", "2MiB"),
        ("alert.disk", "90%"),
        ("disk-image", "yes"),
        ("health.interval", "5s"),
        ("volume", "/a:/b,/c:/b,/d:/proc"),
        ("cap.add", "NET_RAW"),
        ("cap.drop", "NET_RAW"),
    ] {
        config.set(name, value).expect(name);
    }
    let problems = config.check();
    assert_eq!(problems.len(), 13, "{problems:#?}");
    assert!(self::config().check().is_empty());
}

#[test]
fn words_and_their_text_are_each_others_inverse() {
    for list in [vec!["a", "b c", "", "it's", "\"x\"", "\\", "ä\n"], vec!["/bin/sh", "-c", "x;y"]]
    {
        let list: Vec<String> = list.into_iter().map(str::to_owned).collect();
        assert_eq!(words(&unwords(&list)).expect("its own text"), list);
    }
}

#[test]
fn what_a_later_version_adds_is_ignored_and_names_are_checked() {
    let mut json = serde_json::to_value(config()).expect("JSON");
    json["flies"] = true.into();
    serde_json::from_value::<ContainerConfig>(json.clone()).expect("a later version's");
    json["name"] = "../etc".into();
    serde_json::from_value::<ContainerConfig>(json).expect_err("no name");
    for wrong in ["", ".a", "-a", "a/b", "a b", &"a".repeat(64)] {
        wrong.parse::<ContainerName>().expect_err(wrong);
    }
}

#[test]
fn the_document_lists_every_setting_under_all_its_names() {
    let document = include_str!("../../../docs/CONTAINERS.md");
    let table = table();
    assert!(document.contains(&table), "docs/CONTAINERS.md lacks this table:\n{table}");
}
