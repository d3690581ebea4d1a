//! Archives that mean harm, or were made by somebody who did not look.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::stage::{Stage, picture, refused};
use crate::support::{MountOptions, Succeed, pax_records};

/// A ustar archive, byte by byte: tar(1) would not make these.
#[derive(Clone, Default)]
pub(crate) struct Archive(pub(crate) Vec<u8>);

impl Archive {
    pub(crate) fn member(
        &mut self,
        name: &[u8],
        kind: u8,
        target: &[u8],
        content: &[u8],
    ) -> &mut Self {
        self.header(name, kind, target, content.len() as u64);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn header(&mut self, name: &[u8], kind: u8, target: &[u8], len_bytes: u64) {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name);
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{len_bytes:011o}").as_bytes());
        header[136..147].copy_from_slice(b"00000000001");
        header[148..156].fill(b' ');
        header[156] = kind;
        header[157..157 + target.len()].copy_from_slice(target);
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
    }

    pub(crate) fn file(&mut self, name: &[u8], content: &[u8]) -> &mut Self {
        self.member(name, b'0', b"", content)
    }

    /// A member whose holes are left out, in format 1.0: the map stands before the data.
    pub(crate) fn sparse(&mut self, name: &[u8], len: u64, parts: &[(u64, &[u8])]) -> &mut Self {
        let mut map = format!("{}\n", parts.len());
        for (at, data) in parts {
            map.push_str(&format!("{at}\n{}\n", data.len()));
        }
        self.sparse_of(
            name,
            len,
            map.as_bytes(),
            &parts.iter().fold(Vec::new(), |sum, (_, part)| [sum, part.to_vec()].concat()),
        )
    }

    /// The same with any map, true or not.
    pub(crate) fn sparse_of(
        &mut self,
        name: &[u8],
        len: u64,
        map: &[u8],
        data: &[u8],
    ) -> &mut Self {
        let len = len.to_string();
        self.pax(&[
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", name),
            (b"GNU.sparse.realsize", len.as_bytes()),
        ]);
        let mut content = map.to_vec();
        content.resize(content.len().next_multiple_of(512), 0);
        content.extend_from_slice(data);
        self.member(b"GNUSparseFile.0/x", b'0', b"", &content)
    }

    /// The same in the old format of GNU tar: up to four parts, in the header.
    pub(crate) fn sparse_gnu(
        &mut self,
        name: &[u8],
        len: u64,
        parts: &[(u64, &[u8])],
    ) -> &mut Self {
        let data: Vec<u8> = parts.iter().flat_map(|(_, data)| data.to_vec()).collect();
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        // More than eleven octal digits hold: as a binary number.
        let gnu = header.as_gnu_mut().unwrap();
        gnu.realsize[0] = 0x80;
        gnu.realsize[4..].copy_from_slice(&len.to_be_bytes());
        for (at, (offset, data)) in parts.iter().enumerate() {
            gnu.sparse[at].offset.copy_from_slice(format!("{offset:011o} ").as_bytes());
            gnu.sparse[at].numbytes.copy_from_slice(format!("{:011o} ", data.len()).as_bytes());
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(&data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Extended records for the next member.
    pub(crate) fn pax(&mut self, records: &[(&[u8], &[u8])]) -> &mut Self {
        self.pax_of(b'x', records)
    }

    /// The same, or with `g` for all members from here on.
    pub(crate) fn pax_of(&mut self, kind: u8, records: &[(&[u8], &[u8])]) -> &mut Self {
        self.member(b"pax", kind, b"", &pax_records(records))
    }

    pub(crate) fn write(&self, path: &Path) -> PathBuf {
        fs::write(path, [self.0.as_slice(), &[0; 1024]].concat()).unwrap();
        path.to_owned()
    }
}

/// Imports `archive` and shows what came of it.
fn imported(stage: &Stage, name: &str, archive: &Archive) -> String {
    let file = archive.write(&stage.scratch.path().join(format!("{name}.tar")));
    stage.store.import(name, &file);
    let mountpoint = stage.scratch.mountpoint(name);
    let root = stage.store.mount(name, &mountpoint, &MountOptions::read_only());
    let seen = picture(root.path());
    root.unmount();
    stage.check();
    seen
}

/// What lies around a test's own directory, which no archive may change.
fn surroundings(stage: &Stage) -> Vec<String> {
    let parent = stage.scratch.path().parent().unwrap();
    let mut names: Vec<String> = [parent, Path::new("/"), Path::new("/tmp"), Path::new("/etc")]
        .iter()
        .flat_map(|place| fs::read_dir(place).unwrap())
        .map(|entry| entry.unwrap().path().to_string_lossy().into_owned())
        .filter(|name| name.contains("mica-evil"))
        .collect();
    names.sort();
    names
}

/// Fails if a refused import or commit left a template, or anything that it had staged.
pub(crate) fn nothing_is_left(stage: &Stage, name: &str) {
    let listed = stage.mica(["template", "list", "-q"]).succeed();
    assert!(!listed.contains(name), "{listed}");
    let staged: Vec<_> = fs::read_dir(stage.store.path().join("staging")).unwrap().collect();
    assert!(staged.is_empty(), "{staged:?} stayed");
}

#[test]
fn names_that_climb_out_are_refused_and_nothing_is_written_outside() {
    let stage = Stage::new("archives");
    let before = surroundings(&stage);
    for name in
        [&b"../mica-evil"[..], b"a/../../mica-evil", b"a/b/../../../../etc/mica-evil", b".."]
    {
        let mut archive = Archive::default();
        archive.file(b"fine", b"fine\n").file(name, b"evil\n");
        let file = archive.write(&stage.scratch.path().join("evil.tar"));
        let mut import = stage.mica(["template", "import", "evil"]);
        refused(import.arg(&file), &["..", "archive"]);
    }
    assert_eq!(surroundings(&stage), before);
    let listed = stage.mica(["template", "list"]).succeed();
    assert!(!listed.contains("evil"), "{listed}");
    stage.check();
}

#[test]
fn absolute_names_are_taken_for_names_in_the_template() {
    let stage = Stage::new("archives");
    let before = surroundings(&stage);
    let mut archive = Archive::default();
    archive.file(b"/etc/mica-evil", b"one\n").file(b"//tmp//mica-evil", b"two\n");
    archive.file(b"./usr/./mica-evil", b"three\n");
    let seen = imported(&stage, "absolute", &archive);
    for path in ["./etc/mica-evil", "./tmp/mica-evil", "./usr/mica-evil"] {
        assert!(seen.contains(&format!("{path} f ")), "{seen}");
    }
    assert_eq!(surroundings(&stage), before);
}

#[test]
fn links_out_of_the_tree_lead_nowhere_else() {
    let stage = Stage::new("archives");
    let before = surroundings(&stage);
    let outside = stage.scratch.directory("outside");
    let target = outside.to_string_lossy().into_owned();
    // A symlink out is data. What is written "through" it stays in the template.
    let mut archive = Archive::default();
    archive.member(b"out", b'2', target.as_bytes(), b"");
    archive.member(b"up", b'2', b"../../../../../../../../tmp", b"");
    archive.file(b"out/mica-evil", b"evil\n").file(b"up/mica-evil", b"evil\n");
    let file = archive.write(&stage.scratch.path().join("through.tar"));
    let mut import = stage.mica(["template", "import", "through"]);
    // Refused or kept inside, it is the same to those outside.
    import.arg(&file).capture();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(surroundings(&stage), before);
    // A hard link to what is not in the archive is no way to read a file of the host.
    for name in [&b"/etc/passwd"[..], b"../../../../../../etc/passwd", b"out/passwd"] {
        let mut archive = Archive::default();
        archive.member(b"out", b'2', b"/etc", b"").member(b"stolen", b'1', name, b"");
        let file = archive.write(&stage.scratch.path().join("stolen.tar"));
        refused(stage.mica(["template", "import", "stolen"]).arg(&file), &["archive"]);
    }
    stage.check();
}

#[test]
fn of_duplicate_entries_the_last_one_counts() {
    let stage = Stage::new("archives");
    let mut archive = Archive::default();
    archive.file(b"twice", b"first\n").file(b"./twice", b"second, longer\n");
    archive.member(b"dir", b'5', b"", b"").file(b"dir/inner", b"inner\n");
    archive.member(b"dir", b'5', b"", b"");
    archive.file(b"becomes", b"a file\n").member(b"becomes", b'2', b"twice", b"");
    archive.file(b"other", b"x\n").member(b"linked", b'1', b"other", b"").file(b"other", b"y\n");
    let seen = imported(&stage, "twice", &archive);
    let line = |path: &str| {
        let found = seen.lines().find(|line| line.starts_with(&format!("{path} ")));
        found.unwrap_or_else(|| panic!("no {path} in {seen}")).to_owned()
    };
    assert!(line("./twice").contains(" f 0644 0:0 15 1 "), "{seen}");
    assert!(line("./dir/inner").contains(" f "), "{seen}");
    assert!(line("./becomes").contains(" l "), "{seen}");
    // As tar(1) unpacks it: the second "other" is a new file, the link keeps the first.
    assert!(line("./linked").contains(" f 0644 0:0 2 1 "), "{seen}");
    assert_ne!(line("./linked").split(' ').next_back(), line("./other").split(' ').next_back());
}

#[test]
fn a_truncated_archive_is_named_and_makes_no_template() {
    let stage = Stage::new("archives");
    let mut archive = Archive::default();
    archive.file(b"one", b"one\n").file(b"two", &[7; 100_000]);
    let whole = archive.0.clone();
    for len in [100, 700, 1100, 5000, 90_000] {
        let file = stage.scratch.path().join("cut.tar");
        fs::write(&file, &whole[..len]).unwrap();
        refused(stage.mica(["template", "import", "cut"]).arg(&file), &["cut.tar"]);
    }
    for garbage in [&b""[..], b"not an archive at all\n", &[0; 10_240], &[0x1f, 0x8b, 8, 0, 1]] {
        let file = stage.scratch.path().join("cut.tar");
        fs::write(&file, garbage).unwrap();
        refused(stage.mica(["template", "import", "cut"]).arg(&file), &["cut.tar"]);
    }
    assert!(!stage.mica(["template", "list"]).succeed().contains("cut"));
    let staged = fs::read_dir(stage.store.path().join("staging")).unwrap().count();
    assert_eq!(staged, 0, "a refused import left its staging directory");
    stage.check();
}

/// Peak resident memory of an import that reads `write`'s bytes, in KiB.
fn peak_of_import(stage: &Stage, name: &str, write: impl FnOnce(&mut dyn Write)) -> i64 {
    let mut command = stage.mica(["template", "import", name, "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).start();
    let mut pipe = child.stdin.take().unwrap();
    write(&mut pipe);
    // It has read all but what a pipe holds, and cannot end before its input does.
    let peak = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    drop(pipe);
    assert!(child.wait().unwrap().success());
    let line = peak.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Counts the bytes that a store takes on its disk.
fn disk_bytes(store: &Path) -> u64 {
    let mut bytes = 0;
    let mut left = vec![store.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                left.push(entry.path());
            }
        }
    }
    bytes
}

#[test]
fn a_billion_zeros_take_little_memory_and_little_disk() {
    const ZEROS: u64 = 1_000_000_000;
    let stage = Stage::new("archives");
    let before = disk_bytes(stage.store.path());
    let peak = peak_of_import(&stage, "zeros", |pipe| {
        let mut archive = Archive::default();
        archive.header(b"zeros", b'0', b"", ZEROS);
        pipe.write_all(&archive.0).unwrap();
        let chunk = vec![0; 1 << 20];
        let mut left = ZEROS.next_multiple_of(512) + 1024;
        while left > 0 {
            let piece = usize::try_from(left.min(1 << 20)).unwrap();
            pipe.write_all(&chunk[..piece]).unwrap();
            left -= piece as u64;
        }
    });
    assert!(peak < 200_000, "the import held {peak} KiB");
    let grown = disk_bytes(stage.store.path()) - before;
    assert!(grown < 4 << 20, "a billion zeros took {grown} bytes of disk");
    let mountpoint = stage.scratch.mountpoint("zeros");
    let root = stage.store.mount("zeros", &mountpoint, &MountOptions::read_only());
    let zeros = fs::metadata(root.path().join("zeros")).unwrap();
    assert_eq!((zeros.len(), zeros.blocks()), (ZEROS, 0));
}

#[test]
fn a_small_archive_that_unpacks_to_a_billion_zeros_is_no_bomb() {
    let stage = Stage::new("archives");
    let before = disk_bytes(stage.store.path());
    let script =
        "{ cat head; head -c 1000000448 /dev/zero; head -c 1024 /dev/zero; } | zstd -q -3 -o bomb";
    let mut archive = Archive::default();
    archive.header(b"zeros", b'0', b"", 1_000_000_000);
    fs::write(stage.scratch.path().join("head"), &archive.0).unwrap();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-ec", script]).current_dir(stage.scratch.path()).succeed();
    stage.store.import("bomb", &stage.scratch.path().join("bomb"));
    let grown = disk_bytes(stage.store.path()) - before;
    assert!(grown < 4 << 20, "a bomb took {grown} bytes of disk");
}

/// A size in a header is a claim: nothing is set aside for it.
#[test]
fn a_claimed_size_reserves_nothing() {
    let stage = Stage::new("archives");
    let mut archive = Archive::default();
    archive.header(b"claim", b'0', b"", 8_589_934_591);
    archive.0.extend_from_slice(&[7; 1024]);
    let file = stage.scratch.path().join("claim.tar");
    fs::write(&file, &archive.0).unwrap();
    let before = disk_bytes(stage.store.path());
    refused(stage.mica(["template", "import", "claim"]).arg(&file), &["claim.tar"]);
    assert!(disk_bytes(stage.store.path()) <= before + (1 << 20));
}
