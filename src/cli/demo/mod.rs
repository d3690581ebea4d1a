//! `mica demo`: three roots of one template, made of this host's own programs, beside three
//! full copies of the same; every number shown is measured.

mod compare;
mod scratch;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::arguments::Demo;
use super::output::{Output, count, size};
use crate::bench::working_set::{WorkingSet, find_program};
use crate::host::check::{CheckOptions, Watch, check};
use crate::host::import::{ImportRequest, import_template};
use crate::host::launch::{self, MountSpec, Ready};
use crate::host::options::GenericOptions;
use crate::host::{Store, footprint, interrupt_flag};
use crate::layer::import::{Choice, Excludes, Silent};
use scratch::Scratch;

/// The template of the demo.
const TEMPLATE: &str = "demo:1";

/// The roots, and the one that changes things.
const ROOTS: [&str; 3] = ["web1", "web2", "web3"];
const CHANGED: &str = "web2";

/// What is run in every root and in every full copy: programs, their libraries, a text.
const WORK: &str = "ls -l /usr/bin | wc -l; cat /etc/os-release | wc -c; echo hello | sha256sum";

/// What the one root does: changes a shared file, replaces one, deletes one.
const CHANGES: &str = "set -e
    echo '# changed here' >> /etc/os-release
    cp \"$(command -v cat)\" /tmp/new; mv /tmp/new \"$(command -v wc)\"
    rm \"$(command -v sha256sum)\"";

/// What shows whether a root sees these changes.
const LOOK: &str = "grep -c 'changed here' /etc/os-release
    echo one two | wc
    command -v sha256sum || echo 'no sha256sum'";

/// What was measured, for the table and for programs.
#[derive(Debug, Serialize)]
struct Measured {
    files: usize,
    template_bytes: u64,
    passthrough: bool,
    disk_bytes_copies: u64,
    disk_bytes_mica: u64,
    /// Absent where files live in memory anyway.
    cache_bytes_copies: Option<u64>,
    cache_bytes_mica: Option<u64>,
    /// Memory of the three mount processes that nothing else shares.
    process_bytes: u64,
    seconds: f64,
}

pub(super) fn run(wanted: &Demo, output: &Output) -> Result<ExitCode> {
    super::log_to_stderr();
    let began = Instant::now();
    let interrupted = interrupt_flag()?;
    let scratch = Scratch::new(&wanted.dir)?;
    let play = Play { scratch: &scratch, output: *output, wanted, interrupted };
    let played = play.play();
    // Whatever happened: first everything goes, then it is told.
    let removed = scratch.remove();
    let mut measured = match played {
        Err(_) if interrupted.load(Ordering::Relaxed) => {
            removed?;
            bail!("interrupted; the scratch store is removed");
        }
        played => played?,
    };
    removed?;
    measured.seconds = began.elapsed().as_secs_f64();
    if wanted.json.json {
        output.json(&measured)?;
    } else {
        measured.table(*output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One performance.
struct Play<'a> {
    scratch: &'a Scratch,
    output: Output,
    wanted: &'a Demo,
    interrupted: &'a AtomicBool,
}

impl Play<'_> {
    fn play(&self) -> Result<Measured> {
        let set = WorkingSet::of_this_host()?;
        let copies: Vec<PathBuf> =
            ROOTS.iter().map(|name| self.scratch.path().join(format!("copy-of-{name}"))).collect();
        for copy in &copies {
            set.copy_to(copy, &|| self.proceed().is_ok())?;
        }
        let [original, ..] = copies.as_slice() else { bail!("there are no copies") };
        let interpreter =
            set.interpreter.map_or(String::new(), |name| format!(", among them {name}"));
        self.say(format!(
            "A template of this host's own files: {} programs{interpreter}, {} in all.",
            set.programs.len(),
            count(u64::try_from(set.file_count())?, "file"),
        ))?;

        let store = self.import(original)?;
        let mut roots = Vec::new();
        for name in ROOTS {
            self.proceed()?;
            roots.push(self.mount(name)?);
        }
        let passthrough = roots.iter().all(|root| root.passthrough);
        self.say(format!("Three roots are mounted from it: {}.", ROOTS.join(", ")))?;
        if !passthrough {
            self.say(
                "There is no passthrough here: the roots work, but memory is not shared among \
                 them (see `mica doctor`).",
            )?;
        }

        self.run_everywhere(&set, &roots, &copies)?;
        self.change_one(&roots, &copies)?;
        self.nothing_else_changed(&store, &roots, original)?;

        self.proceed()?;
        let (cache_bytes_copies, cache_bytes_mica) = self.page_cache(&roots, &copies)?;
        let sum = |paths: &mut dyn Iterator<Item = &Path>| -> Result<u64> {
            paths.map(|path| Ok(footprint::disk_bytes(path)?)).sum()
        };
        let process_bytes = roots.iter().map(|root| private_memory(root.pid)).sum::<Result<_>>()?;
        Ok(Measured {
            files: set.file_count(),
            template_bytes: footprint::disk_bytes(original)?,
            passthrough,
            disk_bytes_copies: sum(&mut copies.iter().map(PathBuf::as_path))?,
            disk_bytes_mica: sum(&mut std::iter::once(store.path())
                .chain(roots.iter().filter_map(|root| root.private.as_deref())))?,
            cache_bytes_copies,
            cache_bytes_mica,
            process_bytes,
            seconds: 0.0,
        })
    }

    fn import(&self, original: &Path) -> Result<Store> {
        let store = Store::open_or_create(&self.scratch.store())?;
        let request = ImportRequest {
            name: TEMPLATE.parse()?,
            source: original.to_owned(),
            on: None,
            replace: false,
            excludes: Excludes::default(),
            choice: Choice::default(),
            cancel: self.interrupted,
        };
        import_template(&store, &request, &Silent)?;
        Ok(store)
    }

    fn mount(&self, name: &str) -> Result<Ready> {
        let program = std::env::current_exe().context("cannot find mica's own program file")?;
        let spec = MountSpec {
            store: self.scratch.store(),
            template: TEMPLATE.to_owned(),
            mountpoint: self.scratch.mountpoint(name),
            private: Some(self.scratch.path().join(format!("private-of-{name}"))),
            name: Some(name.to_owned()),
            passthrough: !self.wanted.no_passthrough,
            shared_paths: None,
            fsname: None,
            disk_bytes: None,
            generic: GenericOptions::default(),
            unheard: false,
        };
        Ok(launch::start(&program, &spec)?)
    }

    /// Runs the same programs in every root and every copy; they must say the same.
    fn run_everywhere(&self, set: &WorkingSet, roots: &[Ready], copies: &[PathBuf]) -> Result<()> {
        let mut script = WORK.to_owned();
        match set.interpreter {
            Some("perl") => script.push_str("; perl -e 'print 6 * 7, \"\\n\"'"),
            Some(name) => script.push_str(&format!("; {name} -c 'import json; print(6 * 7)'")),
            None => {}
        }
        let expected = self.inside(copies.first().context("there are no copies")?, &script)?;
        for place in copies.iter().chain(roots.iter().map(|root| &root.mountpoint)) {
            let said = self.inside(place, &script)?;
            ensure!(said == expected, "{} said {said:?} instead of {expected:?}", place.display());
        }
        self.say("Programs run in each of them (chroot), and say what they say in a full copy.")
    }

    /// Changes, replaces and deletes shared files in one root, and in its copy.
    fn change_one(&self, roots: &[Ready], copies: &[PathBuf]) -> Result<()> {
        for (root, copy) in roots.iter().zip(copies).filter(|(root, _)| root.name == CHANGED) {
            self.inside(&root.mountpoint, CHANGES)?;
            self.inside(copy, CHANGES)?;
        }
        self.say(format!("{CHANGED} changes /etc/os-release, replaces wc and deletes sha256sum:"))?;
        for root in roots {
            let sees = self.inside(&root.mountpoint, LOOK)?;
            let words: Vec<&str> = sees.split_whitespace().collect();
            self.say(format!("  {} sees: {}", root.name, words.join(" ")))?;
            let changed = words.join(" ") == "1 one two no sha256sum";
            ensure!(
                changed == (root.name == CHANGED) && (changed || sees.starts_with("0\n")),
                "{} sees the wrong files: {sees:?}",
                root.name
            );
        }
        Ok(())
    }

    /// Proves it: the other roots against a full copy, the template against its digests.
    fn nothing_else_changed(&self, store: &Store, roots: &[Ready], original: &Path) -> Result<()> {
        for root in roots.iter().filter(|root| root.name != CHANGED) {
            compare::same(original, &root.mountpoint, &|| self.proceed())?;
        }
        let checked = check(
            store,
            CheckOptions { rehash: true, fix: false },
            &Watch { proceed: &|| self.proceed().is_ok(), hashed: &|_| {} },
        )?;
        self.proceed()?;
        if let Some(finding) = checked.findings.first() {
            bail!("the template changed: {finding}");
        }
        self.say(format!(
            "The others did not change, byte for byte; the template neither: {} hashed again.",
            count(checked.objects, "object"),
        ))
    }

    /// Reads everything in every copy and every root, and measures what is cached then.
    fn page_cache(
        &self,
        roots: &[Ready],
        copies: &[PathBuf],
    ) -> Result<(Option<u64>, Option<u64>)> {
        if footprint::is_memory_file_system(self.scratch.path())? {
            return Ok((None, None));
        }
        let privates = || roots.iter().filter_map(|root| root.private.as_deref());
        let store = self.scratch.store();
        for place in copies.iter().map(PathBuf::as_path).chain(privates()).chain([store.as_path()])
        {
            footprint::drop_cached(place)?;
        }
        let mountpoints = || roots.iter().map(|root| root.mountpoint.as_path());
        for place in copies.iter().map(PathBuf::as_path).chain(mountpoints()) {
            self.proceed()?;
            footprint::read_all(place)?;
        }
        let cached = |places: &mut dyn Iterator<Item = &Path>| -> Result<u64> {
            places.map(|place| Ok(footprint::resident_bytes(place)?)).sum()
        };
        let copies = cached(&mut copies.iter().map(PathBuf::as_path))?;
        // Objects once, changed files once, and what each root keeps in a cache of its own.
        let mica = cached(&mut std::iter::once(store.as_path()).chain(privates()))?
            + cached(&mut mountpoints())?;
        Ok((Some(copies), Some(mica)))
    }

    /// Runs a script in a root, or in a full copy, by chroot; returns what it said.
    fn inside(&self, place: &Path, script: &str) -> Result<String> {
        self.proceed()?;
        let chroot = find_program("chroot").context("the demo needs the program \"chroot\"")?;
        let output = Command::new(chroot)
            .arg(place)
            .args(["/bin/sh", "-c", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()?;
        if !output.status.success() {
            bail!(
                "a script in {} failed ({}): {}",
                place.display(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn proceed(&self) -> Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    fn say(&self, text: impl AsRef<str>) -> Result<()> {
        if self.wanted.json.json { Ok(()) } else { self.output.remark(text) }
    }
}

/// Bytes of memory that only this process has: /proc/PID/smaps_rollup.
fn private_memory(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib =
        |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    Ok(private.filter_map(kib).sum::<u64>() * 1024)
}

impl Measured {
    fn table(&self, output: Output) -> Result<()> {
        let tenths = |big: u64, small: u64| {
            let tenths = big.saturating_mul(10).checked_div(small).unwrap_or_default();
            format!("{}.{} times", tenths / 10, tenths % 10)
        };
        let saved = |copies: u64, mica: u64| {
            if mica <= copies {
                format!("{} less", tenths(copies, mica))
            } else {
                format!("{} as much", tenths(mica, copies))
            }
        };
        let row = |what: &str, copies: u64, mica: u64| {
            vec![what.to_owned(), size(copies), size(mica), saved(copies, mica)]
        };
        let mut rows = vec![row("bytes on disk", self.disk_bytes_copies, self.disk_bytes_mica)];
        if let (Some(copies), Some(mica)) = (self.cache_bytes_copies, self.cache_bytes_mica) {
            rows.push(row("bytes in the page cache", copies, mica));
        }
        output.line("")?;
        output.table(&["", "THREE FULL COPIES", "THREE ROOTS", ""], &rows)?;
        if self.cache_bytes_copies.is_none() {
            output.remark("No figure for the page cache: these files live in memory anyway.")?;
        } else if !self.passthrough {
            output.remark("Memory is not shared here: there is no passthrough.")?;
        }
        output.remark(format!(
            "One copy is {}. The three mount processes take {} of memory themselves.",
            size(self.template_bytes),
            size(self.process_bytes),
        ))?;
        output.remark(format!("The scratch store is removed. {:.1} s in all.", self.seconds))
    }
}
