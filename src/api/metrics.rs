//! The state of the containers as Prometheus reads it.

use std::fmt::Write;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::observe::observed;
use super::refusal::Refused;
use super::routes::{Door, status};
use super::wire::UsageAnswer;
use crate::node::health::Health;
use crate::node::phase::Phase;

/// One number of a container.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    of: fn(&UsageAnswer) -> Option<u64>,
    /// What the number is divided by, so that it is in base units.
    per: u64,
}

const METRICS: &[Metric] = &[
    Metric {
        name: "mica_container_cpu_seconds_total",
        help: "Processor time since its start.",
        kind: "counter",
        of: |usage| usage.cpu_ns,
        per: 1_000_000_000,
    },
    Metric {
        name: "mica_container_memory_bytes",
        help: "Memory charged to it, page cache included.",
        kind: "gauge",
        of: |usage| usage.memory_bytes,
        per: 1,
    },
    Metric {
        name: "mica_container_memory_exclusive_bytes",
        help: "Memory that its processes hold as their own.",
        kind: "gauge",
        of: |usage| usage.memory_exclusive_bytes,
        per: 1,
    },
    Metric {
        name: "mica_container_memory_shared_bytes",
        help: "Pages of files charged to it.",
        kind: "gauge",
        of: |usage| usage.memory_shared_bytes,
        per: 1,
    },
    Metric {
        name: "mica_container_swap_bytes",
        help: "Swap in use.",
        kind: "gauge",
        of: |usage| usage.swap_bytes,
        per: 1,
    },
    Metric {
        name: "mica_container_pids",
        help: "Processes and threads.",
        kind: "gauge",
        of: |usage| usage.pids,
        per: 1,
    },
    Metric {
        name: "mica_container_io_read_bytes_total",
        help: "Bytes read from disks.",
        kind: "counter",
        of: |usage| usage.io_read_bytes,
        per: 1,
    },
    Metric {
        name: "mica_container_io_written_bytes_total",
        help: "Bytes written to disks.",
        kind: "counter",
        of: |usage| usage.io_written_bytes,
        per: 1,
    },
    Metric {
        name: "mica_container_received_bytes_total",
        help: "Bytes received.",
        kind: "counter",
        of: |usage| usage.received_bytes,
        per: 1,
    },
    Metric {
        name: "mica_container_sent_bytes_total",
        help: "Bytes sent.",
        kind: "counter",
        of: |usage| usage.sent_bytes,
        per: 1,
    },
    Metric {
        name: "mica_container_oom_kills_total",
        help: "Processes killed for want of memory.",
        kind: "counter",
        of: |usage| usage.oom_kills,
        per: 1,
    },
];

pub(super) async fn metrics(State(door): State<Door>) -> Result<Response, Refused> {
    let mut text = String::new();
    let node = status(&door.node);
    let handles = door.node.all();
    head(&mut text, "mica_node_containers", "Containers by phase.", "gauge");
    for phase in Phase::ALL {
        let count = node.containers.get(&phase).copied().unwrap_or(0);
        line(&mut text, format_args!("mica_node_containers{{phase=\"{phase}\"}} {count}"));
    }
    head(&mut text, "mica_node_memory_bytes", "Memory that the daemon holds alone.", "gauge");
    line(&mut text, format_args!("mica_node_memory_bytes {}", node.memory_bytes));
    head(&mut text, "mica_node_uptime_seconds", "Time since the daemon began.", "gauge");
    line(&mut text, format_args!("mica_node_uptime_seconds {}", node.uptime_s));
    head(&mut text, "mica_container_restarts_total", "Starts by its restart policy.", "counter");
    for handle in &handles {
        let view = handle.view();
        let (name, restarts) = (&view.recorded.config.name, view.recorded.state.restarts);
        line(
            &mut text,
            format_args!("mica_container_restarts_total{{name=\"{name}\"}} {restarts}"),
        );
    }
    head(&mut text, "mica_container_healthy", "Whether its health check succeeds.", "gauge");
    for handle in &handles {
        let view = handle.view();
        let name = &view.recorded.config.name;
        if let Some(health) = view.health {
            let healthy = u8::from(health == Health::Healthy);
            line(&mut text, format_args!("mica_container_healthy{{name=\"{name}\"}} {healthy}"));
        }
    }
    let mut used = Vec::new();
    for handle in &handles {
        used.extend(observed(&door.node, handle, false).await?.usage);
    }
    for metric in METRICS {
        head(&mut text, metric.name, metric.help, metric.kind);
        for usage in &used {
            let Some(value) = (metric.of)(usage) else { continue };
            let value = match metric.per {
                1 => value.to_string(),
                per => format!("{}.{:09}", value / per, value % per),
            };
            line(&mut text, format_args!("{}{{name=\"{}\"}} {value}", metric.name, usage.name));
        }
    }
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((headers, text).into_response())
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    line(text, format_args!("# HELP {name} {help}"));
    line(text, format_args!("# TYPE {name} {kind}"));
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let written = writeln!(text, "{arguments}");
    debug_assert!(written.is_ok(), "writing to a string succeeds");
}
