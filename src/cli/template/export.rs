//! `mica template export NAME[:TAG] TARGET`

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, IsTerminal};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::cli::arguments::{Compress, Export, ExportFormat};
use crate::cli::output::{Output, count, path, size};
use crate::cli::progress::ByteProgress;
use crate::host::export::{ExportReport, Form, export_stream, export_to};
use crate::host::{Access, Store, interrupt_flag};
use crate::inspect::text::{PathText, TargetText};
use crate::layer::export::{Compression, Watched};

/// Where a template goes.
struct Target {
    /// None: standard output.
    path: Option<PathBuf>,
    form: Form,
}

pub(super) fn run(wanted: &Export, store: &Path, output: Output) -> Result<()> {
    let target = target(wanted)?;
    let store = Store::open(store, Access::Read)?;
    let progress = ByteProgress::new(output);
    let read = |bytes| progress.read(bytes);
    let watched = Watched { cancel: interrupt_flag()?, read: &read };
    let template = &wanted.template;
    let done = match &target.path {
        None => {
            if io::stdout().is_terminal() {
                bail!("standard output is a terminal; pipe it into something, or name a file");
            }
            let Form::Tar(compression) = target.form else {
                bail!("only a tar archive can go to standard output");
            };
            let out = BufWriter::with_capacity(256 * 1024, io::stdout().lock());
            export_stream(&store, template, compression, out, &watched)
        }
        Some(path) => export_to(&store, template, &target.form, path, wanted.replace, &watched),
    };
    progress.finish();
    let report = done?;
    if !report.sockets.is_empty() {
        output.note(format!(
            "left out, for no archive can hold it: {}",
            count(u64::try_from(report.sockets.len()).unwrap_or(u64::MAX), "socket")
        ));
    }
    if report.devices + report.privileged > 0 {
        output.note(format!(
            "{} and {} with set-id bits or capabilities are there as the template has them: keep \
             the directory where only root can enter",
            count(report.devices, "device"),
            count(report.privileged, "program"),
        ));
    }
    let Some(place) = target.path else { return Ok(()) };
    tell(wanted, &report, &place, output)
}

/// The answer in JSON.
#[derive(Serialize)]
struct Answer<'a> {
    template: &'a str,
    #[serde(flatten)]
    target: TargetText,
    names: u64,
    bytes: u64,
    devices: u64,
    privileged: u64,
    sockets: Vec<PathText>,
    manifest: Option<&'a str>,
    diff_ids: &'a [String],
}

fn tell(wanted: &Export, report: &ExportReport, place: &Path, output: Output) -> Result<()> {
    if wanted.json.json {
        let text = |path: &crate::layer::LayerPath| PathText::absolute(&path.to_bytes());
        return output.json(&Answer {
            template: &report.template,
            target: TargetText::from(place.as_os_str().as_bytes()),
            names: report.names,
            bytes: report.bytes,
            devices: report.devices,
            privileged: report.privileged,
            sockets: report.sockets.iter().map(text).collect(),
            manifest: report.manifest.as_deref(),
            diff_ids: &report.diff_ids,
        });
    }
    let image = report.manifest.as_ref().map(|digest| format!(", manifest {digest}"));
    output.remark(format!(
        "{}: {}, {} in {}{}",
        report.template,
        count(report.names, "name"),
        size(report.bytes),
        path(place),
        image.unwrap_or_default()
    ))
}

fn target(wanted: &Export) -> Result<Target> {
    let text = wanted.target.as_bytes();
    let (shape, place) = match text.strip_prefix(b"oci:") {
        Some(rest) => (ExportFormat::Oci, rest),
        None if text == b"-" || archive(text).is_some() => (ExportFormat::Tar, text),
        None if Path::new(&wanted.target).join("oci-layout").exists() => (ExportFormat::Oci, text),
        None => (ExportFormat::Dir, text),
    };
    let format = wanted.format.unwrap_or(shape);
    let compression = |default| match wanted.compress {
        None => default,
        Some(Compress::None) => Compression::None,
        Some(Compress::Gzip) => Compression::Gzip,
        Some(Compress::Zstd) => Compression::Zstd,
    };
    let os = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    Ok(match format {
        ExportFormat::Dir if wanted.compress.is_some() => {
            bail!("a directory is not compressed; leave --compress out")
        }
        ExportFormat::Dir => Target { path: Some(os(text)), form: Form::Directory },
        ExportFormat::Tar => Target {
            path: (text != b"-").then(|| os(text)),
            form: Form::Tar(compression(archive(text).unwrap_or(Compression::None))),
        },
        ExportFormat::Oci => {
            let (dir, reference) = reference(place)?;
            let compression = compression(Compression::Gzip);
            Target { path: Some(os(dir)), form: Form::Oci { compression, reference } }
        }
    })
}

/// How an archive of this name is compressed; none if it does not look like one.
fn archive(name: &[u8]) -> Option<Compression> {
    let endings: [(&[u8], Compression); 5] = [
        (b".tar", Compression::None),
        (b".tar.gz", Compression::Gzip),
        (b".tgz", Compression::Gzip),
        (b".tar.zst", Compression::Zstd),
        (b".tzst", Compression::Zstd),
    ];
    endings.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, how)| how)
}

/// `DIR[:NAME]`, as skopeo has it.
fn reference(place: &[u8]) -> Result<(&[u8], Option<String>)> {
    let Some(colon) = place.iter().position(|byte| *byte == b':') else {
        return Ok((place, None));
    };
    let (dir, name) = (&place[..colon], &place[colon + 1..]);
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-/:@+".contains(byte);
    match std::str::from_utf8(name) {
        Ok(text) if !text.is_empty() && name.iter().all(allowed) => {
            Ok((dir, Some(text.to_owned())))
        }
        _ => bail!(
            "{:?} cannot name an image; use letters, digits and . _ - / : @ +",
            OsStr::from_bytes(name)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_as_skopeo_names_it() {
        assert_eq!(reference(b"dir").expect("plain"), (&b"dir"[..], None));
        assert_eq!(
            reference(b"/a/b:debian:12").expect("named"),
            (&b"/a/b"[..], Some("debian:12".to_owned()))
        );
        assert!(reference(b"dir:").is_err());
        assert!(reference(b"dir:a b").is_err());
    }

    #[test]
    fn an_archive_is_told_by_its_name() {
        assert_eq!(archive(b"x.tar"), Some(Compression::None));
        assert_eq!(archive(b"x.tgz"), Some(Compression::Gzip));
        assert_eq!(archive(b"x.tar.zst"), Some(Compression::Zstd));
        assert_eq!(archive(b"tarball"), None);
    }
}
