//! Runs `src/txn/testscripts`. A script plays the edge: it starts a machine, sees what it asks for, and tells
//! it what came of that, by the numbers of the requests.

use std::fmt::Write as _;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Command, Context, Runner};

use crate::mvcc::testing::{self, ScriptResult};
use crate::txn::{Action, Coordinator, Event, Inquiry, Recovery, TxnCommit, Verdict};
use crate::types::{
    AbortReason, Decision, KeyRange, Lock, Outcome, Refusal, Timestamp, TxnCommand, TxnId, TxnOutcome,
    TxnPart, TxnStatus, TxnWrite,
};

/// The transaction that scripts are about.
const TXN: TxnId = TxnId { seen: Timestamp(10), unique: 7 };

enum Machine {
    None,
    Coordinator(Coordinator),
    Recovery(Recovery),
    Inquiry(Inquiry),
}

struct Edge {
    shards: Vec<KeyRange>,
    machine: Machine,
}

/// The shards between the keys.
fn cut(at: impl Iterator<Item = String>) -> Vec<KeyRange> {
    let mut shards = Vec::new();
    let mut start = Bytes::new();
    for key in at {
        let end = Bytes::from(key);
        shards.push(KeyRange::new(start, Some(end.clone())));
        start = end;
    }
    shards.push(KeyRange::new(start, None));
    shards
}

fn positions(args: &mut ArgumentConsumer<'_>) -> Vec<String> {
    std::iter::from_fn(|| args.next_pos().map(str::to_owned)).collect()
}

/// `a,b,c`; nothing where it is left out.
fn keys(text: Option<&str>) -> Vec<Bytes> {
    text.into_iter().flat_map(|text| text.split(',')).map(testing::bytes).collect()
}

/// `a..c,m..`.
fn ranges(text: Option<&str>) -> ScriptResult<Vec<KeyRange>> {
    let range = |text: &str| {
        let (start, end) = text.split_once("..").ok_or("a range is START..END")?;
        Ok(KeyRange::new(testing::bytes(start), (!end.is_empty()).then(|| testing::bytes(end))))
    };
    text.into_iter().flat_map(|text| text.split(',')).map(range).collect()
}

fn show_key(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

fn show_keys<'k>(keys: impl IntoIterator<Item = &'k Bytes>) -> String {
    keys.into_iter().map(|key| show_key(key)).collect::<Vec<_>>().join(",")
}

fn show_ranges(ranges: &[KeyRange]) -> String {
    let show = |range: &KeyRange| {
        format!(
            "{}..{}",
            show_key(&range.start),
            range.end.as_ref().map_or(String::new(), |end| show_key(end))
        )
    };
    ranges.iter().map(show).collect::<Vec<_>>().join(",")
}

fn show_part(part: &TxnPart) -> String {
    let mut shown = Vec::new();
    if !part.reads.is_empty() {
        shown.push(format!("reads {}", show_keys(&part.reads)));
    }
    if !part.ranges.is_empty() {
        shown.push(format!("ranges {}", show_ranges(&part.ranges)));
    }
    if !part.writes.is_empty() {
        shown.push(format!("writes {}", show_keys(part.writes.iter().map(TxnWrite::key))));
    }
    shown.join(", ")
}

fn show_decision(decision: Decision) -> String {
    match decision {
        Decision::Committed { commit_ts } => format!("committed @{commit_ts}"),
        Decision::Aborted => "aborted".into(),
    }
}

fn show_command(command: &TxnCommand) -> String {
    match command {
        TxnCommand::Commit { primary, part } => {
            format!("commit {} primary {}", show_part(part), show_key(primary))
        }
        TxnCommand::Prepare { primary, part, listed } => {
            let listed = listed.as_ref().map(|listed| format!(" listing {}", show_keys(listed)));
            format!("prepare {} primary {}{}", show_part(part), show_key(primary), listed.unwrap_or_default())
        }
        TxnCommand::Decide { commit_ts, spans, .. } => {
            let at = commit_ts.map_or("its own time".into(), |ts| format!("@{ts}"));
            format!("decide {at} spans {}", show_ranges(spans))
        }
        TxnCommand::Abort { certain, spans, .. } => {
            format!("abort{} spans {}", if *certain { " certain" } else { "" }, show_ranges(spans))
        }
        TxnCommand::Mark { key } => format!("mark {}", show_key(key)),
        TxnCommand::Finish { span, decision } => {
            format!("finish {} {}", show_ranges(std::slice::from_ref(span)), show_decision(*decision))
        }
        TxnCommand::Forget { .. } => "forget".into(),
    }
}

fn show_verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Committed { commit_ts } => format!("committed @{commit_ts}"),
        Verdict::Aborted { reason: AbortReason::Locked(lock) } => {
            format!("aborted, {} is locked", show_key(&lock.key))
        }
        Verdict::Aborted { reason: AbortReason::Changed { key, .. } } => {
            format!("aborted, {} has changed", show_key(key))
        }
        Verdict::Aborted { reason } => format!("aborted, {reason:?}"),
        Verdict::Refused(refusal) => format!("refused, {refusal:?}"),
        Verdict::Undetermined => "undetermined".into(),
    }
}

fn show(action: &Action) -> String {
    let when = |at: &Option<Timestamp>| at.map_or("now".into(), |ts| format!("@{ts}"));
    match action {
        Action::Send { step, to, command } => {
            format!("{step} → {}: {}", show_key(to), show_command(command))
        }
        Action::Ask { step, primary, at } => {
            format!("{step} → {}: what of the record, {}?", show_key(primary), when(at))
        }
        Action::Look { step, key, at } => format!("{step} → {}: locked, {}?", show_key(key), when(at)),
        Action::Acknowledge(verdict) => format!("acknowledge {}", show_verdict(verdict)),
        Action::Ended => "ended".into(),
    }
}

fn lock(key: &str, primary: &str) -> Lock {
    let (key, primary) = (testing::bytes(key), testing::bytes(primary));
    Lock { key, txn: TXN, primary, prepare_ts: Timestamp(20) }
}

fn foreign_lock(key: &str) -> Lock {
    Lock { txn: TxnId { unique: 8, ..TXN }, ..lock(key, key) }
}

impl Edge {
    /// `commit read=a,b range=c..d write=e,f`.
    fn commit(&mut self, args: &mut ArgumentConsumer<'_>) -> ScriptResult<Vec<Action>> {
        let put = |key: Bytes| TxnWrite::Put { key, value: "v".into() };
        let part = TxnPart {
            reads: keys(args.take_key("read")),
            ranges: ranges(args.take_key("range"))?,
            writes: keys(args.take_key("write")).into_iter().map(put).collect(),
        };
        let commit = TxnCommit { id: TXN, part }.normalise()?;
        let (machine, actions) = Coordinator::start(commit, &self.shards);
        self.machine = Machine::Coordinator(machine);
        Ok(actions)
    }

    /// `recover KEY primary=P`, `resume primary=P at=TS spans=a..b,c..d`, `inquire KEY primary=P at=TS`.
    fn other(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<Vec<Action>> {
        let key = args.next_pos().unwrap_or_default().to_owned();
        let primary = args.take_key("primary").ok_or("no primary")?.to_owned();
        let at = testing::optional_ts(args, "at")?.unwrap_or_default();
        Ok(match name {
            "recover" => {
                let (machine, actions) = Recovery::start(&lock(&key, &primary), &self.shards);
                self.machine = Machine::Recovery(machine);
                actions
            }
            "resume" => {
                let spans = ranges(args.take_key("spans"))?;
                let primary = testing::bytes(&primary);
                let (machine, actions) = Recovery::resume(TXN, primary, at, spans, &self.shards);
                self.machine = Machine::Recovery(machine);
                actions
            }
            _ => {
                let (machine, actions) = Inquiry::start(&lock(&key, &primary), at);
                self.machine = Machine::Inquiry(machine);
                actions
            }
        })
    }

    fn tell(&mut self, event: Event) -> (Vec<Action>, Option<String>) {
        let mut actions = Vec::new();
        let fate = match &mut self.machine {
            Machine::Coordinator(machine) => {
                machine.on(event, &mut actions);
                assert_eq!(machine.ended(), actions.contains(&Action::Ended) || machine.ended());
                None
            }
            Machine::Recovery(machine) => {
                machine.on(event, &mut actions);
                None
            }
            Machine::Inquiry(machine) => machine.on(event, &mut actions),
            Machine::None => None,
        };
        (
            actions,
            fate.map(|learnt| {
                format!("{:?}{}", learnt.fate, if learnt.confirm { ", to be confirmed" } else { "" })
            }),
        )
    }
}

/// What came of a command: `prepared 20`, `aborted locked=b`, `finished b..c`, ….
fn outcome(name: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<Outcome> {
    let ts = |args: &mut ArgumentConsumer<'_>| testing::timestamp(args.next_pos().ok_or("no timestamp")?);
    Ok(Outcome::Txn(match name {
        "prepared" => TxnOutcome::Prepared { prepare_ts: ts(args)? },
        "committed" => TxnOutcome::Committed { commit_ts: ts(args)? },
        "locked" => TxnOutcome::StillLocked { prepare_ts: ts(args)? },
        "aborted" => TxnOutcome::Aborted {
            reason: match (args.take_key("locked"), args.take_key("changed")) {
                (Some(key), _) => AbortReason::Locked(foreign_lock(key)),
                (_, Some(key)) => AbortReason::Changed { key: testing::bytes(key), commit_ts: Timestamp(11) },
                _ => AbortReason::RolledBack,
            },
        },
        "late" => TxnOutcome::AbortedLate,
        "staging" => TxnOutcome::StillStaging { listed: keys(args.next_pos()) },
        "marked" => TxnOutcome::Marked,
        "not_prepared" => TxnOutcome::NotPrepared,
        "finished" => TxnOutcome::Finished { covered: ranges(args.next_pos())?.remove(0) },
        "forgotten" => TxnOutcome::Forgotten,
        "out_of_range" => return Ok(Outcome::Refused(Refusal::OutOfRange)),
        "too_old" => return Ok(Outcome::Refused(Refusal::TooOld { age_ms: 600_001 })),
        "future" => return Ok(Outcome::Refused(Refusal::FutureId { seen: TXN.seen })),
        "refused_locked" => {
            return Ok(Outcome::Refused(Refusal::Locked(foreign_lock(args.next_pos().ok_or("no key")?))));
        }
        name => return Err(format!("no command {name}").into()),
    }))
}

fn status(args: &mut ArgumentConsumer<'_>) -> ScriptResult<TxnStatus> {
    Ok(match args.next_pos().ok_or("no status")? {
        "missing" => TxnStatus::Missing,
        "staging" => TxnStatus::Staging { listed: keys(args.next_pos()) },
        "committed" => TxnStatus::Committed {
            commit_ts: testing::timestamp(args.next_pos().ok_or("no timestamp")?)?,
            spans: ranges(args.next_pos())?,
        },
        _ => TxnStatus::Aborted,
    })
}

impl Runner for Edge {
    type Command = Command;

    fn run(&mut self, command: &Command, _context: &Context) -> ScriptResult<String> {
        let mut args = command.consume_args();
        let args = &mut args;
        let (actions, fate) = match command.name.as_str() {
            "shards" => {
                self.shards = cut(positions(args).into_iter());
                (Vec::new(), None)
            }
            "commit" => (self.commit(args)?, None),
            name @ ("recover" | "resume" | "inquire") => (self.other(name, args)?, None),
            "resend" => self.tell(Event::Resend),
            "give_up" => self.tell(Event::GiveUp),
            name => {
                let step = args.next_pos().ok_or("no step")?.parse()?;
                let event = match name {
                    "failed" => Event::Failed { step },
                    "moved" => Event::Moved { step, shards: cut(positions(args).into_iter()) },
                    "status" => Event::Status { step, status: status(args)? },
                    "looked" => {
                        Event::Looked { step, locked: args.next_pos().map(testing::timestamp).transpose()? }
                    }
                    name => Event::Outcome { step, outcome: outcome(name, args)? },
                };
                self.tell(event)
            }
        };
        args.reject_next()?;
        let mut out = String::new();
        for action in &actions {
            writeln!(out, "{}", show(action))?;
        }
        if let Some(fate) = fate {
            writeln!(out, "answer {fate}")?;
        }
        Ok(out)
    }
}

#[test]
fn scripts() {
    testing::run_scripts("src/txn/testscripts", || Edge {
        shards: cut(std::iter::empty()),
        machine: Machine::None,
    });
}
