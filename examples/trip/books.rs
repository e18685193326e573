//! The check at the end: what the ledgers of the services say must be what the sagas' outcomes say. Neither side knows of
//! the other, so that is no formality.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use kvorum::Client;
use kvorum::client::{SagaFilter, ScanOptions};
use serde::Deserialize;

use crate::Result;
use crate::customers::Ended;
use crate::havoc::{Plan, SERVICES};
use crate::ledger::{self, Entry};
use crate::worker::Names;

/// What a service's ledger says of a trip.
#[derive(Default)]
struct Account {
    /// The numbers and amounts of what was done, and not undone.
    standing: BTreeMap<String, u64>,
}

/// What a service's ledger says.
#[derive(Default)]
struct Book {
    trips: HashMap<String, Account>,
    again: usize,
    late: usize,
}

impl Book {
    fn read(path: &Path) -> Result<Self> {
        let mut book = Self::default();
        for line in ledger::read(path)?.0 {
            let account = book.trips.entry(line.trip).or_default();
            match line.entry {
                Entry::Done => drop(account.standing.insert(line.number, line.cents)),
                Entry::Undone => drop(account.standing.remove(&line.number)),
                Entry::Again => book.again += 1,
                Entry::Late => book.late += 1,
                Entry::Asked => {}
            }
        }
        Ok(book)
    }

    fn standing(&self, trip: &str) -> usize {
        self.trips.get(trip).map_or(0, |account| account.standing.len())
    }

    fn cents(&self, trip: &str) -> u64 {
        self.trips.get(trip).map_or(0, |account| account.standing.values().sum())
    }

    /// How many stand over all trips, and their amounts.
    fn total(&self) -> (usize, u64) {
        self.trips.values().fold((0, 0), |(count, cents), account| {
            (count + account.standing.len(), cents + account.standing.values().sum::<u64>())
        })
    }
}

/// All that is to be compared.
pub struct Books {
    services: [Book; 3],
    /// How often each trip was confirmed.
    mail: HashMap<String, usize>,
    /// How often each trip was settled in the store.
    settled: HashMap<String, i64>,
    /// The rows of orders, by their trips.
    orders: HashMap<String, String>,
    /// The outcome of each saga, by a list of all of them.
    listed: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Mail {
    trip: String,
}

impl Books {
    /// Reads all of it.
    pub async fn read(client: &Client, plan: &Plan) -> Result<Self> {
        let names = Names::new(&plan.run);
        let [flights, hotels, payments] = SERVICES.map(|name| Book::read(&plan.ledger(name)));
        let mut mail = HashMap::new();
        let sent = match std::fs::read_to_string(plan.mail()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            sent => sent?,
        };
        for line in sent.lines() {
            let line: Mail = serde_json::from_str(line)?;
            *mail.entry(line.trip).or_default() += 1;
        }
        let settled = rows(client, &names.settled("")).await?;
        let settled =
            settled.into_iter().map(|(trip, count)| Ok((trip, count.parse()?))).collect::<Result<_>>()?;
        let filter = SagaFilter { name: names.saga(), ..SagaFilter::default() };
        let listed =
            client.sagas(filter).all().await?.into_iter().map(|saga| (saga.id, saga.status)).collect();
        let orders = rows(client, &names.order("")).await?;
        Ok(Self { services: [flights?, hotels?, payments?], mail, settled, orders, listed })
    }

    /// All that is wrong; nothing where all is well.
    pub fn mismatches(&self, ended: &[Ended]) -> Vec<String> {
        let mut wrong = Vec::new();
        let [flights, hotels, payments] = &self.services;
        for trip in ended {
            let id = trip.id.as_str();
            let is_sold = trip.view.status == "completed";
            let mut expect = |what: &str, is: String, should: String| {
                if is != should {
                    wrong.push(format!("{id} is {}: {what} {is}, and should be {should}", trip.view.status));
                }
            };
            let closed = ["completed", "compensated", "cancelled"];
            if !closed.contains(&trip.view.status.as_str()) {
                expect("the saga's status is", trip.view.status.clone(), format!("one of {closed:?}"));
            }
            // Completed: one flight, one hotel, paid once. Else nothing of it stands, and nothing is paid.
            let count = if is_sold { "1" } else { "0" };
            expect("flights that stand:", flights.standing(id).to_string(), count.to_owned());
            expect("hotels that stand:", hotels.standing(id).to_string(), count.to_owned());
            expect("payments:", payments.standing(id).to_string(), count.to_owned());
            let cents = if is_sold { trip.cents } else { 0 };
            expect("cents paid:", payments.cents(id).to_string(), cents.to_string());
            let settled = self.settled.get(id).copied().unwrap_or(0);
            expect("times settled:", settled.to_string(), count.to_owned());
            let confirmed = self.mail.contains_key(id);
            expect("it was confirmed:", confirmed.to_string(), is_sold.to_string());
            let order = self
                .orders
                .get(id)
                .map_or("none", |order| if order.contains("sold") { "sold" } else { "open" });
            // What the start wrote is there still: it was written together with the start, or else there would be no city.
            let has_city = self.orders.get(id).is_some_and(|order| order.contains("\"city\""));
            expect("its order was written by its start:", has_city.to_string(), trip.has_order.to_string());
            let should = if is_sold {
                "sold"
            } else if trip.has_order {
                "open"
            } else {
                "none"
            };
            expect("its order is", order.to_owned(), should.to_owned());
            if trip.view.status == "cancelled" && !trip.asked_to_cancel {
                expect("asked to cancel:", "false".to_owned(), "true".to_owned());
            }
            // Whoever was told that it is cancelled did not travel, unless it was paid for at that very moment.
            let too_late = trip.history.iter().any(|line| line.what == "too_late_to_go_back");
            if trip.asked_to_cancel && is_sold {
                expect("it was too late to cancel it:", too_late.to_string(), "true".to_owned());
            }
            if !is_sold {
                expect("undone in the order", undone(trip).join(" "), in_order(trip).join(" "));
            }
            let listed = self.listed.get(id).map_or("not listed", String::as_str);
            expect("the list of sagas says", listed.to_owned(), trip.view.status.clone());
        }
        self.check_totals(ended, &mut wrong);
        wrong
    }

    /// The same over all, so that nothing hides under a trip that nobody knows.
    fn check_totals(&self, ended: &[Ended], wrong: &mut Vec<String>) {
        let sold: Vec<&Ended> = ended.iter().filter(|trip| trip.view.status == "completed").collect();
        for (name, book) in SERVICES.iter().zip(&self.services) {
            let (count, _) = book.total();
            if count != sold.len() {
                wrong.push(format!("{name}: {count} stand, though {} trips are completed", sold.len()));
            }
        }
        let (paid, due) = (self.services[2].total().1, sold.iter().map(|trip| trip.cents).sum::<u64>());
        if paid != due {
            wrong.push(format!("{paid} cents were paid, though the completed trips come to {due}"));
        }
        let known: HashSet<&str> = ended.iter().map(|trip| trip.id.as_str()).collect();
        wrong.extend(
            self.listed
                .keys()
                .filter(|id| !known.contains(id.as_str()))
                .map(|id| format!("{id} is in the list of sagas, though nobody started it")),
        );
    }

    /// What there is to be told, where all is well.
    pub fn summary(&self) -> String {
        let [flights, hotels, payments] = &self.services;
        let (again, late) =
            self.services.iter().fold((0, 0), |(again, late), book| (again + book.again, late + book.late));
        let cents = payments.total().1;
        format!(
            "{again} calls were known to have been made before, {late} were refused since they came too late\n{} flights and \
             {} hotels are booked, {} trips paid for with {}.{:02}, {} confirmations sent for {} trips",
            flights.total().0,
            hotels.total().0,
            payments.total().0,
            cents / 100,
            cents % 100,
            self.mail.values().sum::<usize>(),
            self.mail.len()
        )
    }
}

/// The steps that were undone, in the order in which they were.
fn undone(trip: &Ended) -> Vec<String> {
    let undone = trip.history.iter().filter(|line| line.what == "completed" && line.kind == "compensation");
    undone.map(|line| line.step.clone()).collect()
}

/// The same steps in the order in which they should be: the last stage first.
fn in_order(trip: &Ended) -> Vec<String> {
    let stage = |name: &String| trip.view.steps.iter().find(|step| step.name == *name).map(|step| step.stage);
    let mut steps = undone(trip);
    // Stays as it is among those of one stage.
    steps.sort_by_key(|name| std::cmp::Reverse(stage(name)));
    steps
}

/// Rows below a prefix, by what follows it.
async fn rows(client: &Client, prefix: &str) -> Result<HashMap<String, String>> {
    let mut scan = client.scan(ScanOptions::prefix(prefix));
    let mut rows = HashMap::new();
    while let Some(row) = scan.next().await {
        let row = row?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        rows.insert(text(&row.key[prefix.len()..]), text(&row.record.value));
    }
    Ok(rows)
}
