//! One isolated machine or command: its configuration, and what the kernel is asked for to run it.
//!
//! Synchronous, and told paths: a root that is mounted, a directory for its state. Knows
//! nothing of the store, of FUSE or of HTTP. Containers are children of a monitor process of
//! their own, so they outlive whoever asked for them.
