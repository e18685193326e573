//! Banks: money moves, and is neither made nor lost.

use std::collections::BTreeMap;

use super::bounds::{Addition, Bounds};
use super::verdict::Findings;
use super::{Checker, Options, Verdict, show};
use crate::history::{Call, F, History, Kind, Value};

const WRONG_TOTAL: &str = "wrong-total";
const NEGATIVE: &str = "negative-balance";
const WRONG_ACCOUNTS: &str = "wrong-accounts";
const WRONG_BALANCE: &str = "wrong-balance";

/// Checks `transfer` (money from one account to another) and `read` (the balances of all accounts in one
/// snapshot). The first `write` with a map of balances opens the accounts; reads that began before it ended
/// are left out. Where nobody knows whether and when it took effect, those that see no account are, up to the first
/// read that saw some.
///
/// - `wrong-total`: the balances of a read do not add up to the total.
/// - `negative-balance`: an account is below zero where that is not allowed.
/// - `wrong-accounts`: a read lacks an account, or has one more.
/// - `wrong-balance`: a balance that the transfers do not explain: a transfer that ended before the read began
///   is in it, one that began after the read ended is not, and each other one may be. Found only if the
///   history has the opening balances.
#[derive(Clone, Debug)]
pub struct Bank {
    options: Options,
}

type Balances = BTreeMap<String, i64>;

impl Bank {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        Bank { options }
    }
}

impl Checker for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        &[WRONG_TOTAL, NEGATIVE, WRONG_ACCOUNTS, WRONG_BALANCE]
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        let calls: Vec<Call<'_>> = history.calls().collect();
        let opening = opening(&calls);
        let snapshots: Vec<(&Call<'_>, &Balances)> =
            calls.iter().filter(|call| call.f() == F::Read).filter_map(snapshot).collect();
        let (begin, seen_at) = match opening {
            Some((call, _)) if call.is_ok() => (call.end, call.end),
            Some((call, _)) => {
                let seen = snapshots.iter().filter(|(_, balances)| !balances.is_empty());
                (call.start, seen.map(|(read, _)| read.end).min().unwrap_or(usize::MAX))
            }
            None => (0, 0),
        };
        let is_judged = |read: &Call<'_>, balances: &Balances| {
            read.start >= begin && (read.start >= seen_at || !balances.is_empty())
        };
        let reads: Vec<(&Call<'_>, &Balances)> =
            snapshots.into_iter().filter(|(read, balances)| is_judged(read, balances)).collect();
        if let Some((_, first)) = reads.first() {
            let model = opening.map_or(*first, |(_, balances)| balances);
            let total = self.options.total.unwrap_or_else(|| sum(model));
            findings.note(format!("All balances must add up to {total}."));
            for (read, balances) in &reads {
                self.check_read(read, balances, model, total, &mut findings);
            }
        }
        if let Some((_, balances)) = opening {
            check_balances(&calls, &reads, balances, &mut findings);
        }
        findings.need_success(history);
        findings.need("a successful read", reads.len() as u64, self.options.least_ok);
        findings.need("a successful transfer", findings.count(Kind::Ok, F::Transfer), self.options.least_ok);
        findings.verdict()
    }
}

fn opening<'a>(calls: &'a [Call<'a>]) -> Option<(&'a Call<'a>, &'a Balances)> {
    calls.iter().filter(|call| call.outcome() != Kind::Fail).find_map(|call| {
        match (call.f(), call.argument()) {
            (F::Write, Value::Balances(balances)) => Some((call, balances)),
            _ => None,
        }
    })
}

fn snapshot<'a>(call: &'a Call<'a>) -> Option<(&'a Call<'a>, &'a Balances)> {
    match call.answer()? {
        Value::Balances(balances) => Some((call, balances)),
        _ => None,
    }
}

fn sum(balances: &Balances) -> i64 {
    balances.values().fold(0, |sum, balance| sum.saturating_add(*balance))
}

impl Bank {
    fn check_read(
        &self,
        read: &Call<'_>,
        balances: &Balances,
        model: &Balances,
        total: i64,
        findings: &mut Findings,
    ) {
        if !balances.keys().eq(model.keys()) {
            findings.anomaly(WRONG_ACCOUNTS, || {
                let names: Vec<&str> = model.keys().map(String::as_str).collect();
                (read.indexes(), format!("{}\nThe accounts are {}.", show::call(read), names.join(", ")))
            });
        }
        let seen = sum(balances);
        if seen != total {
            findings.anomaly(WRONG_TOTAL, || {
                (
                    read.indexes(),
                    format!("{}\nThe balances add up to {seen}, not to {total}.", show::call(read)),
                )
            });
        }
        for (account, balance) in balances.iter().filter(|(_, balance)| **balance < 0) {
            if !self.options.allow_negative {
                findings.anomaly(NEGATIVE, || {
                    (read.indexes(), format!("{}\nAccount {account} is at {balance}.", show::call(read)))
                });
            }
        }
    }
}

/// Compares each balance with what the transfers allow.
fn check_balances(
    calls: &[Call<'_>],
    reads: &[(&Call<'_>, &Balances)],
    opening: &Balances,
    findings: &mut Findings,
) {
    let mut additions: BTreeMap<&str, Vec<Addition>> = BTreeMap::new();
    for call in calls.iter().filter(|call| call.f() == F::Transfer) {
        let Value::Transfer { from, to, amount } = call.argument() else { continue };
        for (account, delta) in [(from, amount.saturating_neg()), (to, *amount)] {
            additions.entry(account).or_default().extend(Addition::of(call, delta));
        }
    }
    for (account, opened) in opening {
        let bounds = Bounds::new(additions.get(account.as_str()).map_or(&[], Vec::as_slice));
        for (read, balances) in reads {
            let Some(balance) = balances.get(account) else { continue };
            let (low, high) = bounds.range(read.start, read.end);
            let (low, high) = (opened.saturating_add(low), opened.saturating_add(high));
            if *balance < low || *balance > high {
                findings.anomaly(WRONG_BALANCE, || {
                    let text = format!(
                        "{}\nAccount {account} is at {balance}, but by the transfers that ended before this read began, and those that were under way, it must be between {low} and {high}.",
                        show::call(read)
                    );
                    (read.indexes(), text)
                });
            }
        }
    }
}
