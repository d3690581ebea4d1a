//! The index is a convenience: losing it at any moment costs time, and no answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mica::catalog::{Catalog, Holders};
use mica::object::ObjectId;

use crate::stage::{Stage, picture};
use crate::support::Succeed;

const IMPORTS: usize = 20;

/// What every import has, beside what it has for itself.
const COMMON: &[u8] = b"key=value\n";

fn sources(stage: &Stage) -> Vec<PathBuf> {
    let source = |number: usize| {
        let directory = stage.scratch.directory(&format!("source{number}"));
        fs::write(directory.join("common"), COMMON).unwrap();
        for file in 0..50 {
            fs::write(directory.join(format!("own{file}")), format!("{number} {file}")).unwrap();
        }
        directory
    };
    (0..IMPORTS).map(source).collect()
}

/// Who holds `content`, by the index or without it.
fn who_has(store: &Path, content: &[u8]) -> Holders {
    let catalog = Catalog::open(store).unwrap();
    catalog.who_has(&ObjectId::of(content), &[]).unwrap()
}

fn start(stage: &Stage, number: usize, source: &Path) -> Child {
    let name = format!("import{number}");
    let mut command = stage.mica(["template", "import", &name]);
    command.arg(source).stdout(Stdio::null()).stderr(Stdio::piped()).start()
}

/// Every file of the index, however deep.
fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(names) = fs::read_dir(directory) else { return Vec::new() };
    let paths = names.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Does one kind of harm after the other to the index until told to stop.
fn harm(index: &Path, stop: &AtomicBool) -> u32 {
    let mut random = fastrand::Rng::with_seed(3);
    let mut done = 0;
    while !stop.load(Ordering::Acquire) {
        let found = files(index);
        let file = (!found.is_empty()).then(|| &found[random.usize(..found.len())]);
        // What is gone already, or made anew meanwhile, is harm enough.
        let harmed = match (random.u8(..4), file) {
            (0, _) => fs::remove_dir_all(index).is_ok(),
            (1, Some(file)) => fs::remove_file(file).is_ok(),
            (2, Some(file)) => fs::File::options().write(true).open(file).is_ok_and(|file| {
                let len = file.metadata().map_or(0, |metadata| metadata.len());
                file.set_len(len / 2).is_ok()
            }),
            (_, Some(file)) => fs::write(file, vec![random.u8(..); 4096]).is_ok(),
            (_, None) => false,
        };
        done += u32::from(harmed);
        thread::yield_now();
    }
    done
}

#[test]
fn twenty_imports_and_as_many_questions_survive_the_loss_of_the_index() {
    let stage = Stage::new("catalog");
    let store = stage.store.path();
    let roots = [stage.mount("one"), stage.mount("two")];
    let before = roots.each_ref().map(|root| picture(root.path()));
    let base = who_has(store, COMMON);
    assert_eq!(base.templates.len(), 1);
    let sources = sources(&stage);
    let stop = AtomicBool::new(false);
    let (mut questions, mut harms) = (0, 0);
    thread::scope(|scope| {
        let vandal = scope.spawn(|| harm(&store.join("index"), &stop));
        let asking: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut asked = 0;
                    while !stop.load(Ordering::Acquire) {
                        let now = who_has(store, COMMON);
                        assert!(now.layers.is_superset(&base.layers), "{now:?}");
                        assert!(now.templates.contains(&base.templates[0]), "{now:?}");
                        assert!(now.unreadable.is_empty(), "{now:?}");
                        assert_eq!(who_has(store, b"nowhere"), Holders::default());
                        stage.mica(["template", "list"]).succeed();
                        asked += 3;
                    }
                    asked
                })
            })
            .collect();
        let living = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                for (root, before) in roots.iter().zip(&before) {
                    assert_eq!(&picture(root.path()), before);
                }
            }
        });
        let imports: Vec<Child> = sources
            .iter()
            .enumerate()
            .map(|(number, source)| start(&stage, number, source))
            .collect();
        let outputs: Vec<_> =
            imports.into_iter().map(|import| import.wait_with_output().unwrap()).collect();
        stop.store(true, Ordering::Release);
        harms = vandal.join().unwrap();
        questions = asking.into_iter().map(|asking| asking.join().unwrap()).sum();
        living.join().unwrap();
        for output in outputs {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            assert_eq!(said, "");
        }
    });
    println!("{questions} questions answered while the index was harmed {harms} times");
    assert!(questions > 0 && harms > 0);
    // All say the same: the index as it is, without one, and the truth.
    let now = who_has(store, COMMON);
    assert_eq!((now.layers.len(), now.templates.len()), (IMPORTS + 1, IMPORTS + 1));
    let sizes = Catalog::open(store).unwrap().sizes().unwrap();
    fs::remove_dir_all(store.join("index")).ok();
    assert_eq!(who_has(store, COMMON), now);
    assert_eq!(Catalog::open(store).unwrap().sizes().unwrap(), sizes);
    let mine = who_has(store, b"7 7");
    assert_eq!(
        mine.templates.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["import7:latest"]
    );
    stage.check();
}

/// The directory of the index itself may be something else, or not to be written.
#[test]
fn an_index_that_cannot_be_made_costs_no_answer() {
    let stage = Stage::new("catalog");
    let store = stage.store.path();
    let before = who_has(store, COMMON);
    for harm in ["rm -r index; echo letter > index", "rm index; ln -s /nowhere index"] {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-ec", harm]).current_dir(store).succeed();
        assert_eq!(who_has(store, COMMON), before);
        let source = stage.scratch.path().join("source");
        stage.mica(["template", "import", "base", "--replace"]).arg(&source).succeed();
        stage.mount("a").unmount();
        stage.check();
    }
}
