//! Disk space: how much N roots of a template take, beside N copies of it.
//!
//! Everything is really made and then counted: blocks and inodes of every file, and what the
//! file system says it lost. What does not fit is computed and marked so.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::contender::{Kind, Lower, Stock, TEMPLATE};
use super::copies::{Copies, reflinked};
use super::error::{BenchError, Result};
use super::fixture;
use super::place::{Place, ReflinkDisk, Taken, distinct_bytes, room, settle, taken, walk};
use super::results::{DiskPoint, FULL_COPIES, SavingsCase};
use super::run::{run, tool};
use super::session::Session;
use super::template::Prepared;

/// The numbers of roots that are told.
const SERIES: [u32; 5] = [1, 10, 20, 100, 1000];
/// Of reflink copies, whose metadata is written for each, at most so many are made.
const REFLINK_MOST: u32 = 20;
/// What other parts of a run need on the same disk while copies exist.
const SPARE: u64 = 1 << 30;

/// The steps of this part: names and planned seconds.
pub(super) fn steps(containers: u32, roots: u32) -> Vec<(String, f64)> {
    vec![
        ("savings: full copies".to_owned(), f64::from(containers) * 1.5),
        ("savings: roots".to_owned(), 5.0 + f64::from(roots) * 0.04),
        ("savings: reflink copies".to_owned(), 15.0),
        ("savings: a day's writes".to_owned(), 5.0 + f64::from(containers)),
        ("savings: an upgrade".to_owned(), 10.0 + f64::from(containers)),
        ("savings: templates that overlap".to_owned(), 30.0),
    ]
}

/// Makes the copies that several parts use, unless they are there.
pub(super) fn copies(session: &mut Session<'_>, template: &Prepared) -> Result<()> {
    if session.copies.is_some() {
        return Ok(());
    }
    let place = session.place("copies")?;
    let (_, before) = room(place.top())?;
    let top = place.top().to_owned();
    let wanted = session.settings.containers;
    let look = |number: u32| {
        if !SERIES.contains(&number) && number != wanted {
            return Ok(None);
        }
        settle(&top)?;
        let (_, now) = room(&top)?;
        Ok(Some(point(FULL_COPIES, number, taken(&top)?, Some((before, now)))))
    };
    session.copies = Some(Copies::make(place, template, wanted, SPARE, &look)?);
    Ok(())
}

fn point(who: &str, roots: u32, sum: Taken, used: Option<(Taken, Taken)>) -> DiskPoint {
    DiskPoint {
        contender: who.to_owned(),
        roots,
        bytes: sum.bytes,
        inodes: sum.inodes,
        statfs_bytes: used.map(|(before, after)| after.bytes.saturating_sub(before.bytes)),
        measured: true,
    }
}

/// The numbers of roots that are measured or computed in this run.
fn series(session: &Session<'_>) -> Vec<u32> {
    let containers = session.settings.containers;
    let mut series: Vec<u32> = SERIES.into_iter().chain([containers]).collect();
    series.sort_unstable();
    series.dedup();
    series
}

/// Adds what was not measured: as much for each further root as there was between the first
/// and the last number that was measured, or beyond `base` where there is one number alone.
fn complete(points: &mut Vec<DiskPoint>, who: &str, base: Taken, series: &[u32]) {
    let mut of: Vec<DiskPoint> =
        points.iter().filter(|point| point.contender == who).cloned().collect();
    of.sort_by_key(|point| point.roots);
    let (Some(first), Some(last)) = (of.first(), of.last()) else { return };
    let (from, begin) = if first.roots == last.roots {
        (base, 0)
    } else {
        (Taken { bytes: first.bytes, inodes: first.inodes }, first.roots)
    };
    let steps = i128::from(last.roots) - i128::from(begin);
    let along = |from: u64, to: u64, roots: u32| {
        let grown = i128::from(to) - i128::from(from);
        let value =
            i128::from(from) + grown * (i128::from(roots) - i128::from(begin)) / steps.max(1);
        u64::try_from(value).unwrap_or_default()
    };
    for roots in series.iter().copied() {
        if of.iter().any(|point| point.roots == roots) {
            continue;
        }
        points.push(DiskPoint {
            contender: who.to_owned(),
            roots,
            bytes: along(from.bytes, last.bytes, roots),
            inodes: along(from.inodes, last.inodes, roots),
            statfs_bytes: None,
            measured: false,
        });
    }
    points.sort_by_key(|point| point.roots);
}

/// What is done in a root, given its number.
type Work<'a> = &'a dyn Fn(&Path, u32) -> Result<()>;

/// The private directories of one contender's roots, and what they share.
struct Keeper {
    kind: Kind,
    lower: Lower,
    /// What all roots share is counted here.
    shared: PathBuf,
    privates: PathBuf,
    mountpoint: PathBuf,
}

impl Keeper {
    fn new(place: &Place, kind: Kind, lower: &Lower) -> Result<Self> {
        let shared = if kind == Kind::Mica { lower.stock.path() } else { &lower.tree };
        Ok(Self {
            kind,
            shared: shared.to_owned(),
            lower: lower.clone(),
            privates: place.directory("privates")?,
            mountpoint: place.directory("m")?,
        })
    }

    /// Mounts root `number`, does `work` in it, and unmounts it.
    fn visit(&self, number: u32, work: Work<'_>) -> Result<()> {
        let private = self.privates.join(number.to_string());
        fixture::directories(&private)?;
        let mounted = self.lower.mount(self.kind, &private, &self.mountpoint)?;
        work(mounted.path(), number)
    }

    fn taken(&self) -> Result<Taken> {
        settle(&self.privates)?;
        let mut sum = taken(&self.shared)?;
        sum += taken(&self.privates)?;
        Ok(sum)
    }
}

/// Reads a little, as a container that starts does.
fn look(root: &Path, _number: u32) -> Result<()> {
    let seen = fs::read_dir(root).map_err(BenchError::at("list", root))?.count();
    if seen == 0 {
        return Err(std::io::Error::from(std::io::ErrorKind::NotFound).into());
    }
    Ok(())
}

/// Measures this part.
pub(super) fn measure(session: &mut Session<'_>, templates: &[Prepared]) -> Result<()> {
    let Some(template) = templates.first() else { return Ok(()) };
    let series = series(session);
    let nothing = Taken::default();

    let mut points = Vec::new();
    session.part("savings: full copies", "savings", |session| {
        copies(session, template)?;
        points.extend(session.copies.iter().flat_map(|copies| copies.points.clone()));
        Ok(())
    })?;
    complete(&mut points, FULL_COPIES, nothing, &series);

    let place = session.place("savings")?;
    let lower = session.import(&place, &template.tree)?;
    let mut keepers = Vec::new();
    session.part("savings: roots", "savings", |session| {
        for kind in Kind::here() {
            let keeper = Keeper::new(&place, kind, &lower)?;
            let base = taken(&keeper.shared)?;
            let (_, before) = room(place.top())?;
            for number in 1..=session.sizes.roots.max(session.settings.containers) {
                keeper.visit(number, &look)?;
                if series.contains(&number) {
                    let sum = keeper.taken()?;
                    let (_, now) = room(place.top())?;
                    // The store or lower directory was there before.
                    let now = Taken { bytes: now.bytes + base.bytes, ..now };
                    points.push(point(kind.name(), number, sum, Some((before, now))));
                }
            }
            complete(&mut points, kind.name(), base, &series);
            keepers.push(keeper);
        }
        Ok(())
    })?;
    session.part("savings: reflink copies", "savings", |session| {
        reflinks(session, template, &mut points)
    })?;
    complete(&mut points, "reflink copies", nothing, &series);
    let ideal = distinct_bytes(&[&template.tree])?;
    session.results.savings.push(SavingsCase {
        name: "just made".to_owned(),
        note: format!("roots of {}, each mounted once, nothing written", template.name),
        points,
        ideal: series.iter().map(|roots| (*roots, ideal)).collect(),
    });

    let changed = changes(session, template, &keepers, &series);
    drop(keepers);
    changed?;
    drop(place);
    session.part("savings: templates that overlap", "savings", |session| {
        overlapping(session, templates)
    })
}

/// Copies that share blocks, on a disk in a file of their own: there statfs(2) tells exactly
/// what is taken, where `st_blocks` counts a shared block once for each file.
fn reflinks(
    session: &mut Session<'_>,
    template: &Prepared,
    points: &mut Vec<DiskPoint>,
) -> Result<()> {
    let most = REFLINK_MOST.min(session.sizes.roots);
    let place = session.place("reflinks")?;
    let inodes = template.taken.inodes * u64::from(most) * 2048;
    let disk = match ReflinkDisk::new(&place, template.taken.bytes * 2 + inodes + (256 << 20)) {
        Ok(disk) => disk,
        Err(error) => {
            let why = crate::host::sentence(&error);
            session.skip("reflink copies", format!("no xfs in a file here: {why}"));
            return Ok(());
        }
    };
    settle(disk.path())?;
    let (_, before) = room(disk.path())?;
    let first = disk.path().join("copy-1");
    run(tool("cp").arg("-a").arg(&template.tree).arg(&first))?;
    for number in 1..=most {
        if number > 1 {
            reflinked(&first, &disk.path().join(format!("copy-{number}")))?;
        }
        if SERIES.contains(&number) {
            settle(disk.path())?;
            let (_, now) = room(disk.path())?;
            let sum = Taken {
                bytes: now.bytes.saturating_sub(before.bytes),
                inodes: template.taken.inodes * u64::from(number),
            };
            points.push(point("reflink copies", number, sum, Some((before, now))));
        }
    }
    Ok(())
}

/// What containers write in a day: logs that grow, a small database, caches, a changed setting.
fn a_days_writes(root: &Path, number: u32) -> Result<()> {
    let own = u64::from(number);
    fixture::directories(&root.join("var/log"))?;
    let log = |name: &str, bytes: usize| -> Result<()> {
        let path = root.join("var/log").join(name);
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let mut file = file.map_err(BenchError::at("open", &path))?;
        file.write_all(&fixture::noise(bytes, own))?;
        Ok(())
    };
    log("syslog", 512 << 10)?;
    log("access.log", 1 << 20)?;
    fixture::file(root, "var/lib/bench/data.db", &fixture::noise(2 << 20, own + 1))?;
    for at in 0..20 {
        let content = fixture::noise(8 << 10, own * 100 + at);
        fixture::file(root, &format!("var/cache/bench/{at}"), &content)?;
    }
    fixture::file(root, "etc/hostname", format!("container-{number}\n").as_bytes())
}

/// Files that an upgrade replaces: one in 25 below `usr`, the same in every root.
fn upgraded(tree: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    walk(tree, &mut |path, metadata| {
        if metadata.is_file()
            && let Ok(relative) = path.strip_prefix(tree)
        {
            let digest = blake3::hash(relative.as_os_str().as_encoded_bytes());
            if relative.starts_with("usr") && digest.as_bytes()[0] < 10 {
                files.push(relative.to_owned());
            }
        }
        Ok(())
    })?;
    Ok(files)
}

/// Replaces a file as dpkg does: a whole new one beside it, synced, renamed over it. The new
/// one is a line longer, so that it is another content and still works.
fn upgrade(root: &Path, files: &[PathBuf]) -> Result<()> {
    for file in files {
        let path = root.join(file);
        let mut name = path.clone().into_os_string();
        name.push(".dpkg-new");
        let new = PathBuf::from(name);
        fs::copy(&path, &new).map_err(BenchError::at("copy", &path))?;
        let opened = OpenOptions::new().append(true).open(&new);
        let mut opened = opened.map_err(BenchError::at("open", &new))?;
        opened.write_all(b"\n# upgraded\n")?;
        fs::rename(&new, &path).map_err(BenchError::at("rename", &new))?;
    }
    settle(root)
}

/// What Mica's roots take once equal private files are objects again, as its daemon sees to.
fn reshared(
    keeper: &Keeper,
    containers: u32,
    series: &[u32],
    points: &mut Vec<DiskPoint>,
) -> Result<()> {
    let who = "mica, reshared";
    run(&mut keeper.lower.stock.mica(["store", "reshare", "--all", "--quiet"]))?;
    settle(&keeper.privates)?;
    let base = taken(&keeper.shared)?;
    let mut sum = base;
    for number in 1..=containers {
        sum += taken(&keeper.privates.join(number.to_string()))?;
        if series.contains(&number) {
            points.push(point(who, number, sum, None));
        }
    }
    complete(points, who, base, series);
    Ok(())
}

/// Measures what roots take that were written to.
fn changes(
    session: &mut Session<'_>,
    template: &Prepared,
    keepers: &[Keeper],
    series: &[u32],
) -> Result<()> {
    let files = upgraded(&template.tree)?;
    let upgrade = |root: &Path, _number: u32| upgrade(root, &files);
    let cases: [(&str, &str, Work<'_>); 2] = [
        ("savings: a day's writes", "after a day's writes", &a_days_writes),
        ("savings: an upgrade", "after a package upgrade as well", &upgrade),
    ];
    for (step, name, work) in cases {
        session.part(step, "savings", |session| {
            let copies: Vec<PathBuf> =
                session.copies.as_ref().map(|copies| copies.all().to_vec()).unwrap_or_default();
            let count = u32::try_from(copies.len()).unwrap_or(u32::MAX);
            let mut points = Vec::new();
            let mut sum = Taken::default();
            for (number, copy) in (1..).zip(&copies) {
                work(copy, number)?;
                settle(copy)?;
                sum += taken(copy)?;
                if series.contains(&number) || number == count {
                    points.push(point(FULL_COPIES, number, sum, None));
                }
            }
            complete(&mut points, FULL_COPIES, Taken::default(), series);
            // All roots that keepers have count; the first of them are written to.
            let containers = session.settings.containers;
            for keeper in keepers {
                let base = taken(&keeper.shared)?;
                let mut sum = base;
                for number in 1..=containers {
                    keeper.visit(number, work)?;
                    settle(&keeper.privates)?;
                    sum += taken(&keeper.privates.join(number.to_string()))?;
                    if series.contains(&number) {
                        points.push(point(keeper.kind.name(), number, sum, None));
                    }
                }
                complete(&mut points, keeper.kind.name(), base, series);
            }
            if name.contains("upgrade") {
                for keeper in keepers.iter().filter(|keeper| keeper.kind == Kind::Mica) {
                    reshared(keeper, containers, series, &mut points)?;
                }
            }
            let measured: Vec<&Path> = copies.iter().map(PathBuf::as_path).collect();
            let base = distinct_bytes(&[&template.tree])?;
            // Beyond the copies that there are it is computed from all of them.
            let mut of_copies: BTreeMap<usize, u64> = BTreeMap::new();
            let mut ideal = |roots: u32| -> Result<(u32, u64)> {
                let some = usize::try_from(roots).unwrap_or(usize::MAX).min(measured.len());
                let all = match of_copies.get(&some) {
                    Some(all) => *all,
                    None => distinct_bytes(&measured[..some])?,
                };
                of_copies.insert(some, all);
                let each = all.saturating_sub(base) / u64::try_from(some.max(1)).unwrap_or(1);
                Ok((roots, base + each * u64::from(roots)))
            };
            let note = if name.contains("upgrade") {
                format!(
                    "{} files of {} under /usr replaced in each root, by the same new ones",
                    files.len(),
                    template.name
                )
            } else {
                "logs, caches, a small database and a setting: about 3.7 MiB in each root"
                    .to_owned()
            };
            let ideal = series.iter().map(|roots| ideal(*roots)).collect::<Result<_>>()?;
            session.results.savings.push(SavingsCase {
                name: name.to_owned(),
                note,
                points,
                ideal,
            });
            Ok(())
        })?;
    }
    Ok(())
}

/// Roots of templates that have files in common: the first and each other one that was asked for,
/// or the one and a next release of it that is made here.
fn overlapping(session: &mut Session<'_>, templates: &[Prepared]) -> Result<()> {
    let Some((first, others)) = templates.split_first() else { return Ok(()) };
    for other in others {
        let name = format!("{} and {}", first.name, other.name);
        let note = format!("roots of {name}, in turn");
        overlap(session, &[first.tree.clone(), other.tree.clone()], name, note)?;
    }
    if others.is_empty() {
        let place = session.place("release")?;
        let next = place.path("next");
        run(tool("cp").arg("-a").arg(&first.tree).arg(&next))?;
        upgrade(&next, &upgraded(&next)?)?;
        let note = format!(
            "roots of {}, and of a copy of it with one file in 25 replaced, as a next release",
            first.name
        );
        let name = "templates that overlap".to_owned();
        overlap(session, &[first.tree.clone(), next], name, note)?;
    }
    Ok(())
}

/// Roots of several templates, in turn.
fn overlap(session: &mut Session<'_>, trees: &[PathBuf], name: String, note: String) -> Result<()> {
    let place = session.place("overlap")?;
    let stock = Stock::at(place.path("store"), &session.settings.program);
    let mut of_trees = Vec::new();
    for (number, tree) in trees.iter().enumerate() {
        stock.import(&format!("{TEMPLATE}-{number}"), tree, None)?;
        of_trees.push(taken(tree)?);
    }
    let mut points = Vec::new();
    let series = series(session);
    for kind in [Kind::Overlay, Kind::Mica] {
        let mountpoint = place.directory("m")?;
        let privates = place.directory("privates")?;
        let shared = if kind == Kind::Mica {
            taken(stock.path())?
        } else {
            of_trees.iter().fold(Taken::default(), |mut sum, tree| {
                sum += *tree;
                sum
            })
        };
        let turns = trees.iter().enumerate().cycle();
        for (number, (at, tree)) in (1..=session.settings.containers).zip(turns) {
            let template = format!("{TEMPLATE}-{at}");
            let lower = Lower { tree: tree.clone(), stock: stock.clone(), template };
            let private = privates.join(number.to_string());
            fixture::directories(&private)?;
            let mounted = lower.mount(kind, &private, &mountpoint)?;
            look(mounted.path(), number)?;
            drop(mounted);
            if series.contains(&number) {
                // Records of roots lie in the store.
                let mut sum = if kind == Kind::Mica { taken(stock.path())? } else { shared };
                sum += taken(&privates)?;
                points.push(point(kind.name(), number, sum, None));
            }
        }
        complete(&mut points, kind.name(), shared, &series);
    }
    let trees: Vec<&Path> = trees.iter().map(PathBuf::as_path).collect();
    let ideal = distinct_bytes(&trees)?;
    for roots in &series {
        let mut sum = Taken::default();
        for (_, tree) in (0..*roots).zip(of_trees.iter().cycle()) {
            sum += *tree;
        }
        points.push(DiskPoint { measured: false, ..point(FULL_COPIES, *roots, sum, None) });
    }
    points.sort_by_key(|one| one.roots);
    session.results.savings.push(SavingsCase {
        name,
        note,
        points,
        ideal: series.iter().map(|roots| (*roots, ideal)).collect(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_computed_from_what_each_root_adds_and_marked() {
        let sum = |bytes, inodes| Taken { bytes, inodes };
        let mut points =
            vec![point("a", 1, sum(110, 11), None), point("a", 10, sum(200, 20), None)];
        complete(&mut points, "a", sum(100, 10), &[1, 10, 100]);
        assert_eq!(points.len(), 3);
        assert_eq!((points[2].bytes, points[2].inodes), (1100, 110));
        assert!(points[1].measured && !points[2].measured);
        complete(&mut points, "nobody", sum(0, 0), &[1]);
        assert_eq!(points.len(), 3);
    }

    #[test]
    fn an_upgrade_makes_other_contents_of_the_same_files() {
        let base = tempfile::tempdir_in("/var/tmp").expect("a scratch directory");
        for number in 0..200 {
            fixture::file(base.path(), &format!("usr/{number}"), b"text").expect("written");
        }
        let files = upgraded(base.path()).expect("walked");
        assert!((1..30).contains(&files.len()), "{files:?}");
        upgrade(base.path(), &files).expect("replaced");
        assert_eq!(fs::read(base.path().join(&files[0])).expect("read"), b"text\n# upgraded\n");
        assert_eq!(taken(base.path()).expect("looked at").inodes, 202);
    }
}
