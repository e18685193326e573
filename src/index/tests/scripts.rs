//! Runs `src/index/testscripts`. A script defines an index, changes users' rows, sees what that writes to the index,
//! and asks the index.

use std::fmt::Write as _;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Command, Context, Runner};
use serde_json::Value;

use super::store::{Page, Store};
use crate::codec;
use crate::index::{
    Batch, DatumType, Definition, Field, Item, Kind, Missing, OnError, Order, Query, QueryText, Spec, plan,
};
use crate::mvcc::testing::{self, ScriptResult};

#[derive(Default)]
struct Edge {
    store: Option<Store>,
    /// What the rows of commands are gathered in while a batch is open.
    batch: Option<Batch>,
    /// The last query, and its token.
    query: Option<Query>,
}

/// Fields between `;`.
fn fields(text: Option<&str>) -> ScriptResult<Vec<Field>> {
    Ok(text.into_iter().flat_map(|text| text.split(';')).map(str::parse).collect::<Result<_, _>>()?)
}

/// `define NAME KIND FIELD... prefix= measure= covering= missing= on_error= id= version=`.
fn define(args: &mut ArgumentConsumer<'_>) -> ScriptResult<Definition> {
    let name = args.next_pos().ok_or("no name")?.to_owned();
    let kind: Kind = args.next_pos().ok_or("no kind")?.parse()?;
    let id = args.take_key("id").map_or(Ok(7), str::parse)?;
    let version = args.take_key("version").map_or(Ok(1), str::parse)?;
    let mut spec = Spec {
        name,
        kind,
        prefix: testing::bytes(args.take_key("prefix").unwrap_or_default()),
        on: Vec::new(),
        measure: fields(args.take_key("measure"))?.pop(),
        covering: fields(args.take_key("covering"))?,
        missing: args.take_key("missing").map_or(Ok(Missing::default()), str::parse)?,
        on_error: args.take_key("on_error").map_or(Ok(OnError::default()), str::parse)?,
    };
    while let Some(field) = args.next_pos() {
        spec.on.push(field.parse()?);
    }
    let definition = Definition::new(id, version, spec)?;
    // What is stored reads back the same, whichever way.
    let stored: Definition = codec::decode(&codec::encode(&definition), "definition")?;
    let json: Definition = serde_json::from_str(&serde_json::to_string(&definition)?)?;
    assert_eq!((&stored, &json), (&definition, &definition));
    Ok(definition)
}

fn show_definition(definition: &Definition) -> String {
    let spec = definition.spec();
    let mut out = format!("{} {}", spec.kind.name(), spec.name);
    for (what, fields) in
        [("on", &spec.on), ("measure", &spec.measure.iter().cloned().collect()), ("covering", &spec.covering)]
    {
        for field in fields {
            write!(out, "\n{what} {field}").expect("writes to a string");
        }
    }
    out
}

fn show_batch(batch: &Batch) -> String {
    let mut out = String::new();
    for (key, value) in &batch.entries {
        let line = match value {
            Some(value) => format!("put {} = {}", testing::show(key), testing::show(value)),
            None => format!("delete {}", testing::show(key)),
        };
        writeln!(out, "{line}").expect("writes to a string");
    }
    for (key, change) in &batch.groups {
        let sum = change.sum.map_or(String::new(), |sum| format!(", sum {sum}"));
        writeln!(out, "group {} count {:+}{sum}", testing::show(key), change.count)
            .expect("writes to a string");
    }
    for error in &batch.rejected {
        writeln!(out, "rejected: {error}").expect("writes to a string");
    }
    out
}

fn show_page(page: &Page) -> String {
    let mut out = String::new();
    for item in &page.items {
        let line = match item {
            Item::Entry(entry) => {
                let fields = Value::from(entry.fields.clone());
                let measure =
                    entry.measure.as_ref().map_or(String::new(), |measure| format!(" measure {measure}"));
                let covering = match entry.covering.is_empty() {
                    true => String::new(),
                    false => format!(" covering {}", Value::from(entry.covering.clone())),
                };
                format!("{} {fields}{measure}{covering}", testing::show(&entry.key))
            }
            Item::Group(group) => group.to_json().to_string(),
        };
        writeln!(out, "{line}").expect("writes to a string");
    }
    let more = if page.token.is_some() { ", and more" } else { "" };
    writeln!(out, "{} rows of the index read{more}", page.examined).expect("writes to a string");
    out
}

impl Edge {
    fn store(&mut self) -> ScriptResult<&mut Store> {
        Ok(self.store.as_mut().ok_or("nothing is defined")?)
    }

    /// `put KEY VALUE`, `delete KEY`: what is written to the index, at once or with the open batch.
    fn write(&mut self, args: &mut ArgumentConsumer<'_>, is_put: bool) -> ScriptResult<String> {
        let key = testing::bytes(args.next_pos().ok_or("no key")?);
        let value = match is_put {
            true => Some(Bytes::copy_from_slice(args.next_pos().ok_or("no value")?.as_bytes())),
            false => None,
        };
        if let Some(mut batch) = self.batch.take() {
            self.store()?.write(&key, value, &mut batch)?;
            self.batch = Some(batch);
            return Ok(String::new());
        }
        let mut batch = Batch::default();
        let store = self.store()?;
        store.write(&key, value, &mut batch)?;
        self.apply(batch)
    }

    fn apply(&mut self, batch: Batch) -> ScriptResult<String> {
        let store = self.store()?;
        let out = show_batch(&batch);
        store.apply(batch)?;
        assert_eq!(store.index, store.scanned()?, "the index differs from one built anew");
        Ok(out)
    }

    fn rows(&mut self) -> ScriptResult<String> {
        let mut out = String::new();
        for (key, value) in &self.store()?.index {
            writeln!(out, "{} = {}", testing::show(key), testing::show(value))?;
        }
        Ok(out)
    }

    /// `query FILTER order= group= aggregates= duplicates= limit= with_rows=`, and `explain` with the same.
    fn query(&mut self, args: &mut ArgumentConsumer<'_>, is_explain: bool) -> ScriptResult<String> {
        let text = QueryText {
            filter: args.next_pos().unwrap_or_default(),
            order: args.take_key("order").unwrap_or_default(),
            group_by: args.take_key("group"),
            aggregates: args.take_key("aggregates").unwrap_or_default(),
            duplicates: args.take_key("duplicates") == Some("true"),
            limit: args.take_key("limit").map(str::parse).transpose()?,
            page_token: args.take_key("token").map(testing::bytes),
            with_rows: args.take_key("with_rows") == Some("true"),
        };
        let query = Query::parse(&text)?;
        if is_explain {
            let lines = plan(&self.store()?.definition, &query)?.explain();
            return Ok(lines.join("\n"));
        }
        self.page(query)
    }

    fn page(&mut self, query: Query) -> ScriptResult<String> {
        let page = self.store()?.page(&query)?;
        self.query = Some(Query { page_token: page.token.clone(), ..query });
        Ok(show_page(&page))
    }

    /// `more filter=`: the next page of the last query, or of another with its token.
    fn more(&mut self, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        let mut query = self.query.clone().ok_or("no query")?;
        assert!(query.page_token.is_some(), "the last page had no token");
        if let Some(filter) = args.take_key("filter") {
            query.filter = Query::parse(&QueryText { filter, ..QueryText::default() })?.filter;
        }
        if let Some(byte) = args.take_key("damage") {
            let mut token = query.page_token.as_deref().unwrap_or_default().to_vec();
            token[byte.parse::<usize>()?] ^= 1;
            query.page_token = Some(token.into());
        }
        self.page(query)
    }
}

impl Runner for Edge {
    type Command = Command;

    fn run(&mut self, command: &Command, _context: &Context) -> ScriptResult<String> {
        let mut args = command.consume_args();
        let args = &mut args;
        let out = match command.name.as_str() {
            "define" => {
                let definition = define(args)?;
                let out = show_definition(&definition);
                self.store = Some(Store::new(definition));
                out
            }
            // The rows and the index stay; only the definition is another.
            "redefine" => {
                let definition = define(args)?;
                let out = show_definition(&definition);
                self.store()?.definition = definition;
                out
            }
            "put" => self.write(args, true)?,
            "delete" => self.write(args, false)?,
            "begin" => {
                self.batch = Some(Batch::default());
                String::new()
            }
            "end" => {
                let batch = self.batch.take().ok_or("no batch")?;
                self.apply(batch)?
            }
            "rows" => self.rows()?,
            "query" => self.query(args, false)?,
            "explain" => self.query(args, true)?,
            "more" => self.more(args)?,
            name => return Err(format!("no command {name}").into()),
        };
        args.reject_next()?;
        Ok(out)
    }
}

#[test]
fn scripts() {
    testing::run_scripts("src/index/testscripts", Edge::default);
}

#[test]
fn names_in_text_are_those_in_json() {
    let json = |text: &str| serde_json::to_string(text).expect("a string");
    for name in ["value", "unique", "count", "sum", "min", "max"] {
        assert_eq!(serde_json::from_str::<Kind>(&json(name)).expect("JSON"), name.parse().expect("text"));
    }
    for name in ["skip", "null"] {
        assert_eq!(serde_json::from_str::<Missing>(&json(name)).expect("JSON"), name.parse().expect("text"));
    }
    for name in ["halt", "dead-letter", "skip"] {
        assert_eq!(serde_json::from_str::<OnError>(&json(name)).expect("JSON"), name.parse().expect("text"));
    }
}

#[test]
fn fields_read_back_as_they_are_written() {
    let texts = [
        ("$.country", "country=$.country", "country", Order::Asc, None),
        ("c=$.a.b:string", "c=$.a.b:string", "c", Order::Asc, Some(DatumType::String)),
        (" s = $['a b'] desc", "s=$['a b'] desc", "s", Order::Desc, None),
        ("$[\"x\"]:number asc", "x=$[\"x\"]:number", "x", Order::Asc, Some(DatumType::Number)),
        ("q=$['=,?..(']", "q=$['=,?..(']", "q", Order::Asc, None),
        ("q=$['\\',?']", "q=$['\\',?']", "q", Order::Asc, None),
        ("$..deep", "deep=$..deep", "deep", Order::Asc, None),
        ("key-part:1", "key_part_1=key-part:1", "key_part_1", Order::Asc, None),
        ("p=key-part:0(-) desc", "p=key-part:0(-) desc", "p", Order::Desc, None),
        ("p=key-part:0(\\x1F)", "p=key-part:0(\\x1f)", "p", Order::Asc, None),
        ("key:string", "key=key:string", "key", Order::Asc, Some(DatumType::String)),
    ];
    for (text, shown, name, order, datum_type) in texts {
        let field: Field = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!((field.to_string().as_str(), field.name.as_str()), (shown, name), "{text}");
        assert_eq!((field.order, field.datum_type), (order, datum_type), "{text}");
        assert_eq!(shown.parse::<Field>().expect("its own text"), field);
    }
}
