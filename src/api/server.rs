//! The daemon itself: the containers of a store behind a socket, until somebody ends it.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::routes::{self, Door};
use super::wire::NodeAnswer;
use crate::node::{Node, NodeError, life};

/// How long what is being answered may take once the daemon is to end.
const COURTESY: Duration = Duration::from_secs(2);

/// Threads of the event loop: it decides and passes on; what blocks has threads of its own.
const THREADS: usize = 2;

/// Whether the daemon is a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Background {
    /// Its log goes to its own file.
    Yes,
    /// It stays in front.
    No,
}

/// Why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The containers.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The system refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

/// Serves the containers of the store at `store` until SIGTERM, SIGINT or a request to end;
/// `program` is this program's own file, `ready` is told once the socket answers. Containers run
/// on.
///
/// # Errors
/// [`ServeError`]; nothing is served then.
pub fn run(
    store: &Path,
    program: PathBuf,
    background: Background,
    ready: impl FnOnce(&NodeAnswer),
) -> Result<(), ServeError> {
    // What blocks runs on many threads for moments; a heap for each would keep what it freed.
    crate::sys::memory::keep_one_heap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
        .map_err(system("make an event loop"))?;
    let served = runtime.block_on(serve(store, program, background, ready));
    // A step that is under way is finished; one that hangs does not keep the daemon.
    runtime.shutdown_timeout(COURTESY);
    served.map(|node| node.let_go_on())
}

async fn serve(
    store: &Path,
    program: PathBuf,
    background: Background,
    ready: impl FnOnce(&NodeAnswer),
) -> Result<Arc<Node>, ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system("listen to signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("listen to signals"))?;
    let alone = move |store: &Path| {
        if background == Background::Yes {
            crate::host::log::attach(&life::log(store));
        }
    };
    let node = Node::open(store, program, alone).await?;
    let store = node.driver().store().path().to_owned();
    let listener = bind(&life::socket(&store)).map_err(system("listen on the socket"))?;
    let (end, mut ended) = mpsc::channel(1);
    let answer = routes::status(&node);
    let router = routes::router(Door { node: Arc::clone(&node), end });
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
        // Its sender is dropped or used; either is the end.
        drop(stopping.await);
    });
    let serving = tokio::spawn(async move { serving.await });
    ready(&answer);
    tell_supervisor();
    tracing::info!(store = %store.display(), "serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = ended.recv() => {}
    }
    tracing::info!("ending; containers run on");
    drop(stop);
    // Streams of events have no end of their own.
    let _courtesy = tokio::time::timeout(COURTESY, serving).await;
    Ok(node)
}

/// Listens at `path`, which only root can reach; who has the lock of the store may take the place
/// of a socket that is left there.
fn bind(path: &Path) -> io::Result<tokio::net::UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _gone => {}
    }
    // A socket's path has at most 107 bytes, a store's may have more.
    let directory = std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let short = short.join(path.file_name().unwrap_or_default());
    let listener = UnixListener::bind(&short)?;
    std::fs::set_permissions(&short, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

/// sd_notify(3), for `Type=notify` units.
fn tell_supervisor() {
    crate::host::tell_ready();
}
