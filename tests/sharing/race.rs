//! Writers beside a re-share: every byte that was written is there, and in nobody else's file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::stage::{Stage, by_counts, bytes};
use crate::support::{Mounted, PATIENCE, Succeed};

const BLOCK: usize = 4096;
const BLOCKS: usize = 8;

/// How one writer comes by its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Opens it anew for each write.
    Anew,
    /// Keeps one descriptor open all the time.
    Kept,
    /// Writes through a shared mapping whose descriptor is closed, again and again.
    Mapped,
    /// Writes through a hard link that comes and goes.
    Linked,
    /// Puts a whole new file in its place.
    Replaced,
    /// Writes through one of the names that the template gives it and reads through the other.
    Named,
    /// Only looks, through a descriptor from before.
    Reads,
}

const WAYS: [Way; 7] =
    [Way::Anew, Way::Kept, Way::Mapped, Way::Linked, Way::Replaced, Way::Named, Way::Reads];

/// The content that all roots come back to: what makes their files alike again and again.
fn plain(file: usize) -> Vec<u8> {
    bytes(file as u64, BLOCK * BLOCKS)
}

/// What the writer of `root` puts into a block: nobody else writes such bytes.
fn stamped(root: usize, file: usize, count: u64) -> Vec<u8> {
    let mut block = vec![0xE0 + u8::try_from(root).unwrap(); BLOCK];
    block[..8].copy_from_slice(&count.to_le_bytes());
    block[8] = u8::try_from(file).unwrap();
    block
}

struct Writer<'a> {
    root: usize,
    file: usize,
    way: Way,
    path: PathBuf,
    stop: &'a AtomicBool,
    writes: &'a AtomicU64,
}

impl Writer<'_> {
    /// Writes a block, looks whether all is as it was written, sets it back, rests, and so on.
    fn run(&self) {
        let original = plain(self.file);
        let mut random = fastrand::Rng::with_seed((self.root * 100 + self.file) as u64);
        let kept = (self.way == Way::Kept)
            .then(|| File::options().read(true).write(true).open(&self.path).unwrap());
        let looking = (self.way == Way::Reads).then(|| File::open(&self.path).unwrap());
        let mut count = 0;
        while !self.stop.load(Ordering::Relaxed) {
            count += 1;
            let start = random.usize(..BLOCKS) * BLOCK;
            let at = start as u64;
            let block = stamped(self.root, self.file, count);
            let mut wanted = original.clone();
            wanted[start..start + BLOCK].copy_from_slice(&block);
            if let Some(looking) = &looking {
                let mut seen = vec![0; original.len()];
                looking.read_exact_at(&mut seen, 0).unwrap();
                assert!(seen == original, "{self:?} sees another's bytes");
                continue;
            }
            self.write(kept.as_ref(), &wanted, &block, at);
            self.expect(&wanted);
            // Back to what all have: it may be shared from now on.
            self.write(kept.as_ref(), &original, &original[start..start + BLOCK], at);
            self.expect(&original);
            self.writes.fetch_add(1, Ordering::Relaxed);
            // Long enough, now and then, for a re-share to get somewhere before the next write.
            let rest = if random.u8(..3) == 0 { 1000 } else { 10 };
            std::thread::sleep(Duration::from_millis(random.u64(..rest)));
            self.expect(&original);
        }
    }

    fn write(&self, kept: Option<&File>, whole: &[u8], block: &[u8], at: u64) {
        let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
        match self.way {
            Way::Anew => open(&self.path).write_all_at(block, at).unwrap(),
            Way::Kept => kept.unwrap().write_all_at(block, at).unwrap(),
            Way::Mapped => mapped(&open(&self.path), block, at),
            Way::Linked => {
                let link = self.path.with_extension("link");
                fs::hard_link(&self.path, &link).unwrap();
                open(&link).write_all_at(block, at).unwrap();
                fs::remove_file(&link).unwrap();
            }
            Way::Named => open(&self.path.with_file_name("two")).write_all_at(block, at).unwrap(),
            Way::Replaced => {
                let fresh = self.path.with_extension("new");
                fs::write(&fresh, whole).unwrap();
                fs::rename(&fresh, &self.path).unwrap();
            }
            Way::Reads => {}
        }
    }

    fn expect(&self, wanted: &[u8]) {
        let found = fs::read(&self.path).unwrap();
        if found != wanted {
            let differs = found.iter().zip(wanted).position(|(one, two)| one != two);
            panic!(
                "{self:?}: {} bytes instead of {}, the first other one at {differs:?}",
                found.len(),
                wanted.len()
            );
        }
    }
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "root {} file {} {:?}", self.root, self.file, self.way)
    }
}

/// Writes through a mapping after its descriptor was closed.
#[allow(unsafe_code)]
fn mapped(file: &File, block: &[u8], at: u64) {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let len = BLOCK * BLOCKS;
    let own = rustix::io::dup(file).unwrap();
    // SAFETY: a fresh mapping at a place of the kernel's choice.
    let start = unsafe {
        mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &own,
            0,
        )
    }
    .unwrap();
    drop(own);
    let offset = usize::try_from(at).unwrap();
    // SAFETY: the offset is that of a block of the mapping.
    let target = unsafe { start.cast::<u8>().add(offset) };
    // SAFETY: the block lies within the mapping, which nobody else of this process knows.
    unsafe { std::ptr::copy_nonoverlapping(block.as_ptr(), target, block.len()) };
    // SAFETY: made above, and used no more.
    unsafe { munmap(start, len) }.unwrap();
}

/// Whether as much happened at once as a race takes.
fn is_race(writes: u64, shared: u64) -> bool {
    writes > 50 && shared > 10
}

fn hammer(passthrough: bool, at_rest: bool) {
    let stage = Stage::new("race");
    let names = ["one", "two", "three"];
    let mount = |name: &str| stage.mount_with(name, |options| options.passthrough(passthrough));
    let roots: Vec<Mounted> = names.map(mount).into();
    let file = |root: &Path, file: usize| {
        let named = WAYS[file] == Way::Named;
        root.join(if named { "usr/lib/one".to_owned() } else { format!("usr/lib/file{file}") })
    };
    for root in &roots {
        for (at, _) in WAYS.iter().enumerate() {
            fs::write(file(root.path(), at), plain(at)).unwrap();
        }
    }
    // One that is never written to by anybody, and stays shared.
    for root in &roots {
        fs::write(root.path().join("usr/lib/still"), plain(99)).unwrap();
    }
    if at_rest {
        assert_eq!(stage.reshare(&["--all"])["files"], 3 * (WAYS.len() + 1));
    }
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let time = by_counts(Duration::from_secs(4), Duration::from_secs(5), Duration::from_secs(60));
    let mut shared = 0;
    std::thread::scope(|scope| {
        let mut writers = Vec::new();
        for (at, root) in roots.iter().enumerate() {
            for (number, way) in WAYS.iter().enumerate() {
                let path = file(root.path(), number);
                let (root, way, stop, writes) = (at, *way, &stop, &writes);
                let writer = Writer { root, file: number, way, path, stop, writes };
                writers.push(scope.spawn(move || writer.run()));
            }
        }
        let began = Instant::now();
        // A busy machine takes longer to make a race of it.
        let raced = |shared| is_race(writes.load(Ordering::Relaxed), shared);
        let span = |shared| if raced(shared) { time } else { PATIENCE };
        while began.elapsed() < span(shared) && !writers.iter().any(|writer| writer.is_finished()) {
            let done = stage.reshare(&["--all"]);
            shared += done["files"].as_u64().unwrap();
            assert!(
                done["roots"]
                    .as_object()
                    .unwrap()
                    .values()
                    .all(|root| { root["notes"].as_array().unwrap().is_empty() }),
                "{done:#}"
            );
        }
        stop.store(true, Ordering::Relaxed);
    });
    let writes = writes.load(Ordering::Relaxed);
    eprintln!("passthrough {passthrough}: {writes} writes, {shared} files shared meanwhile");
    assert!(is_race(writes, shared), "the race was none: {writes} writes, {shared} shared");
    for root in &roots {
        assert!(fs::read(root.path().join("usr/lib/still")).unwrap() == plain(99));
        for (at, _) in WAYS.iter().enumerate() {
            assert!(fs::read(file(root.path(), at)).unwrap() == plain(at));
        }
    }
    stage.check();
    stage.store.mica(["store", "gc"]).succeed();
    for root in roots {
        root.unmount();
    }
    let again = names.map(|name| stage.mount(name));
    for root in &again {
        for (at, _) in WAYS.iter().enumerate() {
            assert!(fs::read(file(root.path(), at)).unwrap() == plain(at), "after a remount");
        }
        let listed = Command::new("ls").arg(root.path().join("usr/lib")).succeed();
        assert!(!listed.contains(".link") && !listed.contains(".new"), "{listed}");
    }
}

#[test]
fn no_byte_is_lost_or_leaked_beside_writers_with_passthrough() {
    hammer(true, true);
}

#[test]
fn no_byte_is_lost_or_leaked_beside_writers_without_passthrough() {
    hammer(false, false);
}
