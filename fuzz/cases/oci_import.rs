//! Any bytes as a container image, or as any one part of an otherwise sound image: an error or
//! sound layers, never a panic, and no more memory than the limits allow.

use std::io::Cursor;
use std::num::NonZeroUsize;

use mica::layer::Manifest;
use mica::layer::import::{Format, ImportOptions, Limits, Silent, Source, try_import};
use sha2::{Digest, Sha256};

/// Imports `bytes` as an archive, and puts it in the place of each part of an image; digests are
/// made right, so that nothing stops at them.
pub(crate) fn run(bytes: &[u8]) {
    import(bytes.to_vec());
    let layer = member("etc/motd", b"x", true);
    for part in 0..5 {
        let choose = |number, sound: String| {
            if number == part { bytes.to_vec() } else { sound.into_bytes() }
        };
        let layer = if part == 0 { bytes } else { &layer };
        let config = choose(
            1,
            format!(
                r#"{{"architecture":"amd64","os":"linux","config":{{}},
                    "rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
                hex(layer)
            ),
        );
        let manifest = choose(
            2,
            format!(
                r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
                descriptor("config.v1+json", &config),
                descriptor("layer.v1.tar", layer)
            ),
        );
        let index = choose(
            3,
            format!(
                r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
                descriptor("manifest.v1+json", &manifest)
            ),
        );
        let mut archive = member("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, false);
        archive.extend(member("index.json", &index, false));
        for blob in [&config[..], &manifest, layer] {
            archive.extend(member(&format!("blobs/sha256/{}", hex(blob)), blob, false));
        }
        archive.resize(archive.len() + 1024, 0);
        import(archive);

        let saved = choose(4, r#"[{"Config":"config.json","Layers":["layer.tar"]}]"#.to_owned());
        let mut archive = member("manifest.json", &saved, false);
        archive.extend(member("config.json", &config, false));
        archive.extend(member("layer.tar", layer, true));
        import(archive);
    }
}

fn import(bytes: Vec<u8>) {
    let options = ImportOptions {
        format: Format::Image,
        threads: NonZeroUsize::MIN,
        limits: Limits {
            file_bytes: 1 << 20,
            nodes: 10_000,
            spool_bytes: 16 << 20,
            hole_bytes: 1 << 20,
        },
        ..Default::default()
    };
    match try_import(Source::stream("input".to_owned(), Cursor::new(bytes)), &options, &Silent) {
        Ok(imported) => {
            for layer in imported.layers {
                let layer = Manifest::from_bytes(layer).expect("an import makes manifests");
                layer.validate().expect("an import makes sound manifests");
            }
        }
        Err(error) => {
            std::hint::black_box(error.to_string());
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn descriptor(kind: &str, bytes: &[u8]) -> String {
    format!(
        r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"sha256:{}","size":{}}}"#,
        hex(bytes),
        bytes.len()
    )
}

/// A file in an archive, and the end mark if it is the last.
fn member(path: &str, content: &[u8], last: bool) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..path.len()].copy_from_slice(path.as_bytes());
    bytes[100..107].copy_from_slice(b"0000644");
    bytes[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    bytes[156] = b'0';
    bytes[257..265].copy_from_slice(b"ustar\x0000");
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512) + if last { 1024 } else { 0 }, 0);
    bytes
}
