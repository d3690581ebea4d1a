//! The daemon's door: HTTP and JSON over a Unix socket that only root can reach.
//!
//! Routes and what they answer, and the client that the command line is. Decides nothing
//! about containers and makes no system calls of its own.
