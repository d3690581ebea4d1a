//! Measuring beside peers: disk, memory and speed of roots, and how they grow.
//!
//! Owns what is measured, how, and what a report of it looks like. Must never know what a
//! person sees while it goes on: whoever calls hands in a [`Watch`]. Everything a run makes
//! lies in one directory and in namespaces of its own and is gone with it, however it ends;
//! only a report is kept, and that is written whole at the end.

mod cgroup;
mod compare;
mod contender;
mod copies;
mod error;
mod fixture;
mod growth;
mod machine;
mod measure;
mod memory;
mod place;
mod plan;
mod process;
pub mod report;
pub mod results;
mod row;
mod run;
mod savings;
mod session;
mod settings;
mod speed;
mod template;
mod watch;
pub mod working_set;

pub use compare::{Change, Compared, Comparison, compare};
pub use error::BenchError;
pub use machine::Machine;
pub use measure::{Ratio, Series, quantile};
pub use process::{measuring_process, run};
pub use results::Results;
pub use row::{Row, Target, Unit, number};
pub use settings::{Part, Scale, Settings, Sizes};
pub use template::HOST;
pub use watch::{Event, Unwatched, Watch};
