//! The layer map of docs/ARCHITECTURE.md is what the code really does.
//!
//! The map is read from the document itself, every mention of `crate::module` from the
//! sources (tests left out); whatever the map does not allow is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

type Modules = BTreeSet<String>;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The lines of the document's map: `a, b ← c ← d`, the right may name the left.
fn map_lines() -> Vec<String> {
    let text = fs::read_to_string(top().join("docs/ARCHITECTURE.md")).expect("the document");
    let section = text.split("## Layer map").nth(1).expect("it has a layer map");
    let block = section.split("```").nth(1).expect("the map is a code block");
    block.lines().filter(|line| line.contains('←')).map(str::to_owned).collect()
}

/// What each module may name, by the map, closed under "and whatever that may name".
fn allowed() -> BTreeMap<String, Modules> {
    let mut allowed: BTreeMap<String, Modules> = BTreeMap::new();
    for line in map_lines() {
        let groups: Vec<Modules> = line
            .split('←')
            .map(|group| group.split(',').map(|name| name.trim().to_owned()).collect())
            .collect();
        for (at, group) in groups.iter().enumerate() {
            for module in group {
                let entry = allowed.entry(module.clone()).or_default();
                entry.extend(groups[..at].iter().flatten().cloned());
            }
        }
    }
    loop {
        let before = allowed.clone();
        for names in allowed.values_mut() {
            let further: Modules =
                names.iter().filter_map(|name| before.get(name)).flatten().cloned().collect();
            names.extend(further);
        }
        if allowed == before {
            return allowed;
        }
    }
}

/// Every source file of the library with the module of the first level that it belongs to.
fn sources() -> Vec<(String, PathBuf)> {
    fn collect(directory: &Path, module: Option<&str>, sources: &mut Vec<(String, PathBuf)>) {
        for entry in fs::read_dir(directory).expect("sources are readable") {
            let path = entry.expect("sources are readable").path();
            let stem = path.file_stem().expect("files have names").to_string_lossy().into_owned();
            if path.is_dir() {
                collect(&path, Some(module.unwrap_or(&stem)), sources);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && stem != "tests"
                && !(module.is_none() && (stem == "lib" || stem == "main"))
            {
                sources.push((module.unwrap_or(&stem).to_owned(), path));
            }
        }
    }
    let mut sources = Vec::new();
    collect(&top().join("src"), None, &mut sources);
    sources
}

/// The code of a file: no comments, and nothing from its test module on.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("sources are readable");
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules that follow `crate::` anywhere, also in braces.
fn named(code: &str) -> Modules {
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    let mut named = Modules::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split(';').next().unwrap_or_default();
                let mut depth = 0;
                let mut start = true;
                for (at, letter) in list.char_indices() {
                    match letter {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        _ if start && !letter.is_whitespace() => {
                            named.insert(word(&list[at..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
            None => {
                named.insert(word(rest));
            }
        }
    }
    named
}

#[test]
fn no_module_names_one_to_its_right() {
    let allowed = allowed();
    let sources = sources();
    let modules: Modules = sources.iter().map(|(module, _)| module.clone()).collect();
    let drawn: Modules = allowed.keys().cloned().collect();
    assert_eq!(modules, drawn, "the map of docs/ARCHITECTURE.md draws other modules than src/ has");
    let mut wrong = Vec::new();
    for (module, path) in &sources {
        for name in named(&code(path)) {
            if modules.contains(&name) && name != *module && !allowed[module].contains(&name) {
                wrong.push(format!("{} names {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_belongs_to_one_module_is_named_nowhere_else() {
    // A crate, and the modules that alone may name it.
    let owned: &[(&str, &[&str])] = &[
        ("fuser::", &["fuse"]),
        ("anyhow::", &["cli"]),
        ("clap::", &["cli"]),
        ("indicatif::", &["cli"]),
        ("sled::", &["catalog"]),
        ("oci_spec::", &["layer", "container"]),
        ("libcontainer::", &["container"]),
        ("tokio::", &["api", "node", "sys"]),
        ("axum::", &["api"]),
        ("hyper::", &["api"]),
        ("println!", &[]),
        ("eprintln!", &[]),
    ];
    // System calls, and a module that must do without.
    let barred: &[(&str, &str)] = &[("rustix::", "cli"), ("libc::", "cli"), ("crate::sys", "cli")];
    let mut wrong = Vec::new();
    for (module, path) in sources() {
        let code = code(&path);
        for (name, owners) in owned {
            if code.contains(name) && !owners.contains(&module.as_str()) {
                wrong.push(format!("{} names {name}", path.display()));
            }
        }
        for (name, barred) in barred {
            if code.contains(name) && module == *barred {
                wrong.push(format!("{} names {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_map_is_read_and_mentions_are_found() {
    let allowed = allowed();
    assert!(allowed["cli"].contains("object"), "{allowed:?}");
    assert!(!allowed["fs"].contains("fuse") && !allowed["control"].contains("fuse"));
    let names = named("use crate::{a, b::{c, d}, e_f};\ncrate::g::h(); pub(crate) fn i() {}");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(names, ["a", "b", "e_f", "g"]);
}
