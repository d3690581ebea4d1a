//! The pile against what was put into it.

use super::*;
use crate::host::Store;
use crate::layer::{LayerBuilder, Layers, Metadata, NewContent, NewNode, Timestamp};
use crate::object::Objects;

/// A store in a directory of its own, and the layers put into it.
struct Stage {
    dir: tempfile::TempDir,
    stack: Vec<LayerId>,
}

fn at(path: &str) -> LayerPath {
    LayerPath::parse(path.as_bytes()).unwrap()
}

fn node(mode: u32, content: NewContent) -> NewNode {
    let mtime = Timestamp { secs: 0, nanos: 0 };
    NewNode { metadata: Metadata { mode, uid: 0, gid: 0, mtime }, xattrs: Vec::new(), content }
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        Store::open_or_create(dir.path()).unwrap();
        Self { dir, stack: Vec::new() }
    }

    /// Puts a layer on top: paths ending in a slash are directories, `-` before a path is a
    /// whiteout, `!` an opaque directory; files hold the text after the `=`.
    fn layer(&mut self, entries: &[&str]) -> &mut Self {
        let layers = Layers::open(self.dir.path()).unwrap();
        let staging = Objects::open(self.dir.path()).unwrap().begin().unwrap();
        let mut builder = LayerBuilder::new();
        for entry in entries {
            if let Some(path) = entry.strip_prefix('-') {
                builder.whiteout(&at(path));
            } else if let Some(path) = entry.strip_prefix('!') {
                builder.put(&at(path), node(0o755, NewContent::Directory)).unwrap();
                builder.opaque(&at(path));
            } else if let Some((path, target)) = entry.split_once("->") {
                builder.hard_link(&at(path), &at(target)).unwrap();
            } else if let Some((path, text)) = entry.split_once('=') {
                let put = staging.put_bytes(text.as_bytes()).unwrap();
                let content = NewContent::Regular {
                    object: put.id,
                    size: put.len_bytes,
                    data_blocks: put.data_blocks,
                };
                builder.put(&at(path), node(0o644, content)).unwrap();
            } else {
                builder.put(&at(entry), node(0o755, NewContent::Directory)).unwrap();
            }
        }
        staging.publish().unwrap();
        let id = layers.publish(staging.dir(), builder.finish().unwrap()).unwrap();
        staging.finish().unwrap();
        self.stack.push(id);
        self
    }

    fn library(&self) -> Library {
        Library::open(self.dir.path()).unwrap()
    }

    fn strata(&self) -> Strata {
        let stack = Stack::new(self.stack.clone());
        Strata::of_stack(&self.library(), "a test".to_owned(), &stack).unwrap()
    }
}

/// Every place to be seen with its letter and bytes.
fn seen(strata: &Strata, layer: usize, scope: Scope) -> Vec<String> {
    let outlook = Outlook::new(strata, layer, scope);
    let rows = outlook.rows(strata, Order::Name, |_| true);
    let line = |row: &Row| {
        let letter = strata.mark(row.place, layer).letter().unwrap_or('-');
        format!("{letter} {} {}", strata.shown_path(row.place), outlook.bytes(strata, row.place))
    };
    rows.iter().map(line).collect()
}

fn three_layers() -> Stage {
    let mut stage = Stage::new();
    stage
        .layer(&["etc", "etc/a=one", "etc/b=two!", "usr", "usr/lib=library", "same=text"])
        .layer(&["etc/a=longer", "-etc/b", "usr/new=n", "same=text"])
        .layer(&["!usr", "usr/lib=lib", "etc=no directory"]);
    stage
}

#[test]
fn each_layer_tells_what_it_adds_changes_and_removes() {
    let strata = three_layers().strata();
    assert_eq!(
        seen(&strata, 1, Scope::Whole),
        [
            "- / 18",
            "- /etc 6",
            "C /etc/a 6",
            "D /etc/b 4",
            "- /same 4",
            "- /usr 8",
            "- /usr/lib 7",
            "A /usr/new 1"
        ]
    );
    assert_eq!(
        seen(&strata, 1, Scope::Changes),
        ["- / 7", "- /etc 6", "C /etc/a 6", "D /etc/b 4", "- /usr 1", "A /usr/new 1"]
    );
    assert_eq!(
        seen(&strata, 2, Scope::Whole),
        [
            "- / 19",
            "C /etc 12",
            "D /etc/a 6",
            "- /same 4",
            "- /usr 3",
            "C /usr/lib 3",
            "D /usr/new 1"
        ]
    );
    let counts: Vec<_> = strata.layers().iter().map(|layer| layer.counts).collect();
    assert_eq!(counts[0], Counts { added: 6, changed: 0, removed: 0 });
    assert_eq!(counts[1], Counts { added: 1, changed: 1, removed: 1 });
    assert_eq!(counts[2], Counts { added: 0, changed: 2, removed: 2 });
    let bytes: Vec<_> = strata.layers().iter().map(|layer| layer.bytes).collect();
    assert_eq!(bytes, [18, 11, 15]);
}

#[test]
fn the_counts_are_those_of_the_history() {
    let mut stage = three_layers();
    stage.layer(&["deep/er/est=x", "-usr/lib"]).layer(&["!deep", "deep/er=file"]);
    let strata = stage.strata();
    let template = crate::layer::Template {
        name: "a:1".parse().unwrap(),
        kind: crate::layer::TemplateKind::Os,
        stack: Stack::new(stage.stack.clone()),
        config: crate::layer::RunConfig::default(),
        shared_paths: Vec::new(),
        provenance: crate::layer::Provenance::now(String::new(), None),
    };
    let history = stage.library().history(&template).unwrap();
    for (row, layer) in history.layers.iter().zip(strata.layers()) {
        let tally = row.tally.unwrap();
        let counts = Counts { added: tally.added, changed: tally.changed, removed: tally.deleted };
        assert_eq!((layer.counts, Some(layer.bytes)), (counts, row.size_bytes), "{}", row.number);
    }
}

#[test]
fn what_is_shown_is_what_the_merge_shows() {
    let stage = three_layers();
    let strata = stage.strata();
    for top in 0..3 {
        let library = stage.library();
        let stack = Stack::new(stage.stack[..=top].to_vec());
        let view = View::of_stack(&library, String::new(), &stack).unwrap();
        let mut merged = Vec::new();
        view.walk(&LayerPath::root(), |path, node| {
            merged.push((crate::inspect::text::PathText::absolute(path).0, node.kind));
            Ok::<_, InspectError>(crate::inspect::Step::Into)
        })
        .unwrap();
        let outlook = Outlook::new(&strata, top, Scope::Whole);
        let rows = outlook.rows(&strata, Order::Name, |_| true);
        let piled: Vec<_> = rows
            .iter()
            .filter(|row| strata.mark(row.place, top) != Mark::Removed)
            .map(|row| {
                let kind = outlook.kind(&strata, row.place).unwrap();
                (strata.path_bytes(row.place), kind)
            })
            .collect();
        assert_eq!(piled, merged, "up to layer {top}");
    }
}

#[test]
fn waste_is_what_no_name_shows_any_more() {
    let mut stage = three_layers();
    // "two!" comes back under another name: it is shown, so it is not wasted.
    stage.layer(&["back=two!"]);
    let strata = stage.strata();
    let waste = strata.waste().unwrap();
    let contents: Vec<_> = waste
        .contents
        .iter()
        .map(|one| (strata.shown_path(one.place), one.bytes, one.layer, one.hidden_by))
        .collect();
    assert_eq!(
        contents,
        [
            ("/usr/lib".to_owned(), 7, 0, 2),
            ("/etc/a".to_owned(), 6, 1, 2),
            ("/etc/a".to_owned(), 3, 0, 1),
            ("/usr/new".to_owned(), 1, 1, 2),
        ]
    );
    assert_eq!((waste.bytes, waste.by_layer), (17, vec![10, 7, 0, 0]));
}

#[test]
fn a_hard_link_weighs_once_and_the_largest_come_first() {
    let mut stage = Stage::new();
    stage.layer(&["a=small", "b", "b/one=four", "b/two->b/one", "c=the largest"]);
    let strata = stage.strata();
    let outlook = Outlook::new(&strata, 0, Scope::Whole);
    assert_eq!(outlook.bytes(&strata, PlaceId::ROOT), 5 + 4 + 11);
    let two = strata.find(&at("b/two")).unwrap();
    assert_eq!(outlook.bytes(&strata, two), 4, "each name tells its own size");
    let names = |order| -> Vec<String> {
        let places = outlook.children(&strata, PlaceId::ROOT, order);
        places.into_iter().map(|place| strata.shown_path(place)).collect()
    };
    assert_eq!(names(Order::Name), ["/a", "/b", "/c"]);
    assert_eq!(names(Order::Size), ["/c", "/a", "/b"]);
}

#[test]
fn search_finds_names_and_with_a_slash_paths() {
    let strata = three_layers().strata();
    let outlook = Outlook::new(&strata, 1, Scope::Whole);
    let found = |wanted: &str| -> Vec<String> {
        let places = outlook.search(&strata, Order::Name, wanted);
        places.into_iter().map(|place| strata.shown_path(place)).collect()
    };
    assert_eq!(found("LIB"), [""; 0]);
    assert_eq!(found("lib"), ["/usr/lib"]);
    assert_eq!(found("c/"), ["/etc/a", "/etc/b"]);
    assert_eq!(found("no such"), [""; 0]);
    assert_eq!(found(""), [""; 0]);
}

#[test]
fn two_trees_are_compared_name_by_name() {
    let mut old = Stage::new();
    old.layer(&["both=same", "etc", "etc/changed=one", "etc/gone=x", "was=file"]);
    let old_stack = Stack::new(old.stack.clone());
    old.stack.clear();
    old.layer(&["both=same", "etc", "etc/changed=two", "etc/new=yy", "was", "was/dir=z"]);
    let library = old.library();
    let view = |stack: &Stack| View::of_stack(&library, "t".to_owned(), stack).unwrap();
    let strata =
        Strata::of_comparison(view(&old_stack), view(&Stack::new(old.stack.clone()))).unwrap();
    assert_eq!(
        seen(&strata, 1, Scope::Changes),
        [
            "- / 6",
            "- /etc 5",
            "C /etc/changed 3",
            "D /etc/gone 1",
            "A /etc/new 2",
            "C /was 1",
            "A /was/dir 1"
        ]
    );
}

#[test]
fn a_damaged_layer_is_told_and_the_others_are_shown() {
    let stage = three_layers();
    let path = stage.dir.path().join("layers").join(stage.stack[1].to_string());
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let strata = stage.strata();
    assert!(strata.layers()[1].damage.is_some() && strata.layers()[2].damage.is_none());
    let etc = strata.find(&at("etc")).unwrap();
    assert_eq!(strata.mark(etc, 2), Mark::Changed);
    assert!(strata.waste().is_ok());
}

#[test]
fn a_pile_of_many_names_is_read_and_listed_at_once() {
    let mut stage = Stage::new();
    let files: Vec<String> = (0..20_000).map(|n| format!("d{}/f{n}=x", n % 100)).collect();
    stage.layer(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let strata = stage.strata();
    let outlook = Outlook::new(&strata, 0, Scope::Whole);
    assert_eq!(outlook.rows(&strata, Order::Size, |_| true).len(), 20_101);
    assert_eq!(outlook.bytes(&strata, PlaceId::ROOT), 20_000);
    assert_eq!(strata.facts(PlaceId::ROOT, 0).unwrap().unwrap().layer, 0);
}
