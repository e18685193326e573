//! Runs `src/mvcc/testscripts`: each command on both engines.

use std::fmt::Write as _;

use goldenscript::{ArgumentConsumer, Command, Context, Runner};

use crate::engine::{Batch, Engine, Overlay};
use crate::mvcc::testing::{self, Engines, ScriptResult, bytes, show, show_batch, show_row};
use crate::mvcc::{self, Version};
use crate::types::Timestamp;

struct Versions(Engines);

impl Versions {
    /// `put KEY VALUE ts=N [id=SEEN.UNIQUE]`, and `delete` without the value. The tag `raw` shows the writes.
    fn write(&self, args: &mut ArgumentConsumer<'_>, raw: bool, put: bool) -> ScriptResult<String> {
        let key = bytes(args.next_pos().ok_or("no key")?);
        let value = if put { Some(bytes(args.next_pos().ok_or("no value")?)) } else { None };
        let ts = testing::optional_ts(args, "ts")?.ok_or("no ts")?;
        let id = args.take_key("id").unwrap_or("0.0");
        let id = testing::request_id(id)?;
        let batch = self.0.on_both(|engine| -> crate::types::Result<Batch> {
            let view = engine.view();
            let mut overlay = Overlay::new(view.as_ref());
            let previous = mvcc::current(&overlay, &key, Timestamp::ZERO)?;
            let version = match &value {
                Some(value) => Version::put(previous.as_ref(), ts, id, value.clone()),
                None => Version::tombstone(ts, id),
            };
            mvcc::write(&mut overlay, &key, previous, &version)?;
            Ok(overlay.into_batch())
        })?;
        self.0.write(&batch);
        Ok(if raw { show_batch(batch.entries()) } else { String::new() })
    }

    /// `get KEY [at=N]`, `current KEY` (also tombstones), `by KEY id=SEEN.UNIQUE`.
    fn read(&self, name: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        let key = bytes(args.next_pos().ok_or("no key")?);
        let at = testing::optional_ts(args, "at")?;
        let id = args.take_key("id").map(testing::request_id).transpose()?;
        let row = self.0.on_both(|engine| {
            let view = engine.view();
            let view = view.as_ref();
            match (name, at, id) {
                ("by", _, Some(id)) => {
                    let newest = mvcc::current(view, &key, Timestamp::ZERO)?;
                    mvcc::written_by(view, &key, newest.as_ref(), id, Timestamp::ZERO)
                }
                ("current", ..) => mvcc::current(view, &key, Timestamp::ZERO),
                (_, Some(at), _) => mvcc::at(view, &key, at),
                _ => mvcc::latest(view, &key),
            }
        })?;
        Ok(format!("{} → {}", show(&key), row.map_or("nothing".into(), |row| show_row(&row))))
    }

    /// `scan [FROM [TO]] [at=N] [reverse=true]`. Shows what was walked over too.
    fn scan(&self, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        let at = testing::optional_ts(args, "at")?.unwrap_or(Timestamp::MAX);
        let direction = testing::direction(args)?;
        let range = testing::key_range(args);
        self.0
            .on_both(|engine| {
                let view = engine.view();
                let mut out = String::new();
                for found in mvcc::scan(view.as_ref(), &range, direction, at) {
                    let found = found.map_err(|error| error.message)?;
                    let row = found.row.map_or("nothing".into(), |row| show_row(&row));
                    writeln!(out, "{} → {row}", show(&found.key)).map_err(|error| error.to_string())?;
                }
                Ok::<_, String>(out)
            })
            .map_err(Into::into)
    }
}

impl Runner for Versions {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> ScriptResult<String> {
        let mut args = command.consume_args();
        let raw = context.tags.contains("raw");
        let out = match command.name.as_str() {
            "put" => self.write(&mut args, raw, true)?,
            "delete" => self.write(&mut args, raw, false)?,
            name @ ("get" | "current" | "by") => self.read(name, &mut args)?,
            "scan" => self.scan(&mut args)?,
            "dump" => self.0.on_both(|engine: &dyn Engine| testing::dump(engine.view().as_ref())),
            name => return Err(format!("no command {name}").into()),
        };
        args.reject_next()?;
        Ok(out)
    }
}

#[test]
fn scripts() {
    testing::run_scripts("src/mvcc/testscripts", || Versions(Engines::new()));
}
