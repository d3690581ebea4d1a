//! Files of this host that a template can be made of: some programs, the libraries they
//! load, and every symbolic link on the way to them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// What the steps of the demo run; without one of these there is no template.
const NEEDED: &[&str] = &["sh", "cat", "cp", "grep", "ls", "mv", "rm", "sha256sum", "wc"];

/// What else a working set is made of, where it exists.
const WELCOME: &[&str] = &[
    "bash", "chmod", "cut", "date", "du", "env", "find", "git", "gzip", "head", "id", "ln",
    "mkdir", "openssl", "sed", "sort", "stat", "tail", "tar", "tee", "touch", "tr", "uname",
];

/// Interpreters, best first; the first one found comes with its own modules.
const INTERPRETERS: &[(&str, &str)] = &[
    ("python3", "import sysconfig; print(sysconfig.get_paths()['stdlib'])"),
    ("perl", "print join \"\\n\", grep { m{/perl-base$} } @INC"),
];

/// Texts, so that there is something to read and change.
const TEXTS: &[&str] = &["/etc/os-release", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"];

/// Parts of an interpreter's library that nobody runs here.
const LEFT_OUT: &[&str] = &["__pycache__", "dist-packages", "idlelib", "site-packages", "test"];

/// As many symbolic links as the kernel itself follows in one path.
const LINK_LIMIT: usize = 40;

/// Why no template can be made of this host.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// A program is not there.
    #[error("the program {0:?} is needed and not in any of {DIRECTORIES:?}")]
    Missing(&'static str),
    /// Something cannot be looked at, read, run or written.
    #[error("cannot {what} {}", path.display())]
    System {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A path leads round in circles.
    #[error("too many symbolic links on the way to {}", .0.display())]
    Links(PathBuf),
    /// Neither a file nor a directory.
    #[error("{} is neither a file nor a directory", .0.display())]
    Kind(PathBuf),
    /// A program that was asked about itself or another one failed.
    #[error("{} cannot say {what}: {said}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What it was asked.
        what: &'static str,
        /// What it said.
        said: String,
    },
    /// The caller wants no more.
    #[error("interrupted")]
    Stopped,
}

type Result<T, E = WorkingSetError> = std::result::Result<T, E>;

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WorkingSetError {
    let path = path.to_owned();
    move |source| WorkingSetError::System { what, path, source }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Directory,
    Link(PathBuf),
    File,
}

/// A set of host paths that can run on its own in a chroot.
#[derive(Debug, Default)]
pub struct WorkingSet {
    items: BTreeMap<PathBuf, Item>,
    /// The programs in it, by name.
    pub programs: Vec<String>,
    /// The interpreter in it, if the host has one.
    pub interpreter: Option<&'static str>,
}

impl WorkingSet {
    /// Looks around on this host.
    ///
    /// # Errors
    /// [`WorkingSetError`].
    pub fn of_this_host() -> Result<Self> {
        let mut set = Self::default();
        for name in NEEDED {
            if !set.add_program(name)? {
                return Err(WorkingSetError::Missing(name));
            }
        }
        for name in WELCOME {
            set.add_program(name)?;
        }
        for (name, modules) in INTERPRETERS {
            if set.add_program(name)? {
                set.add_modules(name, modules)?;
                set.interpreter = Some(name);
                break;
            }
        }
        // The name that scripts and the steps of the demo call it by.
        set.add_path(Path::new("/bin/sh"))?;
        for text in TEXTS {
            if Path::new(text).is_file() {
                set.add_path(Path::new(text))?;
            }
        }
        // A root without a place for temporary files is no fun to run programs in.
        set.items.insert("/tmp".into(), Item::Directory);
        Ok(set)
    }

    /// How many regular files there are.
    pub fn file_count(&self) -> usize {
        self.items.values().filter(|item| **item == Item::File).count()
    }

    /// Makes a full copy under the new directory `target`: real data, nothing shared.
    ///
    /// `proceed` is asked before each file and may end it.
    ///
    /// # Errors
    /// [`WorkingSetError::System`], [`WorkingSetError::Stopped`].
    pub fn copy_to(&self, target: &Path, proceed: &dyn Fn() -> bool) -> Result<()> {
        fs::create_dir_all(target).map_err(at("make", target))?;
        for (path, item) in &self.items {
            if !proceed() {
                return Err(WorkingSetError::Stopped);
            }
            let relative = path.strip_prefix("/").unwrap_or(path);
            let new = target.join(relative);
            match item {
                Item::Directory => fs::create_dir_all(&new),
                Item::Link(link) => symlink(link, &new),
                Item::File => copy(path, &new),
            }
            .map_err(at("copy", path))?;
        }
        let tmp = target.join("tmp");
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).map_err(at("open up", &tmp))
    }

    /// Adds a program and what it loads; says whether the host has it as a binary.
    fn add_program(&mut self, name: &str) -> Result<bool> {
        let Some(path) = find_program(name) else { return Ok(false) };
        let Some(libraries) = loaded_by(&path)? else { return Ok(false) };
        self.add_path(&path)?;
        for library in libraries {
            self.add_path(&library)?;
        }
        self.programs.push(name.to_owned());
        Ok(true)
    }

    fn add_modules(&mut self, interpreter: &str, question: &str) -> Result<()> {
        let Some(path) = find_program(interpreter) else { return Ok(()) };
        let flag = if interpreter == "perl" { "-e" } else { "-c" };
        let output = Command::new(&path).args([flag, question]).env_clear().output();
        let output = output.map_err(at("run", &path))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(WorkingSetError::Program {
                program: path,
                what: "where its modules are",
                said,
            });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        for directory in text.lines().filter(|line| !line.is_empty()) {
            self.add_tree(Path::new(directory))?;
        }
        Ok(())
    }

    fn add_tree(&mut self, directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory).map_err(at("list", directory))? {
            let entry = entry.map_err(at("list", directory))?;
            if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            let kind = entry.file_type().map_err(at("look at", &entry.path()))?;
            if kind.is_dir() {
                self.add_tree(&entry.path())?;
            } else if kind.is_file() {
                self.add_path(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Adds an absolute path with every directory and link on the way to it.
    fn add_path(&mut self, path: &Path) -> Result<()> {
        let mut todo: Vec<PathBuf> = parts(path);
        let mut done = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == Path::new("..") {
                done.pop();
                continue;
            }
            done.push(part);
            let metadata = fs::symlink_metadata(&done).map_err(at("look at", &done))?;
            let item = if metadata.is_symlink() {
                links += 1;
                if links > LINK_LIMIT {
                    return Err(WorkingSetError::Links(path.to_owned()));
                }
                let link = fs::read_link(&done).map_err(at("read", &done))?;
                todo.extend(parts(&link));
                Item::Link(link)
            } else if metadata.is_dir() {
                Item::Directory
            } else if metadata.is_file() {
                Item::File
            } else {
                return Err(WorkingSetError::Kind(done));
            };
            let link = match &item {
                Item::Link(link) => Some(link.is_absolute()),
                Item::Directory | Item::File => None,
            };
            self.items.insert(done.clone(), item);
            match link {
                Some(true) => done = PathBuf::from("/"),
                Some(false) => {
                    done.pop();
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// Where programs are looked for: the host's own, whatever PATH says.
const DIRECTORIES: &[&str] = &["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Finds a program of the host by name.
pub fn find_program(name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

/// The components of a path, last first.
fn parts(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| PathBuf::from(part.as_os_str()))
        .collect()
}

/// Copies content, mode and mtime by reading and writing, so that nothing is shared: the
/// kernel's own copy calls may reflink.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let metadata = source.metadata()?;
    let mut target = File::create_new(to)?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = source.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        target.write_all(buffer.get(..read).unwrap_or_default())?;
    }
    target.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    target.set_modified(metadata.modified()?)
}

/// What the dynamic loader maps for a program: the loader itself and every library.
///
/// `None` if the file is not an ELF program at all. The loader is asked, as ldd does.
fn loaded_by(program: &Path) -> Result<Option<Vec<PathBuf>>> {
    let Some(elf) = Elf::open(program).map_err(at("read", program))? else { return Ok(None) };
    let loader = elf.interpreter().map_err(at("read", program))?;
    let Some(loader) = loader else { return Ok(Some(Vec::new())) };
    let output = Command::new(&loader).arg("--list").arg(program).env_clear().output();
    let output = output.map_err(at("run", &loader))?;
    let failed = |said: &str| WorkingSetError::Program {
        program: loader.clone(),
        what: "what a program loads",
        said: said.trim().to_owned(),
    };
    if !output.status.success() {
        return Err(failed(&String::from_utf8_lossy(&output.stderr)));
    }
    let libraries = listed(&String::from_utf8_lossy(&output.stdout));
    let mut libraries = libraries.map_err(|line| failed(&line))?;
    libraries.push(loader);
    Ok(Some(libraries))
}

/// Reads the loader's list: `name => path (address)`, `path (address)`, or a name alone
/// for what the kernel provides. An error is the line that names what is not there.
fn listed(text: &str) -> Result<Vec<PathBuf>, String> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        let found = line.split_once("=> ").map_or(line, |(_, found)| found);
        if found == "not found" {
            return Err(line.to_owned());
        }
        let path = found.rsplit_once(" (").map_or(found, |(path, _)| path);
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

/// As much of an ELF file as it takes to find the loader it asks for (elf(5)).
struct Elf {
    file: File,
    wide: bool,
    little: bool,
}

impl Elf {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let mut ident = [0; 6];
        let read = file.read_at(&mut ident, 0)?;
        if read < ident.len() || !ident.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        Ok(Some(Self { file, wide: ident[4] == 2, little: ident[5] == 1 }))
    }

    /// The path in PT_INTERP; a static program has none.
    fn interpreter(&self) -> io::Result<Option<PathBuf>> {
        const PT_INTERP: u64 = 3;
        const LONGEST_PATH: u64 = 4096;
        // Offsets of e_phoff, e_phentsize, e_phnum; of p_offset and p_filesz in an entry.
        let (at, size, count, offset, length) =
            if self.wide { (32, 54, 56, 8, 32) } else { (28, 42, 44, 4, 16) };
        let word = if self.wide { 8 } else { 4 };
        let table = self.number(at, word)?;
        let entry_size = self.number(size, 2)?;
        for index in 0..self.number(count, 2)? {
            let entry = table.saturating_add(index * entry_size);
            if self.number(entry, 4)? != PT_INTERP {
                continue;
            }
            let offset = self.number(entry.saturating_add(offset), word)?;
            let length = self.number(entry.saturating_add(length), word)?.min(LONGEST_PATH);
            let mut path = vec![0; usize::try_from(length).unwrap_or_default()];
            self.file.read_exact_at(&mut path, offset)?;
            let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
            return Ok(Some(PathBuf::from(OsStr::from_bytes(path))));
        }
        Ok(None)
    }

    fn number(&self, offset: u64, bytes: usize) -> io::Result<u64> {
        let mut raw = [0; 8];
        let field = raw.get_mut(..bytes).unwrap_or_default();
        self.file.read_exact_at(field, offset)?;
        if self.little {
            return Ok(u64::from_le_bytes(raw));
        }
        field.reverse();
        Ok(u64::from_le_bytes(raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_hosts_shell_comes_with_its_loader_and_libraries() {
        let shell = find_program("sh").expect("every host has a shell");
        let loaded = loaded_by(&shell).expect("an ELF program").expect("an ELF program");
        assert!(loaded.iter().all(|library| library.is_file()), "{loaded:?}");
        assert!(loaded.iter().any(|library| library.to_string_lossy().contains("libc")));
        let script = tempfile::NamedTempFile::new().expect("a scratch file");
        std::fs::write(script.path(), "#!/bin/sh\n").expect("written");
        assert_eq!(loaded_by(script.path()).expect("readable"), None);
    }

    #[test]
    fn the_loaders_list_is_read_with_what_the_kernel_provides_left_out() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected: [PathBuf; 2] =
            ["/lib/libc.so.6".into(), "/lib64/ld-linux-x86-64.so.2".into()];
        assert_eq!(listed(text).expect("whole"), expected);
        assert!(listed("\tlibgone.so => not found\n").is_err());
        assert_eq!(listed("\tstatically linked\n").expect("whole"), Vec::<PathBuf>::new());
    }

    #[test]
    fn links_on_the_way_are_part_of_the_set() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir(at("real")).expect("made");
        fs::write(at("real/file"), b"x").expect("written");
        symlink("real", at("alias")).expect("linked");
        symlink(at("alias/file"), at("real/absolute")).expect("linked");
        symlink("../alias/absolute", at("real/up")).expect("linked");
        let mut set = WorkingSet::default();
        set.add_path(&at("alias/up")).expect("resolves");
        for (name, item) in [
            ("alias", Item::Link("real".into())),
            ("real/up", Item::Link("../alias/absolute".into())),
            ("real/absolute", Item::Link(at("alias/file"))),
            ("real/file", Item::File),
            ("real", Item::Directory),
        ] {
            assert_eq!(set.items.get(&at(name)), Some(&item), "{name}");
        }
        symlink("loop", at("loop")).expect("linked");
        assert!(set.add_path(&at("loop")).is_err());
    }

    #[test]
    fn the_working_set_of_this_host_can_be_copied() {
        let set = WorkingSet::of_this_host().expect("a Debian host");
        assert!(set.file_count() > NEEDED.len());
        let scratch = tempfile::tempdir().expect("a scratch directory");
        set.copy_to(&scratch.path().join("copy"), &|| true).expect("copied");
        assert!(scratch.path().join("copy/bin/sh").symlink_metadata().is_ok());
        let stopped = set.copy_to(&scratch.path().join("two"), &|| false);
        assert!(matches!(stopped, Err(WorkingSetError::Stopped)), "{stopped:?}");
    }
}
