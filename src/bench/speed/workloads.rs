//! Whole workloads in a root: what people wait for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::bench::contender::{Kind, Lower, Mounted};
use crate::bench::error::{BenchError, Result};
use crate::bench::fixture;
use crate::bench::machine;
use crate::bench::measure::{Work, interleave, seconds};
use crate::bench::place::{Place, remove_tree, settle};
use crate::bench::row::{Row, Unit};
use crate::bench::run::{has, has_inside, inside, run, silently, tool};
use crate::bench::session::Session;
use crate::bench::template::Prepared;

/// How many clients at once stand for many.
const CROWD: usize = 8;

/// One thing to do.
struct Workload {
    name: &'static str,
    /// A program that the root needs.
    inside: Option<&'static str>,
    /// A program that the host needs, and the package that has it.
    host: Option<(&'static str, &'static str)>,
    /// Whether it also runs with nothing in memory, and with many clients.
    reads: bool,
    command: fn(&Path, &Material) -> Command,
    /// Undoes it, not timed.
    undo: fn(&Path) -> Result<()>,
}

/// What workloads work on.
struct Material {
    /// A tar archive.
    archive: PathBuf,
    /// A Debian package; empty if this host cannot make one.
    package: PathBuf,
}

fn nothing(_: &Path) -> Result<()> {
    Ok(())
}

/// Where things are unpacked.
const UNPACKED: &str = "var/tmp/bench-unpacked";

fn python(root: &Path, text: &str) -> Command {
    inside(root, &["python3", "-c", text])
}

const WORKLOADS: [Workload; 9] = [
    Workload {
        name: "find, with the size of everything",
        inside: None,
        host: Some(("find", "findutils")),
        reads: true,
        command: |root, _| {
            let mut find = tool("find");
            find.arg(root).args(["-xdev", "-size", "+1000000k"]);
            find
        },
        undo: nothing,
    },
    Workload {
        name: "tar of the whole root",
        inside: None,
        host: Some(("tar", "tar")),
        reads: true,
        command: |root, _| {
            let mut tar = tool("sh");
            // To /dev/null itself tar would read nothing.
            let script = "tar -C \"$0\" --one-file-system -cf - . 2>/dev/null | cat >/dev/null";
            tar.args(["-c", script]).arg(root);
            tar
        },
        undo: nothing,
    },
    Workload {
        name: "git status",
        inside: None,
        host: Some(("git", "git")),
        reads: false,
        command: |root, _| {
            let mut git = tool("git");
            git.args(["-c", "safe.directory=*", "-C"]).arg(root.join(REPOSITORY)).arg("status");
            git
        },
        undo: nothing,
    },
    Workload {
        name: "python with 40 imports",
        inside: Some("python3"),
        host: None,
        reads: true,
        command: |root, _| {
            python(
                root,
                "import argparse,ast,asyncio,base64,bisect,calendar,codecs,collections,configparser,\
                 contextlib,copy,csv,dataclasses,datetime,decimal,difflib,email,enum,fractions,\
                 functools,glob,gzip,hashlib,heapq,html,http.server,inspect,io,ipaddress,json,\
                 logging,multiprocessing,pathlib,pickle,random,shutil,socket,string,subprocess,\
                 tarfile",
            )
        },
        undo: nothing,
    },
    Workload {
        name: "compile and link a C program",
        inside: Some("gcc"),
        host: None,
        reads: true,
        command: |root, _| {
            let script = "echo '#include <stdio.h>\n#include <stdlib.h>\n#include <math.h>\n\
                          int main(void) { return printf(\"%f\", sqrt(2)) < 0; }' > /var/tmp/b.c && \
                          gcc -O1 -o /var/tmp/b$$ /var/tmp/b.c -lm && rm /var/tmp/b$$";
            inside(root, &["sh", "-c", script])
        },
        undo: nothing,
    },
    Workload {
        name: "apt-get install of a package of 300 files",
        inside: Some("apt-get"),
        host: Some(("dpkg-deb", "dpkg")),
        reads: false,
        command: |root, _| {
            let script = "apt-get install -y -q -o Dpkg::Use-Pty=0 /var/tmp/bench.deb";
            inside(root, &["sh", "-c", script])
        },
        undo: |root| run(&mut inside(root, &["dpkg", "--purge", "mica-bench"])).map(drop),
    },
    Workload {
        name: "sqlite, 300 inserts, each synced",
        inside: Some("python3"),
        host: None,
        reads: false,
        command: |root, _| {
            python(
                root,
                "import sqlite3\nd=sqlite3.connect('/var/tmp/bench.db',isolation_level=None)\n\
                 d.execute('create table t(a,b)')\n\
                 for i in range(300): d.execute('insert into t values(?,?)',(i,'x'*200))",
            )
        },
        undo: |root| Ok(fs::remove_file(root.join("var/tmp/bench.db"))?),
    },
    Workload {
        name: "tar x of 2,000 files into the root",
        inside: None,
        host: Some(("tar", "tar")),
        reads: false,
        command: |root, material| {
            let mut tar = tool("tar");
            tar.arg("-xf").arg(&material.archive).arg("-C").arg(root.join(UNPACKED));
            tar
        },
        undo: |root| {
            remove_tree(&root.join(UNPACKED))?;
            fixture::directories(&root.join(UNPACKED))
        },
    },
    Workload {
        name: "fio, 20,000 random 4 KiB reads and writes",
        inside: None,
        host: Some(("fio", "fio")),
        reads: false,
        command: |root, _| {
            let mut fio = tool("fio");
            fio.args(["--name=bench", "--rw=randrw", "--bs=4k", "--size=32m", "--direct=0"]);
            fio.args(["--number_ios=20000", "--output=/dev/null"]);
            fio.arg(format!("--filename={}", root.join("var/tmp/bench.fio").display()));
            fio
        },
        undo: |root| Ok(fs::remove_file(root.join("var/tmp/bench.fio"))?),
    },
];

/// A repository in the root.
const REPOSITORY: &str = "srv/bench-repository";

/// One contender with a root, mounted or copied.
struct Contender {
    name: &'static str,
    root: PathBuf,
    mounted: Option<Mounted>,
}

/// Puts what the workloads work on into the tree that becomes the template.
fn furnish(tree: &Path, place: &Place, files: usize) -> Result<Material> {
    let archive = place.path("archive.tar");
    let source = place.directory("source")?;
    fixture::tree(&source, 0, 2)?;
    run(tool("tar").arg("-cf").arg(&archive).arg("-C").arg(&source).arg("."))?;
    fixture::directories(&tree.join(UNPACKED))?;
    if has("git") {
        let repository = tree.join(REPOSITORY);
        fixture::tree(&repository, 0, fixture::packages(files))?;
        let git = |words: &[&str]| {
            let mut git = tool("git");
            git.args(["-c", "safe.directory=*", "-c", "user.name=b", "-c", "user.email=b@b", "-C"]);
            run(git.arg(&repository).args(words).env("GIT_CONFIG_GLOBAL", "/dev/null"))
        };
        git(&["init", "-q"])?;
        git(&["add", "."])?;
        git(&["commit", "-q", "-m", "all"])?;
        git(&["gc", "-q"])?;
    }
    let mut package = PathBuf::new();
    if has("dpkg-deb") && has_inside(tree, "apt-get") {
        let content = place.directory("package")?;
        for number in 0..300 {
            let path = format!("usr/share/mica-bench/{}/file-{number}", number / 20);
            fixture::file(&content, &path, &fixture::noise(3000, number))?;
        }
        let control = "Package: mica-bench\nVersion: 1\nArchitecture: all\n\
                       Maintainer: nobody <nobody@invalid>\nDescription: files\n";
        fixture::file(&content, "DEBIAN/control", control.as_bytes())?;
        package = tree.join("var/tmp/bench.deb");
        let mut build = tool("dpkg-deb");
        build.args(["--root-owner-group", "-Znone", "--build"]).arg(&content).arg(&package);
        run(&mut build)?;
    }
    Ok(Material { archive, package })
}

/// Everybody with a root of `tree`, and one more as a plain copy.
fn contenders(place: &Place, tree: &Path, program: &Path) -> Result<Vec<Contender>> {
    let copy = place.path("copy");
    run(tool("cp").arg("-a").arg(tree).arg(&copy))?;
    let lower = Lower::import(place, tree, program)?;
    let mut all = vec![Contender { name: "full copy", root: copy, mounted: None }];
    for kind in Kind::here() {
        let mounted = lower.fresh(kind, place)?;
        let root = mounted.path().to_owned();
        all.push(Contender { name: kind.name(), root, mounted: Some(mounted) });
    }
    settle(place.top())?;
    Ok(all)
}

/// Starts it so many times at once and waits for all.
fn crowd(count: usize, command: &mut dyn FnMut() -> Command) -> Result<()> {
    use std::process::Stdio;
    let mut clients: Vec<Child> = Vec::new();
    for _ in 0..count {
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        clients.push(command.spawn().map_err(BenchError::at("start", command.get_program()))?);
    }
    for mut client in clients {
        let status = client.wait()?;
        if !status.success() {
            // Once more alone, to hear why.
            run(&mut command())?;
        }
    }
    Ok(())
}

/// Workload rows of the first template, and of later ones what the earlier lack.
pub(super) fn workloads(session: &mut Session<'_>, templates: &[Prepared]) -> Result<()> {
    let mut done = Vec::new();
    let mut failed: BTreeMap<&str, String> = BTreeMap::new();
    for template in templates {
        let wanted = |one: &&Workload| {
            !done.contains(&one.name)
                && one.host.is_none_or(|(program, _)| has(program))
                && one.inside.is_none_or(|program| has_inside(&template.tree, program))
        };
        let wanted: Vec<&Workload> = WORKLOADS.iter().filter(wanted).collect();
        if wanted.is_empty() {
            continue;
        }
        let place = session.place("workloads")?;
        let tree = place.path("tree");
        run(tool("cp").arg("-a").arg(&template.tree).arg(&tree))?;
        let material = furnish(&tree, &place, session.sizes.tree_files / 4)?;
        let program = session.settings.program.clone();
        let contenders = contenders(&place, &tree, &program)?;
        for workload in wanted {
            if workload.name.starts_with("apt-get") && material.package.as_os_str().is_empty() {
                continue;
            }
            // What does not work in a full copy says nothing of anybody.
            if let Some(copy) = contenders.first() {
                let tried = run(&mut (workload.command)(&copy.root, &material));
                if let Err(error) = tried.and_then(|_| (workload.undo)(&copy.root)) {
                    failed.insert(workload.name, crate::host::sentence(&error));
                    continue;
                }
            }
            one(session, workload, &template.name, &contenders, &material)?;
            done.push(workload.name);
        }
        drop(contenders);
    }
    for workload in WORKLOADS.iter().filter(|one| !done.contains(&one.name)) {
        let why = match (workload.host, workload.inside) {
            _tried if failed.contains_key(workload.name) => {
                failed.remove(workload.name).unwrap_or_default()
            }
            (Some((program, package)), _) if !has(program) => {
                format!("{program} is not installed here; apt-get install {package}")
            }
            (_, Some(program)) => format!("no template has {program}"),
            (Some((program, _)), None) => format!("{program} cannot be used here"),
            (None, None) => "it cannot be used here".to_owned(),
        };
        session.skip(workload.name, why);
    }
    Ok(())
}

fn one(
    session: &mut Session<'_>,
    workload: &Workload,
    template: &str,
    contenders: &[Contender],
    material: &Material,
) -> Result<()> {
    let rounds = session.sizes.slow_rounds;
    let note = format!("template {template}; processes where the kernel puts them");
    let warm = contenders.iter().map(|contender| {
        Work::new(contender.name, || {
            let took = seconds(|| silently(&mut (workload.command)(&contender.root, material)))?;
            (workload.undo)(&contender.root)?;
            Ok(took * 1e3)
        })
    });
    let series = interleave(warm.collect(), 1, rounds)?;
    session.row(Row::new(workload.name, Unit::Milliseconds, None, series).note(&note));
    if !workload.reads {
        return Ok(());
    }
    let many = contenders.iter().map(|contender| {
        Work::new(contender.name, || {
            let mut command = || (workload.command)(&contender.root, material);
            Ok(seconds(|| crowd(CROWD, &mut command))? * 1e3)
        })
    });
    let series = interleave(many.collect(), 0, rounds.min(3))?;
    let what = format!("{}, {CROWD} at once", workload.name);
    session.row(Row::new(what, Unit::Milliseconds, None, series).note(&note));
    if session.sizes.drop_caches {
        let cold = contenders.iter().map(|contender| {
            Work::new(contender.name, || {
                machine::drop_caches()?;
                let mut command = (workload.command)(&contender.root, material);
                Ok(seconds(|| silently(&mut command))? * 1e3)
            })
        });
        let series = interleave(cold.collect(), 0, rounds.min(3))?;
        let what = format!("{}, caches dropped", workload.name);
        session.row(Row::new(what, Unit::Milliseconds, None, series).note(&note));
    }
    // Mounted until the last of them is done.
    debug_assert!(contenders.iter().all(|one| one.name == "full copy" || one.mounted.is_some()));
    Ok(())
}
