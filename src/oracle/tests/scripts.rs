//! Runs `src/oracle/testscripts`.

use std::fmt::Write as _;

use goldenscript::{ArgumentConsumer, Command, Context, Runner};

use crate::mvcc::testing::{self, ScriptResult};
use crate::oracle::{Oracle, PhysicalClock, PhysicalMs};
use crate::types::Timestamp;

/// One oracle and one clock.
struct Time {
    oracle: Oracle,
    clock: PhysicalClock,
}

/// A timestamp as `MILLISECONDS+LOGICAL`.
fn show(ts: Timestamp) -> String {
    match ts {
        Timestamp::MAX => "max".into(),
        ts => format!("{}+{}", ts.ms(), ts.logical()),
    }
}

/// `MILLISECONDS+LOGICAL`, `MILLISECONDS`, or `max`.
fn parse(text: &str) -> ScriptResult<Timestamp> {
    Ok(match text.split_once('+') {
        _ if text == "max" => Timestamp::MAX,
        Some((ms, logical)) => Timestamp::from_ms(ms.parse()?).plus(logical.parse()?),
        None => Timestamp::from_ms(text.parse()?),
    })
}

fn now(args: &mut ArgumentConsumer<'_>) -> ScriptResult<PhysicalMs> {
    Ok(PhysicalMs(testing::optional(args, "now")?.ok_or("no now")?))
}

/// `wall=MS mono=MS`, the wall clock counted from 2025.
fn clocks(args: &mut ArgumentConsumer<'_>) -> ScriptResult<(u64, u64)> {
    let wall: i64 = testing::optional(args, "wall")?.ok_or("no wall")?;
    let mono = testing::optional(args, "mono")?.ok_or("no mono")?;
    Ok((Timestamp::UNIX_OFFSET_MS.saturating_add_signed(wall), mono))
}

impl Runner for Time {
    type Command = Command;

    fn run(&mut self, command: &Command, _context: &Context) -> ScriptResult<String> {
        let mut args = command.consume_args();
        let mut out = String::new();
        match command.name.as_str() {
            "lead" => self.oracle = Oracle::new(parse(args.next_pos().ok_or("no ceiling")?)?),
            "cut" => {
                let count = args.next_pos().ok_or("no count")?.parse()?;
                match self.oracle.cut(now(&mut args)?, count) {
                    Ok(block) => {
                        write!(out, "{} from {}", block.count, show(block.first))?;
                        if let Some(last) = block.timestamps().last() {
                            write!(out, " to {}", show(last))?;
                        }
                    }
                    Err(need) => write!(out, "needs a ceiling of {}", show(need.at_least))?,
                }
            }
            "next" => match self.oracle.next_ceiling(now(&mut args)?) {
                Some(to) => write!(out, "raise to {}", show(to))?,
                None => write!(out, "no raise due")?,
            },
            "raised" => {
                self.oracle.raised(parse(args.next_pos().ok_or("no ceiling")?)?);
                write!(out, "ceiling {}", show(self.oracle.ceiling()))?;
            }
            "start" => {
                let (wall, mono) = clocks(&mut args)?;
                self.clock = PhysicalClock::new(wall, mono);
            }
            "not_before" => {
                let time = PhysicalMs(args.next_pos().ok_or("no time")?.parse()?);
                self.clock.not_before(time, testing::optional(&mut args, "mono")?.ok_or("no mono")?);
            }
            "read" => {
                let (wall, mono) = clocks(&mut args)?;
                let reading = self.clock.read(wall, mono);
                write!(out, "{}", reading.now.0)?;
                if let Some(jump) = reading.refused_jump_ms {
                    write!(out, ", refused a jump of {jump} ms")?;
                }
            }
            name => return Err(format!("no command {name}").into()),
        }
        args.reject_next()?;
        Ok(out)
    }
}

#[test]
fn scripts() {
    testing::run_scripts("src/oracle/testscripts", || Time {
        oracle: Oracle::new(Timestamp::ZERO),
        clock: PhysicalClock::new(Timestamp::UNIX_OFFSET_MS, 0),
    });
}
