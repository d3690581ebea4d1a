//! Making a container: what it will be, decided at once, then written in one step.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::claims::{Claim, Claims};
use super::crash::here;
use super::driver::{Driver, StandStill, disk, promised};
use super::error::NodeError;
use super::phase::Phase;
use super::reasons::Reasons;
use super::registry::{Places, Recorded, Registry};
use super::state::ContainerState;
use crate::container::cgroup::{Capacity, admit};
use crate::container::config::{
    ContainerConfig, ContainerId, ContainerName, KeyError, Kind, Port, Problem, UserNamespace, key,
};
use crate::container::idmap::IdRange;
use crate::host::reserve::{self, Reservation};
use crate::inspect::{Library, View};
use crate::layer::{LayerPath, Template};
use crate::sys::durable::sync_file_system;

/// Where a whole machine has its init.
const INIT: &str = "/sbin/init";

/// SIGINT: what any init but systemd takes for Ctrl-Alt-Delete, and shuts down.
const SHUT_DOWN: &str = "SIGINT";

/// A container that somebody wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// Its name; none: one is made of the template's.
    pub name: Option<String>,
    /// The template, `NAME[:TAG]`.
    pub template: String,
    /// A private directory made by hand.
    pub private: Option<PathBuf>,
    /// Whether it is a whole machine, whatever its template says.
    pub system: bool,
    /// What it runs; none: what the template says.
    pub command: Vec<String>,
    /// Settings, as they were written, in order.
    pub settings: Vec<(String, String)>,
}

/// Makes `settings` of a container, in their order; a setting that may be given several times
/// collects what it was given. Answers those that are none; the others are made.
fn apply(config: &mut ContainerConfig, settings: &[(String, String)]) -> Vec<KeyError> {
    let mut collected: Vec<(&'static str, Vec<&str>)> = Vec::new();
    let mut wrong = Vec::new();
    for (name, value) in settings {
        let known = key(name).filter(|key| key.repeats && !value.trim().is_empty());
        let Some(known) = known else {
            wrong.extend(config.set(name, value).err());
            continue;
        };
        // One by one: each that is wrong is told, and only that.
        for word in value.split(',') {
            let at = collected.iter().position(|(name, _)| *name == known.name);
            let before = at.and_then(|at| collected.get(at)).map_or(&[][..], |(_, all)| all);
            let all = [before, &[word]].concat();
            match (config.set(name, &all.join(",")), at.and_then(|at| collected.get_mut(at))) {
                (Err(error), _) => wrong.push(error),
                (Ok(_), Some((_, before))) => *before = all,
                (Ok(_), None) => collected.push((known.name, all)),
            }
        }
    }
    wrong
}

/// What a container is to be, as far as what was asked for can be understood, and what speaks
/// against it.
pub(super) struct Intended {
    config: ContainerConfig,
    reasons: Reasons,
}

impl Intended {
    /// `config` with `settings`; nothing of what hangs on a setting that is none, or on a `kind`
    /// that is not known, is held against it.
    fn of(
        mut config: ContainerConfig,
        settings: &[(String, String)],
        kind: Option<Kind>,
        mut reasons: Reasons,
    ) -> Self {
        let wrong = apply(&mut config, settings);
        let sound = |problem: &Problem| {
            let keys = wrong.iter().filter_map(KeyError::key);
            keys.into_iter().all(|key| !problem.hangs_on(key))
                && (kind.is_some() || !problem.hangs_on_kind())
        };
        let problems: Vec<Problem> = config.check().into_iter().filter(sound).collect();
        reasons.extend(wrong.into_iter().map(NodeError::Key));
        reasons.extend(problems.into_iter().map(NodeError::Problem));
        Self { config, reasons }
    }
}

/// Refuses guarantees that the host cannot keep beside those of `others`.
pub(super) fn admitted(config: &ContainerConfig, others: &[Recorded]) -> Result<(), NodeError> {
    let others = others.iter().filter(|other| other.config.id != config.id);
    let others = others.map(|other| promised(&other.config)).collect::<Result<Vec<_>, _>>()?;
    Ok(admit(&others, promised(config)?, Capacity::of_host()?)?)
}

/// What a template says about what to run.
struct Image {
    template: Template,
    /// Where its `/sbin/init` leads, if it has one.
    init: Option<String>,
}

fn image(driver: &Driver, wanted: &Wanted) -> Result<Image, NodeError> {
    let library = Library::open(driver.store().path()).map_err(NodeError::inspect)?;
    let template = library.template(&wanted.template).map_err(|error| {
        let swapped = wanted.name.as_ref().filter(|name| library.template(name).is_ok());
        match swapped {
            Some(name) => {
                NodeError::Swapped { name: wanted.template.clone(), template: name.clone() }
            }
            None => NodeError::inspect(error),
        }
    })?;
    let view = View::of_stack(&library, template.name.to_string(), &template.stack)
        .map_err(NodeError::inspect)?;
    let path = LayerPath::parse(INIT.as_bytes()).ok();
    let init = path.and_then(|path| view.follow(&path).ok()).map(|(path, _)| path.to_string());
    Ok(Image { template, init })
}

/// What kind of container it will be.
fn kind(wanted: &Wanted, image: &Image) -> Result<Kind, NodeError> {
    let run = &image.template.config;
    let from_image = !run.entrypoint.is_empty() || !run.cmd.is_empty();
    match (wanted.system, wanted.command.is_empty()) {
        (true, _) => Ok(Kind::System),
        (false, false) => Ok(Kind::Application),
        (false, true) if from_image => Ok(Kind::Application),
        (false, true) if image.init.is_some() => Ok(Kind::System),
        (false, true) => Err(NodeError::NothingToRun { template: image.template.name.to_string() }),
    }
}

/// What the container will be, from what was asked for and what the template says.
fn describe(
    wanted: &Wanted,
    image: Option<&Image>,
    id: ContainerId,
) -> Result<Intended, NodeError> {
    let mut reasons = Reasons::default();
    let kind = image.and_then(|image| reasons.take(kind(wanted, image)));
    let digits = |count| id.as_str().get(..count).unwrap_or_default().to_owned();
    let name = match (&wanted.name, image) {
        (Some(name), _) => name.parse(),
        (None, Some(image)) => format!("{}-{}", image.template.name.name(), digits(6)).parse(),
        (None, None) => digits(12).parse(),
    };
    // What else is wrong is told beside a name that is none.
    let name: ContainerName = match reasons.take(name.map_err(NodeError::Name)) {
        Some(name) => name,
        None => digits(12).parse()?,
    };
    let template =
        image.map_or_else(|| wanted.template.clone(), |image| image.template.name.to_string());
    let mut config = ContainerConfig::new(id, name, &template, kind.unwrap_or(Kind::System));
    if let (Some(image), Some(kind)) = (image, kind) {
        reasons.extend(take_over(&mut config, wanted, image, kind).err());
    }
    config.private.clone_from(&wanted.private);
    Ok(Intended::of(config, &wanted.settings, kind, reasons))
}

/// Makes of a container what its template says about what to run.
fn take_over(
    config: &mut ContainerConfig,
    wanted: &Wanted,
    image: &Image,
    kind: Kind,
) -> Result<(), NodeError> {
    let run = &image.template.config;
    for variable in &run.env {
        if let Some((name, value)) = variable.split_once('=') {
            config.env.insert(name.to_owned(), value.to_owned());
        }
    }
    if kind == Kind::Application {
        config.command.clone_from(&run.entrypoint);
        let arguments = if wanted.command.is_empty() { &run.cmd } else { &wanted.command };
        config.command.extend(arguments.iter().cloned());
        config.workdir = Some(&run.working_dir).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        config.user = Some(run.user.clone()).filter(|user| !user.is_empty());
        if !run.stop_signal.is_empty() {
            config.set("stop.signal", &run.stop_signal)?;
        }
    } else {
        config.command.clone_from(&wanted.command);
        let systemd = image.init.as_ref().is_none_or(|init| init.ends_with("systemd"));
        if !systemd {
            config.set("stop.signal", SHUT_DOWN)?;
        }
    }
    Ok(())
}

/// The users of the host that a container's users are, beside `others`.
fn users(config: &ContainerConfig, others: &[Recorded]) -> Result<Option<IdRange>, NodeError> {
    let others = || others.iter().filter(|other| other.config.id != config.id);
    match config.userns {
        _ if config.privileged => Ok(None),
        UserNamespace::Host => Ok(None),
        UserNamespace::Range(range) => {
            let holder =
                others().find(|other| other.state.users.is_some_and(|its| its.overlaps(range)));
            match holder {
                Some(other) => Err(NodeError::UsersTaken { name: other.config.name.clone() }),
                None => Ok(Some(range)),
            }
        }
        UserNamespace::Auto => {
            NodeError::unless_known(others())?;
            let taken: Vec<IdRange> = others().filter_map(|other| other.state.users).collect();
            IdRange::allocate(&taken).map(Some).ok_or(NodeError::NoUsersLeft)
        }
    }
}

/// Refuses a name that another one of `others` has.
pub(super) fn named(config: &ContainerConfig, others: &[Recorded]) -> Result<(), NodeError> {
    let same = |other: &&Recorded| other.config.name == config.name && other.config.id != config.id;
    match others.iter().find(same) {
        Some(_) => Err(NodeError::NameTaken { name: config.name.clone() }),
        None => Ok(()),
    }
}

/// Why `ports` cannot be those of the container `id` as well: each that another one of `others` has.
fn taken<'a>(
    ports: impl Iterator<Item = &'a Port>,
    id: &ContainerId,
    others: &[Recorded],
) -> Vec<NodeError> {
    let holder = |port: &Port| {
        let publishes =
            |other: &&Recorded| other.config.network.ports.iter().any(|its| its.collides(port));
        others.iter().filter(|other| other.config.id != *id).find(publishes)
    };
    let taken = |port: &Port| {
        let holder = holder(port)?.config.name.clone();
        Some(NodeError::PortTaken { port: port.on_host(), holder })
    };
    ports.filter_map(taken).collect()
}

/// What a new container has that only one can have.
fn settled(
    driver: &Driver,
    intended: Intended,
    others: &[Recorded],
) -> Result<Recorded, NodeError> {
    let Intended { config, mut reasons } = intended;
    reasons.take(named(&config, others));
    reasons.take(admitted(&config, others));
    reasons.extend(taken(config.network.ports.iter(), &config.id, others));
    let users = reasons.take(users(&config, others)).flatten();
    let addresses = driver.network().allocate(&config, others, &mut reasons);
    reasons.refuse()?;
    let state = ContainerState {
        users,
        addresses,
        boot_id: Some(driver.boot_id().to_owned()),
        ..ContainerState::default()
    };
    Ok(Recorded { config, state })
}

/// What `before` is to become with `settings`, whatever others have.
pub(super) fn intended(
    driver: &Driver,
    before: &Recorded,
    settings: &[(String, String)],
) -> Intended {
    let kind = Some(before.config.kind);
    let mut intended = Intended::of(before.config.clone(), settings, kind, Reasons::default());
    let Intended { config, reasons } = &mut intended;
    if config.disk_image != before.config.disk_image {
        reasons.extend([NodeError::DiskImageFixed { name: config.name.clone() }]);
    } else if config.disk_image && config.limits.disk_bytes < before.config.limits.disk_bytes {
        reasons.take(driver.refuse_smaller_disk(config));
    }
    let had = &before.config.network.ports;
    let added = config.network.ports.iter().filter(|port| !had.contains(port));
    reasons.extend(driver.network().unpublishable(config, &added.copied().collect::<Vec<_>>()));
    intended
}

/// What `before` becomes of what is intended: what it has and may keep, it keeps.
///
/// # Errors
/// Every reason why that cannot be beside `others`.
pub(super) fn changed(
    driver: &Driver,
    (before, phase): (&Recorded, Phase),
    intended: Intended,
    others: &[Recorded],
) -> Result<Recorded, NodeError> {
    let Intended { config, mut reasons } = intended;
    let mut changed = Recorded { config, state: before.state.clone() };
    let config = &changed.config;
    // What it uses as long as it runs is nobody else's.
    let stays = config.userns == before.config.userns
        && config.privileged == before.config.privileged
        && config.network.mode == before.config.network.mode;
    if phase.is_up() && !stays {
        reasons.extend([NodeError::NotDown { name: config.name.clone(), phase }]);
    }
    reasons.take(admitted(config, others));
    let had = &before.config.network.ports;
    let added = config.network.ports.iter().filter(|port| !had.contains(port));
    reasons.extend(taken(added, &config.id, others));
    let same = config.userns == before.config.userns || config.userns == UserNamespace::Auto;
    if !(same && before.state.users.is_some()) || config.privileged {
        changed.state.users = reasons.take(users(config, others)).flatten();
    }
    changed.state.addresses = driver.network().reallocate(&changed, others, &mut reasons);
    reasons.refuse()?;
    Ok(changed)
}

/// Writes a container that was decided on: its directory, with what `fill` does for its private
/// files, then its name.
fn make(
    driver: &Driver,
    registry: &Registry,
    recorded: &Recorded,
    fill: impl FnOnce(Reservation<'_>) -> Result<(), NodeError>,
) -> Result<(), NodeError> {
    let config = &recorded.config;
    let places = registry.places(&config.id);
    let future = places.private(config);
    let made = registry.create(recorded, |staged| {
        let staged = Places::at(staged);
        disk::make(&staged, config)?;
        let reservation = Reservation {
            name: config.name.as_str(),
            private: &staged.private(config),
            future: &future,
            mountpoint: &places.root(),
        };
        fill(reservation).inspect_err(|_| disk::leave(&staged))?;
        here("create-reserved");
        Ok(())
    });
    if let Err(error) = made {
        if config.private.is_none() {
            // The first error is the one that matters; a record that stays is swept with its
            // directory.
            let _released = reserve::release(driver.store(), &future);
        }
        return Err(error);
    }
    here("create-written");
    Ok(())
}

/// Makes the container that `wanted` describes, beside all that `known` answers. It counts as
/// claimed until the answer is dropped.
///
/// # Errors
/// Every reason why it cannot be; nothing of it is left then.
pub(super) fn create(
    driver: &Driver,
    registry: &Registry,
    claims: &Arc<Claims>,
    known: impl FnOnce() -> Vec<Recorded>,
    wanted: &Wanted,
) -> Result<Claim, NodeError> {
    let id = ContainerId::random().map_err(NodeError::system("draw", "an identity".as_ref()))?;
    let image = match image(driver, wanted) {
        Ok(image) => image,
        Err(error) => return Err(describe(wanted, None, id)?.reasons.beside(error)),
    };
    let mut intended = describe(wanted, Some(&image), id)?;
    let Intended { config, reasons } = &mut intended;
    reasons.extend(driver.network().unpublishable(config, &config.network.ports));
    let claim = claims.claim(known, |others| settled(driver, intended, others))?;
    make(driver, registry, claim.recorded(), |reservation| {
        let store = driver.store();
        match &wanted.private {
            Some(private) => {
                let Reservation { name, mountpoint, .. } = reservation;
                reserve::adopt(store, &image.template, name, private, mountpoint)?;
            }
            None => {
                reserve::reserve(store, &image.template, reservation)?;
            }
        }
        Ok(())
    })?;
    Ok(claim)
}

/// Makes a container called `name` of `from`, with `settings` of its own: its private files are copied
/// as they are at one moment, for which one that runs stands still.
///
/// # Errors
/// As [`create`].
pub(super) fn copy(
    driver: &Driver,
    registry: &Registry,
    claims: &Arc<Claims>,
    known: impl FnOnce() -> Vec<Recorded>,
    from: (&Recorded, Phase),
    (name, settings): (ContainerName, &[(String, String)]),
) -> Result<Claim, NodeError> {
    let (from, phase) = from;
    let id = ContainerId::random().map_err(NodeError::system("draw", "an identity".as_ref()))?;
    let mut config = from.config.clone();
    (config.id, config.name, config.private) = (id, name, None);
    // What only one can have stays with the first one.
    config.network.addresses.clear();
    config.network.ports.clear();
    if let UserNamespace::Range(_) = config.userns {
        config.userns = UserNamespace::Auto;
    }
    config.hostname = None;
    config.created_ms = super::state::now_ms();
    let kind = Some(config.kind);
    let mut intended = Intended::of(config, settings, kind, Reasons::default());
    let Intended { config, reasons } = &mut intended;
    reasons.extend(driver.network().unpublishable(config, &config.network.ports));
    let claim = claims.claim(known, |others| settled(driver, intended, others))?;
    make(driver, registry, claim.recorded(), |reservation| {
        let still = (phase == Phase::Running).then(|| driver.stand_still(from)).transpose()?;
        reserve::copy(driver.store(), &driver.private(from), reservation)?;
        still.map_or(Ok(()), StandStill::end)?;
        // Not while anybody stands still: a slow disk takes its time for what was copied.
        let private = reservation.private;
        sync_file_system(private).map_err(NodeError::system("write back", private))
    })?;
    Ok(claim)
}
