//! Import of container images: OCI layouts and docker-save archives, whole and broken.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use mica::layer::import::{Choice, Format, ImportError, ImportOptions, Imported, Source};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{Forge, Scratch, Succeed, Workshop, require_root};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("compress");
    encoder.finish().expect("compress")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).expect("compress")
}

/// An uncompressed layer, the suffix of its media type, and how it is compressed.
type LayerForge<'a> = (&'a [u8], &'a str, fn(&[u8]) -> Vec<u8>);

/// The files of an image being put together.
#[derive(Clone, Default)]
struct ImageForge {
    files: BTreeMap<String, Vec<u8>>,
}

impl ImageForge {
    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let hex = digest(&bytes);
        let descriptor = json!({
            "mediaType": media_type,
            "digest": format!("sha256:{hex}"),
            "size": bytes.len(),
        });
        self.files.insert(format!("blobs/sha256/{hex}"), bytes);
        descriptor
    }

    /// Adds an image of these uncompressed layers; each is stored as its function makes it.
    fn image(&mut self, layers: &[LayerForge<'_>], config: Value) -> Value {
        let diff_ids: Vec<String> =
            layers.iter().map(|(tar, ..)| format!("sha256:{}", digest(tar))).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(CONFIG, config.to_string().into_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .map(|(tar, suffix, pack)| self.blob(&format!("{LAYER}{suffix}"), pack(tar)))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        self.blob(MANIFEST, manifest.to_string().into_bytes())
    }

    fn index(&mut self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        self.files.insert("index.json".to_owned(), index.to_string().into_bytes());
        let layout = json!({ "imageLayoutVersion": "1.0.0" });
        self.files.insert("oci-layout".to_owned(), layout.to_string().into_bytes());
    }

    fn write(&self, dir: &Path) {
        for (path, bytes) in &self.files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            fs::write(path, bytes).expect("write");
        }
    }

    fn tar(&self) -> Vec<u8> {
        let mut forge = Forge::default();
        for (path, bytes) in &self.files {
            forge = forge.pax(&[("path", path.as_bytes())]).raw(b"x", b'0', b"", bytes);
        }
        forge.end()
    }
}

fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    descriptor[key] = value;
    descriptor
}

fn named(descriptor: Value, name: &str) -> Value {
    with(descriptor, "annotations", json!({ "org.opencontainers.image.ref.name": name }))
}

fn for_platform(descriptor: Value, architecture: &str, variant: Option<&str>) -> Value {
    let platform = match variant {
        None => json!({ "os": "linux", "architecture": architecture }),
        Some(variant) => {
            json!({ "os": "linux", "architecture": architecture, "variant": variant })
        }
    };
    with(descriptor, "platform", platform)
}

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn base_layer() -> Vec<u8> {
    Forge::default()
        .dir("etc/")
        .file("etc/passwd", "root")
        .file("etc/motd", "welcome")
        .dir("opt/")
        .file("opt/a", "a")
        .symlink("lib", "usr/lib")
        .dir("usr/lib/")
        .file("shared", "shared")
        .end()
}

fn upper_layer() -> Vec<u8> {
    Forge::default()
        .file("etc/.wh.motd", "")
        .file("opt/.wh..wh..opq", "")
        .file("opt/b", "b")
        .file("lib/libx", "x")
        .link("linked", "shared")
        .end()
}

fn two_layers() -> ImageForge {
    let mut forge = ImageForge::default();
    let config = json!({
        "User": "1000:1000",
        "Env": ["PATH=/bin", "A=b"],
        "Entrypoint": ["/init"],
        "Cmd": ["--serve"],
        "WorkingDir": "/srv",
        "StopSignal": "SIGQUIT",
        "ExposedPorts": { "80/tcp": {}, "443/tcp": {}, "22/tcp": {} },
        "Volumes": { "/data": {} },
        "Labels": { "k": "v" },
        "Healthcheck": { "Test": ["CMD", "true"] },
    });
    let (base, upper) = (base_layer(), upper_layer());
    let image = forge.image(&[(&base, "+gzip", gzip), (&upper, "+zstd", zstd)], config);
    forge.index(&[named(image, "latest")]);
    forge
}

fn setup(name: &str) -> (Scratch, Workshop) {
    require_root();
    let scratch = Scratch::new(name);
    let workshop = Workshop::new(&scratch.directory("store"));
    (scratch, workshop)
}

fn stream(bytes: Vec<u8>) -> Source {
    Source::stream("-".to_owned(), io::Cursor::new(bytes))
}

fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", told(source)),
        None => error.to_string(),
    }
}

fn names(workshop: &Workshop, imported: &Imported, out: &Path) -> Vec<String> {
    workshop.checkout(&imported.layers, out).into_keys().collect()
}

#[test]
fn an_oci_image_is_the_same_from_a_directory_a_file_and_a_pipe() {
    let (scratch, workshop) = setup("oci");
    let forge = two_layers();
    let layout = scratch.directory("layout");
    forge.write(&layout);
    let expected = workshop.import_path(&layout);
    assert_eq!(expected.layers.len(), 2);
    assert_eq!(
        names(&workshop, &expected, &scratch.path().join("out")),
        [
            ".",
            "/etc",
            "/etc/passwd",
            "/lib",
            "/linked",
            "/opt",
            "/opt/b",
            "/shared",
            "/usr",
            "/usr/lib",
            "/usr/lib/libx"
        ]
    );
    let config = &expected.config;
    assert_eq!(config.user, "1000:1000");
    assert_eq!(config.env, ["PATH=/bin", "A=b"]);
    assert_eq!(config.entrypoint, ["/init"]);
    assert_eq!(config.cmd, ["--serve"]);
    assert_eq!(config.working_dir, "/srv");
    assert_eq!(config.stop_signal, "SIGQUIT");
    assert_eq!(config.exposed_ports, ["22/tcp", "443/tcp", "80/tcp"]);
    assert_eq!(config.volumes, ["/data"]);
    assert_eq!(config.labels["k"], "v");
    assert_eq!(config.architecture, "amd64");

    let tar = forge.tar();
    let file = scratch.path().join("image.tar");
    fs::write(&file, &tar).expect("write");
    let zipped = scratch.path().join("image.tar.gz");
    fs::write(&zipped, gzip(&tar)).expect("write");
    // As `tar -C layout -c .` writes it, with the directories.
    let dotted = scratch.path().join("dotted.tar");
    std::process::Command::new("tar")
        .arg("-cf")
        .arg(&dotted)
        .arg("-C")
        .arg(&layout)
        .arg(".")
        .succeed();
    for source in [&file, &zipped, &dotted] {
        assert_eq!(workshop.import_path(source), expected, "{}", source.display());
    }
    assert_eq!(workshop.import(stream(tar)), expected);
    assert_eq!(workshop.import(stream(gzip(&forge.tar()))), expected);
    workshop.assert_clean();
}

#[test]
fn a_layout_can_be_taken_as_the_files_it_is() {
    let (scratch, workshop) = setup("astree");
    let forge = two_layers();
    let layout = scratch.directory("layout");
    forge.write(&layout);
    let options = ImportOptions { format: Format::Tree, ..Default::default() };
    for source in [Source::open(&layout).expect("open"), stream(forge.tar())] {
        let imported = workshop.import_with(source, &options).expect("import");
        assert_eq!(imported.layers.len(), 1);
        assert!(imported.config.env.is_empty());
    }
}

#[test]
fn a_tree_that_starts_like_an_image_is_a_tree() {
    let (scratch, workshop) = setup("liketree");
    let tar = Forge::default().dir("./").dir("blobs").file("blobs/x", "1").file("z", "2").end();
    let digest = format!("blake3:{}", blake3::hash(&tar).to_hex());
    let path = scratch.path().join("tree.tar");
    fs::write(&path, &tar).expect("write");
    for source in [stream(tar.clone()), Source::open(&path).expect("open")] {
        let imported = workshop.import(source);
        assert_eq!(imported.source_digest.as_ref(), Some(&digest));
        let out = scratch.path().join("out");
        assert_eq!(names(&workshop, &imported, &out), [".", "/blobs", "/blobs/x", "/z"]);
        fs::remove_dir_all(out).expect("rm");
    }
    let options = ImportOptions { format: Format::Image, ..Default::default() };
    let error = workshop.import_with(stream(tar), &options).expect_err("no image");
    assert_eq!(told(&error), "- holds neither an OCI layout nor a docker-save archive");
}

#[test]
fn platforms_and_names_choose_among_images() {
    let (_scratch, workshop) = setup("choice");
    let mut forge = ImageForge::default();
    let mut image = |file: &str| {
        let tar = Forge::default().file(file, "x").end();
        forge.image(&[(&tar, "", plain)], json!({}))
    };
    let amd64 = for_platform(image("amd64"), "amd64", None);
    let arm64 = for_platform(image("arm64"), "arm64", None);
    let armv6 = for_platform(image("armv6"), "arm", Some("v6"));
    let armv7 = for_platform(image("armv7"), "arm", Some("v7"));
    let other = image("other");
    let attestation = with(
        for_platform(image("attestation"), "unknown", None),
        "annotations",
        json!({ "vnd.docker.reference.type": "attestation-manifest" }),
    );
    let inner = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [arm64, amd64, attestation, armv7, armv6],
    });
    let inner = forge.blob(INDEX, inner.to_string().into_bytes());
    forge.index(&[named(inner, "12"), named(other, "other")]);

    let import = |reference: Option<&str>, platform: Option<&str>| {
        let choice = Choice {
            reference: reference.map(str::to_owned),
            platform: platform.map(|text| text.parse().expect("a platform")),
        };
        let options = ImportOptions { choice, ..Default::default() };
        workshop.import_with(stream(forge.tar()), &options)
    };
    let only = |imported: Imported| {
        let tree = Workshop::tree(&imported.layers);
        let root = tree.root().expect("root");
        let entry = tree.entry(&root, 0).expect("entry").expect("one name");
        String::from_utf8(entry.name.to_vec()).expect("utf-8")
    };
    assert_eq!(only(import(Some("12"), Some("linux/amd64")).expect("import")), "amd64");
    assert_eq!(only(import(Some("12"), Some("linux/arm64")).expect("import")), "arm64");
    assert_eq!(only(import(Some("12"), Some("linux/arm/v6")).expect("import")), "armv6");
    // Without a variant the first one counts: an index lists them by preference.
    assert_eq!(only(import(Some("12"), Some("linux/arm")).expect("import")), "armv7");
    assert_eq!(only(import(Some("other"), None).expect("import")), "other");
    assert_eq!(only(import(Some("example.org/x:other"), None).expect("import")), "other");
    if cfg!(target_arch = "x86_64") {
        assert_eq!(only(import(Some("12"), None).expect("import")), "amd64");
    }

    let refused = |reference, platform| told(&import(reference, platform).expect_err("refused"));
    assert_eq!(refused(None, None), "there are several images; choose one of: 12, other");
    assert_eq!(refused(Some("13"), None), "no image matches 13; there is: 12, other");
    let text = refused(Some("12"), Some("linux/s390x"));
    assert!(text.starts_with("no image matches linux/s390x; there is: linux/arm64,"), "{text}");
}

/// Changes one file of an image and says why the import fails.
fn broken(workshop: &Workshop, change: impl FnOnce(&mut ImageForge)) -> String {
    let mut forge = two_layers();
    change(&mut forge);
    let error = workshop
        .import_with(stream(forge.tar()), &ImportOptions::default())
        .expect_err("a broken image is refused");
    workshop.assert_clean();
    assert!(matches!(error, ImportError::Image(_) | ImportError::Layer { .. }), "{error:?}");
    told(&error)
}

fn edit(bytes: &mut Vec<u8>, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(bytes).expect("json");
    change(&mut value);
    *bytes = value.to_string().into_bytes();
}

#[test]
fn broken_images_are_refused_with_the_part_named() {
    let (_scratch, workshop) = setup("brokenimage");
    let layer = format!("blobs/sha256/{}", digest(&gzip(&base_layer())));

    let text = broken(&workshop, |forge| {
        forge.files.remove(&layer);
    });
    assert_eq!(text, format!("the image lacks {layer}; it was exported incompletely"));

    // The content is a sound layer, only not the one that was promised.
    let text = broken(&workshop, |forge| {
        let other = gzip(&Forge::default().file("evil", "x").end());
        forge.files.insert(layer.clone(), other);
    });
    assert!(text.contains("of the image is damaged"), "{text}");

    let text = broken(&workshop, |forge| {
        forge.files.get_mut(&layer).expect("layer").push(0);
    });
    assert!(text.contains("of the image is damaged"), "{text}");

    // Sound by its digest, and no archive.
    let text = broken(&workshop, |forge| {
        let (base, noise) = (base_layer(), vec![b'x'; 5000]);
        let image = forge.image(&[(&base, "", plain), (&noise, "", plain)], json!({}));
        forge.index(&[image]);
    });
    assert!(text.starts_with("layer 2 of 2 of the image: the archive at byte 0: "), "{text}");

    let text = broken(&workshop, |forge| {
        let manifest = forge.files["index.json"].clone();
        let manifest: Value = serde_json::from_slice(&manifest).expect("json");
        let name = manifest["manifests"][0]["digest"].as_str().expect("text").replace(':', "/");
        edit(forge.files.get_mut(&format!("blobs/{name}")).expect("manifest"), |manifest| {
            manifest["layers"] = json!([]);
        });
    });
    assert!(text.contains("of the image is damaged"), "{text}");

    let text = broken(&workshop, |forge| {
        edit(forge.files.get_mut("index.json").expect("index"), |index| {
            index["manifests"][0]["digest"] = json!("sha256:../../../etc/passwd");
        });
    });
    assert!(text.starts_with("index.json of the image is malformed"), "{text}");

    let text = broken(&workshop, |forge| {
        edit(forge.files.get_mut("index.json").expect("index"), |index| {
            index["manifests"] = json!([]);
        });
    });
    assert!(text.ends_with("there is: nothing"), "{text}");

    let text = broken(&workshop, |forge| {
        forge.files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"2.0"}"#.to_vec());
    });
    assert_eq!(text, "the OCI layout has version 2.0; this version reads 1.x");

    let text = broken(&workshop, |forge| {
        forge.files.insert("index.json".to_owned(), b"{".to_vec());
    });
    assert!(text.starts_with("index.json of the image is malformed: "), "{text}");

    let text = broken(&workshop, |forge| {
        forge.files.insert("index.json".to_owned(), vec![b' '; 5 << 20]);
    });
    assert_eq!(text, "index.json of the image is larger than 4 MiB");

    let text = broken(&workshop, |forge| {
        let tar = base_layer();
        let image = forge.image(&[(&tar, "+gzip+encrypted", gzip)], json!({}));
        forge.index(&[image]);
    });
    assert!(text.contains("+gzip+encrypted, which is not supported"), "{text}");

    // A layer that is what the manifest says, and not what the configuration says.
    let text = broken(&workshop, |forge| {
        fn other(_: &[u8]) -> Vec<u8> {
            gzip(&Forge::default().file("other", "x").end())
        }
        let tar = base_layer();
        let image = forge.image(&[(&tar, "+gzip", other)], json!({}));
        forge.index(&[image]);
    });
    assert!(text.contains("of the image is damaged"), "{text}");
}

#[test]
fn docker_archives_old_and_new() {
    let (scratch, workshop) = setup("docker");
    let (base, upper) = (base_layer(), upper_layer());
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Cmd": ["sh"], "Env": null, "ExposedPorts": null },
        "rootfs": {
            "type": "layers",
            "diff_ids": [
                format!("sha256:{}", digest(&base)),
                format!("sha256:{}", digest(&upper)),
                format!("sha256:{}", digest(&base)),
            ],
        },
    });
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", digest(&config));
    let (one, two, three) = ("1".repeat(64), "2".repeat(64), "3".repeat(64));
    let manifest = json!([
        {
            "Config": config_name,
            "RepoTags": ["debian:12", "example.org/team/debian:12"],
            "Layers": [
                format!("{one}/layer.tar"), format!("{two}/layer.tar"), format!("{three}/layer.tar"),
            ],
        },
        { "Config": "missing.json", "RepoTags": ["other:1"], "Layers": [] },
    ]);
    let file = |forge: Forge, path: &str, bytes: &[u8]| {
        forge.pax(&[("path", path.as_bytes())]).raw(b"x", b'0', b"", bytes)
    };
    // The first name is a directory called like a digest; one layer is a link to another.
    let forge = Forge::default().raw(format!("{one}/").as_bytes(), b'5', b"", b"");
    let forge = file(forge, &format!("{one}/layer.tar"), &base);
    let forge = file(forge, &format!("{two}/layer.tar"), &upper);
    let forge = forge
        .pax(&[
            ("path", format!("{three}/layer.tar").as_bytes()),
            ("linkpath", format!("../{one}/layer.tar").as_bytes()),
        ])
        .raw(b"x", b'2', b"x", b"");
    let forge = file(forge, &config_name, &config);
    let archive = file(forge, "manifest.json", manifest.to_string().as_bytes()).end();

    let choose = |reference: &str| ImportOptions {
        choice: Choice { reference: Some(reference.to_owned()), platform: None },
        ..Default::default()
    };
    for bytes in [archive.clone(), gzip(&archive)] {
        let imported = workshop.import_with(stream(bytes), &choose("debian:12")).expect("import");
        assert_eq!(imported.layers.len(), 3);
        assert_eq!(imported.config.cmd, ["sh"]);
        assert_eq!(imported.source_digest, Some(format!("sha256:{}", digest(&config))));
        let out = scratch.path().join("out");
        let tree = workshop.checkout(&imported.layers, &out);
        // The third layer brings back what the second had hidden.
        assert!(tree.contains_key("/etc/motd") && tree.contains_key("/linked"));
        fs::remove_dir_all(out).expect("rm");
    }
    let error = workshop
        .import_with(stream(archive.clone()), &ImportOptions::default())
        .expect_err("several");
    assert_eq!(
        told(&error),
        "there are several images; choose one of: debian:12, example.org/team/debian:12, other:1"
    );
    let error = workshop.import_with(stream(archive), &choose("other:1")).expect_err("missing");
    assert_eq!(told(&error), "the image lacks missing.json; it was exported incompletely");
    workshop.assert_clean();
}

#[test]
fn an_image_can_be_put_on_a_template() {
    let (scratch, workshop) = setup("imageon");
    let base = Forge::default().dir("./").file("etc/motd", "x").file("below", "x").end();
    let base = workshop.import(stream(base));
    let lower = Workshop::tree(&base.layers);
    let options = ImportOptions { on: Some(&lower), ..Default::default() };
    let image = workshop.import_with(stream(two_layers().tar()), &options).expect("import");
    let layers = [base.layers, image.layers].concat();
    let tree = workshop.checkout(&layers, &scratch.path().join("out"));
    assert!(tree.contains_key("/below") && tree.contains_key("/opt/b"));
    assert!(!tree.contains_key("/etc/motd"));
}
