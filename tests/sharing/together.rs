//! Sharing, collecting, importing, committing and mounting, all at once and all the time.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mica::host::reshare::{Background, Rhythm};

use crate::stage::{Stage, by_counts, bytes};
use crate::support::{PATIENCE, Succeed, again_until};

#[test]
fn collections_imports_commits_mounts_and_sharing_go_on_together_and_lose_nothing() {
    let stage = Stage::new("together");
    let time = by_counts(Duration::from_secs(5), Duration::from_secs(6), Duration::from_secs(60));
    let (stop, began) = (AtomicBool::new(false), Instant::now());
    let [collected, imported, committed, mounted, shared] = [const { AtomicU64::new(0) }; 5];
    let counts = [(&collected, 2), (&imported, 2), (&committed, 2), (&mounted, 4), (&shared, 6)];
    // However long a busy machine takes to have done each of it more than once.
    let enough = || counts.iter().all(|(count, least)| count.load(Ordering::Relaxed) >= *least);
    let span = || if enough() { time } else { PATIENCE };
    let going = || !stop.load(Ordering::Relaxed) && began.elapsed() < span();
    let content = |round: u64, file: u64| bytes(1000 * round + file, 20_000);
    let live = [stage.mount("live1"), stage.mount("live2")];
    let source = stage.scratch.directory("import");
    fs::create_dir(source.join("usr")).unwrap();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        // Two mounted roots that change alike, over and over.
        threads.push(scope.spawn(|| {
            for round in 0.. {
                if !going() {
                    break;
                }
                for (root, file) in live.iter().flat_map(|root| [(root, 0), (root, 1), (root, 2)]) {
                    let path = root.path().join(format!("usr/lib/new{file}"));
                    fs::write(&path, content(round, file)).unwrap();
                    assert!(fs::read(&path).unwrap() == content(round, file));
                }
                std::thread::sleep(Duration::from_millis(300));
                for (root, file) in live.iter().flat_map(|root| [(root, 0), (root, 1), (root, 2)]) {
                    let path = root.path().join(format!("usr/lib/new{file}"));
                    assert!(fs::read(&path).unwrap() == content(round, file), "{path:?}");
                }
            }
        }));
        // Roots that come and go.
        threads.push(scope.spawn(|| {
            for round in 0.. {
                if !going() {
                    break;
                }
                let name = format!("guest{}", round % 3);
                let root = stage.mount(&name);
                if round > 2 {
                    let kept = fs::read(root.path().join("usr/lib/kept")).unwrap();
                    assert!(kept == content(99, 0));
                }
                fs::write(root.path().join("usr/lib/kept"), content(99, 0)).unwrap();
                root.unmount();
                mounted.fetch_add(1, Ordering::Relaxed);
            }
        }));
        threads.push(scope.spawn(|| {
            while going() {
                stage.store.mica(["store", "gc"]).succeed();
                collected.fetch_add(1, Ordering::Relaxed);
            }
        }));
        threads.push(scope.spawn(|| {
            while going() {
                // What a private layer has as well comes and goes with a template.
                fs::write(source.join("usr/file"), content(99, 0)).unwrap();
                stage.store.import("comes:1", &source);
                stage.store.mica(["template", "delete", "comes:1"]).succeed();
                imported.fetch_add(1, Ordering::Relaxed);
            }
        }));
        threads.push(scope.spawn(|| {
            while going() {
                stage.store.mica(["commit", "live1", "made:1", "--replace"]).capture();
                committed.fetch_add(1, Ordering::Relaxed);
            }
        }));
        while going() && !threads.iter().any(|thread| thread.is_finished()) {
            let files = stage.reshare(&["--all"])["files"].as_u64().unwrap();
            shared.fetch_add(files, Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
    });
    let told = format!(
        "{collected:?} collections, {imported:?} imports, {committed:?} commits, {mounted:?} mounts, \
         {shared:?} files shared"
    );
    eprintln!("{told}");
    assert!(enough(), "{told}");
    stage.reshare(&["--all"]);
    for root in live {
        root.unmount();
    }
    stage.store.mica(["store", "gc"]).succeed();
    stage.check();
    for name in ["guest0", "guest1"] {
        let root = stage.mount(name);
        assert!(fs::read(root.path().join("usr/lib/kept")).unwrap() == content(99, 0));
        root.unmount();
    }
}

#[test]
fn the_background_shares_by_itself_and_not_while_it_is_held() {
    let stage = Stage::new("background");
    let (one, two) = (stage.mount("one"), stage.mount("two"));
    let write = |name: &str| {
        for root in [&one, &two] {
            fs::write(root.path().join(name), bytes(1, 50_000)).unwrap();
        }
    };
    write("usr/lib/first");
    let rhythm = Rhythm {
        rest: Duration::from_millis(20),
        bytes_per_second: 50 << 20,
        least_age: Duration::ZERO,
        ..Rhythm::default()
    };
    let background = Background::start(stage.store.path(), rhythm, false).unwrap();
    again_until("the first file is not shared", || {
        stage.is_reference("one", "usr/lib/first") && stage.is_reference("two", "usr/lib/first")
    });
    background.pause();
    assert!(background.is_paused());
    // The run that is under way ends at its next file; after that nothing is shared.
    write("usr/lib/second");
    let before = stage.is_reference("one", "usr/lib/second");
    stage.store.mica(["store", "who-has", "--scan", "/usr/lib/second"]).capture();
    assert_eq!(stage.is_reference("one", "usr/lib/second"), before);
    background.resume();
    again_until("the second file is not shared", || {
        stage.is_reference("one", "usr/lib/second") && stage.is_reference("two", "usr/lib/second")
    });
    again_until("no run has ended", || background.last().is_some());
    assert_eq!(background.last().unwrap().map(|report| report.dry_run), Ok(false));
    drop(background);
    stage.check();
}
