//! The formats stay what they are: bytes written by the first version are still written and
//! still mean the same.
//!
//! A failure here means that digests or inode numbers of existing stores would change. A wanted
//! change of format comes with a new version or feature bit and new files beside these; never
//! rewrite them (`MICA_WRITE_GOLDEN=1` writes those that are missing).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mica::layer::{
    LayerBuilder, LayerId, LayerPath, Layers, Manifest, Metadata, NewContent, NewNode, Provenance,
    RunConfig, Stack, Template, TemplateKind, Timestamp, TreeIno, merge,
};
use mica::object::ObjectId;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[track_caller]
fn assert_golden(name: &str, bytes: &[u8]) {
    let path = golden(name);
    if std::env::var_os("MICA_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, bytes).expect("written");
    }
    let kept = std::fs::read(&path).expect("the golden file is there");
    assert!(kept == bytes, "{name} is no longer written as it was");
}

fn path(text: impl AsRef<[u8]>) -> LayerPath {
    LayerPath::parse(text.as_ref()).expect("path")
}

fn node(mode: u32, owner: u32, secs: i64, nanos: u32, content: NewContent) -> NewNode {
    let mtime = Timestamp { secs, nanos };
    let metadata = Metadata { mode, uid: owner, gid: owner + 1, mtime };
    NewNode { metadata, xattrs: Vec::new(), content }
}

fn directory(mode: u32) -> NewNode {
    node(mode, 0, 1_700_000_000, 0, NewContent::Directory)
}

fn file(content: &[u8]) -> NewNode {
    let size = content.len() as u64;
    let data_blocks = size.div_ceil(4096) * 8;
    let object = ObjectId::of(content);
    node(0o644, 0, 1_700_000_000, 123_456_789, NewContent::Regular { object, size, data_blocks })
}

fn with(mut node: NewNode, xattrs: &[(&str, &[u8])]) -> NewNode {
    node.xattrs = xattrs.iter().map(|(n, v)| (n.as_bytes().into(), (*v).into())).collect();
    node
}

fn base() -> Vec<u8> {
    let mut layer = LayerBuilder::new();
    let mut put = |at: &[u8], node| {
        layer.put(&path(at), node).expect("put");
    };
    put(b"", directory(0o755));
    put(b"usr/bin", directory(0o755));
    put(b"usr/bin/tool", with(file(b"tool"), &[("security.capability", b"\x01\0\0\x02")]));
    put(b"usr/bin/other", with(file(b"tool"), &[("security.capability", b"\x01\0\0\x02")]));
    put(b"usr/bin/passwd", node(0o4755, 0, 0, 0, file(b"setuid").content));
    put(b"bin", node(0o777, 0, -1, 999_999_999, NewContent::Symlink((*b"usr/bin").into())));
    put(b"tmp", directory(0o1777));
    put(b"etc/empty", file(b""));
    put(b"etc/conf.d/a", file(b"a"));
    put(b"etc/conf.d/b", file(b"b"));
    put(b"etc/b\xff\x01", with(file(b"x"), &[("user.b", b""), ("user.a", b"1")]));
    put(&[b'n'; 255], file(b"long"));
    put(b"dev/null", node(0o666, 0, 0, 0, NewContent::CharDevice(0x103)));
    put(b"dev/sda", node(0o660, 6, 0, 0, NewContent::BlockDevice(0x800)));
    put(b"run/fifo", node(0o600, 4_294_967_294, 0, 0, NewContent::Fifo));
    put(b"run/socket", node(0o600, 1, 0, 0, NewContent::Socket));
    put(b"var/replaced", directory(0o700));
    put(b"var/replaced/inside", file(b"inside"));
    put(b"var/opaque/lower", file(b"lower"));
    layer.hard_link(&path("var/a-link"), &path("usr/bin/tool")).expect("link");
    layer.hard_link(&path("usr/z-link"), &path("usr/bin/tool")).expect("link");
    layer.finish().expect("finish")
}

fn upper(tree: &Manifest) -> Vec<u8> {
    let mut layer = LayerBuilder::new();
    let mut put = |at: &[u8], node| {
        layer.put(&path(at), node).expect("put");
    };
    put(b"usr/bin/new", file(b"new"));
    put(b"usr/bin/passwd", node(0o755, 0, 0, 0, file(b"safe").content));
    put(b"tmp", with(directory(0o700), &[("user.a", b"1")]));
    put(b"var/replaced", file(b"now a file"));
    put(b"bin/own", file(b"now a directory"));
    put(b"var/opaque/upper", file(b"upper"));
    layer.opaque(&path("var/opaque"));
    layer.whiteout(&path("etc/conf.d/a"));
    layer.whiteout(&path("run"));
    layer.whiteout(&path("never/there"));
    layer.hard_link_below(&path("usr/bin/tool2"), tree, &path("var/a-link")).expect("link");
    layer.finish().expect("finish")
}

fn open(bytes: Vec<u8>) -> Manifest {
    let manifest = Manifest::from_bytes(bytes).expect("open");
    manifest.validate().expect("validate");
    manifest
}

/// One line for each inode and each name, in words.
fn describe(manifest: &Manifest) -> String {
    let mut text = String::new();
    for ino in (1..=manifest.len()).filter_map(TreeIno::new) {
        let inode = manifest.inode(ino).expect("inode");
        let path = manifest.path(&inode).expect("path");
        write!(text, "{ino} {:?} /{}", inode.kind, path.escape_ascii()).expect("text");
        if inode.is_hidden() {
            text.push_str(" hidden");
        }
        let Timestamp { secs, nanos } = inode.mtime;
        write!(
            text,
            " mode {:04o} owner {}:{} time {secs}.{nanos:09} links {} size {} blocks {} device {:#x}",
            inode.mode, inode.uid, inode.gid, inode.nlink, inode.size, inode.data_blocks, inode.rdev
        )
        .expect("text");
        if let Some(object) = manifest.object(&inode).expect("object") {
            write!(text, " object {object}").expect("text");
        }
        let target = manifest.symlink_target(&inode).expect("target");
        if !target.is_empty() {
            write!(text, " to {}", target.escape_ascii()).expect("text");
        }
        for xattr in manifest.xattrs(&inode).expect("xattrs") {
            let (name, value) = xattr.expect("xattr");
            write!(text, " {}={}", name.escape_ascii(), value.escape_ascii()).expect("text");
        }
        if inode.opaque {
            text.push_str(" opaque");
        }
        if inode.implicit {
            text.push_str(" implicit");
        }
        if let Some(origin) = manifest.origin(ino).expect("origin") {
            write!(text, " from {} of layer {}", origin.ino, origin.layer).expect("text");
        }
        text.push('\n');
        for entry in manifest.entries(&inode) {
            let entry = entry.expect("entry");
            let number = entry.ino.map_or("whiteout".to_owned(), |ino| ino.to_string());
            writeln!(text, "    {} {number}", entry.name.escape_ascii()).expect("text");
        }
    }
    text
}

#[test]
fn layers_and_trees_are_written_as_they_always_were() {
    let base = base();
    assert_golden("base.layer", &base);
    let base = open(base);
    assert_golden("base.layer.txt", describe(&base).as_bytes());
    let tree = merge(None, &base).expect("merge");
    assert_golden("base.tree", &tree);
    let tree = open(tree);
    let upper = upper(&tree);
    assert_golden("upper.layer", &upper);
    let upper = open(upper);
    assert_golden("upper.layer.txt", describe(&upper).as_bytes());
    let merged = merge(Some(&tree), &upper).expect("merge");
    assert_golden("upper.tree", &merged);
    let merged = open(merged);
    assert_golden("upper.tree.txt", describe(&merged).as_bytes());
    let stack = Stack::new(vec![LayerId::new(base.digest()), LayerId::new(upper.digest())]);
    assert_eq!(merged.stack(), stack);
    assert_golden("stack.txt", format!("{}\n", stack.id()).as_bytes());
}

#[test]
fn what_was_written_once_is_still_read() {
    for name in ["base.layer", "upper.layer", "upper.tree"] {
        let bytes = std::fs::read(golden(name)).expect("golden file");
        let text = std::fs::read_to_string(golden(&format!("{name}.txt"))).expect("golden file");
        assert_eq!(describe(&open(bytes)), text, "{name}");
    }
}

#[test]
fn templates_are_written_and_read_as_they_always_were() {
    let template = Template {
        name: "debian-tools:1".parse().expect("name"),
        kind: TemplateKind::Os,
        stack: Stack::new(vec![LayerId::of(b"lower"), LayerId::of(b"upper")]),
        config: RunConfig {
            architecture: "amd64".into(),
            user: "1000:1000".into(),
            env: vec!["PATH=/usr/bin:/bin".into()],
            entrypoint: vec!["/usr/bin/tool".into()],
            cmd: vec!["--help".into()],
            working_dir: "/srv".into(),
            stop_signal: "SIGQUIT".into(),
            exposed_ports: vec!["80/tcp".into()],
            volumes: vec!["/data".into()],
            labels: [("a".to_owned(), "b".to_owned())].into(),
        },
        shared_paths: vec!["/usr".into(), "/lib*".into()],
        provenance: Provenance {
            source: "oci:./image".into(),
            source_digest: Some(format!("sha256:{}", "0".repeat(64))),
            created: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        },
    };
    let scratch = tempfile::tempdir().expect("scratch");
    let layers = Layers::open(scratch.path()).expect("open");
    layers.templates().put(&template, false).expect("put");
    let file = scratch.path().join("templates/debian-tools/1.json");
    assert_golden("template.json", &std::fs::read(&file).expect("read"));
    std::fs::copy(golden("template.json"), &file).expect("copied");
    assert_eq!(layers.templates().get(&template.name).expect("get"), template);
}
