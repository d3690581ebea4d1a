//! Telling a service supervisor that the root is usable: sd_notify(3), for
//! `Type=notify` units that run `mica mount --foreground`.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends READY=1 to the socket in NOTIFY_SOCKET, if there is one.
pub fn tell_ready() {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let tell = || -> io::Result<()> {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&name)?,
        };
        UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
        Ok(())
    };
    if let Err(error) = tell() {
        tracing::warn!(%error, "the supervisor in NOTIFY_SOCKET cannot be told");
    }
}
