//! Deleting, collecting, forgetting, destroying: what goes, and what may not.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::check::{CheckOptions, Finding, Watch, check};
use super::collect::{Collected, collect};
use super::destroy::{destroy, forget};
use super::roots::NewRoot;
use super::scrub::{ScrubOptions, scrub};
use super::{HostError, Roots, Store, StoreError, templates};
use crate::layer::{
    LayerBuilder, LayerPath, Layers, Metadata, NewContent, NewNode, Provenance, RunConfig, Stack,
    Template, TemplateKind, TemplateName, Timestamp,
};
use crate::object::{ObjectId, Objects};
use crate::sys::flags::set_immutable;

/// A store in a directory of its own.
struct Scratch {
    store: Store,
    layers: Layers,
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a scratch directory");
        let store = Store::open_or_create(&dir.path().join("store")).expect("made");
        let layers = Layers::open(store.path()).expect("opened");
        Self { store, layers, dir }
    }

    /// A template of one layer whose files hold these texts.
    fn template(&self, name: &str, texts: &[&str]) -> Template {
        let staging = Objects::open(self.store.path()).expect("opened").begin().expect("begun");
        let mut layer = LayerBuilder::new();
        let metadata =
            Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp { secs: 0, nanos: 0 } };
        for (number, text) in texts.iter().enumerate() {
            let put = staging.put_bytes(text.as_bytes()).expect("put");
            let content = NewContent::Regular {
                object: put.id,
                size: put.len_bytes,
                data_blocks: put.data_blocks,
            };
            let path = LayerPath::parse(format!("file{number}").as_bytes()).expect("a path");
            layer.put(&path, NewNode { metadata, xattrs: Vec::new(), content }).expect("a name");
        }
        staging.publish().expect("published");
        let bytes = layer.finish().expect("built");
        let id = self.layers.publish(staging.dir(), bytes).expect("published");
        let template = Template {
            name: name.parse().expect("a template name"),
            kind: TemplateKind::Os,
            stack: Stack::new(vec![id]),
            config: RunConfig::default(),
            shared_paths: Vec::new(),
            provenance: Provenance::now("a test".to_owned(), None),
        };
        self.layers.templates().put(&template, true).expect("named");
        self.layers.tree(&template.stack).expect("merged");
        staging.finish().expect("finished");
        template
    }

    fn has(&self, text: &str) -> bool {
        let objects = Objects::open(self.store.path()).expect("opened");
        objects.contains(&ObjectId::of(text.as_bytes())).expect("looked up")
    }

    /// Changes what an object holds behind its back.
    fn damage(&self, text: &str) {
        let hex = ObjectId::of(text.as_bytes()).to_string();
        let path = self.store.path().join("objects").join(&hex[..2]).join(&hex[2..]);
        let file = std::fs::File::open(&path).expect("opened");
        let _flagged = set_immutable(std::os::fd::AsFd::as_fd(&file), false).expect("loosened");
        std::fs::write(&path, text.replace("text", "TEXT")).expect("damaged");
    }

    fn root(&self, template: &Template, private: Option<&Path>) -> crate::control::Socket {
        let roots = Roots::open(&self.store).expect("opened");
        let new = NewRoot {
            name: None,
            template: template.name.clone(),
            stack: template.stack.clone(),
            private: private.map(PathBuf::from),
            mountpoint: "/mnt/test".into(),
        };
        roots.lock().expect("locked").register(new).expect("registered").1
    }

    fn delete(&self, names: &[&str], dry_run: bool) -> Result<(), HostError> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let names = templates::matching(&self.layers, &names)?;
        templates::delete(&self.store, &self.layers, &names, dry_run)
    }

    fn collect(&self) -> Collected {
        collect(&self.store, false, &|_| true).expect("collected")
    }
}

impl Drop for Scratch {
    /// Objects are immutable: only sweeping them lets the directory go.
    fn drop(&mut self) {
        if let Ok(objects) = Objects::open(self.store.path())
            && let Err(error) = objects.begin_sweep(false).and_then(|sweep| sweep.run(&|_| false))
        {
            eprintln!("objects stay in {}: {error}", self.dir.path().display());
        }
    }
}

#[test]
fn a_collection_removes_what_only_the_deleted_template_had() {
    let scratch = Scratch::new();
    scratch.template("one:1", &["shared", "only in one"]);
    scratch.template("two:1", &["shared", "only in two"]);
    scratch.delete(&["one:*"], false).expect("unused");
    let dry = collect(&scratch.store, true, &|_| true).expect("counted");
    assert_eq!((dry.layers, dry.trees, dry.objects), (1, 1, 1));
    assert!(scratch.has("only in one"));
    assert_eq!(scratch.collect(), dry);
    assert!(!scratch.has("only in one") && scratch.has("shared") && scratch.has("only in two"));
    assert_eq!(scratch.collect().objects, 0);
}

#[test]
fn a_template_of_a_root_is_not_deleted_and_the_roots_are_named() {
    let scratch = Scratch::new();
    let template = scratch.template("debian:12", &["text"]);
    scratch.template("spare:1", &["other"]);
    let _web1 = scratch.root(&template, Some(Path::new("/nowhere/web1")));
    let _mounted = scratch.root(&template, None);
    let refused = scratch.delete(&["spare:1", "debian:12"], false).expect_err("in use");
    let sentence = refused.to_string();
    assert!(sentence.contains("2 roots (test, web1)"), "{sentence}");
    // All or none.
    assert_eq!(templates::names(&scratch.layers).expect("listed").len(), 2);
    scratch.delete(&["spare:1"], true).expect("would work");
    assert_eq!(templates::names(&scratch.layers).expect("listed").len(), 2);
}

#[test]
fn a_stack_stays_while_a_root_is_bound_to_it_though_the_tag_moved_on() {
    let scratch = Scratch::new();
    let old = scratch.template("debian:12", &["old"]);
    let gone = Path::new("/nowhere/web1");
    drop(scratch.root(&old, Some(gone)));
    scratch.template("debian:12", &["new"]);
    assert_eq!(scratch.collect().objects, 0);
    assert!(scratch.has("old") && scratch.has("new"));
    forget(&scratch.store, OsStr::new("web1"), false, false).expect("its directory is gone");
    assert_eq!(scratch.collect().objects, 1);
    assert!(!scratch.has("old") && scratch.has("new"));
}

#[test]
fn a_root_is_forgotten_only_unmounted_and_with_force_while_its_directory_exists() {
    let scratch = Scratch::new();
    let template = scratch.template("debian:12", &["text"]);
    let private = scratch.dir.path().join("web1");
    std::fs::create_dir(&private).expect("made");
    let alive = scratch.root(&template, Some(&private));
    let web1 = OsStr::new("web1");
    let mounted = forget(&scratch.store, web1, true, false).expect_err("mounted");
    assert!(matches!(mounted, HostError::RootMounted { .. }));
    drop(alive);
    let kept = forget(&scratch.store, web1, false, false).expect_err("its directory exists");
    assert!(matches!(kept, HostError::RootKept { .. }));
    forget(&scratch.store, web1, true, true).expect("a dry run");
    forget(&scratch.store, web1, true, false).expect("forced");
    assert!(matches!(
        forget(&scratch.store, web1, true, false),
        Err(HostError::Root(super::roots::RootError::Unknown { .. }))
    ));
}

#[test]
fn a_damaged_template_stops_a_collection_before_anything_goes() {
    let scratch = Scratch::new();
    scratch.template("one:1", &["one"]);
    scratch.template("two:1", &["two"]);
    scratch.delete(&["two:1"], false).expect("unused");
    let file = scratch.store.path().join("templates/one/1.json");
    std::fs::write(&file, b"{").expect("damaged");
    assert!(collect(&scratch.store, false, &|_| true).is_err());
    assert!(scratch.has("one") && scratch.has("two"));
    // The way out: the damaged name can still be deleted.
    scratch.delete(&["one:1"], false).expect("deleted");
    assert_eq!(scratch.collect().objects, 2);
}

#[test]
fn an_altered_layer_stops_a_collection_before_any_object_goes() {
    let scratch = Scratch::new();
    let template = scratch.template("one:1", &["one", "uno"]);
    scratch.template("two:1", &["two"]);
    scratch.delete(&["two:1"], false).expect("unused");
    let layer = template.stack.layers()[0].to_string();
    let path = scratch.store.path().join("layers").join(layer);
    let mut bytes = std::fs::read(&path).expect("a layer");
    // An object of the living gets another name: header and section table stay good.
    let digest = *ObjectId::of(b"uno").digest().as_bytes();
    let at = bytes.windows(32).position(|window| window == digest).expect("in the table");
    bytes[at + 31] ^= 1;
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, &bytes).expect("altered");
    assert!(matches!(collect(&scratch.store, false, &|_| true), Err(HostError::Layers(_))));
    assert!(scratch.has("one") && scratch.has("uno") && scratch.has("two"));
}

#[test]
fn a_collection_ends_when_it_is_told_to_and_the_next_does_the_rest() {
    let scratch = Scratch::new();
    scratch.template("one:1", &["one", "two", "three", "four", "five", "six"]);
    scratch.delete(&["one:1"], false).expect("unused");
    let first = collect(&scratch.store, false, &|part| part < 128).expect("begun");
    assert!(first.ended_early);
    let rest = scratch.collect();
    assert!(!rest.ended_early);
    assert_eq!(first.objects + rest.objects, 6);
    assert!(first.objects < 6, "half of the digests were not looked at");
}

#[test]
fn an_unfinished_import_keeps_what_it_relies_on() {
    let scratch = Scratch::new();
    scratch.template("one:1", &["shared"]);
    let objects = Objects::open(scratch.store.path()).expect("opened");
    let staging = objects.begin().expect("begun");
    staging.put_bytes(b"shared").expect("a hit");
    scratch.delete(&["one:1"], false).expect("unused");
    let first = scratch.collect();
    assert_eq!((first.objects, first.pinned, first.layers), (0, 1, 1));
    drop(staging);
    assert_eq!(scratch.collect().objects, 1);
}

#[test]
fn a_store_is_destroyed_whole_and_never_under_a_mounted_root() {
    let scratch = Scratch::new();
    let path = scratch.store.path().to_owned();
    let template = scratch.template("debian:12", &["text", "more"]);
    let alive = scratch.root(&template, Some(Path::new("/nowhere/web1")));
    let open = || Store::open(&path, super::Access::Write).expect("still a store");
    let refused = destroy(open(), false).expect_err("mounted");
    assert!(refused.to_string().contains("mounted roots (web1)"), "{refused}");
    drop(alive);
    let working = scratch.store.share().expect("shared");
    let busy = destroy(open(), false).expect_err("an import runs");
    assert!(matches!(busy, HostError::Store(StoreError::Busy { .. })));
    drop(working);
    let dry = destroy(open(), true).expect("counted");
    assert_eq!((dry.objects, dry.orphans.as_slice()), (2, &["/nowhere/web1".into()][..]));
    assert!(scratch.has("text"));
    assert_eq!(destroy(open(), false).expect("destroyed"), dry);
    assert!(!path.exists(), "nothing is left");
}

#[test]
fn what_is_not_micas_survives_the_destruction_of_a_store() {
    let scratch = Scratch::new();
    let path = scratch.store.path().to_owned();
    scratch.template("debian:12", &["text"]);
    std::fs::write(path.join("letter"), b"dear").expect("written");
    let open = Store::open(&path, super::Access::Write).expect("a store");
    let destroyed = destroy(open, false).expect("destroyed");
    assert_eq!(destroyed.left, [path.join("letter")]);
    let names: Vec<_> =
        std::fs::read_dir(&path).expect("stays").map(|e| e.expect("listed").file_name()).collect();
    assert_eq!(names, ["letter"]);
}

#[test]
fn a_misspelt_template_is_answered_with_the_nearest_name() {
    let scratch = Scratch::new();
    scratch.template("debian:12", &["text"]);
    let unknown = templates::find(&scratch.layers, "debain:12").expect_err("no such template");
    assert!(unknown.to_string().contains("did you mean \"debian:12\"?"), "{unknown}");
    assert!(templates::find(&scratch.layers, "../../etc").is_err());
    let found = templates::find(&scratch.layers, "debian:12").expect("there");
    assert_eq!(found.name, "debian:12".parse::<TemplateName>().expect("a name"));
}

const REHASH: CheckOptions = CheckOptions { rehash: true, fix: false };

#[test]
fn a_check_finds_missing_and_altered_objects_and_damaged_manifests() {
    let scratch = Scratch::new();
    let template = scratch.template("debian:12", &["text", "more"]);
    drop(scratch.root(&template, Some(Path::new("/nowhere/web1"))));
    let whole = check(&scratch.store, REHASH, &Watch::NOBODY).expect("checked");
    assert_eq!((whole.templates, whole.roots, whole.layers, whole.objects), (1, 1, 1, 2));
    assert_eq!(whole.hashed_bytes, 8);
    let kinds = |findings: &[Finding]| findings.iter().map(Finding::is_damage).collect::<Vec<_>>();
    assert_eq!(kinds(&whole.findings), [false]);

    let object = |text: &str| {
        let hex = ObjectId::of(text.as_bytes()).to_string();
        scratch.store.path().join("objects").join(&hex[..2]).join(&hex[2..])
    };
    let thaw = |path: &Path| {
        let file = std::fs::File::open(path).expect("opens");
        use std::os::fd::AsFd;
        crate::sys::flags::set_immutable(file.as_fd(), false).expect("thawed");
    };
    thaw(&object("text"));
    std::fs::write(object("text"), b"TEXT").expect("altered");
    assert_eq!(
        kinds(
            &check(&scratch.store, CheckOptions::default(), &Watch::NOBODY)
                .expect("checked")
                .findings
        ),
        [false]
    );
    let altered = check(&scratch.store, REHASH, &Watch::NOBODY).expect("checked");
    assert!(matches!(altered.findings[0], Finding::Altered { .. }), "{altered:?}");
    thaw(&object("more"));
    std::fs::remove_file(object("more")).expect("removed");
    let missing = check(&scratch.store, CheckOptions::default(), &Watch::NOBODY).expect("checked");
    assert!(matches!(missing.findings[0], Finding::Missing { .. }), "{missing:?}");

    let manifest = scratch.store.path().join("layers").join(template.stack.layers()[0].to_string());
    let mut bytes = std::fs::read(&manifest).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&manifest).expect("removed");
    std::fs::write(&manifest, bytes).expect("altered");
    let damaged = check(&scratch.store, CheckOptions::default(), &Watch::NOBODY).expect("checked");
    assert!(matches!(damaged.findings[0], Finding::Unusable { .. }), "{damaged:?}");
    assert!(damaged.findings[0].to_string().contains("template debian:12"), "{damaged:?}");
}

const CRASH_STORE: &str = "MICA_TEST_CRASH_HOST_STORE";
const COLLECTED_STORE: &str = "MICA_TEST_CRASH_COLLECT_STORE";

/// A template goes, and a collection takes along what it alone had, while a check is at the one
/// before it, and while it is at that very one.
#[test]
fn a_check_beside_a_deletion_finds_nothing_wrong() {
    for (gone, told) in [("two:1", 1), ("one:1", 1), ("one:1", 2), ("two:1", 4)] {
        let scratch = Scratch::new();
        scratch.template("one:1", &["first", "second"]);
        scratch.template("two:1", &["third", "fourth"]);
        let asked = std::cell::Cell::new(0);
        let proceed = || {
            asked.set(asked.get() + 1);
            if asked.get() == told {
                scratch.delete(&[gone], false).expect("unused");
                assert_eq!(scratch.collect().layers, 1);
            }
            true
        };
        let watch = Watch { proceed: &proceed, hashed: &|_| {} };
        let checked = check(&scratch.store, REHASH, &watch).expect("checked");
        assert!(asked.get() >= told && checked.findings.is_empty(), "{gone}: {checked:?}");
        // What is missing and needed is told all the same.
        let left = if gone == "one:1" { "third" } else { "first" };
        let hex = ObjectId::of(left.as_bytes()).to_string();
        scratch.damage(left);
        let path = scratch.store.path().join("objects").join(&hex[..2]).join(&hex[2..]);
        std::fs::remove_file(path).expect("removed");
        let checked = check(&scratch.store, REHASH, &Watch::NOBODY).expect("checked");
        assert!(matches!(checked.findings[..], [Finding::Missing { .. }]), "{checked:?}");
    }
}

/// Runs a test of this file as a process that kills itself at `point`.
fn killed(test: &str, variable: &str, scratch: &Scratch, point: &str) {
    let status = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", &format!("host::tests::{test}")])
        .env(variable, scratch.store.path())
        .env("MICA_TEST_CRASH_POINT", point)
        .output()
        .expect("it runs")
        .status;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{point}");
}

/// Not a test by itself: what the child of the crash test does.
#[test]
fn collect_crash_child() {
    let Ok(path) = std::env::var(COLLECTED_STORE) else { return };
    let store = Store::open(Path::new(&path), super::Access::Write).expect("opened");
    collect(&store, false, &|_| true).expect("collected");
}

#[test]
fn killed_at_any_step_a_collection_keeps_the_living_and_the_next_one_completes_it() {
    for point in ["layer removed", "tree removed", "unlocked for removal", "object removed"] {
        let scratch = Scratch::new();
        scratch.template("one:1", &["kept", "also kept"]);
        scratch.template("two:1", &["kept", "gone", "gone too"]);
        let untouched = collect(&scratch.store, true, &|_| true).expect("counted");
        assert_eq!((untouched.objects, untouched.kept), (0, 4));
        scratch.delete(&["two:1"], false).expect("unused");
        killed("collect_crash_child", COLLECTED_STORE, &scratch, point);
        let checked = check(&scratch.store, REHASH, &Watch::NOBODY).expect("checked");
        assert!(checked.findings.is_empty(), "{point}: {:?}", checked.findings);
        let rest = scratch.collect();
        assert_eq!(rest.kept, 2, "{point}");
        assert!(!scratch.has("gone") && !scratch.has("gone too"), "{point}");
        assert_eq!((rest.layers == 0, rest.trees <= 1), (true, true), "{point}: {rest:?}");
        assert_eq!(scratch.layers.layers().expect("listed").len(), 1, "{point}");
    }
}

/// Not a test by itself: what the child of the crash test does.
#[test]
fn scrub_crash_child() {
    let Ok(path) = std::env::var(CRASH_STORE) else { return };
    let store = Store::open(Path::new(&path), super::Access::Write).expect("opened");
    scrub(&store, ScrubOptions::default(), &|_| true).expect("scrubbed");
}

#[test]
fn killed_at_any_step_a_scrub_loses_nothing_and_the_next_one_completes_it() {
    let points = [
        "unlocked for quarantine",
        "set aside",
        "published",
        "repaired",
        "tidied",
        "about to note",
    ];
    for point in points {
        let scratch = Scratch::new();
        let texts: Vec<String> = (0..40).map(|number| format!("text {number}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let template = scratch.template("one:1", &texts);
        // A container has one of the damaged ones, nobody the other.
        let private = scratch.dir.path().join("private");
        std::fs::create_dir_all(private.join("upper")).expect("made");
        std::fs::write(private.join("upper/copy"), "text 7").expect("written");
        drop(scratch.root(&template, Some(&private)));
        for text in ["text 7", "text 8"] {
            scratch.damage(text);
        }
        killed("scrub_crash_child", CRASH_STORE, &scratch, point);

        let done = scrub(&scratch.store, ScrubOptions::default(), &|_| true).expect("scrubbed");
        let lost: Vec<_> = done.found.iter().filter(|found| found.is_lost()).collect();
        assert_eq!(lost.len(), 1, "{point}: {done:?}");
        assert_eq!(lost[0].object, ObjectId::of(b"text 8"), "{point}");
        let objects = Objects::open(scratch.store.path()).expect("opened");
        for text in texts.iter().filter(|text| **text != "text 8") {
            let verdict = objects.verify(&ObjectId::of(text.as_bytes())).expect("looked at");
            let whole = crate::object::Verdict::Whole {
                len_bytes: text.len().try_into().expect("short"),
                immutable: true,
            };
            assert_eq!(verdict, whole, "{point}: {text}");
        }
        // What is set aside is kept until its content is back.
        assert_eq!(objects.quarantined().expect("listed"), [lost[0].object], "{point}");
        scratch.collect();
    }
}
