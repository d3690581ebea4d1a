//! Why the network would not do what was asked.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// Why a network, or a container's place in it, could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Not a name, an address or a port as they are written.
    #[error("{what} cannot be {text:?}: {reason}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What was written.
        text: String,
        /// What it takes.
        reason: &'static str,
    },
    /// No address is left.
    #[error(
        "all addresses of {subnet} are taken; delete containers or give the network a wider range"
    )]
    Exhausted {
        /// The range.
        subnet: String,
    },
    /// The address lies elsewhere.
    #[error("{address} is no address for a container of {subnet}: {reason}")]
    NotOurs {
        /// What was asked.
        address: IpAddr,
        /// The range.
        subnet: String,
        /// Why not.
        reason: &'static str,
    },
    /// Another container has it.
    #[error("{0} is another container's address")]
    AddressTaken(IpAddr),
    /// Another interface of the host uses the range.
    #[error(
        "the range {subnet} of the containers' network is in use by {interface} of this host ({address}); choose another"
    )]
    Overlaps {
        /// Our range.
        subnet: String,
        /// Who has it.
        interface: String,
        /// With which address.
        address: String,
    },
    /// An interface of that name belongs to somebody else.
    #[error(
        "the interface {0} exists and is none of Mica's; rename it, or give the network another name"
    )]
    Foreign(String),
    /// It belongs to containers of another daemon.
    #[error(
        "the bridge {bridge} and its addresses are in use by the containers of {owner}; stop those first"
    )]
    OtherOwner {
        /// The bridge.
        bridge: String,
        /// Whose it is.
        owner: String,
    },
    /// A program of the host has it.
    #[error("port {port} of the host is in use by {holder}; end that, or publish another port")]
    PortInUse {
        /// The host's end of it.
        port: String,
        /// Who has it: a program and its process, as far as that can be told.
        holder: String,
    },
    /// The host would not have anybody listen there.
    #[error("port {port} of the host cannot be published: {source}")]
    PortRefused {
        /// The host's end of it.
        port: String,
        /// What binding it answered.
        source: io::Error,
    },
    /// Another container publishes there.
    #[error(
        "port {port} of the host is published already, by a container of {owner}; publish another port, or take that one back there"
    )]
    PortTaken {
        /// The host's end of it.
        port: String,
        /// Whose container has it.
        owner: String,
    },
    /// The program that sets rules is missing.
    #[error("cannot run nft: {0}; install it (Debian: apt-get install nftables)")]
    NoNft(io::Error),
    /// The rules were refused.
    #[error("nft refused the rules of the network: {0}")]
    Rules(String),
    /// The kernel refused what it was asked over netlink.
    #[error("cannot {what} {interface}: {source}")]
    Link {
        /// What was being done.
        what: &'static str,
        /// To which interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    System {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl NetworkError {
    /// For `map_err`: that `what` could not be done to `interface`.
    pub(super) fn link(what: &'static str, interface: &str) -> impl FnOnce(io::Error) -> Self {
        let interface = interface.to_owned();
        move |source| Self::Link { what, interface, source }
    }

    /// For `map_err`: that `what` could not be done to `path`.
    pub(super) fn system(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::System { what, path, source }
    }
}
