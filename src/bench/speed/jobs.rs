//! What people wait for in a root: the jobs of the workload rows.
//!
//! A job may be done by many clients at once: each gets a number, and what it writes has that
//! number in its name.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::error::{BenchError, Result};
use crate::bench::fixture;
use crate::bench::place::{Place, remove_tree};
use crate::bench::run::{has, has_inside, inside, run, tool};
use crate::bench::settings::Sizes;

/// One thing to do.
pub(super) struct Job {
    pub(super) name: &'static str,
    /// Programs that the root needs.
    pub(super) inside: &'static [&'static str],
    /// A program that the host needs, and the package that has it.
    pub(super) host: Option<(&'static str, &'static str)>,
    /// What else there is to know of it; with "; " at its end, or nothing.
    pub(super) about: fn(&Material) -> String,
    /// Whether many may do it at once in one root.
    pub(super) crowd: bool,
    /// Whether it takes so long that few rounds must do.
    pub(super) long: bool,
    /// The command of one client.
    pub(super) command: fn(&Path, &Material, usize) -> Command,
    /// Undoes what one client did, not timed.
    pub(super) undo: fn(&Path, usize) -> Result<()>,
}

/// What jobs work on.
pub(super) struct Material {
    /// A tar archive.
    archive: PathBuf,
    /// Its files.
    archive_files: usize,
    /// Files of the repository.
    repository_files: usize,
    /// Reads and writes that fio does.
    requests: usize,
    /// Whether there is a Debian package to install.
    pub(super) package: bool,
}

fn nothing(_: &Path, _: usize) -> Result<()> {
    Ok(())
}

fn plain(_: &Material) -> String {
    String::new()
}

/// A repository in the root.
const REPOSITORY: &str = "srv/bench-repository";
/// Where clients write.
const WRITES: &str = "var/tmp";
/// The package that is installed.
const PACKAGE: &str = "var/tmp/bench.deb";

/// A file or directory that only one client writes.
fn own(root: &Path, kind: &str, client: usize) -> PathBuf {
    root.join(WRITES).join(format!("bench-{kind}-{client}"))
}

fn remove(root: &Path, kind: &str, client: usize) -> Result<()> {
    let path = own(root, kind, client);
    std::fs::remove_file(&path).map_err(BenchError::at("remove", path))
}

fn python(root: &Path, text: &str) -> Command {
    inside(root, &["python3", "-c", text])
}

const IMPORTS: &str = "import argparse,ast,asyncio,base64,bisect,calendar,codecs,collections,\
    configparser,contextlib,copy,csv,dataclasses,datetime,decimal,difflib,email,enum,fractions,\
    functools,glob,gzip,hashlib,heapq,html,http.server,inspect,io,ipaddress,json,logging,\
    multiprocessing,pathlib,pickle,random,shutil,socket,string,subprocess,tarfile";

pub(super) const JOBS: [Job; 9] = [
    Job {
        name: "find, with the size of everything",
        inside: &[],
        host: Some(("find", "findutils")),
        about: plain,
        crowd: true,
        long: false,
        command: |root, _, _| {
            let mut find = tool("find");
            find.arg(root).args(["-xdev", "-size", "+1000000k"]);
            find
        },
        undo: nothing,
    },
    Job {
        name: "tar of the whole root",
        inside: &[],
        host: Some(("tar", "tar")),
        about: plain,
        crowd: true,
        long: false,
        command: |root, _, _| {
            let mut tar = tool("sh");
            // To /dev/null itself tar would read nothing.
            let script = "tar -C \"$0\" --one-file-system -cf - . 2>/dev/null | cat >/dev/null";
            tar.args(["-c", script]).arg(root);
            tar
        },
        undo: nothing,
    },
    Job {
        name: "git status of a large tree",
        inside: &[],
        host: Some(("git", "git")),
        about: |material| format!("{} files; ", material.repository_files),
        crowd: true,
        long: false,
        command: |root, _, _| {
            let mut git = git(&root.join(REPOSITORY));
            git.arg("status");
            git
        },
        undo: nothing,
    },
    Job {
        name: "python with 40 imports",
        inside: &["python3"],
        host: None,
        about: plain,
        crowd: true,
        long: false,
        command: |root, _, _| python(root, IMPORTS),
        undo: nothing,
    },
    Job {
        name: "compile and link a C program",
        inside: &["gcc", "ld"],
        host: None,
        about: plain,
        crowd: true,
        long: false,
        command: |root, _, client| {
            let script = format!(
                "cd /{WRITES} && printf '%s\\n' '#include <stdio.h>' '#include <stdlib.h>' \
                 '#include <math.h>' '#include <unistd.h>' '#include <pthread.h>' \
                 'int main(void) {{ return printf(\"%f\", sqrt(2)) < 0; }}' > bench-{client}.c && \
                 gcc -O1 -o bench-program-{client} bench-{client}.c -lm && rm bench-{client}.c"
            );
            inside(root, &["sh", "-c", &script])
        },
        undo: |root, client| remove(root, "program", client),
    },
    Job {
        name: "apt-get install of a package of 300 files",
        inside: &["apt-get", "dpkg"],
        host: Some(("dpkg-deb", "dpkg")),
        about: plain,
        // dpkg's lock lets one in at a time.
        crowd: false,
        long: true,
        command: |root, _, _| {
            let package = format!("/{PACKAGE}");
            inside(root, &["apt-get", "install", "-y", "-q", "-o", "Dpkg::Use-Pty=0", &package])
        },
        undo: |root, _| run(&mut inside(root, &["dpkg", "--purge", "mica-bench"])).map(drop),
    },
    Job {
        name: "SQLite, 100 inserts, each synced",
        inside: &["python3"],
        host: None,
        about: plain,
        crowd: true,
        long: false,
        command: |root, _, client| {
            let text = format!(
                "import sqlite3\n\
                 d=sqlite3.connect('/{WRITES}/bench-db-{client}',isolation_level=None)\n\
                 d.execute('create table t(a,b)')\n\
                 for i in range(100): d.execute('insert into t values(?,?)',(i,'x'*200))"
            );
            python(root, &text)
        },
        undo: |root, client| remove(root, "db", client),
    },
    Job {
        name: "tar x into the root",
        inside: &[],
        host: Some(("tar", "tar")),
        about: |material| format!("{} files; ", material.archive_files),
        crowd: true,
        long: false,
        command: |root, material, client| {
            let mut tar = tool("sh");
            let script = "mkdir \"$0\" && tar -xf \"$1\" -C \"$0\"";
            tar.args(["-c", script]).arg(own(root, "unpacked", client)).arg(&material.archive);
            tar
        },
        undo: |root, client| remove_tree(&own(root, "unpacked", client)),
    },
    Job {
        name: "fio, random 4 KiB reads and writes",
        inside: &[],
        host: Some(("fio", "fio")),
        about: |material| format!("{} of them; ", material.requests),
        crowd: true,
        long: false,
        command: |root, material, client| {
            let mut fio = tool("fio");
            fio.args(["--name=bench", "--rw=randrw", "--bs=4k", "--size=32m", "--direct=0"]);
            fio.args(["--ioengine=psync", "--output=/dev/null"]);
            fio.arg(format!("--number_ios={}", material.requests));
            // It would keep what it knows of the machine where it is started.
            fio.current_dir("/tmp");
            fio.arg(format!("--filename={}", own(root, "fio", client).display()));
            fio
        },
        undo: |root, client| remove(root, "fio", client),
    },
];

fn git(repository: &Path) -> Command {
    let mut git = tool("git");
    git.args(["-c", "safe.directory=*", "-c", "user.name=b", "-c", "user.email=b@b", "-C"]);
    git.arg(repository).env("GIT_CONFIG_GLOBAL", "/dev/null");
    git
}

/// Puts what the jobs work on into the tree that becomes the template.
pub(super) fn furnish(tree: &Path, place: &Place, sizes: Sizes) -> Result<Material> {
    let archive = place.path("archive.tar");
    let source = place.directory("source")?;
    let archive_files = sizes.tree_files / 40;
    for number in (0..archive_files).map(fixture::bytes) {
        let path = format!("usr/share/{}/file-{number}", number / 20);
        fixture::file(&source, &path, &fixture::noise(2000, number))?;
    }
    run(tool("tar").arg("-cf").arg(&archive).arg("-C").arg(&source).arg("."))?;
    fixture::directories(&tree.join(WRITES))?;
    let mut repository_files = 0;
    if has("git") {
        let repository = tree.join(REPOSITORY);
        repository_files =
            fixture::tree(&repository, 0, fixture::packages(sizes.tree_files / 4))?.files.len();
        run(git(&repository).args(["init", "-q"]))?;
        run(git(&repository).args(["add", "."]))?;
        run(git(&repository).args(["commit", "-q", "-m", "all"]))?;
        run(git(&repository).args(["gc", "-q"]))?;
    }
    let package = has("dpkg-deb") && has_inside(tree, "apt-get");
    if package {
        let content = place.directory("package")?;
        for number in 0..300 {
            let path = format!("usr/share/mica-bench/{}/file-{number}", number / 20);
            fixture::file(&content, &path, &fixture::noise(3000, number))?;
        }
        let control = "Package: mica-bench\nVersion: 1\nArchitecture: all\n\
                       Maintainer: nobody <nobody@invalid>\nDescription: files\n";
        fixture::file(&content, "DEBIAN/control", control.as_bytes())?;
        let mut build = tool("dpkg-deb");
        build.args(["--root-owner-group", "-Znone", "--build"]).arg(&content);
        run(build.arg(tree.join(PACKAGE)))?;
    }
    let requests = sizes.random;
    Ok(Material { archive, archive_files, repository_files, requests, package })
}
