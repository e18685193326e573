//! Keeps the rules of the layout: modules import downward only, machines are pure, libraries are named in one
//! place, files are introduced and short. The floors are read from the table in `docs/ARCHITECTURE.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// The most lines of a file before its tests.
const MAX_LINES: usize = 600;

/// Modules that are pure functions of their input.
const MACHINES: [&str; 7] = ["changelog", "mvcc", "index", "saga", "shard", "oracle", "txn"];

/// What a machine must not name: crates, and paths of the standard library. `std::time::Duration` is a number.
const IMPURE_CRATES: [&str; 6] = ["tokio", "tokio_util", "tokio_stream", "rand", "metrics", "tonic"];
const IMPURE_STD: [&str; 6] = ["time", "fs", "net", "thread", "process", "env"];

/// Libraries that may be named under one path only.
const CONFINED: [(&str, &str); 3] =
    [("rocksdb", "src/engine/rocks"), ("openraft", "src/raft/"), ("bincode", "src/codec/versioned")];

/// The rows of the table. A module may import those on lower floors and those before it on its own, except the
/// ones it is said never to import.
#[derive(Default)]
struct Floors(BTreeMap<String, Row>);

struct Row {
    floor: u32,
    place: usize,
    never: BTreeSet<String>,
}

/// Which module an item that the crate's root re-exports comes from.
type Reexports = BTreeMap<String, String>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The floors in the table of the architecture text: rows such as `| 2 | `mvcc/` | … |`.
fn floors(text: &str) -> Floors {
    let mut floors = Floors::default();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (Some(Ok(floor)), Some(names)) = (cells.get(1).map(|cell| cell.parse()), cells.get(2)) else {
            continue;
        };
        let never = cells.get(4).map(|cell| cell.split(',').map(|word| word.trim().to_owned()).collect());
        for name in names.split(',').map(|name| name.trim().trim_matches('`').trim_end_matches('/')) {
            let row = Row { floor, place: floors.0.len(), never: never.clone().unwrap_or_default() };
            assert!(floors.0.insert(name.to_owned(), row).is_none(), "{name} stands twice in the table");
        }
    }
    floors
}

/// The crate's own paths in a file, as lists of segments after `crate`, and all first segments of other paths.
#[derive(Default)]
struct Paths {
    /// The module path of the file, and of inline modules inside.
    module: Vec<String>,
    /// First segments below the crate's root, outside tests.
    internal: BTreeSet<String>,
    /// All other paths, outside tests.
    external: BTreeSet<Vec<String>>,
    /// First segments of all other paths, tests included.
    named: BTreeSet<String>,
    in_tests: bool,
}

impl Paths {
    fn record(&mut self, segments: &[String]) {
        let Some(first) = segments.first() else { return };
        let below_root = match first.as_str() {
            "crate" => segments.get(1).cloned(),
            "super" => {
                let ups = segments.iter().take_while(|segment| *segment == "super").count();
                // Below the file's own top module, `super` can't leave it.
                (ups >= self.module.len()).then(|| segments.get(ups).cloned()).flatten()
            }
            _ => {
                self.named.insert(first.clone());
                if !self.in_tests {
                    self.external.insert(segments.to_vec());
                }
                None
            }
        };
        if let Some(below_root) = below_root.filter(|_| !self.in_tests) {
            self.internal.insert(below_root);
        }
    }

    fn record_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.record_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.record(&with(&name.ident)),
            syn::UseTree::Rename(rename) => self.record(&with(&rename.ident)),
            syn::UseTree::Glob(_) => self.record(before),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.record_tree(before, item)),
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Ident>().is_ok_and(|argument| argument == "test")
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes: &[syn::Attribute] = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            _ => &[],
        };
        let before = self.in_tests;
        self.in_tests |= is_test(attributes);
        visit::visit_item(self, item);
        self.in_tests = before;
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.record_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.record(&segments);
        }
        visit::visit_path(self, path);
    }

    /// The inside of a macro is no syntax tree, only words: paths of at least two segments are read from them.
    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        let text = mac.tokens.to_string().replace(" :: ", "::").replace(":: ", "::").replace(" ::", "::");
        let is_word = |character: char| character.is_alphanumeric() || character == '_' || character == ':';
        for word in text.split(|character| !is_word(character)).filter(|word| word.contains("::")) {
            let segments: Vec<String> =
                word.split("::").filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
            self.record(&segments);
        }
        visit::visit_macro(self, mac);
    }
}

/// The names that the crate's root re-exports, and their modules.
fn reexports(lib: &str) -> Reexports {
    fn collect(module: &str, tree: &syn::UseTree, found: &mut Reexports) {
        match tree {
            syn::UseTree::Path(path) => collect(module, &path.tree, found),
            syn::UseTree::Name(name) => {
                found.insert(name.ident.to_string(), module.to_owned());
            }
            syn::UseTree::Rename(rename) => {
                found.insert(rename.rename.to_string(), module.to_owned());
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| collect(module, item, found)),
            syn::UseTree::Glob(_) => {}
        }
    }
    let mut found = Reexports::new();
    for item in syn::parse_file(lib).expect("lib.rs is Rust").items {
        if let syn::Item::Use(item) = item
            && let syn::UseTree::Path(path) = &item.tree
        {
            collect(&path.ident.to_string(), &path.tree, &mut found);
        }
    }
    found
}

/// The module of a file of `src/`, as a list of names below the crate's root.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    path.split('/').filter(|part| *part != "mod").map(str::to_owned).collect()
}

/// The modules in files of their own that a file declares for tests only: `#[cfg(test)] mod testing;`.
fn test_modules(path: &str, source: &str) -> Vec<Vec<String>> {
    let Ok(file) = syn::parse_file(source) else { return Vec::new() };
    let mut found = Vec::new();
    for item in file.items {
        if let syn::Item::Mod(item) = item
            && item.content.is_none()
            && is_test(&item.attrs)
        {
            found.push([module_of(path), vec![item.ident.to_string()]].concat());
        }
    }
    found
}

/// Everything that is wrong with one file of `src/`; `path` is relative to the project. In a file for tests only,
/// imports are free.
fn violations(
    path: &str,
    source: &str,
    floors: &Floors,
    reexports: &Reexports,
    test_modules: &[Vec<String>],
) -> Vec<String> {
    let module = module_of(path);
    let in_tests = test_modules.iter().any(|tests| module.starts_with(tests));
    let mut wrong = file_violations(path, source, in_tests);
    let own = module[0].clone();
    if own == "lib" || own == "main" {
        return wrong;
    }
    let file = match syn::parse_file(source) {
        Ok(file) => file,
        Err(error) => return vec![format!("{path} is not Rust: {error}")],
    };
    let mut paths = Paths { module, in_tests, ..Paths::default() };
    paths.visit_file(&file);

    let Some(own_row) = floors.0.get(&own) else {
        wrong.push(format!("{path}: the module {own} stands in no row of the table"));
        return wrong;
    };
    for name in &paths.internal {
        let target = reexports.get(name).unwrap_or(name);
        match floors.0.get(target) {
            Some(_) if *target == own => {}
            Some(row)
                if row.place < own_row.place
                    && row.floor <= own_row.floor
                    && !own_row.never.contains(target) => {}
            Some(row) => wrong.push(format!(
                "{path}: {own} (floor {}) imports {target} (floor {})",
                own_row.floor, row.floor
            )),
            None => wrong.push(format!("{path}: crate::{name} stands in no row of the table")),
        }
    }
    for (library, place) in CONFINED {
        if paths.named.contains(library) && !path.starts_with(place) {
            wrong.push(format!("{path}: only {place} names {library}"));
        }
    }
    if MACHINES.contains(&own.as_str()) {
        for external in paths.external.iter().filter(|external| is_impure(external)) {
            wrong.push(format!("{path}: a machine names {}", external.join("::")));
        }
    }
    wrong
}

fn is_impure(path: &[String]) -> bool {
    match path.first().map(String::as_str) {
        Some("std") => {
            let part = path.get(1).map_or("", String::as_str);
            let is_duration = part == "time" && path.get(2).is_some_and(|item| item == "Duration");
            IMPURE_STD.contains(&part) && !is_duration
        }
        Some("Instant" | "SystemTime") => true,
        Some(name) => IMPURE_CRATES.contains(&name),
        None => false,
    }
}

/// What every Rust file must keep: an opening `//!`, and where it is not for tests only, no more than so many lines
/// before its tests.
fn file_violations(path: &str, source: &str, in_tests: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    if !source.starts_with("//!") {
        wrong.push(format!("{path}: the file does not open with //! saying what it is for"));
    }
    let lines = source.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if lines > MAX_LINES && !in_tests {
        wrong.push(format!("{path}: {lines} lines before the tests; the most is {MAX_LINES}"));
    }
    wrong
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{} can't be read: {error}", path.display()))
}

#[test]
fn the_sources_keep_the_rules() {
    let floors = floors(&read(&root().join("docs/ARCHITECTURE.md")));
    let reexports = reexports(&read(&root().join("src/lib.rs")));
    let mut wrong = Vec::new();
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    assert!(files.len() > 20, "the sources were not found: {files:?}");
    let sources: Vec<(String, String)> = files
        .iter()
        .map(|file| {
            (file.strip_prefix(root()).expect("below the project").to_string_lossy().into_owned(), read(file))
        })
        .collect();
    let test_modules: Vec<_> = sources.iter().flat_map(|(path, source)| test_modules(path, source)).collect();
    for (path, source) in &sources {
        wrong.extend(violations(path, source, &floors, &reexports, &test_modules));
    }
    for directory in ["tests", "examples", "benches"] {
        let mut files = Vec::new();
        rust_files(&root().join(directory), &mut files);
        for file in files {
            let path = file.strip_prefix(root()).expect("below the project").to_string_lossy().into_owned();
            wrong.extend(file_violations(&path, &read(&file), directory == "tests"));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn every_row_of_the_table_is_a_module_and_every_module_a_row() {
    let floors = floors(&read(&root().join("docs/ARCHITECTURE.md")));
    let modules: BTreeSet<String> = fs::read_dir(root().join("src"))
        .expect("src/")
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.is_dir())
        .filter_map(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .collect();
    assert_eq!(floors.0.keys().cloned().collect::<BTreeSet<_>>(), modules);
}

/// What the rules say of `source` as the file `path`, with a small table.
fn judged(path: &str, source: &str) -> String {
    let floors = floors(
        "| 0 | `types/` | x | |\n| 0 | `codec/` | x | |\n| 1 | `engine/` | x | |\n| 3 | `shard/` | x | clocks, codec |\n\
         | 6 | `node/` | x | |",
    );
    let reexports = reexports("pub use types::{Error, Result};\npub use node::Embedded;");
    let tests = test_modules("src/shard/mod.rs", "#[cfg(test)]\nmod testing;\nmod apply;");
    violations(path, &format!("//! A file.\n{source}"), &floors, &reexports, &tests).join("\n")
}

#[test]
fn downward_imports_pass() {
    let source = "use crate::engine::View;\nuse crate::{Error, types::Key};\nuse super::state;\nuse std::time::Duration;\n\
                  #[cfg(test)]\nmod tests { use crate::node::Node; use super::super::x; }";
    assert_eq!(judged("src/shard/apply.rs", source), "");
    assert_eq!(judged("src/shard/testing.rs", "use std::fs; use crate::node::Node;"), "");
}

#[test]
fn upward_and_sideways_imports_are_refused() {
    let refused = [
        ("src/shard/apply.rs", "use crate::node::Node;"),
        ("src/shard/apply.rs", "use crate::{types::Key, node};"),
        ("src/shard/apply.rs", "use crate::Embedded;"),
        ("src/shard/mod.rs", "use super::node::Node;"),
        ("src/shard/apply.rs", "use super::super::node::Node;"),
        ("src/shard/apply.rs", "fn f() { crate::node::start() }"),
        ("src/shard/apply.rs", "fn f() { println!(\"{}\", crate::node::start()) }"),
        ("src/types/key.rs", "use crate::codec::keyspace;"),
        ("src/shard/apply.rs", "use crate::codec::keyspace;"),
    ];
    for (path, source) in refused {
        assert!(judged(path, source).contains("imports"), "{path}: {source}");
    }
    assert!(judged("src/other/mod.rs", "").contains("no row"));
    assert!(judged("src/shard/mod.rs", "use crate::other::X;").contains("no row"));
}

#[test]
fn impure_machines_and_strayed_libraries_are_refused() {
    for source in [
        "use std::time::Instant;",
        "fn f() { std::time::SystemTime::now(); }",
        "use tokio::sync::mpsc;",
        "fn f() { rand::random::<u64>(); }",
        "fn f() { metrics::counter!(\"x\"); }",
        "use std::fs::File;",
    ] {
        assert!(judged("src/shard/apply.rs", source).contains("a machine names"), "{source}");
        assert_eq!(judged("src/node/mod.rs", source), "", "{source}");
    }
    assert!(judged("src/node/mod.rs", "use rocksdb::DB;").contains("only src/engine/rocks names rocksdb"));
    assert!(judged("src/node/mod.rs", "fn f(x: openraft::Vote) {}").contains("openraft"));
    assert_eq!(judged("src/engine/rocks/mod.rs", "use rocksdb::DB;"), "");
}

#[test]
fn files_without_an_introduction_and_long_files_are_refused() {
    assert!(file_violations("x.rs", "use a;", true).join("").contains("//!"));
    let body = "// line\n".repeat(MAX_LINES);
    assert!(file_violations("x.rs", &format!("//! x\n{body}"), false).join("").contains("lines before"));
    assert!(file_violations("x.rs", &format!("//! x\n#[cfg(test)]\n{body}"), false).is_empty());
    assert!(file_violations("x.rs", &format!("//! x\n{body}"), true).is_empty());
}
